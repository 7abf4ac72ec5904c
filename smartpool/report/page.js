"use strict";
// The values under the pointer, and the legend's switches. The charts are complete without it.

function enliven(figure) {
  const data = JSON.parse(figure.querySelector('script[type="application/json"]').textContent);
  const drawing = figure.querySelector(".plot > svg");
  const cross = figure.querySelector(".cross");
  const tip = figure.querySelector(".tip");
  const [left, width, fullWidth] = data.plot;
  const columns = data.live.length;
  const hidden = new Set();
  let current = null;

  function row(name, bytes, swatch) {
    const line = element("div");
    if (swatch) line.append(swatch.cloneNode(true));
    line.append(element("span", {}, name), element("b", {}, formatBytes(bytes)));
    return line;
  }

  function show(column) {
    current = Math.min(columns - 1, Math.max(0, column));
    const first = Math.ceil(current * data.events / columns);
    const last = Math.ceil((current + 1) * data.events / columns) - 1;
    const x = left + width * (current + 0.5) / columns;
    cross.setAttribute("x1", x);
    cross.setAttribute("x2", x);
    cross.setAttribute("visibility", "visible");
    const span = first === last ? `event ${formatCount(first)}`
      : `events ${formatCount(first)} to ${formatCount(last)}, the most`;
    tip.replaceChildren(element("p", {}, span));
    data.series
      .map((series, number) => ({ series, number, bytes: series.reserved[current] }))
      .filter(({ number }) => !hidden.has(String(number)))
      .sort((a, b) => b.bytes - a.bytes)
      .forEach(({ series, number, bytes }) => {
        tip.append(row(series.name, bytes, figure.querySelector(`.key[data-series="${number}"] .swatch`)));
      });
    tip.append(row("live", data.live[current], figure.querySelector(".key .swatch")));
    tip.hidden = false;
    const scale = drawing.clientWidth / fullWidth;
    const beyond = x * scale + 16 + tip.offsetWidth > drawing.clientWidth;
    tip.style.transform = `translate(${beyond ? x * scale - 16 - tip.offsetWidth : x * scale + 16}px, 20px)`;
  }

  function hide() {
    current = null;
    tip.hidden = true;
    cross.setAttribute("visibility", "hidden");
  }

  drawing.addEventListener("pointermove", (event) => {
    const box = drawing.getBoundingClientRect();
    const x = (event.clientX - box.left) * fullWidth / box.width;
    if (x < left || x > left + width) hide();
    else show(Math.floor((x - left) / width * columns));
  });
  drawing.addEventListener("pointerleave", hide);
  drawing.addEventListener("blur", hide);
  drawing.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === "Escape") hide();
    else if (step) {
      event.preventDefault();
      show(current === null ? 0 : current + step * (event.shiftKey ? Math.ceil(columns / 20) : 1));
    }
  });
  for (const key of figure.querySelectorAll("button.key")) {
    key.disabled = false;
    key.addEventListener("click", () => {
      const number = key.dataset.series;
      const visible = hidden.delete(number) || !hidden.add(number);
      key.setAttribute("aria-pressed", String(visible));
      for (const part of drawing.querySelectorAll(`[data-series="${number}"]`)) {
        part.classList.toggle("off", !visible);
      }
    });
  }
}

document.querySelectorAll("figure.chart").forEach(enliven);
