"use strict";
// A trace as columns, the ways to tell its allocations apart, and what is chosen on the page.

const KIND_COLORS = Array.from({ length: 10 }, (_, i) => `k${i}`);
const OTHER_COLORS = ["o0", "o1", "o2", "o3"];
const GROUPS_SHOWN = 10;

/** The trace as columns, with what follows from them. */
class TraceData {
  constructor(meta, columns) {
    this.meta = meta;
    this.time = columns.time;
    this.start = columns.start;
    this.size = columns.size;
    this.end = columns.start.map((start, i) => start + columns.life[i]);
    this.stream = columns.stream;
    this.site = columns.site ?? null;
    this.events = meta.events;
    this.live = liveAfterEvents(this.events, this.start, this.end, this.size);
    this.highest = new Highest(this.live);
    this.peak = this.events ? this.highest.within(0, this.events) : 0;
    this.layouts = meta.layouts.map((about, k) => layoutOf(this, about, columns, k));
    this.replayed = this.layouts.filter((layout) => layout.slot !== null);
  }

  tierOf(number) {
    const size = this.size[number];
    const index = this.meta.tiers.findIndex(({ most }) => most !== null && size <= most);
    return index < 0 ? this.meta.tiers.length - 1 : index;
  }

  siteOf(number) {
    return this.site ? this.site[number] : -1;
  }

  stackOf(number) {
    return this.meta.sites[this.siteOf(number)] ?? "";
  }

  /** The tag under which an allocation was asked for: the last line of its stack, by `Label.described`. */
  tagOf(number) {
    return this.meta.tags[this.siteOf(number)] ?? "no tag";
  }

  /** The call that asked, of a place in the program. */
  placeName(site) {
    return this.meta.sites[site]?.split("\n")[0] ?? "place unknown";
  }
}

/** One layout: rows of rectangles in events and bytes, what was held, and reserved over time. */
function layoutOf(data, about, columns, k) {
  const column = (name) => columns[`${k}.${name}`];
  const offset = column("offset");
  const number = column("number") ?? Float64Array.from(offset, (_, i) => i);
  const size = column("size") ?? data.size;
  return {
    ...about,
    number,
    low: offset,
    high: offset.map((low, row) => low + size[row]),
    held: {
      start: column("held_start"), end: column("held_end"), low: column("held_offset"),
      high: column("held_offset").map((low, row) => low + column("held_size")[row]),
    },
    reserved: new Steps(column("change"), column("reserved")),
  };
}

/**
 * A way to tell allocations apart. `all[number]` is the group of an allocation, `colors[group]` its
 * colour. Groups beyond `names` are the many small ones: one name, and colours that lie close.
 */
class Grouping {
  constructor(data, kind) {
    this.kind = kind;
    const [key, name] = {
      tier: [(number) => data.tierOf(number), (tier) => data.meta.tiers[tier].name],
      size: [(number) => data.size[number], (size) => `${formatBytes(size)} each`],
      stream: [(number) => data.stream[number], (stream) => `stream ${stream}`],
      tag: [(number) => data.tagOf(number), (tag) => tag],
      site: [(number) => data.siteOf(number), (site) => data.placeName(site)],
    }[kind];
    const ordered = kind === "tier" ? data.meta.tiers.map((_, tier) => tier) : largestKeys(data, key, GROUPS_SHOWN);
    const groups = new Map(ordered.map((of, group) => [of, group]));
    this.names = ordered.map(name);
    this.colors = kind === "tier" ? data.meta.tiers.map(({ color }) => color) : KIND_COLORS.slice(0, ordered.length);
    this.all = new Uint8Array(data.start.length);
    const others = ordered.length;
    let numberOfOthers = 0;
    for (let number = 0; number < this.all.length; number++) {
      const of = key(number);
      if (!groups.has(of)) groups.set(of, others + numberOfOthers++ % OTHER_COLORS.length);
      this.all[number] = groups.get(of);
    }
    if (numberOfOthers) {
      this.names.push(`${formatCount(numberOfOthers)} others`);
      this.colors.push(...OTHER_COLORS);
    }
  }

  /** The number of the name that a group goes by. */
  nameOf(group) {
    return Math.min(group, this.names.length - 1);
  }
}

/** The keys of the allocations that fill most of the picture: bytes times events. */
function largestKeys(data, key, count) {
  const filled = new Map();
  for (let number = 0; number < data.start.length; number++) {
    const area = data.size[number] * (data.end[number] - data.start[number]);
    filled.set(key(number), (filled.get(key(number)) ?? 0) + area);
  }
  return [...filled].sort((a, b) => b[1] - a[1]).slice(0, count).map(([of]) => of);
}

/** What is chosen on the page: the moment, the block, and what is hidden. */
class Choice {
  constructor(data) {
    this.moment = data.peak;
    this.block = -1;
    this.hovered = -1;
    this.hidden = new Set();
    this.focus = null;  // the name of a group of the table, and which allocations are in it
    this.watchers = [];
  }

  set(change) {
    Object.assign(this, change);
    for (const watcher of this.watchers) watcher(change);
  }
}

/** What a tip says of an allocation. */
function allocationRows(data, number) {
  const axis = data.axis;
  const start = data.start[number];
  const end = data.end[number];
  const ends = end < data.events;
  const us = (ends ? data.time[end] : data.time.at(-1)) - data.time[start];
  return [
    tipRow("allocation", `${formatCount(number)}, ${data.meta.tiers[data.tierOf(number)].name}`),
    tipRow("size", `${formatBytes(data.size[number])} (${formatCount(data.size[number])} B)`),
    tipRow("live", `events ${formatCount(start)} to ${ends ? formatCount(end) : "the end"}`),
    tipRow("life", `${formatCount(end - start)} events, ${ends ? "" : "at least "}${formatMicroseconds(us)}`),
    ...(data.meta.streams > 1 ? [tipRow("stream", String(data.stream[number]))] : []),
    ...(axis.byClock ? [tipRow("from", formatMicroseconds(data.time[start]))] : []),
  ];
}

function stackText(data, number) {
  const stack = data.stackOf(number);
  return stack ? [element("pre", {}, stack)] : [];
}
