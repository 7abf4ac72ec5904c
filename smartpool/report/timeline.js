"use strict";
// The pictures of memory and of fragmentation over time.

/** The event under the pointer: the one of its column of pixels at which most is live. */
function eventUnder(data, plot, x) {
  const { axis, low, high } = plot.view;
  const step = (high - low) / plot.width;
  const from = axis.eventAt(plot.positionAt(x));
  return data.highest.within(from, Math.max(from + 1, axis.eventAt(plot.positionAt(x) + step)));
}

function timeline(data, view, choice, palette) {
  const plot = new Plot(view, { left: 76, right: 16, top: 10, bottom: 40 });
  const groupings = new Map();
  const select = byId("time-group");
  const grouping = () => {
    if (!groupings.has(select.value)) {
      const made = new Grouping(data, select.value);
      made.layers = made.names.map((_, name) => liveAfterEvents(data.events, data.start, data.end, data.size,
        (number) => made.nameOf(made.all[number]) === name));
      groupings.set(select.value, made);
    }
    return groupings.get(select.value);
  };
  let cursor = null;
  let y = null;
  const picture = new Picture(byId("timeline"), {
    height: 380,
    label: "Live memory over time, and what each allocator reserved for it; the tables below say the same in figures",
    paint(context, width, height) {
      plot.resize(width, height);
      const shown = data.replayed.filter(({ name }) => !choice.hidden.has(name));
      const most = Math.max(data.live[data.peak], ...shown.map(({ reserved }) => reserved.most), 1) * 1.03;
      y = (bytes) => plot.bottom - bytes / most * plot.height;
      drawTimeAxis(context, palette, plot);
      drawValueAxis(context, palette, plot, byteTicks(most, 6), y);
      context.save();
      context.beginPath();
      context.rect(plot.left, plot.top - 2, plot.width, plot.height + 3);
      context.clip();
      const groups = grouping();
      const layers = groups.layers.map((values, group) => ({ values, fill: palette.css(groups.colors[group], 0.85) }));
      paintStack(context, plot, highestOfColumns(plot, data.highest), layers, y);
      for (const layout of [...shown].reverse()) {
        linePen(context, palette, layout.slot);
        stepPath(context, plot, layout.reserved, y);
      }
      resetPen(context);
      drawMoment(context, palette, plot, data.axis.positions[choice.moment]);
      context.restore();
      if (cursor !== null) drawCursor(context, palette, plot, data.axis.positions[cursor]);
    },
  });
  const tell = (event) => {
    cursor = event;
    const groups = grouping();
    const rows = groups.layers
      .map((values, group) => [groups.names[group], values[event], groups.colors[group]])
      .filter(([, bytes]) => bytes > 0)
      .map(([name, bytes, color]) => tipRow(name, formatBytes(bytes), palette.css(color)));
    const lines = data.replayed
      .filter(({ name }) => !choice.hidden.has(name))
      .map((layout) => [layout, layout.reserved.at(event)])
      .sort((a, b) => b[1] - a[1])
      .map(([layout, bytes]) => tipRow(layout.title, formatBytes(bytes), palette.css(`c${layout.slot}`)));
    picture.showTip(plot.x(data.axis.positions[event]), 4,
      element("p", {}, `event ${formatCount(event)}, at ${formatMicroseconds(data.time[event])}`),
      ...lines, tipRow("live", formatBytes(data.live[event])), ...rows);
    picture.draw();
  };
  hover(picture, plot, { move: (x) => tell(eventUnder(data, plot, x)), leave: () => { cursor = null; } });
  stepByKeys(picture, data, view, () => cursor ?? choice.moment, tell, (event) => choice.set({ moment: event }));
  navigate(picture, plot, { click: (x) => choice.set({ moment: eventUnder(data, plot, x) }) });
  const relabel = () => {
    const groups = grouping();
    byId("time-legend").replaceChildren(...groups.names.map((name, group) => swatchKey(name, groups.colors[group])));
    picture.draw();
  };
  select.addEventListener("change", relabel);
  relabel();
  return picture;
}

