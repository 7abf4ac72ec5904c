"use strict";
// Curves over time: live memory stacked by a property, what allocators reserved, how fragmented they were.

const LINE_DASHES = [[], [], [7, 3], [2, 3], [9, 3, 2, 3], [4, 2], [12, 4], [6, 2, 2, 2]];

/** A step series that changes at some events only. */
class Steps {
  constructor(change, value) {
    this.change = change;
    this.value = value;
  }

  at(event) {
    const index = lastAtMost(this.change, event);
    return index < 0 ? 0 : this.value[index];
  }

  get most() {
    return this.value.reduce((most, value) => Math.max(most, value), 0);
  }
}

/** Trace a step line through [event, value] pairs that lie in the view. */
function stepPath(context, plot, steps, y) {
  const { positions } = plot.view.axis;
  const first = Math.max(0, lastAtMost(steps.change, plot.view.axis.eventAt(plot.view.low)));
  context.beginPath();
  let begun = false;
  for (let i = first; i < steps.change.length; i++) {
    const x = plot.x(positions[steps.change[i]]);
    if (x > plot.right) break;
    const at = y(steps.value[i]);
    if (!begun) {
      context.moveTo(Math.max(plot.left, x), i && x > plot.left ? y(steps.value[i - 1]) : at);
      if (!i && x > plot.left) context.moveTo(x, y(0));
      begun = true;
    } else {
      context.lineTo(x, y(steps.value[i - 1]));
    }
    context.lineTo(Math.max(plot.left, x), at);
  }
  if (!begun) return;
  const last = Math.max(0, lastAtMost(steps.change, plot.view.axis.eventAt(plot.view.high)));
  context.lineTo(plot.right, y(steps.value[last]));
  context.stroke();
}

/** Set pen and dash for an allocator's line: one look in every part of the page. */
function linePen(context, palette, slot) {
  context.strokeStyle = palette.css(`c${slot}`);
  context.lineWidth = slot === 0 ? 2.75 : 1.75;
  context.setLineDash(LINE_DASHES[slot]);
}

function resetPen(context) {
  context.lineWidth = 1;
  context.setLineDash([]);
}

/** The event of each column at which most is live. */
function highestOfColumns(plot, highest) {
  const from = plot.columns();
  const events = new Int32Array(from.length - 1);
  for (let column = 0; column < events.length; column++) {
    const begin = Math.max(0, from[column]);
    events[column] = highest.within(begin, Math.max(begin + 1, from[column + 1]));
  }
  return events;
}

/** Paint stacked areas: each layer from the top of the one below, one column of pixels wide steps. */
function paintStack(context, plot, events, layers, y) {
  const base = new Float64Array(events.length);
  for (const { values, fill } of layers) {
    context.beginPath();
    context.moveTo(plot.left, y(base[0]));
    const tops = base.map((low, column) => low + values[events[column]]);
    for (let column = 0; column < events.length; column++) {
      context.lineTo(plot.left + column, y(tops[column]));
      context.lineTo(plot.left + column + 1, y(tops[column]));
    }
    for (let column = events.length - 1; column >= 0; column--) {
      context.lineTo(plot.left + column + 1, y(base[column]));
      context.lineTo(plot.left + column, y(base[column]));
    }
    context.fillStyle = fill;
    context.fill();
    base.set(tops);
  }
}
