"use strict";
// The live page: asks for a frame, draws it, asks for the next. While it is paused or hidden it asks
// for nothing, and then the program that it looks at does nothing for it.

const PARTS = [["interval_graph", "interval graph", "c2"], ["pool", "pool", "c1"], ["gpu", "GPU", "c6"]];
const CELL_WIDTH = 2;      // CSS pixels of a cell
const ROW_HEIGHT = 20;     // CSS pixels of a row of cells
const PERIOD_MS = 250;
const SHARE_OF_A_CORE = 0.2; // that looking may cost the program
const LONGEST_HISTORY = 1200;
const GLOW_MS = 900;
const SMALLEST_VIEW = 64 * 1024;

const palette = new Palette();
const still = matchMedia("(prefers-reduced-motion: reduce)");
const state = {
  device: 0, paused: false, view: null, frame: null, previous: null, heat: null, heated: 0,
  history: [], rates: null, events: 0, hover: null, drag: null, columns: 1, shape: null, told: null,
};

// ------------------------------------------------------------------ asking

async function ask(path, question) {
  const answer = await fetch(path, {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(question),
  });
  if (!answer.ok) throw new Error((await answer.text()).trim());
  return answer.json();
}

function shapeOfMap() {
  const { width, height } = byId("map").getBoundingClientRect();
  const columns = Math.max(16, Math.floor(width / CELL_WIDTH));
  return { columns, rows: Math.max(1, Math.floor(height / ROW_HEIGHT)) };
}

async function tick() {
  if (state.paused || document.hidden) return;
  const { columns, rows } = shapeOfMap();
  const [first, last] = state.view ?? [0, null];
  try {
    const frame = await ask("frame", {
      device: state.device, first, last, cells: columns * rows, after: state.events,
    });
    if (state.paused) return;
    state.columns = columns;
    take(frame);
    say("live");
  } catch (error) {
    say(error instanceof TypeError ? "not reachable" : error.message, true);
  }
}

function say(text, lost = false) {
  byId("state").textContent = text;
  byId("state").classList.toggle("lost", lost);
}

// ------------------------------------------------------------------ taking a frame in

function take(frame) {
  const { map } = frame;
  const cells = Object.fromEntries(
    ["tier", "edge", "live", "cached", "planned"].map((name) => [name, fromBase64(map[name])]),
  );
  const shape = [map.first, map.last, cells.tier.length, frame.device].join();
  const same = shape === state.shape;
  const heat = new Float32Array(cells.tier.length);
  const fade = Math.max(0, 1 - (performance.now() - state.heated) / GLOW_MS);
  for (let cell = 0; same && cell < heat.length; cell += 1) {
    const taken = cells.live[cell] - state.cells.live[cell] > 48;  // a free shows in the colour itself
    heat[cell] = taken && !still.matches ? 1 : state.heat[cell] * fade;
  }
  const now = { time: frame.time, ...frame.figures };
  const last = state.history.at(-1);
  if (last && frame.time > last.time) {
    const rate = (name) => (now.counters[name] - last.counters[name]) / (frame.time - last.time);
    state.rates = Object.fromEntries(Object.keys(now.counters).map((name) => [name, Math.max(0, rate(name))]));
  }
  state.history.push(now);
  if (state.history.length > LONGEST_HISTORY) state.history.shift();
  Object.assign(state, { frame, cells, heat, heated: performance.now(), shape });
  for (const event of frame.events) addEvent(event);
  requestAnimationFrame(() => { write(frame); draw(); });
}

function addEvent(event) {
  const list = byId("events");
  list.querySelector(".none")?.remove();
  list.prepend(element("li", {}, element("time", {}, event.clock), event.text));
  while (list.children.length > 50) list.lastChild.remove();
  state.events = Math.max(state.events, event.number);
}

// ------------------------------------------------------------------ figures and tables

function write(frame) {
  const f = frame.figures;
  byId("title").textContent = frame.devices[frame.device] + (frame.closed ? ", closed" : "");
  document.title = `${formatBytes(f.live_bytes)} live · SmartPool`;
  byId("live").textContent = formatBytes(f.live_bytes);
  byId("live-note").textContent = `${formatCount(f.live_blocks)} blocks, peak ${formatBytes(f.peak_live_bytes)}`;
  byId("reserved").textContent = formatBytes(f.reserved_bytes);
  byId("reserved-note").textContent = `peak ${formatBytes(f.peak_reserved_bytes)}, policy ${frame.policy}`;
  byId("fragmentation").textContent = shareText(f.fragmentation.overall);
  byId("fragmentation-note").textContent = `largest free ${formatBytes(f.largest_free_bytes)}`;
  byId("device-used").textContent = shareText(1 - f.device_free_bytes / f.device_total_bytes);
  byId("device-note").textContent = `of ${formatBytes(f.device_total_bytes)}, cap ${formatBytes(f.cap_bytes)}`;
  byId("searches").textContent = perSecond("searches");
  byId("searches-note").textContent = `${perSecond("flushes")} flushes, ${formatCount(f.counters.step_hits)} planned`;
  byId("calls").textContent = perSecond("driver_calls");
  byId("calls-note").textContent = `${formatCount(f.counters.driver_calls)} in all, ${f.driver_seconds.toFixed(2)} s`;
  rows("holders", frame.holders.map((held) => [held.label, formatCount(held.blocks), formatBytes(held.bytes)]));
  tierLegend(frame.tiers);
  rows("tiers", frame.tiers.map((tier) => [
    tier.name, formatCount(tier.live_blocks), formatBytes(tier.live_bytes), formatBytes(tier.cached_bytes),
  ]));
  devices(frame.devices);
  const { map } = frame;
  const part = map.extent_bytes ? (map.last - map.first) / map.extent_bytes : 1;
  byId("view").textContent = part < 0.9999
    ? `${formatBytes(map.last - map.first)} from ${formatBytes(map.first)} on, of ${formatBytes(map.extent_bytes)} mapped`
    : `${formatBytes(map.extent_bytes)} mapped in ${formatCount(map.chunks)} chunks; drag or turn the wheel to look closer`;
}

