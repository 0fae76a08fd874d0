// Axes for the charts; they are drawn anew for the width there is, so that their text keeps its size.

/** Numbers 1, 2 or 5 times a power of ten that cut [low, high] into about `wanted` parts. */
function ticks(low, high, wanted) {
  const rough = (high - low) / wanted || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * power).find((size) => size >= rough * 0.99);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}

/** Powers of ten in [low, high], with halves and fifths where there are few. */
function logTicks(low, high) {
  const found = [];
  for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++) for (const n of [1, 2, 5]) found.push(Number((n * 10 ** e).toPrecision(3)));
  const inside = found.filter((value) => value >= low && value <= high);
  const powers = inside.filter((value) => Number.isInteger(Math.round(Math.log10(value) * 1e6) / 1e6));
  return powers.length >= 3 ? powers : inside;
}

/** Draw into `host` now and whenever its width changes; `draw(width, height)` returns the SVG's children. */
function responsive(host, label, draw) {
  const paint = () => {
    const { width, height } = host.getBoundingClientRect();
    if (width) host.replaceChildren(svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label() }, ...draw(width, height)));
  };
  new ResizeObserver(paint).observe(host);
  return paint;
}

/** Scales and axes of a plot with the given margins; `x` and `y` are [low, high]. */
function axes(width, height, { x, y, log = false, xTitle, yTitle, top = 14, right = 14 }) {
  const left = 46;
  const bottom = 36;
  const place = log ? Math.log : (value) => value;
  const X = (value) => left + ((value - x[0]) / (x[1] - x[0] || 1)) * (width - left - right);
  const Y = (value) => height - bottom - ((place(value) - place(y[0])) / (place(y[1]) - place(y[0]) || 1)) * (height - top - bottom);
  const nodes = [];
  for (const value of log ? logTicks(...y) : ticks(...y, 6)) {
    nodes.push(svg("line", { class: "grid", x1: left, x2: width - right, y1: Y(value), y2: Y(value) }), svg("text", { x: left - 7, y: Y(value) + 4, "text-anchor": "end", text: short(value) }));
  }
  for (const value of ticks(...x, width > 420 ? 6 : 4)) nodes.push(svg("text", { x: X(value), y: height - bottom + 17, "text-anchor": "middle", text: short(value) }));
  nodes.push(svg("text", { x: width - right, y: height - 3, "text-anchor": "end", text: xTitle }));
  if (yTitle) nodes.push(svg("text", { x: 0, y: 10, text: yTitle }));
  return { X, Y, nodes };
}

const points = (xs, ys, X, Y) => xs.map((x, i) => `${X(x).toFixed(1)},${Y(ys[i]).toFixed(1)}`).join(" ");
