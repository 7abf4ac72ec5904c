"use strict";
// One moment: the memory of each allocator as a strip, and a table of who held it.

function momentStrips(data, choice, palette) {
  const rows = data.layouts;
  const rowHeight = 46;
  let edges = [];
  const picture = new Picture(byId("strips"), {
    height: rows.length * rowHeight + 26,
    label: "The memory of each allocator at the chosen moment: blocks, and what is held between them",
    paint(context, width) {
      const event = choice.moment;
      const most = Math.max(1, ...rows.map(({ span }) => span));
      const scale = (width - 2) / most;
      const tints = tintsOfSizes(data, event, palette);
      edges = [];
      rows.forEach((layout, line) => {
        const top = line * rowHeight + 19;
        const height = rowHeight - 24;
        context.font = "13px system-ui, sans-serif";
        context.textBaseline = "alphabetic";
        context.textAlign = "left";
        context.fillStyle = palette.css("ink");
        context.fillText(layout.title, 1, top - 5);
        const reserved = layout.reserved.at(event);
        const live = data.live[event];
        context.textAlign = "right";
        context.fillStyle = palette.css("soft");
        const share = reserved ? `, ${formatShare(Math.max(0, 1 - live / reserved))} of it not live` : "";
        context.fillText(reserved ? `${formatBytes(reserved)} reserved${share}` : "", width - 1, top - 5);
        context.fillStyle = palette.css("held");
        const { held } = layout;
        for (let row = 0; row < held.start.length; row++) {
          if (held.start[row] <= event && event < held.end[row]) {
            context.fillRect(1 + held.low[row] * scale, top, (held.high[row] - held.low[row]) * scale, height);
          }
        }
        const raster = new Raster(Math.round(width * picture.scale), 1);
        for (let row = 0; row < layout.number.length; row++) {
          const number = layout.number[row];
          if (data.start[number] > event || data.end[number] <= event) continue;
          const [left, right] = [1 + layout.low[row] * scale, 1 + layout.high[row] * scale];
          edges.push({ line, left, right, number, low: layout.low[row] });
          raster.add(left * picture.scale, 0, right * picture.scale, 1, tints.get(data.size[number]));
        }
        paintRow(context, raster, top, height, picture.scale);
      });
      context.font = "12px system-ui, sans-serif";
      context.fillStyle = palette.css("soft");
      context.textBaseline = "top";
      const bottom = rows.length * rowHeight + 6;
      for (const { value, label } of byteTicks(most, Math.max(2, width / 160))) {
        context.textAlign = value ? "center" : "left";
        context.fillText(label, Math.min(1 + value * scale, width - 26), bottom);
        context.fillRect(1 + value * scale, bottom - 5, 1, 4);
      }
    },
  });
  const whole = { holds: () => true };
  hover(picture, whole, {
    move(x, y) {
      const line = Math.floor(y / rowHeight);
      const found = edges.find((edge) => edge.line === line && edge.left <= x && x < Math.max(edge.right, edge.left + 1));
      if (!found) {
        picture.hideTip();
        return;
      }
      picture.showTip(x, y, element("p", {}, rows[line].title), ...allocationRows(data, found.number),
        tipRow("lies at", formatBytes(found.low)), ...stackText(data, found.number));
    },
    leave() {},
  });
  return picture;
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

function momentTable(data, choice) {
  const select = byId("moment-group");
  const fill = () => {
    const event = choice.moment;
    const groups = new Map();
    const key = {
      size: (number) => [data.size[number], `${formatBytes(data.size[number])} each`],
      tier: (number) => [data.tierOf(number), data.meta.tiers[data.tierOf(number)].name],
      stream: (number) => [data.stream[number], `stream ${data.stream[number]}`],
      tag: (number) => [data.tagOf(number), data.tagOf(number)],
      site: (number) => [data.siteOf(number), data.placeName(data.siteOf(number))],
      age: (number) => ageOf(data, number, event),
    }[select.value];
    const numbers = liveAt(event, data.start, data.end);
    for (const number of numbers) {
      const [id, name] = key(number);
      const group = groups.get(id) ?? { id, name, bytes: 0, blocks: 0, stack: data.stackOf(number) };
      group.bytes += data.size[number];
      group.blocks += 1;
      groups.set(id, group);
    }
    const live = data.live[event] || 1;
    const ordered = [...groups.values()].sort((a, b) => b.bytes - a.bytes);
    const rest = ordered.slice(12);
    const shown = ordered.slice(0, 12);
    shown.forEach((group) => { group.inside = (number) => key(number)[0] === group.id; });
    if (rest.length) {
      const sum = (field) => rest.reduce((total, group) => total + group[field], 0);
      shown.push({ name: `${formatCount(rest.length)} more groups`, bytes: sum("bytes"), blocks: sum("blocks"), stack: "" });
    }
    byId("moment-rows").replaceChildren(...shown.map((group) => {
      const meter = element("div", {}, element("i"));
      meter.firstChild.style.width = `${group.bytes / live * 100}%`;
      meter.firstChild.style.background = "var(--c0)";
      return element("tr", {},
        element("th", { scope: "row", title: select.value === "site" ? group.stack : "" }, focusButton(choice, group)),
        element("td", {}, formatCount(group.blocks)), element("td", {}, formatBytes(group.bytes)),
        element("td", {}, formatShare(group.bytes / live)), element("td", { class: "meter" }, meter));
    }));
    const atPeak = event === data.peak;
    byId("moment-title").textContent = atPeak ? "Where the bytes were at the peak" : "Where the bytes were";
    byId("moment-lead").textContent = `After event ${formatCount(event)}, at ${formatMicroseconds(data.time[event] ?? 0)}: `
      + `${formatBytes(data.live[event] ?? 0)} live in ${formatCount(numbers.length)} blocks`
      + `${atPeak ? ", the most of the run." : "."}`;
    byId("moment-peak").disabled = atPeak;
    byId("moment-end").disabled = event === data.events - 1;
  };
  select.addEventListener("change", fill);
  byId("moment-peak").addEventListener("click", () => choice.set({ moment: data.peak }));
  byId("moment-end").addEventListener("click", () => choice.set({ moment: data.events - 1 }));
  choice.watchers.push((change) => { if ("moment" in change) fill(); });
  fill();
}

function ageOf(data, number, event) {
  const age = data.time[event] - data.time[data.start[number]];
  const bounds = [1e3, 1e4, 1e5, 1e6, 1e7, 6e7];
  const index = bounds.findIndex((bound) => age < bound);
  if (index < 0) return [bounds.length, "older than 1 min"];
  return [index, `younger than ${formatMicroseconds(bounds[index])}`];
}

/** A group's name: a click lets the maps show its blocks alone. */
function focusButton(choice, { name, inside }) {
  if (!inside) return name;  // the rest of the groups is none itself
  const button = element("button", { type: "button", class: "plain", title: "show these blocks alone in the maps" }, name);
  button.addEventListener("click", () => {
    choice.set({ focus: choice.focus?.name === name ? null : { name, has: inside } });
  });
  return button;
}