/** A share with a digit more where it is small. */
function shareText(share) {
  return formatShare(share, share < 0.1 ? 2 : 1);
}

function perSecond(name) {
  return state.rates ? `${formatCount(state.rates[name])} /s` : "–";
}

function rows(id, cells) {
  byId(id).replaceChildren(...cells.map((row) => element("tr", {}, ...row.map((text) => element("td", {}, text)))));
}

function devices(names) {
  const list = byId("device");
  if (list.options.length === names.length) return;
  list.replaceChildren(...names.map((name, number) => new Option(name, String(number), false, number === state.device)));
}

// ------------------------------------------------------------------ drawing

function draw() {
  if (!state.frame) return;
  const age = (performance.now() - state.heated) / GLOW_MS;
  const heat = state.heat.map((warmth) => warmth * Math.max(0, 1 - age));
  const tiers = state.frame.tiers.map(({ color }) => palette.rgb(color));
  const { context, width, pitch } = drawRows(byId("map"), cellColors(state.cells, heat, tiers, palette), state.columns, 3);
  if (state.drag) {
    context.fillStyle = palette.css("ink", 0.25);
    const [from, to] = [state.drag.from, state.drag.to].sort((a, b) => a - b);
    for (let row = Math.floor(from / state.columns); row <= Math.floor(to / state.columns); row += 1) {
      const begin = Math.max(from - row * state.columns, 0);
      const end = Math.min(to - row * state.columns + 1, state.columns);
      context.fillRect(begin * width / state.columns, row * pitch, (end - begin) * width / state.columns, pitch - 3);
    }
  }
  drawHistory();
  if (age < 1 && state.heat.some((warmth) => warmth > 0.02)) requestAnimationFrame(draw);
}

function drawHistory() {
  const { history } = state;
  const times = history.map((now) => now.time);
  const most = 1.05 * Math.max(1, ...history.map((now) => now.reserved_bytes));
  drawChart(byId("bytes"), times, [
    { values: history.map((now) => now.live_bytes), color: "c0", fill: true, thick: 2 },
    { values: history.map((now) => now.reserved_bytes), color: "ink", dash: [6, 3] },
  ], { palette, top: most, ticks: byteTicks(most, 5) });
  const worst = 1.05 * Math.max(0.04, ...history.map((now) => Math.max(...PARTS.map(([name]) => now.fragmentation[name]))));
  drawChart(byId("shares"), times, [
    ...PARTS.map(([name, , color]) => ({
      values: history.map((now) => now.fragmentation[name]), color, dash: [3, 3],
    })),
    { values: history.map((now) => now.fragmentation.overall), color: "ink", thick: 2.5 },
  ], { palette, top: worst, ticks: roundTicks(0, worst, 4).map((value) => ({ value, label: formatShare(value) })) });
}

function legend(id, entries) {
  byId(id).replaceChildren(...entries.map(([text, color, alpha]) => {
    const swatch = element("i");
    swatch.style.background = palette.css(color, alpha);
    return element("li", {}, swatch, text);
  }));
}

/** What the colors of the map mean; drawn again when the tiers or the theme are others than before. */
function tierLegend(tiers) {
  const told = [palette.version, ...tiers.map(({ title }) => title)].join();
  if (told === state.told) return;
  state.told = told;
  legend("legend", [
    ...tiers.map(({ title, color }) => [title, color]), ["cached: paler", tiers.at(-1).color, 0.4],
    ["planned step", "planned"], ["gap", "s-free"],
  ]);
}

function restyle() {
  palette.forget();
  if (state.frame) tierLegend(state.frame.tiers);
  legend("parts", [...PARTS.map(([, text, color]) => [text, color]), ["overall", "ink"]]);
  draw();
}

// ------------------------------------------------------------------ looking closer

