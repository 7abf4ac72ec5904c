"use strict";
// The page of one trace: reads the data, and wires pictures, controls and tables together.

function controls({ data, view, choice }, pictures) {
  const redraw = () => pictures.forEach((picture) => picture.draw());
  view.watchers.push(() => {
    byId("span").textContent = view.whole ? "whole trace" : data.axis.span(view.low, view.high);
    redraw();
  });
  choice.watchers.push((change) => {
    const hoveredOnly = Object.keys(change).join() === "hovered";
    for (const picture of pictures) if (!hoveredOnly || picture instanceof MemoryMap) picture.draw();
  });
  byId("zoom-in").addEventListener("click", () => view.zoom(0.5));
  byId("zoom-out").addEventListener("click", () => view.zoom(2));
  byId("zoom-all").addEventListener("click", () => view.reset());
  for (const button of document.querySelectorAll("#axis button")) {
    button.addEventListener("click", () => {
      view.switchAxis(button.value === "clock");
      for (const one of document.querySelectorAll("#axis button")) one.setAttribute("aria-pressed", String(one === button));
    });
  }
  for (const key of document.querySelectorAll("button.key[data-name]")) {
    key.addEventListener("click", () => {
      const name = data.layouts[key.dataset.name].name;
      const shown = choice.hidden.delete(name) || !choice.hidden.add(name);
      for (const one of document.querySelectorAll(`button.key[data-name="${key.dataset.name}"]`)) {
        one.setAttribute("aria-pressed", String(shown));
      }
      redraw();
    });
  }
}

function theme(palette, pictures) {
  const root = document.documentElement;
  const repaint = () => {
    palette.forget();
    pictures.forEach((picture) => picture.draw());
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
  byId("theme").addEventListener("click", () => {
    const dark = getComputedStyle(root).colorScheme === "dark"
      || (!root.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
    root.dataset.theme = dark ? "light" : "dark";
    repaint();
  });
}

async function open() {
  const meta = JSON.parse(byId("about").textContent);
  const bytes = await inflated(fromBase64(byId("columns").textContent));
  const data = new TraceData(meta, unpackColumns(bytes, meta.columns));
  data.axis = new Axis(data.time);
  const page = { data, view: new View(data.axis), choice: new Choice(data), palette: new Palette() };
  const pictures = [];
  if (data.events) {
    pictures.push(overview(page), new Timeline(page), new FragmentationCurves(page), ...memoryMaps(page),
      new MomentStrips(page));
    new MomentTable(page);
  }
  controls(page, pictures);
  theme(page.palette, pictures);
  const bar = document.querySelector(".bar");
  addEventListener("scroll", () => bar.classList.toggle("stuck", bar.getBoundingClientRect().top <= 0), { passive: true });
  requestAnimationFrame(() => requestAnimationFrame(() => {
    document.documentElement.dataset.ready = String(Math.round(performance.now()));
  }));
}

open().catch(showProblem);
