"use strict";
// The strip at the top: the whole trace, and the stretch of it that all pictures show.

function overview({ data, view, choice, palette }) {
  const whole = new View(data.axis);
  const plot = new Plot(whole, { left: 0, right: 0, top: 2, bottom: 2 });
  let events = null;
  let key = "";
  const picture = new Picture(byId("overview"), {
    height: 46,
    label: "Live memory over the whole trace; the part that the pictures show is marked",
    paint(context, width, height) {
      plot.resize(width, height);
      if (key !== `${width} ${data.axis.byClock}`) {
        key = `${width} ${data.axis.byClock}`;
        whole.low = 0;
        whole.high = data.axis.length;
        events = highestOfColumns(plot, data.highest);
      }
      const most = data.live[data.peak] || 1;
      const y = (bytes) => plot.bottom - bytes / most * (plot.height - 3);
      paintStack(context, plot, events, [{ values: data.live, fill: palette.css("axis", 0.55) }], y);
      const [from, to] = [plot.x(view.low), plot.x(view.high)];
      context.fillStyle = palette.css("page", 0.72);
      context.fillRect(0, 0, from, height);
      context.fillRect(to, 0, width - to, height);
      context.strokeStyle = palette.css("c0");
      context.lineWidth = 2;
      context.strokeRect(from + 1, 1, Math.max(2, to - from - 2), height - 2);
      context.lineWidth = 1;
      drawMoment(context, palette, plot, data.axis.positions[choice.moment]);
    },
  });
  // Drag inside the window to move it, anywhere else to choose a new one.
  let drag = null;
  picture.canvas.addEventListener("pointerdown", (event) => {
    const x = picture.at(event)[0];
    const [from, to] = [plot.x(view.low), plot.x(view.high)];
    const inside = !view.whole && x > from && x < to;
    drag = { at: plot.positionAt(x), low: view.low, high: view.high, inside };
    picture.canvas.setPointerCapture(event.pointerId);
  });
  picture.canvas.addEventListener("pointermove", (event) => {
    if (!drag) return;
    const position = plot.positionAt(picture.at(event)[0]);
    if (drag.inside) view.set(drag.low + position - drag.at, drag.high + position - drag.at);
    else if (Math.abs(plot.x(position) - plot.x(drag.at)) > 4) {
      view.set(Math.min(drag.at, position), Math.max(drag.at, position));
    }
  });
  for (const name of ["pointerup", "pointercancel"]) picture.canvas.addEventListener(name, () => { drag = null; });
  picture.canvas.addEventListener("dblclick", () => view.reset());
  picture.canvas.addEventListener("keydown", (event) => {
    const actions = {
      ArrowLeft: () => view.pan(-0.1), ArrowRight: () => view.pan(0.1), "+": () => view.zoom(0.6),
      "-": () => view.zoom(1 / 0.6), Home: () => view.reset(),
    };
    if (!actions[event.key]) return;
    event.preventDefault();
    actions[event.key]();
  });
  return picture;
}
