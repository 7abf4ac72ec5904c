"use strict";
// Reading the columns that smartpool/report/packing.py writes: integers in planes of bytes, deflated.

async function inflated(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/**
 * Return one column as numbers. `width` bytes an integer, all lowest bytes first, then all second
 * ones ...; zigzag (0, -1, 1, -2 ...); with `delta` each is the difference to the one before. Numbers
 * beyond 2**53 lose their last digits, which no picture shows.
 */
function unpackColumn(bytes, { at, count, width, delta, unit }) {
  const values = new Float64Array(count);
  for (let plane = 0, weight = 1; plane < width; plane++, weight *= 256) {
    const begin = at + plane * count;
    for (let i = 0; i < count; i++) values[i] += bytes[begin + i] * weight;
  }
  let before = 0;
  for (let i = 0; i < count; i++) {
    const half = Math.floor(values[i] / 2);
    const value = values[i] % 2 ? -half - 1 : half;
    before = delta ? before + value : value;
    values[i] = before * unit;
  }
  return values;
}

/** Return all columns by name. */
function unpackColumns(bytes, directory) {
  return Object.fromEntries(directory.map((entry) => [entry.name, unpackColumn(bytes, entry)]));
}
