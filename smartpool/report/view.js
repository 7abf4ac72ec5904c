"use strict";
// The stretch of time that all pictures of a page show, and the ways to move it.

/** Events on an axis: by their numbers, or by the clock. */
class Axis {
  constructor(times) {
    this.times = times;
    this.events = times.length;
    this.byClock = false;
    this.numbers = Float64Array.from({ length: this.events + 1 }, (_, i) => i);
    this.clock = new Float64Array(this.events + 1);
    this.clock.set(times);
    this.clock[this.events] = this.events ? times[this.events - 1] + 1 : 1;
  }

  /** Where each event begins; one more entry for the end. */
  get positions() {
    return this.byClock ? this.clock : this.numbers;
  }

  get length() {
    return Math.max(1, this.positions[this.events]);
  }

  /** The event that is the last one to have begun at a position. */
  eventAt(position) {
    return Math.max(0, Math.min(this.events - 1, lastAtMost(this.positions, position)));
  }

  label(position, most, step) {
    return this.byClock ? formatTick(position, most, step) : formatCount(position);
  }

  span(low, high) {
    return this.byClock ? formatMicroseconds(high - low) : `${formatCount(high - low)} events`;
  }
}

class View {
  constructor(axis) {
    this.axis = axis;
    this.low = 0;
    this.high = axis.length;
    this.watchers = [];
  }

  get whole() {
    return this.low <= 0 && this.high >= this.axis.length;
  }

  set(low, high) {
    const length = this.axis.length;
    const span = Math.min(length, Math.max(high - low, Math.min(length, this.axis.byClock ? 10 : 8)));
    const from = Math.max(0, Math.min((low + high - span) / 2, length - span));
    this.low = from;
    this.high = from + span;
    this.changed();
  }

  reset() {
    this.set(0, this.axis.length);
  }

  /** Zoom by a factor around a position, which stays where it is. */
  zoom(factor, around = (this.low + this.high) / 2) {
    this.set(around - (around - this.low) * factor, around + (this.high - around) * factor);
  }

  pan(share) {
    const shift = share * (this.high - this.low);
    const within = Math.max(-this.low, Math.min(shift, this.axis.length - this.high));
    this.set(this.low + within, this.high + within);
  }

  /** Show the same events on the other axis. */
  switchAxis(byClock) {
    const first = this.axis.eventAt(this.low);
    const last = this.axis.eventAt(this.high);
    const whole = this.whole;
    this.axis.byClock = byClock;
    if (whole) this.reset();
    else this.set(this.axis.positions[first], this.axis.positions[last + 1]);
  }

  changed() {
    for (const watcher of this.watchers) watcher();
  }
}

/** The rectangle of a picture in which data is drawn. */
class Plot {
  constructor(view, { left, right, top, bottom }) {
    Object.assign(this, { view, left, top, margins: { left, right, top, bottom } });
  }

  resize(width, height) {
    this.width = Math.max(1, width - this.margins.left - this.margins.right);
    this.height = Math.max(1, height - this.margins.top - this.margins.bottom);
    this.right = this.left + this.width;
    this.bottom = this.top + this.height;
  }

  x(position) {
    return this.left + (position - this.view.low) / (this.view.high - this.view.low) * this.width;
  }

  positionAt(x) {
    return this.view.low + (x - this.left) / this.width * (this.view.high - this.view.low);
  }

  holds(x, y) {
    return x >= this.left && x < this.right && y >= this.top && y < this.bottom;
  }

  /** The events of each column of pixels: `from[c]` to `from[c + 1]`, and at least the one under way. */
  columns() {
    const count = Math.round(this.width);
    const { axis, low, high } = this.view;
    const from = new Int32Array(count + 1);
    for (let column = 0; column <= count; column++) {
      from[column] = lastAtMost(axis.positions, low + column / count * (high - low), axis.events);
    }
    return from;
  }
}

/**
 * Let the pointer and the keys of a picture move the view: drag, wheel with Ctrl, + and -, arrows,
 * Home. `vertical`, where given, is a second view that drags and Shift with the wheel move.
 */
