"use strict";
// The page of runs: for each trace a chart of all allocators, and a small panel for each of them.

/** What one run held over time: stretches of events, and the most that was live and reserved in each. */
class RunSeries {
  constructor(about, columns, key) {
    Object.assign(this, about);
    for (const name of ["end", "live", "reserved"]) this[name] = columns[`${key}.${name}`];
  }

  /** The stretch that an event is in. */
  at(event) {
    return Math.min(this.end.length - 1, lastAtMost(this.end, event - 1) + 1);
  }

  get most() {
    return this.live.reduce((most, live, at) => Math.max(most, live, this.reserved[at]), 1);
  }
}

/** Trace steps over stretches of events; `closed` ones go down to the axis, for areas. */
function traceStretches(context, plot, end, values, y, closed = false) {
  context.beginPath();
  let from = 0;
  if (closed) context.moveTo(plot.x(0), y(0));
  values.forEach((value, at) => {
    context.lineTo(plot.x(from), y(value));
    from = end[at] + 1;
    context.lineTo(plot.x(from), y(value));
  });
  if (closed) context.lineTo(plot.x(from), y(0));
}

function fillStretches(context, plot, end, values, y, fill) {
  traceStretches(context, plot, end, values, y, true);
  context.fillStyle = fill;
  context.fill();
}

/** The peak of live memory: the least that an allocator can reserve. */
function drawPeak(context, palette, plot, at) {
  context.strokeStyle = palette.css("ink", 0.55);
  context.setLineDash([3, 3]);
  context.beginPath();
  context.moveTo(plot.left, at);
  context.lineTo(plot.right, at);
  context.stroke();
  resetPen(context);
}

function plotOf(events, margins) {
  const axis = { byClock: false, label: (event) => formatCount(event) };
  return new Plot({ axis, low: 0, high: Math.max(1, events) }, margins);
}

/** All allocators of a trace: what each reserved, over what the program held. */
class RunsChart {
  constructor(figure, chart, palette) {
    Object.assign(this, chart, { figure, palette });
    this.hidden = new Set();
    this.cursor = null;
    this.plot = plotOf(this.events, { left: 76, right: 16, top: 10, bottom: 40 });
    this.picture = new Picture(figure, {
      height: 380,
      label: `Live memory and the memory that ${this.series.length} allocators reserved for it`,
      paint: (context, ...size) => {
        this.plot.resize(...size);
        this.paint(context);
      },
    });
    hover(this.picture, this.plot, {
      move: (x) => this.tell(Math.floor(this.plot.positionAt(x))),
      leave: () => { this.cursor = null; },
    });
    this.picture.canvas.addEventListener("keydown", (event) => this.step(event));
    for (const key of figure.querySelectorAll("button.key")) {
      key.disabled = false;
      key.addEventListener("click", () => {
        const number = Number(key.dataset.series);
        const shown = this.hidden.delete(number) || !this.hidden.add(number);
        key.setAttribute("aria-pressed", String(shown));
        this.picture.draw();
      });
    }
  }

  get shown() {
    return this.series.filter((_, number) => !this.hidden.has(number));
  }

  paint(context) {
    const { palette, plot, wanted } = this;
    const most = 1.03 * Math.max(...this.series.map((series) => series.most));
    const y = (bytes) => plot.bottom - bytes / most * plot.height;
    drawTimeAxis(context, palette, plot);
    drawValueAxis(context, palette, plot, byteTicks(most, 6), y);
    fillStretches(context, plot, wanted.end, wanted.live, y, palette.css("live"));
    drawPeak(context, palette, plot, y(this.peak));
    for (const series of this.shown.sort((a, b) => b.slot - a.slot)) {  // ours last, on top
      linePen(context, palette, series.slot);
      traceStretches(context, plot, series.end, series.reserved, y);
      context.stroke();
    }
    resetPen(context);
    if (this.cursor !== null) drawCursor(context, palette, plot, this.cursor);
  }

  /** Show the most that was held in the stretch of an event. */
  tell(event) {
    const { wanted, palette } = this;
    this.cursor = Math.max(0, Math.min(this.events - 1, event));
    const stretch = wanted.at(this.cursor);
    const [first, last] = [stretch ? wanted.end[stretch - 1] + 1 : 0, wanted.end[stretch]];
    const title = first === last ? `event ${formatCount(first)}`
      : `events ${formatCount(first)} to ${formatCount(last)}, the most`;
    const rows = this.shown
      .map((series) => [series, series.reserved[series.at(this.cursor)]])
      .sort((a, b) => b[1] - a[1])
      .map(([series, bytes]) => tipRow(series.name, formatBytes(bytes), palette.css(`c${series.slot}`)));
    this.picture.showTip(this.plot.x(this.cursor), 4, element("p", {}, title), ...rows,
      tipRow("live", formatBytes(wanted.live[stretch]), palette.css("live")));
    this.picture.draw();
  }

  /** Values by the keyboard: the arrows step through the stretches, with Shift through a twentieth. */
  step(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === "Escape") {
      this.cursor = null;
      this.picture.hideTip();
      this.picture.draw();
    } else if (step) {
      event.preventDefault();
      const { end } = this.wanted;
      const at = this.cursor === null ? 0 : this.wanted.at(this.cursor) + step * (event.shiftKey ? Math.ceil(end.length / 20) : 1);
      this.tell(end[Math.max(0, Math.min(end.length - 1, at))]);
    }
  }
}

/** One run in small: what is reserved and not live is shaded. All panels of a trace have one scale. */
function runPanel(figure, chart, palette) {
  const series = chart.series[figure.dataset.series];
  const plot = plotOf(chart.events, { left: 0, right: 0, top: 4, bottom: 1 });
  const most = Math.max(...chart.series.map((one) => one.most));
  return new Picture(figure, {
    height: 124,
    label: `${series.name}: reserved memory over live memory`,
    paint(context, ...size) {
      plot.resize(...size);
      const y = (bytes) => plot.bottom - bytes / most * plot.height;
      fillStretches(context, plot, series.end, series.reserved, y, palette.css(`c${series.slot}`, 0.3));
      fillStretches(context, plot, series.end, series.live, y, palette.css("live"));
      context.strokeStyle = palette.css(`c${series.slot}`);
      context.lineWidth = 1.5;
      traceStretches(context, plot, series.end, series.reserved, y);
      context.stroke();
      drawPeak(context, palette, plot, y(series.peak));
    },
  });
}

async function openRuns() {
  const about = JSON.parse(byId("about").textContent);
  const columns = unpackColumns(await inflated(fromBase64(byId("columns").textContent)), about.columns);
  const palette = new Palette();
  const pictures = about.charts.flatMap((of, number) => {
    const series = of.series.map((one, index) => new RunSeries(one, columns, `${number}.${index}`));
    const chart = { ...of, series, wanted: series[of.wanted] };
    if (!chart.wanted.end.length) return [];
    return [
      new RunsChart(document.querySelector(`figure.chart[data-chart="${number}"]`), chart, palette).picture,
      ...Array.from(document.querySelectorAll(`figure.panel[data-chart="${number}"]`), (figure) => runPanel(figure, chart, palette)),
    ];
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    palette.forget();
    pictures.forEach((picture) => picture.draw());
  });
  requestAnimationFrame(() => requestAnimationFrame(() => { document.documentElement.dataset.ready = "true"; }));
}

openRuns().catch(showProblem);
