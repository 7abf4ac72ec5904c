"use strict";
// What the live page draws with: no state, no network. Everything is sharp on screens of any density.

export const TIERS = ["small", "medium", "large", "huge"];

export function formatBytes(bytes) {
  for (const [unit, power] of [["EiB", 6], ["PiB", 5], ["TiB", 4], ["GiB", 3], ["MiB", 2], ["KiB", 1]]) {
    if (Math.abs(bytes) >= 1024 ** power) {
      const value = bytes / 1024 ** power;
      return `${value.toFixed(value < 10 ? 2 : value < 100 ? 1 : 0)} ${unit}`;
    }
  }
  return `${bytes} B`;
}

export function formatShare(share) {
  return `${(100 * share).toFixed(share < 0.1 ? 2 : 1)} %`;
}

export function formatCount(count) {
  return Math.round(count).toLocaleString("en");
}

/** The page's colours as [r, g, b], read from its style sheet, so that light and dark stay in one place. */
export function palette(names) {
  const style = getComputedStyle(document.documentElement);
  const probe = document.createElement("canvas").getContext("2d");
  return Object.fromEntries(names.map((name) => {
    probe.fillStyle = style.getPropertyValue(`--${name}`).trim();
    const hex = probe.fillStyle;
    return [name, [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16))];
  }));
}

export function css(color, alpha = 1) {
  return `rgb(${color[0]} ${color[1]} ${color[2]} / ${alpha})`;
}

/** Base64 to bytes. */
export function bytesOf(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

/** Fit a canvas to its box and the screen's density; returns its context in CSS pixels, and the box. */
export function fitted(canvas) {
  const { width, height } = canvas.getBoundingClientRect();
  const density = window.devicePixelRatio || 1;
  const pixels = [Math.max(1, Math.round(width * density)), Math.max(1, Math.round(height * density))];
  if (canvas.width !== pixels[0] || canvas.height !== pixels[1]) [canvas.width, canvas.height] = pixels;
  const context = canvas.getContext("2d");
  context.setTransform(density, 0, 0, density, 0, 0);
  context.clearRect(0, 0, width, height);
  return { context, width, height };
}

/**
 * The colour of each cell: what is live in the colour of its tier, what is cached paler, the rest a
 * gap. `heat` (0 to 1) brightens what changed. A darker cell is where a block begins, as long as most
 * cells are not.
 */
export function cellColors(cells, heat, colors) {
  const edges = cells.edge.reduce((sum, edge) => sum + edge, 0) < cells.edge.length / 6;
  const image = new Uint8ClampedArray(cells.tier.length * 4);
  for (let cell = 0; cell < cells.tier.length; cell += 1) {
    const tier = colors[TIERS[cells.tier[cell]]];
    const [live, cached, planned] = [cells.live[cell] / 255, cells.cached[cell] / 255, cells.planned[cell] / 255];
    const gap = Math.max(0, 1 - live - cached - planned);
    const glow = (heat ? heat[cell] : 0) * 0.55;
    for (let channel = 0; channel < 3; channel += 1) {
      const pale = 0.38 * tier[channel] + 0.62 * colors.gap[channel];
      const mixed = live * tier[channel] + cached * pale + planned * colors.planned[channel] + gap * colors.gap[channel];
      const shade = edges && cells.edge[cell] ? 0.55 : 1;
      image[4 * cell + channel] = (mixed + glow * (colors.flash[channel] - mixed)) * shade;
    }
    image[4 * cell + 3] = 255;
  }
  return image;
}

/** Draw cells as rows of a page of text: addresses run from left to right, then down. */
export function drawRows(canvas, image, columns, gapPixels) {
  const { context, width, height } = fitted(canvas);
  const rows = Math.ceil(image.length / 4 / columns);
  const sheet = new OffscreenCanvas(columns, rows);
  const padded = new Uint8ClampedArray(4 * columns * rows);
  padded.set(image);
  sheet.getContext("2d").putImageData(new ImageData(padded, columns, rows), 0, 0);
  context.imageSmoothingEnabled = false;
  const pitch = height / rows;
  for (let row = 0; row < rows; row += 1) {
    context.drawImage(sheet, 0, row, columns, 1, 0, row * pitch, width, Math.max(1, pitch - gapPixels));
  }
  return { context, width, height, rows, pitch };
}

/** Draw lines over time: `series` are {values, color, fill, dash}, all as long as `times`. */
export function drawChart(canvas, times, series, { format, top, ink, rule }) {
  const { context, width, height } = fitted(canvas);
  const [left, right, bottom] = [68, 8, 22];
  const [plotWidth, plotHeight] = [width - left - right, height - bottom - 8];
  const from = times[0] ?? 0;
  const until = Math.max(times[times.length - 1] ?? 1, from + 1);
  const x = (time) => left + plotWidth * (time - from) / (until - from);
  const y = (value) => 8 + plotHeight * (1 - value / top);
  context.font = '12px system-ui, "Noto Sans", "DejaVu Sans", sans-serif';
  context.textBaseline = "middle";
  context.textAlign = "right";
  for (let part = 0; part <= 4; part += 1) {
    const value = top * part / 4;
    context.fillStyle = rule;
    context.fillRect(left, Math.round(y(value)), plotWidth, 1);
    context.fillStyle = ink;
    context.fillText(format(value), left - 8, y(value));
  }
  context.textBaseline = "alphabetic";
  for (let part = 0; part <= 4; part += 1) {
    const ago = Math.round((until - from) * (1 - part / 4));
    context.textAlign = part === 4 ? "right" : part === 0 ? "left" : "center";
    context.fillText(part === 4 ? "now" : `−${ago} s`, left + plotWidth * part / 4, height - 4);
  }
  for (const { values, color, fill, dash, thick } of series) {
    context.beginPath();
    values.forEach((value, at) => {
      if (at === 0) context.moveTo(x(times[at]), y(Math.min(value, top)));
      else context.lineTo(x(times[at]), y(Math.min(value, top)));
    });
    context.setLineDash(dash ?? []);
    context.strokeStyle = color;
    context.lineWidth = thick ?? 1.75;
    context.lineJoin = "round";
    context.stroke();
    context.setLineDash([]);
    if (fill && values.length > 1) {
      context.lineTo(x(times[times.length - 1]), y(0));
      context.lineTo(x(times[0]), y(0));
      context.globalAlpha = 0.22;
      context.fillStyle = color;
      context.fill();
      context.globalAlpha = 1;
    }
  }
}

/** The next round share at or above `share`. */
export function roundedShare(share) {
  return [0.04, 0.08, 0.2, 0.4, 0.6, 0.8, 1].find((top) => top >= share) ?? 1;
}

/** The next round number of bytes at or above `bytes`: 1, 1.5, 2, 3, 4, 6 or 8 times a power of two. */
export function roundedUp(bytes) {
  const power = 2 ** Math.floor(Math.log2(Math.max(1, bytes)));
  return power * [1, 1.5, 2].find((factor) => factor * power >= bytes);
}