function navigate(picture, plot, { vertical = null, click = () => {} } = {}) {
  const { canvas } = picture;
  const { view } = plot;
  let drag = null;
  canvas.addEventListener("wheel", (event) => {
    const [x, y] = picture.at(event);
    const factor = Math.exp(Math.max(-1, Math.min(1, event.deltaY / 300)));
    if (event.ctrlKey || event.metaKey) view.zoom(factor, plot.positionAt(x));
    else if (event.altKey && vertical) vertical.zoom(factor, plot.valueAt(y));
    else if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) view.pan(event.deltaX / plot.width);
    else return;
    event.preventDefault();
  }, { passive: false });
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    canvas.setPointerCapture(event.pointerId);
    drag = { x: event.clientX, y: event.clientY, moved: false };
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!drag) return;
    const [across, down] = [event.clientX - drag.x, event.clientY - drag.y];
    if (!drag.moved && Math.hypot(across, down) < 4) return;
    drag = { x: event.clientX, y: event.clientY, moved: true };
    canvas.classList.add("dragged");
    if (across) view.pan(-across / plot.width);
    if (vertical && down) vertical.pan(down / plot.height);
  });
  const drop = (event) => {
    canvas.classList.remove("dragged");
    if (drag && !drag.moved && event.type === "pointerup") click(...picture.at(event));
    drag = null;
  };
  canvas.addEventListener("pointerup", drop);
  canvas.addEventListener("pointercancel", drop);
  canvas.addEventListener("dblclick", (event) => view.zoom(0.4, plot.positionAt(picture.at(event)[0])));
  canvas.addEventListener("keydown", (event) => {
    const step = event.shiftKey ? 0.5 : 0.1;
    const actions = {
      "+": () => view.zoom(0.6), "=": () => view.zoom(0.6), "-": () => view.zoom(1 / 0.6), "0": () => view.reset(),
      Home: () => view.reset(), ArrowLeft: () => view.pan(-step), ArrowRight: () => view.pan(step),
      ...(vertical && {
        ArrowUp: () => vertical.pan(step), ArrowDown: () => vertical.pan(-step),
        PageUp: () => vertical.zoom(0.6), PageDown: () => vertical.zoom(1 / 0.6),
      }),
    };
    if (!actions[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    actions[event.key]();
  });
}

/** Lines and labels along the time axis. */
function drawTimeAxis(context, palette, plot, name = true) {
  const { axis, low, high } = plot.view;
  context.font = "12px system-ui, sans-serif";
  context.textAlign = "center";
  context.textBaseline = "top";
  context.strokeStyle = palette.css("rule");
  context.fillStyle = palette.css("soft");
  const ticks = roundTicks(low, high, Math.max(2, plot.width / 130));
  for (const tick of ticks) {
    const x = Math.round(plot.x(tick)) + 0.5;
    context.beginPath();
    context.moveTo(x, plot.top);
    context.lineTo(x, plot.bottom + 4);
    context.stroke();
    context.fillText(axis.label(tick, high, ticks[1] - ticks[0] || 1), Math.max(plot.left, Math.min(x, plot.right - 12)), plot.bottom + 7);
  }
  if (name) {
    context.textAlign = "right";
    context.fillText(axis.byClock ? "time" : "event", plot.right, plot.bottom + 22);
  }
}

/** The moment that was chosen, as a line with a mark. */
function drawMoment(context, palette, plot, position) {
  const x = Math.round(plot.x(position)) + 0.5;
  if (x < plot.left || x > plot.right) return;
  context.strokeStyle = palette.css("ink", 0.75);
  context.fillStyle = palette.css("ink", 0.9);
  context.beginPath();
  context.moveTo(x, plot.top);
  context.lineTo(x, plot.bottom);
  context.stroke();
  context.beginPath();
  context.moveTo(x - 5, plot.top - 1);
  context.lineTo(x + 5, plot.top - 1);
  context.lineTo(x, plot.top + 6);
  context.fill();
}

/** Where the pointer is, as a thin line. */
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

/** The event under the pointer: the one of its column of pixels at which most is live. */
function eventUnder(data, plot, x) {
  const { axis, low, high } = plot.view;
  const step = (high - low) / plot.width;
  const from = axis.eventAt(plot.positionAt(x));
  return data.highest.within(from, Math.max(from + 1, axis.eventAt(plot.positionAt(x) + step)));
}
