"use strict";
// Maps: time across, memory upward, each block a rectangle; an allocator's beside the plan's.

/** The stretch of addresses that the maps show. */
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

/** One map: the layout that its select names. `colors` gives the grouping by which blocks are coloured. */
class MemoryMap {
  constructor(page, figure, { addresses, colors }) {
    Object.assign(this, page, { addresses, colors });
    this.figure = figure;
    this.select = figure.querySelector("select");
    this.plot = new Plot(page.view, { left: 76, right: 16, top: 8, bottom: 40 });
    this.plot.valueAt = (at) => this.addressAt(at);
    this.raster = null;
    this.painted = { key: "", image: null };
    this.picture = new Picture(figure, {
      height: 420,
      label: "",
      paint: (context, ...size) => {
        this.plot.resize(...size);
        this.paint(context);
      },
    });
    hover(this.picture, this.plot, { move: (x, y) => this.tell(x, y), leave: () => this.unhover() });
    navigate(this.picture, this.plot, { vertical: addresses, click: (x, y) => this.choose(x, y) });
    this.picture.canvas.addEventListener("keydown", (event) => this.step(event));
    this.describe();
  }

  get layout() {
    return this.data.layouts[this.select.value];
  }

  draw() {
    this.picture.draw();
  }

  describe() {
    const { title, span } = this.layout;
    this.figure.querySelector(".height").textContent = formatBytes(span);
    this.picture.canvas.setAttribute("aria-label",
      `${title}: time across, memory upward, each block a rectangle; ${formatBytes(span)} high, `
      + `peak live ${formatBytes(this.data.live[this.data.peak])}`);
    this.draw();
  }

  y(address) {
    const { low, high } = this.addresses;
    return this.plot.bottom - (address - low) / (high - low) * this.plot.height;
  }

  addressAt(y) {
    const { low, high } = this.addresses;
    return low + (this.plot.bottom - y) / this.plot.height * (high - low);
  }

  // ---------------------------------------------------------------- painting

  paint(context) {
    const { palette, plot, addresses, choice } = this;
    drawTimeAxis(context, palette, plot);
    drawValueAxis(context, palette, plot, roundAddresses(addresses.low, addresses.high), (value) => this.y(value));
    const { scale } = this.picture;
    context.putImageData(this.blocks(context), Math.round(plot.left * scale), Math.round(plot.top * scale));
    context.save();
    context.beginPath();
    context.rect(plot.left, plot.top, plot.width, plot.height);
    context.clip();
    this.outline(context, choice.block, 2);
    this.outline(context, choice.hovered, 1.5);
    drawMoment(context, palette, plot, this.data.axis.positions[choice.moment]);
    context.restore();
  }

  /** The blocks as an image; the last one again where nothing has changed but what is pointed at. */
  blocks(context) {
    const { data, view, addresses, palette, choice } = this;
    const { scale } = this.picture;
    const [width, height] = [Math.round(this.plot.width * scale), Math.round(this.plot.height * scale)];
    const groups = this.colors();
    const key = [
      width, height, view.low, view.high, data.axis.byClock, addresses.low, addresses.high, this.select.value,
      groups.kind, choice.focus?.name, palette.version,
    ].join();
    if (key === this.painted.key) return this.painted.image;
    const { positions } = data.axis;
    const x = (event) => (positions[event] - view.low) / (view.high - view.low) * width;
    const y = (address) => height - (address - addresses.low) / (addresses.high - addresses.low) * height;
    const image = context.createImageData(width, height);
    this.paintGround(image, x, y);
    this.paintBlocks(image, groups, x, y);
    this.painted = { key, image };
    return image;
  }

  /** Nothing where there was no memory, a tint where it was held. */
  paintGround(image, x, y) {
    const words = new Uint32Array(image.data.buffer);
    const held = this.layout.held;
    const tint = packedColor(this.palette.rgb("held"));
    words.fill(packedColor(this.palette.rgb("surface")));
    for (let row = 0; row < held.start.length; row++) {
      const left = Math.max(0, Math.round(x(held.start[row])));
      const right = Math.min(image.width, Math.round(x(held.end[row])));
      const top = Math.max(0, Math.round(y(held.high[row])));
      const bottom = Math.min(image.height, Math.round(y(held.low[row])));
      for (let line = top; line < bottom && left < right; line++) {
        words.fill(tint, line * image.width + left, line * image.width + right);
      }
    }
  }

  paintBlocks(image, groups, x, y) {
    const { data, addresses } = this;
    const { width, height } = image;
    if (this.raster?.width !== width || this.raster.height !== height) this.raster = new Raster(width, height);
    this.raster.clear();
    const tints = groups.colors.map((name) => this.palette.rgb(name));
    const faded = this.palette.rgb("faded");
    const shows = this.choice.focus?.has ?? (() => true);
    const { number, low, high } = this.layout;
    for (let row = 0; row < number.length; row++) {
      const of = number[row];
      const [left, right] = [x(data.start[of]), x(data.end[of])];
      if (right < 0 || left > width || high[row] < addresses.low || low[row] > addresses.high) continue;
      this.raster.add(left, y(high[row]), right, y(low[row]), shows(of) ? tints[groups.all[of]] : faded, true);
    }
    this.raster.blend(image.data);
  }

