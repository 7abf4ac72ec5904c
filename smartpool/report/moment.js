"use strict";
// One moment: the memory of each allocator as a strip, and a table of who held it.

const STRIP_HEIGHT = 46;

/** A strip an allocator: its blocks in order of address, and what it holds between them. */
class MomentStrips {
  constructor(page) {
    Object.assign(this, page);
    this.edges = [];  // of the blocks as they were drawn last
    const layouts = this.data.layouts;
    this.most = Math.max(1, ...layouts.map(({ span }) => span));
    this.picture = new Picture(byId("strips"), {
      height: layouts.length * STRIP_HEIGHT + 26,
      label: "The memory of each allocator at the chosen moment: blocks, and what is held between them",
      paint: (context, width) => this.paint(context, width),
    });
    hover(this.picture, { holds: () => true }, { move: (x, y) => this.tell(x, y), leave() {} });
  }

  draw() {
    this.picture.draw();
  }

  paint(context, width) {
    const { data, palette } = this;
    const perByte = (width - 2) / this.most;
    const x = (address) => 1 + address * perByte;
    const tints = tintsOfSizes(data, this.choice.moment, palette);
    this.edges = [];
    data.layouts.forEach((layout, line) => {
      const top = line * STRIP_HEIGHT + 19;
      this.paintTitle(context, layout, top - 5, width);
      this.paintStrip(context, layout, { line, top, height: STRIP_HEIGHT - 24, x, width, tints });
    });
    context.font = "12px system-ui, sans-serif";
    context.fillStyle = palette.css("soft");
    context.textBaseline = "top";
    const bottom = data.layouts.length * STRIP_HEIGHT + 6;
    for (const { value, label } of byteTicks(this.most, Math.max(2, width / 160))) {
      context.textAlign = value ? "center" : "left";
      context.fillText(label, Math.min(x(value), width - 26), bottom);
      context.fillRect(x(value), bottom - 5, 1, 4);
    }
  }

  paintTitle(context, layout, y, width) {
    const { moment } = this.choice;
    context.font = "13px system-ui, sans-serif";
    context.textBaseline = "alphabetic";
    context.textAlign = "left";
    context.fillStyle = this.palette.css("ink");
    context.fillText(layout.title, 1, y);
    const reserved = layout.reserved.at(moment);
    if (!reserved) return;
    const share = formatShare(Math.max(0, 1 - this.data.live[moment] / reserved));
    context.textAlign = "right";
    context.fillStyle = this.palette.css("soft");
    context.fillText(`${formatBytes(reserved)} reserved, ${share} of it not live`, width - 1, y);
  }

  paintStrip(context, layout, { line, top, height, x, width, tints }) {
    const { data } = this;
    const { moment } = this.choice;
    const { scale } = this.picture;
    const { held, number, low, high } = layout;
    context.fillStyle = this.palette.css("held");
    for (let row = 0; row < held.start.length; row++) {
      if (held.start[row] > moment || held.end[row] <= moment) continue;
      context.fillRect(x(held.low[row]), top, x(held.high[row]) - x(held.low[row]), height);
    }
    const raster = new Raster(Math.round(width * scale), 1);
    for (let row = 0; row < number.length; row++) {
      const of = number[row];
      if (data.start[of] > moment || data.end[of] <= moment) continue;
      const [left, right] = [x(low[row]), x(high[row])];
      this.edges.push({ line, left, right, number: of, low: low[row] });
      raster.add(left * scale, 0, right * scale, 1, tints.get(data.size[of]));
    }
    paintRow(context, raster, top, height, scale);
  }

  tell(x, y) {
    const line = Math.floor(y / STRIP_HEIGHT);
    const found = this.edges.find((edge) =>
      edge.line === line && edge.left <= x && x < Math.max(edge.right, edge.left + 1));
    if (!found) {
      this.picture.hideTip();
      return;
    }
    this.picture.showTip(x, y, element("p", {}, this.data.layouts[line].title),
      ...allocationRows(this.data, found.number), tipRow("lies at", formatBytes(found.low)),
      ...stackText(this.data, found.number));
  }
}

/** A colour for each size that is live, the sizes that hold most first: the same block, the same colour. */
function tintsOfSizes(data, event, palette) {
  const held = new Map();
  for (const number of liveAt(event, data.start, data.end)) {
    held.set(data.size[number], (held.get(data.size[number]) ?? 0) + data.size[number]);
  }
  const sizes = [...held.keys()].sort((a, b) => held.get(b) - held.get(a));
  return new Map(sizes.map((size, rank) => [size, palette.rgb(KIND_COLORS[rank % KIND_COLORS.length])]));
}

