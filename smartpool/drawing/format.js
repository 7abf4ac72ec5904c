"use strict";
// Figures as text, round numbers for axes, bytes out of text. Pure functions, shared by every page.

const BINARY_UNITS = [["EiB", 2 ** 60], ["PiB", 2 ** 50], ["TiB", 2 ** 40], ["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10]];

function threeDigits(value) {
  return value.toFixed(Math.max(0, 2 - Math.floor(Math.log10(Math.abs(value)))));
}

function formatBytes(bytes) {
  for (const [unit, factor] of BINARY_UNITS) {
    if (Math.abs(bytes) >= factor) return `${threeDigits(bytes / factor)} ${unit}`;
  }
  return `${Math.round(bytes)} B`;
}

function formatCount(count) {
  return Math.round(count).toLocaleString("en");
}

function formatShare(share, digits = 1) {
  return `${(share * 100).toFixed(digits)} %`;
}

function formatMicroseconds(us) {
  for (const [unit, factor] of [["h", 3.6e9], ["min", 6e7], ["s", 1e6], ["ms", 1e3]]) {
    if (Math.abs(us) >= factor) return `${threeDigits(us / factor)} ${unit}`;
  }
  return `${Math.round(us)} µs`;
}

/** A time in a unit that fits `most`, with as many digits as tell times `step` apart. */
function formatTick(us, most, step) {
  const [unit, factor] = [["h", 3.6e9], ["min", 6e7], ["s", 1e6], ["ms", 1e3]].find(([, size]) => most >= size) ?? ["µs", 1];
  const digits = Math.max(0, Math.ceil(-Math.log10(step / factor) - 1e-9));
  return us ? `${(us / factor).toFixed(Math.min(digits, 9))} ${unit}` : "0";
}

/** Round numbers of bytes from 0 to `most`, about `wanted` of them, with labels of one unit. */
function byteTicks(most, wanted) {
  const [unit, factor] = BINARY_UNITS.find(([, size]) => most >= size) ?? ["B", 1];
  const rough = most / factor / wanted;
  const step = [0.25, 0.5].find((round) => round >= rough) ?? roundStep(rough);
  const ticks = [];
  for (let n = 0; n * step * factor <= most; n++) {
    ticks.push({ value: n * step * factor, label: n ? `${+(n * step).toPrecision(12)} ${unit}` : "0" });
  }
  return ticks;
}

/** Round numbers within [low, high], about `wanted` of them. */
function roundTicks(low, high, wanted) {
  const step = roundStep((high - low) / wanted);
  const ticks = [];
  for (let n = Math.ceil(low / step); n * step <= high; n++) ticks.push(n * step);
  return ticks;
}

/** The least of 1, 2, 5, 10, 20 ... (or a tenth of them) that is at least `rough`. */
function roundStep(rough) {
  const power = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 5, 10].map((digit) => digit * power).find((step) => step >= rough * (1 - 1e-9));
}

/** Return the bytes behind a text in base64. */
function fromBase64(text) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}
