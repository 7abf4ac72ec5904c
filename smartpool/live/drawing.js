"use strict";
// What the live page draws beyond the kit that it shares with the reports: the map in rows, and curves.

/**
 * The color of each cell: what is live in the color of its tier (of `tiers`), what is cached paler, the
 * rest a gap. `heat` (0 to 1) brightens what changed. A darker cell is where a block begins, as long as
 * most cells are not.
 */
function cellColors(cells, heat, tiers, palette) {
  const edges = cells.edge.reduce((sum, edge) => sum + edge, 0) < cells.edge.length / 6;
  const [gapColor, plannedColor, flash] = ["s-free", "planned", "flash"].map((name) => palette.rgb(name));
  const image = new Uint8ClampedArray(cells.tier.length * 4);
  for (let cell = 0; cell < cells.tier.length; cell += 1) {
    const tier = tiers[cells.tier[cell]];
    const [live, cached, planned] = [cells.live[cell] / 255, cells.cached[cell] / 255, cells.planned[cell] / 255];
    const gap = Math.max(0, 1 - live - cached - planned);
    const glow = (heat ? heat[cell] : 0) * 0.55;
    for (let channel = 0; channel < 3; channel += 1) {
      const pale = 0.38 * tier[channel] + 0.62 * gapColor[channel];
      const mixed = live * tier[channel] + cached * pale + planned * plannedColor[channel] + gap * gapColor[channel];
      const shade = edges && cells.edge[cell] ? 0.55 : 1;
      image[4 * cell + channel] = (mixed + glow * (flash[channel] - mixed)) * shade;
    }
    image[4 * cell + 3] = 255;
  }
  return image;
}

/** Draw cells as rows of a page of text: addresses run from left to right, then down. */
function drawRows(canvas, image, columns, gapPixels) {
  const { width, height } = canvas.getBoundingClientRect();
  const context = fitted(canvas, width, height);
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

/** Draw lines over time: `series` are {values, color, fill, dash, thick}, all as long as `times`. */
function drawChart(canvas, times, series, { ticks, top, palette }) {
  const { width, height } = canvas.getBoundingClientRect();
  const context = fitted(canvas, width, height);
  const plot = { left: 68, right: width - 8, top: 8, bottom: height - 22 };
  const from = times[0] ?? 0;
  const until = Math.max(times.at(-1) ?? 1, from + 1);
  const x = (time) => plot.left + (plot.right - plot.left) * (time - from) / (until - from);
  const y = (value) => plot.bottom - (plot.bottom - plot.top) * Math.min(value, top) / top;
  drawValueAxis(context, palette, plot, ticks, y);
  context.textBaseline = "alphabetic";
  for (let part = 0; part <= 4; part += 1) {
    const ago = Math.round((until - from) * (1 - part / 4));
    context.textAlign = part === 4 ? "right" : part === 0 ? "left" : "center";
    context.fillText(part === 4 ? "now" : `−${ago} s`, x(from + (until - from) * part / 4), height - 4);
  }
  for (const { values, color, fill, dash, thick } of series) {
    context.beginPath();
    values.forEach((value, at) => context.lineTo(x(times[at]), y(value)));
    context.setLineDash(dash ?? []);
    context.strokeStyle = palette.css(color);
    context.lineWidth = thick ?? 1.75;
    context.lineJoin = "round";
    context.stroke();
    context.setLineDash([]);
    if (fill && values.length > 1) {
      context.lineTo(x(until), y(0));
      context.lineTo(x(from), y(0));
      context.fillStyle = palette.css(color, 0.22);
      context.fill();
    }
  }
}
