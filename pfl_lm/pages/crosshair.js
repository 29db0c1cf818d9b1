// A cross-hair over the charts; the page is complete without it.
(function () {
  const tip = document.createElement("div");
  tip.id = "tip";
  tip.hidden = true;
  document.body.append(tip);
  const make = (name, attributes) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const key in attributes) node.setAttribute(key, attributes[key]);
    return node;
  };
  const show = (svg, data, event) => {
    const box = svg.getBoundingClientRect();
    const scale = svg.viewBox.baseVal.width / box.width;
    const x = (event.clientX - box.left) * scale;
    const [px, title, rows] = data.points.reduce((a, b) =>
      Math.abs(a[0] - x) <= Math.abs(b[0] - x) ? a : b);
    const layer = svg.querySelector(".hover");
    layer.replaceChildren(make("line", { x1: px, x2: px, y1: data.top, y2: data.bottom }),
      ...rows.map(([, , y, style]) => make("circle", { class: style, cx: px, cy: y, r: 4 })));
    tip.replaceChildren(...[title, ...rows.map(([name, value]) => name + "  " + value)].map(text => {
      const line = document.createElement("div");
      line.textContent = text;
      return line;
    }));
    tip.hidden = false;
    const left = box.left + px / scale + 14;
    const flip = left + tip.offsetWidth > document.documentElement.clientWidth - 8;
    tip.style.left = scrollX + (flip ? left - tip.offsetWidth - 28 : left) + "px";
    tip.style.top = scrollY + box.top + 12 + "px";
  };
  // Charts may be replaced while the page is open, so the page itself is listened to.
  const read = new WeakMap();
  let shown = null;
  const hide = () => {
    tip.hidden = true;
    shown?.querySelector(".hover").replaceChildren();
    shown = null;
  };
  addEventListener("pointerout", event => { if (!shown?.contains(event.relatedTarget)) hide(); });
  addEventListener("pointermove", event => {
    const svg = event.target.closest?.("svg[data-chart]") ?? null;
    if (shown !== svg) hide();
    shown = svg;
    if (!svg) return;
    if (!read.has(svg)) read.set(svg, JSON.parse(svg.dataset.chart));
    if (read.get(svg).points.length) show(svg, read.get(svg), event);
  });
  // Paper has nothing to unfold.
  addEventListener("beforeprint", () =>
    document.querySelectorAll("details").forEach(node => { node.open = true; }));
})();