const GROUPS_LISTED = 12;

/** The live blocks of the moment by what the select says: how many, how large, and what share. */
class MomentTable {
  constructor({ data, choice }) {
    this.data = data;
    this.choice = choice;
    this.select = byId("moment-group");
    this.select.addEventListener("change", () => this.fill());
    byId("moment-peak").addEventListener("click", () => choice.set({ moment: data.peak }));
    byId("moment-end").addEventListener("click", () => choice.set({ moment: data.events - 1 }));
    choice.watchers.push((change) => { if ("moment" in change) this.fill(); });
    this.fill();
  }

  fill() {
    const { data } = this;
    const { moment } = this.choice;
    const numbers = liveAt(moment, data.start, data.end);
    const groups = this.groups(numbers);
    const live = data.live[moment] || 1;
    byId("moment-rows").replaceChildren(...groups.map((group) => this.row(group, group.bytes / live)));
    const atPeak = moment === data.peak;
    byId("moment-title").textContent = atPeak ? "Where the bytes were at the peak" : "Where the bytes were";
    byId("moment-lead").textContent = `After event ${formatCount(moment)}, at ${formatMicroseconds(data.time[moment])}: `
      + `${formatBytes(data.live[moment])} live in ${formatCount(numbers.length)} blocks`
      + `${atPeak ? ", the most of the run." : "."}`;
    byId("moment-peak").disabled = atPeak;
    byId("moment-end").disabled = moment === data.events - 1;
  }

  /** What a group is known by, and its name. */
  get key() {
    const { data } = this;
    const { moment } = this.choice;
    return {
      size: (number) => [data.size[number], `${formatBytes(data.size[number])} each`],
      tier: (number) => [data.tierOf(number), data.meta.tiers[data.tierOf(number)].name],
      stream: (number) => [data.stream[number], `stream ${data.stream[number]}`],
      tag: (number) => [data.tagOf(number), data.tagOf(number)],
      site: (number) => [data.siteOf(number), data.placeName(data.siteOf(number))],
      age: (number) => ageOf(data, number, moment),
    }[this.select.value];
  }

  /** The largest groups, and the rest as one. */
  groups(numbers) {
    const { data, key } = this;
    const groups = new Map();
    for (const number of numbers) {
      const [id, name] = key(number);
      if (!groups.has(id)) {
        const has = (other) => key(other)[0] === id;
        groups.set(id, { name, has, bytes: 0, blocks: 0, stack: data.stackOf(number) });
      }
      const group = groups.get(id);
      group.bytes += data.size[number];
      group.blocks += 1;
    }
    const ordered = [...groups.values()].sort((a, b) => b.bytes - a.bytes);
    const rest = ordered.splice(GROUPS_LISTED);
    if (rest.length) {
      const sum = (field) => rest.reduce((total, group) => total + group[field], 0);
      ordered.push({ name: `${formatCount(rest.length)} more groups`, bytes: sum("bytes"), blocks: sum("blocks") });
    }
    return ordered;
  }

  row(group, share) {
    const bar = element("i");
    bar.style.width = `${share * 100}%`;
    bar.style.background = "var(--c0)";
    const title = this.select.value === "site" ? group.stack : "";
    return element("tr", {},
      element("th", { scope: "row", title }, this.nameOf(group)),
      element("td", {}, formatCount(group.blocks)), element("td", {}, formatBytes(group.bytes)),
      element("td", {}, formatShare(share)), element("td", { class: "meter" }, element("div", {}, bar)));
  }

  /** A group's name: a click lets the maps show its blocks alone. */
  nameOf({ name, has }) {
    if (!has) return name;  // the rest of the groups is none itself
    const title = "show these blocks alone in the maps";
    const button = element("button", { type: "button", class: "plain", title }, name);
    button.addEventListener("click", () => {
      const { choice } = this;
      choice.set({ focus: choice.focus?.name === name ? null : { name, has } });
    });
    return button;
  }
}

/** The age of an allocation at an event, in steps. */
function ageOf(data, number, event) {
  const age = data.time[event] - data.time[data.start[number]];
  const bounds = [1e3, 1e4, 1e5, 1e6, 1e7, 6e7];
  const index = bounds.findIndex((bound) => age < bound);
  if (index < 0) return [bounds.length, "older than 1 min"];
  return [index, `younger than ${formatMicroseconds(bounds[index])}`];
}
