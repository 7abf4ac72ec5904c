"use strict";
// The pictures of memory and of fragmentation over time.

/** A picture with time across: axes, the moment, a cursor with a tip, and the ways to move around. */
class CurvePicture {
  constructor(page, id, { height, label }) {
    Object.assign(this, page);
    this.plot = new Plot(page.view, { left: 76, right: 16, top: 10, bottom: 40 });
    this.cursor = null;  // the event that the tip tells of
    this.picture = new Picture(byId(id), {
      height,
      label,
      paint: (context, ...size) => {
        this.plot.resize(...size);
        this.paint(context);
        const { positions } = this.data.axis;
        drawMoment(context, this.palette, this.plot, positions[this.choice.moment]);
        if (this.cursor !== null) drawCursor(context, this.palette, this.plot, positions[this.cursor]);
      },
    });
    hover(this.picture, this.plot, {
      move: (x) => this.tell(eventUnder(this.data, this.plot, x)),
      leave: () => { this.cursor = null; },
    });
    navigate(this.picture, this.plot, {
      click: (x) => this.choice.set({ moment: eventUnder(this.data, this.plot, x) }),
    });
    this.picture.canvas.addEventListener("keydown", (event) => this.step(event));
  }

  /** The allocators whose lines are shown. */
  get shown() {
    return this.data.replayed.filter(({ name }) => !this.choice.hidden.has(name));
  }

  draw() {
    this.picture.draw();
  }

  /** Show the values after an event. */
  tell(event) {
    const { data, plot } = this;
    this.cursor = event;
    const title = `event ${formatCount(event)}, at ${formatMicroseconds(data.time[event])}`;
    this.picture.showTip(plot.x(data.axis.positions[event]), 4, element("p", {}, title), ...this.rows(event));
    this.draw();
  }

  /** A row a shown allocator, by `value`, the largest first. */
  allocatorRows(value, text) {
    return this.shown
      .map((layout) => [layout, value(layout)])
      .sort((a, b) => b[1] - a[1])
      .map(([layout, of]) => tipRow(layout.title, text(of), this.palette.css(`c${layout.slot}`)));
  }

  /** Values by the keyboard: comma and full stop step through what is in view, Enter chooses the moment. */
  step(event) {
    const { axis, low, high } = this.view;
    const [first, last] = [axis.eventAt(low), axis.eventAt(high)];
    const stride = Math.max(1, Math.round((last - first) / 100));
    const step = { ",": -stride, ".": stride, "<": -1, ">": 1 }[event.key];
    const at = this.cursor ?? this.choice.moment;
    if (step) this.tell(Math.max(first, Math.min(last, at + step)));
    else if (event.key === "Enter") this.choice.set({ moment: at });
    else if (event.key === "Escape") this.picture.hideTip();
    else return;
    event.preventDefault();
  }
}

/** Live memory stacked by a property, under the lines of what allocators reserved. */
class Timeline extends CurvePicture {
  constructor(page) {
    super(page, "timeline", {
      height: 380,
      label: "Live memory over time, and what each allocator reserved for it; the table below says the same",
    });
    this.select = byId("time-group");
    this.groupings = new Map();
    this.select.addEventListener("change", () => this.relabel());
    this.relabel();
  }

  get grouping() {
    const kind = this.select.value;
    if (!this.groupings.has(kind)) {
      const { data } = this;
      const made = new Grouping(data, kind);
      made.layers = made.names.map((_, name) => liveAfterEvents(data.events, data.start, data.end, data.size,
        (number) => made.nameOf(made.all[number]) === name));
      this.groupings.set(kind, made);
    }
    return this.groupings.get(kind);
  }

  relabel() {
    const { names, colors } = this.grouping;
    byId("time-legend").replaceChildren(...names.map((name, group) => swatchKey(name, colors[group])));
    this.draw();
  }

  paint(context) {
    const { data, palette, plot, shown } = this;
    const most = 1.03 * Math.max(data.live[data.peak], ...shown.map(({ reserved }) => reserved.most), 1);
    const y = (bytes) => plot.bottom - bytes / most * plot.height;
    drawTimeAxis(context, palette, plot);
    drawValueAxis(context, palette, plot, byteTicks(most, 6), y);
    const { layers, colors } = this.grouping;
    const filled = layers.map((values, group) => ({ values, fill: palette.css(colors[group], 0.85) }));
    paintStack(context, plot, highestOfColumns(plot, data.highest), filled, y);
    for (const layout of shown.reverse()) {  // ours last, on top
      linePen(context, palette, layout.slot);
      stepPath(context, plot, layout.reserved, y);
    }
    resetPen(context);
  }

  rows(event) {
    const { layers, names, colors } = this.grouping;
    const held = layers
      .map((values, group) => [names[group], values[event], colors[group]])
      .filter(([, bytes]) => bytes > 0)
      .map(([name, bytes, color]) => tipRow(name, formatBytes(bytes), this.palette.css(color)));
    return [
      ...this.allocatorRows((layout) => layout.reserved.at(event), formatBytes),
      tipRow("live", formatBytes(this.data.live[event])), ...held,
    ];
  }
}

/** The share of reserved memory that is not live, of each allocator: now, or of the run so far. */
class FragmentationCurves extends CurvePicture {
  constructor(page) {
    super(page, "fragmentation", { height: 260, label: "Fragmentation over time by allocator" });
    this.select = byId("fragmentation-kind");
    this.peakSoFar = runningMost(this.data.live);
    this.mostSoFar = new Map(this.data.replayed.map((layout) =>
      [layout, new Steps(layout.reserved.change, runningMost(layout.reserved.value))]));
    this.select.addEventListener("change", () => this.draw());
  }

  shareAt(layout, event) {
    const soFar = this.select.value === "run";
    const live = (soFar ? this.peakSoFar : this.data.live)[event];
    const reserved = (soFar ? this.mostSoFar.get(layout) : layout.reserved).at(event);
    return reserved ? Math.max(0, 1 - live / reserved) : 0;
  }

  paint(context) {
    const { palette, plot } = this;
    const events = highestOfColumns(plot, this.data.highest);
    const curves = this.shown.map((layout) => [layout, Array.from(events, (event) => this.shareAt(layout, event))]);
    const most = Math.min(1, 1.08 * Math.max(0.05, ...curves.map(([, shares]) => Math.max(...shares))));
    const y = (share) => plot.bottom - share / most * plot.height;
    const ticks = roundTicks(0, most * 100, 5).map((value) => ({ value: value / 100, label: `${value} %` }));
    drawTimeAxis(context, palette, plot);
    drawValueAxis(context, palette, plot, ticks, y);
    for (const [layout, shares] of curves.reverse()) {
      linePen(context, palette, layout.slot);
      context.beginPath();
      shares.forEach((share, column) => context.lineTo(plot.left + column + 0.5, y(share)));
      context.stroke();
    }
    resetPen(context);
  }

  rows(event) {
    return this.allocatorRows((layout) => this.shareAt(layout, event), formatShare);
  }
}