  /** A frame around the pieces of an allocation. */
  outline(context, number, width) {
    if (number < 0) return;
    const { data, plot, layout } = this;
    context.strokeStyle = this.palette.css("ink");
    context.lineWidth = width;
    const left = plot.x(data.axis.positions[data.start[number]]);
    const right = plot.x(data.axis.positions[data.end[number]]);
    for (let row = 0; row < layout.number.length; row++) {
      if (layout.number[row] !== number) continue;
      const [top, bottom] = [this.y(layout.high[row]), this.y(layout.low[row])];
      context.strokeRect(left - 1, top - 1, Math.max(2, right - left) + 2, Math.max(2, bottom - top) + 2);
    }
    context.lineWidth = 1;
  }

  // ---------------------------------------------------------------- what is pointed at

  /** The row of the layout under a point, or -1. */
  rowUnder(x, y) {
    const { data, layout, plot, addresses } = this;
    layout.rows ??= {
      start: layout.number.map((number) => data.start[number]),
      end: layout.number.map((number) => data.end[number]),
      low: layout.low,
      high: layout.high,
    };
    const event = data.axis.eventAt(plot.positionAt(x));
    const perPixel = Math.max(0.5, data.axis.eventAt(plot.positionAt(x + 1)) - event);
    return rowAt(layout.rows, event, this.addressAt(y), perPixel, (addresses.high - addresses.low) / plot.height);
  }

  tell(x, y) {
    const { data, layout } = this;
    const row = this.rowUnder(x, y);
    const number = row < 0 ? -1 : layout.number[row];
    if (number !== this.choice.hovered) this.choice.set({ hovered: number });
    if (row < 0) {
      this.picture.hideTip();
      return;
    }
    this.picture.showTip(x, y, ...allocationRows(data, number),
      tipRow("lies at", formatBytes(layout.low[row])), ...stackText(data, number));
  }

  unhover() {
    if (this.choice.hovered >= 0) this.choice.set({ hovered: -1 });
  }

  choose(x, y) {
    const row = this.rowUnder(x, y);
    const block = row < 0 ? -1 : this.layout.number[row];
    this.choice.set({ block, moment: eventUnder(this.data, this.plot, x) });
  }

  /** Comma and full stop step through the blocks, from the first one in view. */
  step(event) {
    const step = { ",": -1, ".": 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const { data, view, choice } = this;
    const first = Math.max(0, lastAtMost(data.start, view.axis.eventAt(view.low)));
    const next = choice.block < 0 ? first : choice.block + step;
    choice.set({ block: Math.max(0, Math.min(data.start.length - 1, next)) });
  }
}

function packedColor([red, green, blue]) {
  return (255 << 24 | blue << 16 | green << 8 | red) >>> 0;
}

/** Round addresses within a stretch, with labels precise enough to tell them apart. */
function roundAddresses(low, high) {
  const [unit, factor] = BINARY_UNITS.find(([, size]) => high >= size) ?? ["B", 1];
  return roundTicks(low / factor, high / factor, 7).map((value) => ({
    value: value * factor,
    label: value ? `${+value.toPrecision(7)} ${unit}` : "0",
  }));
}

/** Both maps, with their legend and the block that was clicked. */
function memoryMaps(page) {
  const { data, view, choice } = page;
  const groupings = new Map();
  const select = byId("map-color");
  const colors = () => {
    if (!groupings.has(select.value)) groupings.set(select.value, new Grouping(data, select.value));
    return groupings.get(select.value);
  };
  const addresses = new Addresses();  // one for both, so that heights can be compared
  const maps = [...document.querySelectorAll(".maps figure")]
    .map((figure) => new MemoryMap(page, figure, { addresses, colors }));
  const rescale = () => addresses.rescale(Math.max(...maps.map(({ layout }) => layout.span)));
  const relabel = () => {
    const { names, colors: tints } = colors();
    byId("map-legend").replaceChildren(...names.map((name, group) => swatchKey(name, tints[group])));
    maps.forEach((map) => map.draw());
  };
  addresses.watchers.push(() => maps.forEach((map) => map.draw()));
  for (const map of maps) {
    map.select.addEventListener("change", () => {
      map.describe();
      rescale();
    });
  }
  select.addEventListener("change", relabel);
  byId("map-focus").addEventListener("click", () => choice.set({ focus: null }));
  choice.watchers.push((change) => {
    if ("block" in change) pin(data, view, choice.block);
    if ("focus" in change) {
      byId("map-focus").hidden = !choice.focus;
      byId("map-focus").textContent = choice.focus ? `only ${choice.focus.name} ✕` : "";
    }
  });
  rescale();
  relabel();
  return maps;
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
