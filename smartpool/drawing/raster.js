"use strict";
// Rectangles in time and address, painted by the share of each pixel that they cover. No DOM.
//
// Blocks do not overlap, so painting them costs the area of the picture and a little for each block:
// nothing is left out of 200,000, and what is smaller than a pixel shows as a tint of what it covers.
// A pixel that a block covers whole is stored as its colour; the others collect colours by shares.

class Raster {
  constructor(width, height) {
    this.width = width;
    this.height = height;
    this.whole = new Uint32Array(width * height);  // 0xAABBGGRR, 0 where no block covers all
    this.parts = new Float32Array(4 * width * height);  // red, green, blue, share
  }

  clear() {
    this.whole.fill(0);
    this.parts.fill(0);
  }

  /** Add a rectangle by its edges in pixels, fractions included; `edged` darkens two sides of large ones. */
  add(left, top, right, bottom, color, edged = false) {
    if (left < 0) left = 0;
    if (top < 0) top = 0;
    if (right > this.width) right = this.width;
    if (bottom > this.height) bottom = this.height;
    if (left >= right || top >= bottom) return;
    const firstColumn = Math.floor(left);
    const firstRow = Math.floor(top);
    if (right <= firstColumn + 1 && bottom <= firstRow + 1) {
      this.#tint(firstRow * this.width + firstColumn, (right - left) * (bottom - top), color);
      return;
    }
    const lastColumn = Math.ceil(right) - 1;
    const lastRow = Math.ceil(bottom) - 1;
    // Less than a fiftieth of a pixel is not worth a tint: a column that is nearly whole counts as whole.
    const wholeFrom = Math.ceil(left - 0.02);
    const wholeTo = Math.floor(right + 0.02);
    const packed = (255 << 24 | color[2] << 16 | color[1] << 8 | color[0]) >>> 0;
    for (let row = firstRow; row <= lastRow; row++) {
      const base = row * this.width;
      const part = Math.min(bottom, row + 1) - Math.max(top, row);
      const whole = part > 0.98;
      if (whole && wholeFrom < wholeTo) this.whole.fill(packed, base + wholeFrom, base + wholeTo);
      for (let column = firstColumn; column <= lastColumn; column++) {
        if (whole && column === wholeFrom && wholeFrom < wholeTo) column = wholeTo;
        if (column > lastColumn) break;
        const share = part * (Math.min(right, column + 1) - Math.max(left, column));
        if (share > 0.02) this.#tint(base + column, share, color);
      }
    }
    if (edged && right - left > 5 && bottom - top > 3) this.#edge(wholeFrom, wholeTo, Math.ceil(top), lastRow, color);
  }

  #tint(pixel, share, color) {
    const at = 4 * pixel;
    const parts = this.parts;
    parts[at] += share * color[0];
    parts[at + 1] += share * color[1];
    parts[at + 2] += share * color[2];
    parts[at + 3] += share;
  }

  /** Darken the right column and the lowest row: blocks of one colour stay apart. */
  #edge(from, to, firstRow, lastRow, color) {
    const [red, green, blue] = color.map((channel) => Math.round(channel * 0.74));
    const packed = (255 << 24 | blue << 16 | green << 8 | red) >>> 0;
    this.whole.fill(packed, lastRow * this.width + from, lastRow * this.width + to);
    for (let row = firstRow; row < lastRow; row++) this.whole[row * this.width + to - 1] = packed;
  }

  /** Write the picture over `pixels` (RGBA). Faint pixels are raised, so that they are seen. */
  blend(pixels) {
    const { whole, parts } = this;
    const words = new Uint32Array(pixels.buffer, pixels.byteOffset, whole.length);
    for (let pixel = 0; pixel < whole.length; pixel++) {
      if (whole[pixel]) {
        words[pixel] = whole[pixel];
        continue;
      }
      const at = 4 * pixel;
      const share = parts[at + 3];
      if (share === 0) continue;
      const shown = share >= 1 ? 1 : Math.sqrt(share);
      const scale = shown / share;
      const keep = 1 - shown;
      pixels[at] = pixels[at] * keep + parts[at] * scale;
      pixels[at + 1] = pixels[at + 1] * keep + parts[at + 1] * scale;
      pixels[at + 2] = pixels[at + 2] * keep + parts[at + 2] * scale;
    }
  }
}

/**
 * The row of a layout under a point, or -1: the one that holds it, else the one of which most lies
 * within a pixel around it. `rows` are columns of edges: start, end, low, high.
 */
function rowAt(rows, time, address, timePerPixel, bytesPerPixel) {
  const { start, end, low, high } = rows;
  let best = -1;
  let bestArea = 0;
  for (let row = 0; row < start.length; row++) {
    if (start[row] > time + timePerPixel || end[row] < time - timePerPixel) continue;
    if (low[row] > address + bytesPerPixel || high[row] < address - bytesPerPixel) continue;
    if (start[row] <= time && time < end[row] && low[row] <= address && address < high[row]) return row;
    const width = Math.min(end[row], time + timePerPixel) - Math.max(start[row], time - timePerPixel);
    const height = Math.min(high[row], address + bytesPerPixel) - Math.max(low[row], address - bytesPerPixel);
    if (width * height > bestArea) {
      best = row;
      bestArea = width * height;
    }
  }
  return best;
}
