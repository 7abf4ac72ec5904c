"use strict";
// The page of an out-of-memory dump: the memory map, wrapped into rows like text.

const ROW_HEIGHT = 22;
const ROW_GAP = 5;
const MOST_ROWS = 24;

/** Ranges one behind the other, addresses without memory left out. */
function closedUp(columns) {
  let at = 0;
  const low = new Float64Array(columns.address.length);
  for (let row = 0; row < low.length; row++) {
    low[row] = at;
    at += columns.nbytes[row];
  }
  return { low, total: at };
}

const HOLDER_COLORS = Array.from({ length: 10 }, (_, i) => `k${i}`);

/**
 * The colour of each range, and what the legend says. Live blocks may be told apart by what they have
 * in common, the largest groups first; what is not live keeps the colour of its state.
 */
function rangeColors(about, columns, kind) {
  const { state, block, nbytes } = columns;
  const states = about.states.map((name) => ({ name, color: `s-${name}`, bytes: 0 }));
  const key = {
    tag: (number) => about.tags[columns.tag[number]] ?? "no tag",
    size: (number) => `${formatBytes(columns.requested[number])} each`,
    stream: (number) => `stream ${about.streams[number] ?? 0}`,
    stack: (number) => about.stacks[columns.stack[number]]?.split("\n")[0] ?? "place unknown",
  }[kind];
  const groups = new Map();
  const of = Array.from(state, (number, row) => {
    if (about.states[number] !== "live" || !key || block[row] < 0) return states[number];
    const name = key(block[row]);
    if (!groups.has(name)) groups.set(name, { name, bytes: 0 });
    return groups.get(name);
  });
  of.forEach((group, row) => { group.bytes += nbytes[row]; });
  const ordered = [...groups.values()].sort((a, b) => b.bytes - a.bytes);
  ordered.forEach((group, rank) => { group.color = HOLDER_COLORS[rank] ?? `o${rank % 4}`; });
  const shown = [...ordered.slice(0, 10), ...states].filter(({ bytes }) => bytes);
  const rest = ordered.slice(10);
  if (rest.length) {
    const bytes = rest.reduce((sum, group) => sum + group.bytes, 0);
    shown.splice(10, 0, { name: `${formatCount(rest.length)} others`, color: "o0", bytes });
  }
  return { of, legend: shown };
}

function dumpMap(about, columns, palette) {
  const { low, total } = closedUp(columns);
  const rows = Math.max(1, Math.min(MOST_ROWS, Math.ceil(low.length / 4), 12 + Math.ceil(low.length / 400)));
  const perRow = total / rows || 1;
  const select = byId("map-color");
  let colors = rangeColors(about, columns, select.value);
  const picture = new Picture(byId("map"), {
    height: rows * (ROW_HEIGHT + ROW_GAP) + 4,
    label: `The ${formatCount(low.length)} ranges of the pool's ${formatBytes(total)} by address`,
    paint(context, width) {
      const scale = picture.scale;
      const left = 76;
      const perByte = (width - left) / perRow;
      const strips = Array.from({ length: rows }, () => new Raster(Math.round((width - left) * scale), 1));
      for (let row = 0; row < low.length; row++) {
        const color = palette.rgb(colors.of[row].color);
        const first = Math.floor(low[row] / perRow);
        const last = Math.min(rows - 1, Math.floor((low[row] + columns.nbytes[row] - 1) / perRow));
        for (let line = first; line <= last; line++) {
          const from = (low[row] - line * perRow) * perByte * scale;
          const to = from + columns.nbytes[row] * perByte * scale;
          // A hair of ground between neighbours, where there is room for it.
          strips[line].add(from, 0, to - from > 4 ? to - scale : to, 1, color);
        }
      }
      context.font = "12px system-ui, sans-serif";
      context.textAlign = "right";
      context.textBaseline = "middle";
      context.translate(left, 0);
      strips.forEach((strip, line) => {
        const top = line * (ROW_HEIGHT + ROW_GAP) + 2;
        context.fillStyle = palette.css("soft");
        context.fillText(line ? formatBytes(line * perRow) : "0", -8, top + ROW_HEIGHT / 2);
        paintRow(context, strip, top, ROW_HEIGHT, scale);
      });
    },
  });
  const under = (x, y) => {
    const line = Math.floor((y - 2) / (ROW_HEIGHT + ROW_GAP));
    const width = picture.width - 76;
    if (x < 76 || line < 0 || line >= rows) return -1;
    const at = (line + (x - 76) / width) * perRow;
    return lastAtMost(low, at);
  };
  picture.canvas.addEventListener("pointermove", (event) => {
    const [x, y] = picture.at(event);
    const row = under(x, y);
    if (row < 0) picture.hideTip();
    else picture.showTip(x, y, ...rangeRows(about, columns, row));
  });
  picture.canvas.addEventListener("pointerleave", () => picture.hideTip());
  const recolor = () => {
    colors = rangeColors(about, columns, select.value);
    byId("map-legend").replaceChildren(
      ...colors.legend.map(({ name, color, bytes }) => swatchKey(`${name}: ${formatBytes(bytes)}`, color)));
    picture.draw();
  };
  select.addEventListener("change", recolor);
  recolor();
  return picture;
}

function rangeRows(about, columns, row) {
  const block = columns.block[row];
  const known = block >= 0 && about.states[columns.state[row]] === "live";
  return [
    tipRow(about.states[columns.state[row]], formatBytes(columns.nbytes[row])),
    tipRow("address", `0x${columns.address[row].toString(16)}`),
    ...(known ? [tipRow("requested", formatBytes(columns.requested[block]))] : []),
    ...(known && columns.tag[block] >= 0 ? [tipRow("tag", about.tags[columns.tag[block]])] : []),
    ...(known && about.streams.length ? [tipRow("stream", about.streams[block])] : []),
    ...(known && columns.stack[block] >= 0 ? [element("pre", {}, about.stacks[columns.stack[block]])] : []),
  ];
}

async function openDump() {
  const about = JSON.parse(byId("about").textContent);
  const columns = unpackColumns(await inflated(fromBase64(byId("columns").textContent)), about.columns);
  const palette = new Palette();
  const picture = dumpMap(about, columns, palette);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    palette.forget();
    picture.draw();
  });
  requestAnimationFrame(() => requestAnimationFrame(() => { document.documentElement.dataset.ready = "true"; }));
}

openDump().catch(showProblem);
