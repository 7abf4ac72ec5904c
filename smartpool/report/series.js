"use strict";
// Step series with questions in the time of a screen's width, however long they are. Pure functions.

/** The last index whose value is at most `wanted`; -1 where there is none. `sorted` ascends. */
function lastAtMost(sorted, wanted, count = sorted.length) {
  let low = 0;
  let high = count;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] <= wanted) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

/**
 * Where a series is highest within any stretch. Blocks of 64 values know their highest, blocks of
 * blocks theirs, and so on: a question looks at 126 entries a level at most.
 */
class Highest {
  constructor(values) {
    this.values = values;
    this.levels = [];
    let below = null;
    for (let count = values.length; count > 64; count = this.levels.at(-1).length) {
      const level = new Int32Array(Math.ceil(count / 64));
      for (let block = 0; block < level.length; block++) {
        const end = Math.min(count, block * 64 + 64);
        let best = below ? below[block * 64] : block * 64;
        for (let i = block * 64 + 1; i < end; i++) {
          const candidate = below ? below[i] : i;
          if (values[candidate] > values[best]) best = candidate;
        }
        level[block] = best;
      }
      this.levels.push(level);
      below = level;
    }
  }

  /** The index of the first highest value in [from, to), which is not empty. */
  within(from, to) {
    const { values, levels } = this;
    let best = from;
    let found = false;
    const look = (candidate) => {
      const better = values[candidate] > values[best] || (values[candidate] === values[best] && candidate < best);
      if (!found || better) best = candidate;
      found = true;
    };
    for (let level = -1; from < to; level++) {
      const below = level < 0 ? null : levels[level];
      const above = levels[level + 1];
      const innerFrom = above ? Math.min(to, Math.ceil(from / 64) * 64) : to;
      const innerTo = above ? Math.max(innerFrom, Math.floor(to / 64) * 64) : to;
      for (let i = from; i < innerFrom; i++) look(below ? below[i] : i);
      for (let i = innerTo; i < to; i++) look(below ? below[i] : i);
      from = innerFrom / 64;
      to = innerTo / 64;
    }
    return best;
  }
}

/** The running sum of what is live after each event. `select`, where given, says which allocations count. */
function liveAfterEvents(events, start, end, size, select = null) {
  const live = new Float64Array(events);
  for (let i = 0; i < start.length; i++) {
    if (select && !select(i)) continue;
    live[start[i]] += size[i];
    if (end[i] < events) live[end[i]] -= size[i];
  }
  for (let i = 1; i < events; i++) live[i] += live[i - 1];
  return live;
}

/** Allocations live after `event`. */
function liveAt(event, start, end) {
  const numbers = [];
  for (let i = 0; i < start.length && start[i] <= event; i++) if (end[i] > event) numbers.push(i);
  return numbers;
}

/** The most of a series until each of its values. */
function runningMost(values) {
  let most = 0;
  return values.map((value) => { most = Math.max(most, value); return most; });
}
