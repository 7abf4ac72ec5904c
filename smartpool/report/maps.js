"use strict";
// Maps: time across, memory upward, each block a rectangle; an allocator's beside the plan's.

/** The stretch of addresses that a map shows. */
class Addresses {
  constructor() {
    this.watchers = [];
    this.rescale(1);
  }

  /** Show everything up to `span`, and no more from now on. */
  rescale(span) {
    this.span = Math.max(1, span);
    this.set(0, this.span);
  }

  set(low, high) {
    const size = Math.min(this.span, Math.max(high - low, Math.min(this.span, 4096)));
    this.low = Math.max(0, Math.min((low + high - size) / 2, this.span - size));
    this.high = this.low + size;
    for (const watcher of this.watchers) watcher();
  }

  zoom(factor, around = (this.low + this.high) / 2) {
    this.set(around - (around - this.low) * factor, around + (this.high - around) * factor);
  }

  pan(share) {
    const shift = share * (this.high - this.low);
    const within = Math.max(-this.low, Math.min(shift, this.span - this.high));
    this.set(this.low + within, this.high + within);
  }
}

function memoryMap(data, view, choice, palette, { figure, layout, colors, addresses }) {
  const plot = new Plot(view, { left: 76, right: 16, top: 8, bottom: 40 });
  let raster = null;
  let shown = null;
  const y = (address) => plot.bottom - (address - addresses.low) / (addresses.high - addresses.low) * plot.height;
  plot.valueAt = (at) => addresses.low + (plot.bottom - at) / plot.height * (addresses.high - addresses.low);

  const paintBlocks = (context) => {
    const { scale } = picture;
    const [width, height] = [Math.round(plot.width * scale), Math.round(plot.height * scale)];
    if (!raster || raster.width !== width || raster.height !== height) raster = new Raster(width, height);
    raster.clear();
    const { positions } = data.axis;
    const perPosition = width / (view.high - view.low);
    const perByte = height / (addresses.high - addresses.low);
    const x = (event) => (positions[event] - view.low) * perPosition;
    const down = (address) => height - (address - addresses.low) * perByte;
    const image = context.createImageData(width, height);
    paintHeld(image, shown, x, down);
    const groups = colors();
    const group = groups.all;
    const tints = groups.colors.map((name) => palette.rgb(name));
    const faded = palette.rgb("faded");
    const shows = choice.focus?.has ?? (() => true);
    const { number, low, high } = shown;
    for (let row = 0; row < number.length; row++) {
      const of = number[row];
      const left = x(data.start[of]);
      const right = x(data.end[of]);
      if (right < 0 || left > width || high[row] < addresses.low || low[row] > addresses.high) continue;
      raster.add(left, down(high[row]), right, down(low[row]), shows(of) ? tints[group[of]] : faded, true);
    }
    raster.blend(image.data);
    context.putImageData(image, Math.round(plot.left * scale), Math.round(plot.top * scale));
  };
  /** Ground: nothing where there was no memory, a tint where it was held. */
  const paintHeld = (image, { held }, x, down) => {
    const words = new Uint32Array(image.data.buffer);
    const [ground, tint] = ["surface", "held"].map((name) => {
      const [red, green, blue] = palette.rgb(name);
      return (255 << 24 | blue << 16 | green << 8 | red) >>> 0;
    });
    words.fill(ground);
    for (let row = 0; row < held.start.length; row++) {
      const left = Math.max(0, Math.round(x(held.start[row])));
      const right = Math.min(image.width, Math.round(x(held.end[row])));
      const top = Math.max(0, Math.round(down(held.high[row])));
      const bottom = Math.min(image.height, Math.round(down(held.low[row])));
      for (let line = top; line < bottom && left < right; line++) {
        words.fill(tint, line * image.width + left, line * image.width + right);
      }
    }
  };
  const outline = (context, number, color, width) => {
    if (number < 0) return;
    const { positions } = data.axis;
    context.strokeStyle = color;
    context.lineWidth = width;
    for (let row = 0; row < shown.number.length; row++) {
      if (shown.number[row] !== number) continue;
      const left = plot.x(positions[data.start[number]]);
      const right = plot.x(positions[data.end[number]]);
      const [top, bottom] = [y(shown.high[row]), y(shown.low[row])];
      context.strokeRect(left - 1, top - 1, Math.max(2, right - left) + 2, Math.max(2, bottom - top) + 2);
    }
    context.lineWidth = 1;
  };
  const picture = new Picture(figure, {
    height: 420,
    label: "Time across, memory upward: each block is a rectangle",
    paint(context, width, height) {
      plot.resize(width, height);
      shown = layout();
      drawTimeAxis(context, palette, plot);
      const ticks = roundAddresses(addresses.low, addresses.high);
      drawValueAxis(context, palette, plot, ticks, y);
      paintBlocks(context);
      context.save();
      context.beginPath();
      context.rect(plot.left, plot.top, plot.width, plot.height);
      context.clip();
      outline(context, choice.block, palette.css("ink"), 2);
      outline(context, choice.hovered, palette.css("ink"), 1.5);
      drawMoment(context, palette, plot, data.axis.positions[choice.moment]);
      context.restore();
    },
  });
  const under = (x, at) => {
    const { positions } = data.axis;
    const event = data.axis.eventAt(plot.positionAt(x));
    const perPixel = data.axis.eventAt(plot.positionAt(x + 1)) - event;
    const bytes = (addresses.high - addresses.low) / plot.height;
    shown.rows ??= {
      start: shown.number.map((number) => data.start[number]), end: shown.number.map((number) => data.end[number]),
      low: shown.low, high: shown.high,
    };
    const row = rowAt(shown.rows, event, plot.valueAt(at), Math.max(0.5, perPixel), bytes);
    return row < 0 || !positions ? null : { row, number: shown.number[row] };
  };
  hover(picture, plot, {
    move(x, at) {
      const found = under(x, at);
      choice.set({ hovered: found ? found.number : -1 });
      if (!found) {
        picture.hideTip();
        return;
      }
      picture.showTip(x, at, ...allocationRows(data, found.number),
        tipRow("lies at", formatBytes(shown.low[found.row])), ...stackText(data, found.number));
    },
    leave: () => { if (choice.hovered >= 0) choice.set({ hovered: -1 }); },
  });
  navigate(picture, plot, {
    vertical: addresses,
    click(x, at) {
      const found = under(x, at);
      choice.set({ block: found ? found.number : -1, moment: eventUnder(data, plot, x) });
    },
  });
  picture.canvas.addEventListener("keydown", (event) => {
    const step = { ",": -1, ".": 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const first = choice.block < 0 ? lastAtMost(data.start, view.axis.eventAt(view.low)) : choice.block + step;
    choice.set({ block: Math.max(0, Math.min(data.start.length - 1, first)) });
  });
  addresses.watchers.push(() => picture.draw());
  return picture;
}

/** Round addresses within a stretch, with labels precise enough to tell them apart. */
function roundAddresses(low, high) {
  const [unit, factor] = BINARY_UNITS.find(([, size]) => high >= size) ?? ["B", 1];
  return roundTicks(low / factor, high / factor, 7).map((value) => ({
    value: value * factor,
    label: value ? `${+value.toPrecision(7)} ${unit}` : "0",
  }));
}

function maps(data, view, choice, palette) {
  const groupings = new Map();
  const colorSelect = byId("map-color");
  const colors = () => {
    if (!groupings.has(colorSelect.value)) groupings.set(colorSelect.value, new Grouping(data, colorSelect.value));
    return groupings.get(colorSelect.value);
  };
  const addresses = new Addresses();  // one for both maps: heights can be compared
  const made = [...document.querySelectorAll(".maps figure")].map((figure) => {
    const select = figure.querySelector("select");
    const layout = () => data.layouts[select.value];
    const picture = memoryMap(data, view, choice, palette, { figure, layout, colors, addresses });
    picture.layout = layout;
    const describe = () => {
      const { title, span: height } = layout();
      figure.querySelector(".height").textContent = formatBytes(height);
      picture.canvas.setAttribute("aria-label",
        `${title}: time across, memory upward, each block a rectangle; ${formatBytes(height)} high, `
        + `peak live ${formatBytes(data.live[data.peak] ?? 0)}`);
      picture.draw();
    };
    select.addEventListener("change", () => {
      describe();
      rescale();
    });
    describe();
    return picture;
  });
  const rescale = () => addresses.rescale(Math.max(...made.map((picture) => picture.layout().span)));
  rescale();
  const relabel = () => {
    const groups = colors();
    byId("map-legend").replaceChildren(...groups.names.map((name, group) => swatchKey(name, groups.colors[group])));
    for (const picture of made) picture.draw();
  };
  colorSelect.addEventListener("change", relabel);
  relabel();
  choice.watchers.push((change) => {
    if ("block" in change) pin(data, view, choice.block);
    if ("focus" in change) {
      byId("map-focus").hidden = !choice.focus;
      byId("map-focus").textContent = choice.focus ? `only ${choice.focus.name} ✕` : "";
    }
  });
  byId("map-focus").addEventListener("click", () => choice.set({ focus: null }));
  return made;
}

/** Keep what is known of a block below the maps, where it can be read, copied and looked up. */
function pin(data, view, number) {
  const box = byId("pinned");
  if (number < 0) {
    box.replaceChildren(element("span", {}, "Click a block to keep it here."));
    return;
  }
  const zoom = element("button", { type: "button" }, "show its life");
  zoom.addEventListener("click", () => {
    const { positions } = data.axis;
    const [from, to] = [positions[data.start[number]], positions[data.end[number]]];
    view.set(from - (to - from) * 0.2, to + (to - from) * 0.2);
  });
  const facts = allocationRows(data, number).map((row) => [row.children[0].textContent, row.children[1].textContent]);
  box.replaceChildren(
    ...facts.flatMap(([name, value]) => [`${name} `, element("b", {}, value), "  ·  "]), zoom,
    ...stackText(data, number),
  );
}
