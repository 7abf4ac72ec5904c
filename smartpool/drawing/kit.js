"use strict";
// Elements, colors, canvases at the resolution of the screen, and tips beside the pointer: for every page.

function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") made.className = value;
    else if (name.startsWith("aria-") || name === "role") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children);  // text stays text: names come from files, and innerHTML is used nowhere
  return made;
}

/** Colours of the page as [red, green, blue], whatever the style wrote them as. */
class Palette {
  constructor() {
    this.probe = element("span", { hidden: true });
    document.body.append(this.probe);
    this.known = new Map();
    this.version = 0;
  }

  /** Look all colours up again: the theme changed. */
  forget() {
    this.known.clear();
    this.version += 1;
  }

  rgb(name) {
    let color = this.known.get(name);
    if (!color) {
      this.probe.style.color = `var(--${name})`;
      color = getComputedStyle(this.probe).color.match(/[\d.]+/g).slice(0, 3).map(Number);
      this.known.set(name, color);
    }
    return color;
  }

  css(name, alpha = 1) {
    return `rgb(${this.rgb(name).join(" ")} / ${alpha})`;
  }
}

/** Pixels of the screen for one of CSS; more than two are not seen, and cost. */
function pixelsPerPixel() {
  return Math.min(2, devicePixelRatio || 1);
}

/** Fit a canvas to a size in CSS pixels; return its context, cleared, which draws in them. */
function fitted(canvas, width, height, scale = pixelsPerPixel()) {
  const pixels = [Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale))];
  if (canvas.width !== pixels[0] || canvas.height !== pixels[1]) [canvas.width, canvas.height] = pixels;
  const context = canvas.getContext("2d");
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}

/** Show a tip beside a point of a box of some size, and within it where it can be. */
function showTip(tip, x, y, width, height, ...content) {
  tip.replaceChildren(...content);
  tip.hidden = false;
  const beyond = x + 18 + tip.offsetWidth > width;
  const left = beyond ? Math.max(0, x - 14 - tip.offsetWidth) : x + 14;
  tip.style.transform = `translate(${left}px, ${Math.max(0, Math.min(y + 14, height - tip.offsetHeight))}px)`;
}

/**
 * A canvas in a figure: sized by its box, drawn again when something changed, once a frame, and only
 * while it can be seen. `paint(context, width, height)` draws in CSS pixels.
 */
class Picture {
  constructor(figure, { height, label, paint }) {
    this.canvas = element("canvas", { tabIndex: 0, role: "img", "aria-label": label });
    this.canvas.style.height = `${height}px`;
    this.tip = element("div", { class: "tip", hidden: true });
    this.box = element("div", { class: "canvas-box" }, this.canvas, this.tip);
    figure.append(this.box);
    this.height = height;
    this.paint = paint;
    this.seen = true;
    this.stale = true;
    this.pending = 0;
    new ResizeObserver(() => this.draw()).observe(this.box);
    new IntersectionObserver(([entry]) => {
      this.seen = entry.isIntersecting;
      if (this.seen && this.stale) this.draw();
    }, { rootMargin: "200px" }).observe(this.box);
  }

  get width() {
    return this.box.clientWidth;
  }

  get scale() {
    return pixelsPerPixel();
  }

  draw() {
    this.stale = true;
    if (this.seen && !this.pending) this.pending = requestAnimationFrame(() => this.drawNow());
  }

  drawNow() {
    this.pending = 0;
    const { canvas, width, height, scale } = this;
    if (!width) return;
    this.stale = false;
    this.paint(fitted(canvas, width, height, scale), width, height);
  }

  /** Where the pointer is, in CSS pixels of the canvas. */
  at(event) {
    const box = this.canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  showTip(x, y, ...content) {
    showTip(this.tip, x, y, this.width, this.height, ...content);
  }

  hideTip() {
    this.tip.hidden = true;
  }
}

function tipRow(name, value, swatch) {
  const row = element("div", { class: "tip-row" });
  if (swatch) {
    const mark = element("i");
    mark.style.background = swatch;
    row.append(mark);
  }
  row.append(element("span", {}, name), element("b", {}, value));
  return row;
}

function byId(id) {
  return document.getElementById(id);
}

function swatchKey(name, color) {
  const mark = element("i");
  mark.style.background = `var(--${color})`;
  return element("span", { class: "key", title: name }, mark, name);
}

/** Paint a raster of one row as a band: whole pixels in their colour, parts as a tint over what is there. */
function paintRow(context, raster, top, height, scale) {
  const { whole, parts, width } = raster;
  for (let from = 0; from < width;) {
    let to = from + 1;
    if (whole[from]) {
      while (to < width && whole[to] === whole[from]) to++;
      const color = whole[from];
      context.fillStyle = `rgb(${color & 255} ${color >> 8 & 255} ${color >> 16 & 255})`;
    } else if (parts[4 * from + 3] > 0) {
      const share = parts[4 * from + 3];
      const [red, green, blue] = [0, 1, 2].map((channel) => Math.round(parts[4 * from + channel] / share));
      context.fillStyle = `rgb(${red} ${green} ${blue} / ${Math.min(1, Math.sqrt(share))})`;
    } else {
      from = to;
      continue;
    }
    context.fillRect(from / scale, top, (to - from) / scale, height);
    from = to;
  }
}

/** Lines and labels of bytes or shares up the side; `y` says where a value stands. */
function drawValueAxis(context, palette, plot, ticks, y) {
  context.font = "12px system-ui, sans-serif";
  context.textAlign = "right";
  context.textBaseline = "middle";
  for (const { value, label } of ticks) {
    const at = Math.round(y(value)) + 0.5;
    if (at < plot.top - 1 || at > plot.bottom + 1) continue;
    context.strokeStyle = palette.css(value ? "rule" : "axis");
    context.beginPath();
    context.moveTo(plot.left, at);
    context.lineTo(plot.right, at);
    context.stroke();
    context.fillStyle = palette.css("soft");
    context.fillText(label, plot.left - 8, at);
  }
}

function showProblem(error) {
  byId("problem").hidden = false;
  byId("problem").textContent = `This page could not read its data: ${error.message}. `
    + "It needs a browser of 2024 or later.";
  throw error;
}