function fragmentation(data, view, choice, palette) {
  const plot = new Plot(view, { left: 76, right: 16, top: 10, bottom: 40 });
  const select = byId("fragmentation-kind");
  const peakSoFar = data.live.slice();
  for (let i = 1; i < peakSoFar.length; i++) peakSoFar[i] = Math.max(peakSoFar[i], peakSoFar[i - 1]);
  for (const layout of data.replayed) {
    const most = layout.reserved.value.slice();
    for (let i = 1; i < most.length; i++) most[i] = Math.max(most[i], most[i - 1]);
    layout.mostSoFar = new Steps(layout.reserved.change, most);
  }
  const shareAt = (layout, event) => {
    const soFar = select.value === "run";
    const reserved = (soFar ? layout.mostSoFar : layout.reserved).at(event);
    return reserved ? Math.max(0, 1 - (soFar ? peakSoFar : data.live)[event] / reserved) : 0;
  };
  let cursor = null;
  const picture = new Picture(byId("fragmentation"), {
    height: 260,
    label: "Fragmentation over time by allocator",
    paint(context, width, height) {
      plot.resize(width, height);
      const events = highestOfColumns(plot, data.highest);
      const curves = data.replayed
        .filter(({ name }) => !choice.hidden.has(name))
        .map((layout) => [layout, Array.from(events, (event) => shareAt(layout, event))]);
      const most = Math.min(1, Math.max(0.05, ...curves.map(([, shares]) => Math.max(...shares))) * 1.08);
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
      drawMoment(context, palette, plot, data.axis.positions[choice.moment]);
      if (cursor !== null) drawCursor(context, palette, plot, data.axis.positions[cursor]);
    },
  });
  const tell = (event) => {
    cursor = event;
    const rows = data.replayed
      .filter(({ name }) => !choice.hidden.has(name))
      .map((layout) => [layout, shareAt(layout, event)])
      .sort((a, b) => b[1] - a[1])
      .map(([layout, share]) => tipRow(layout.title, formatShare(share), palette.css(`c${layout.slot}`)));
    picture.showTip(plot.x(data.axis.positions[event]), 4,
      element("p", {}, `event ${formatCount(event)}, at ${formatMicroseconds(data.time[event])}`), ...rows);
    picture.draw();
  };
  hover(picture, plot, { move: (x) => tell(eventUnder(data, plot, x)), leave: () => { cursor = null; } });
  stepByKeys(picture, data, view, () => cursor ?? choice.moment, tell, (event) => choice.set({ moment: event }));
  navigate(picture, plot, { click: (x) => choice.set({ moment: eventUnder(data, plot, x) }) });
  select.addEventListener("change", () => picture.draw());
  return picture;
}

function drawCursor(context, palette, plot, position) {
  const x = Math.round(plot.x(position)) + 0.5;
  if (x < plot.left || x > plot.right) return;
  context.strokeStyle = palette.css("ink", 0.5);
  context.beginPath();
  context.moveTo(x, plot.top);
  context.lineTo(x, plot.bottom);
  context.stroke();
}

/** Call `move` with the pointer's place in the plot, and `leave` where it is elsewhere. */
function hover(picture, plot, { move, leave }) {
  const out = () => {
    leave();
    picture.hideTip();
    picture.draw();
  };
  picture.canvas.addEventListener("pointermove", (event) => {
    const [x, y] = picture.at(event);
    if (plot.holds(x, y) && !event.buttons) move(x, y);
    else out();
  });
  picture.canvas.addEventListener("pointerleave", out);
  picture.canvas.addEventListener("blur", out);
}

/** Values by the keyboard: comma and full stop step through what can be seen, Enter chooses the moment. */
function stepByKeys(picture, data, view, where, tell, choose) {
  picture.canvas.addEventListener("keydown", (event) => {
    const { axis } = view;
    const first = axis.eventAt(view.low);
    const last = axis.eventAt(view.high);
    const stride = Math.max(1, Math.round((last - first) / 100));
    const step = { ",": -stride, ".": stride, "<": -1, ">": 1 }[event.key];
    if (step) tell(Math.max(first, Math.min(last, where() + step)));
    else if (event.key === "Enter") choose(where());
    else if (event.key === "Escape") picture.hideTip();
    else return;
    event.preventDefault();
  });
}