function cellAt(event) {
  const box = byId("map").getBoundingClientRect();
  const { rows: count } = shapeOfMap();
  const row = Math.floor((event.clientY - box.top) / (box.height / count));
  const column = Math.floor((event.clientX - box.left) / (box.width / state.columns));
  const cell = Math.min(Math.max(row, 0), count - 1) * state.columns + Math.min(Math.max(column, 0), state.columns - 1);
  return Math.min(cell, state.cells.tier.length - 1);
}

function positionOf(cell) {
  const { first, last } = state.frame.map;
  return Math.round(first + (last - first) * cell / state.cells.tier.length);
}

function lookAt(first, last) {
  const { extent_bytes: extent } = state.frame.map;
  const size = Math.min(Math.max(last - first, SMALLEST_VIEW), extent);
  const begin = Math.min(Math.max(0, first), extent - size);
  state.view = size >= extent ? null : [Math.round(begin), Math.round(begin + size)];
  refresh();
}

/** Ask for a frame now, also while paused: the picture stands still, not the reader. */
function refresh() {
  const paused = state.paused;
  state.paused = false;
  const asked = tick();
  if (paused) asked.finally(() => { state.paused = true; say("paused"); });
}

function zoom(factor, center) {
  const { first, last } = state.frame.map;
  const around = center ?? (first + last) / 2;
  lookAt(around - (around - first) * factor, around + (last - around) * factor);
}

function pan(share) {
  const { first, last } = state.frame.map;
  lookAt(first + share * (last - first), last + share * (last - first));
}

async function describe(event) {
  const cell = cellAt(event);
  const tip = byId("tip");
  const box = byId("map").getBoundingClientRect();
  try {
    const found = await ask("block", { device: state.device, first: positionOf(cell), last: positionOf(cell + 1) });
    if (state.hover !== cell) return;
    showTip(tip, event.clientX - box.left, event.clientY - box.top, box.width, box.height, ...found.lines.map(
      (line, number) => (number ? element("p", { class: "soft" }, line) : element("p", {}, element("b", {}, line)))));
  } catch {
    tip.hidden = true;
  }
}

// ------------------------------------------------------------------ controls

function pause() {
  state.paused = !state.paused;
  byId("pause").setAttribute("aria-pressed", String(state.paused));
  byId("pause").textContent = state.paused ? "resume" : "pause";
  say(state.paused ? "paused" : "live");
  if (!state.paused) tick();
}

function listen() {
  const map = byId("map");
  byId("pause").addEventListener("click", pause);
  byId("in").addEventListener("click", () => state.frame && zoom(0.5));
  byId("out").addEventListener("click", () => state.frame && zoom(2));
  byId("whole").addEventListener("click", () => { state.view = null; refresh(); });
  byId("device").addEventListener("change", (event) => {
    Object.assign(state, { device: Number(event.target.value), view: null, history: [], rates: null, shape: null });
    refresh();
  });
  map.addEventListener("wheel", (event) => {
    if (!state.frame) return;
    event.preventDefault();
    zoom(event.deltaY > 0 ? 1.25 : 0.8, positionOf(cellAt(event) + 0.5));
  }, { passive: false });
  map.addEventListener("pointerdown", (event) => {
    if (!state.frame) return;
    map.setPointerCapture(event.pointerId);
    state.drag = { from: cellAt(event), to: cellAt(event) };
  });
  map.addEventListener("pointermove", (event) => {
    if (!state.frame) return;
    const cell = cellAt(event);
    if (state.drag) {
      state.drag.to = cell;
      draw();
    } else if (cell !== state.hover) {
      state.hover = cell;
      describe(event);
    }
  });
  map.addEventListener("pointerup", () => {
    const drag = state.drag;
    state.drag = null;
    if (drag && Math.abs(drag.to - drag.from) > 3) {
      lookAt(positionOf(Math.min(drag.from, drag.to)), positionOf(Math.max(drag.from, drag.to) + 1));
    } else draw();
  });
  map.addEventListener("pointerleave", () => { state.hover = null; byId("tip").hidden = true; });
  document.addEventListener("keydown", (event) => {
    if (event.target.matches("select, button") && event.key === " ") return;
    const act = {
      " ": pause, "0": () => { state.view = null; refresh(); }, "+": () => zoom(0.5), "=": () => zoom(0.5),
      "-": () => zoom(2), ArrowLeft: () => pan(-0.2), ArrowRight: () => pan(0.2),
    }[event.key];
    if (!act || event.ctrlKey || event.metaKey || event.altKey || (!state.frame && event.key !== " ")) return;
    event.preventDefault();
    act();
  });
  window.addEventListener("resize", draw);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", restyle);
}

/** Milliseconds from one question to the next: the longer an answer takes, the rarer it is asked for. */
function pauseAfter() {
  return Math.max(PERIOD_MS, 1000 * (state.frame?.seconds ?? 0) / SHARE_OF_A_CORE);
}

async function run() {
  listen();
  restyle();
  for (;;) {
    const begun = performance.now();
    await tick();
    await new Promise((next) => { setTimeout(next, Math.max(30, begun + pauseAfter() - performance.now())); });
  }
}

run();
