// One weight: its singular values with the segments that experts started from, and how far each expert is now.

const BADGE = 9; // radius of an expert's number above the plot
const FLOOR = 1e-4; // smaller singular values, relative to the largest, are drawn at this one

class Weight {
  constructor(data) {
    this.data = data;
    this.paint = responsive($("spectrum"), () => this.label(), (width, height) => this.plot(width, height));
  }

  draw(layer) {
    this.layer = this.data.layers[layer];
    const { inputs, outputs, experts, spectrum } = this.layer;
    $("weight-about").textContent = `${this.layer.name}: ${outputs} × ${inputs}, ${spectrum.count} singular values`;
    const [{ width, start }] = experts;
    $("spectrum-note").textContent =
      start === null
        ? "These experts did not start from segments of the weight that the adapter could name."
        : `Singular values of the base weight, from the largest. Each expert started from ${width === 1 ? "one singular triplet" : `a segment of ${width} singular triplets`}, marked with its number.`;
    this.paint();
    this.drawTable();
  }

  label() {
    const { spectrum, experts } = this.layer;
    const starts = experts.filter(({ start }) => start !== null).map(({ start }, i) => `expert ${i + 1} from number ${start + 1}`);
    return `Singular values from ${short(spectrum.values[0])} down to ${short(spectrum.values.at(-1))}${starts.length ? `; ${starts.join(", ")}` : ""}`;
  }

  plot(width, height) {
    const { spectrum, experts } = this.layer;
    const [largest] = spectrum.values;
    const floor = Math.max(spectrum.values.at(-1), largest * FLOOR);
    const numbers = spectrum.at.map((i) => i + 1);
    const { X, Y, nodes } = axes(width, height, { x: [1, spectrum.count], y: [floor * 0.8, largest * 1.3], log: true, xTitle: "number of the singular value", top: 42 });
    const marked = experts.map((expert, i) => ({ ...expert, i })).filter(({ start }) => start !== null);
    const badges = spread(marked.map(({ start, width: d }) => X(start + (d + 1) / 2)), X(1), X(spectrum.count));
    const marks = marked.map(({ i, start, width: d, sigma }, order) => {
      const [from, to] = [X(start + 0.5), X(start + d + 0.5)];
      const wide = Math.max(3, to - from);
      const middle = (from + to) / 2;
      const value = Math.max(sigma / d, floor);
      return svg("g", { class: look(i) },
        svg("rect", { class: "band", x: middle - wide / 2, y: 34, width: wide, height: height - 36 - 34 }),
        svg("path", { class: "stem", fill: "none", d: `M${badges[order]},${12 + BADGE} L${middle},34` }),
        svg("rect", { class: "badge", x: badges[order] - BADGE, y: 3, width: 2 * BADGE, height: 2 * BADGE, rx: 4 }),
        svg("text", { class: "number", x: badges[order], y: 16, text: String(i + 1) }),
        svg("circle", { class: "mark", cx: middle, cy: Y(value), r: 4 }));
    });
    const line = svg("polyline", { class: "values", points: points(numbers, spectrum.values.map((value) => Math.max(value, floor)), X, Y) });
    return [...nodes, line, ...marks];
  }

  drawTable() {
    const { experts } = this.layer;
    const known = experts.some(({ moved_product: moved }) => moved !== null);
    const far = Math.max(...experts.map(({ moved_product: moved }) => moved ?? 0)) || 1;
    const large = Math.max(...experts.map(({ size }) => size)) || 1;
    const titles = known ? ["expert", "triplets", "σ at start", "A moved", "B moved", "BA moved", "", "size now"] : ["expert", "size now", ""];
    const bar = (share, i) => el("td", { class: "bar" }, el("div", { class: "rail" }, el("i", { class: look(i), vars: { "--share": `${(100 * share).toFixed(1)}%` } })));
    const rows = experts.map((expert, i) => {
      const size = el("td", { text: `${short(100 * expert.size)} %` });
      if (!known) return el("tr", {}, el("td", {}, chip(i)), size, bar(expert.size / large, i));
      const moved = [expert.moved_A, expert.moved_B, expert.moved_product].map((value) => el("td", { text: value === null ? "–" : short(value) }));
      const last = expert.start === null ? "–" : expert.width === 1 ? expert.start + 1 : `${expert.start + 1}–${expert.start + expert.width}`;
      return el("tr", {}, el("td", {}, chip(i)), el("td", { text: last }), el("td", { text: short(expert.sigma) }), ...moved, bar((expert.moved_product ?? 0) / far, i), size);
    });
    const head = el("tr", {}, ...titles.map((title) => el("th", { scope: "col", text: title })));
    $("moved").replaceChildren(el("table", { class: "figure-table" }, el("thead", {}, head), el("tbody", {}, ...rows)));
    $("moved-note").textContent = known
      ? "Moved: distance from the start over the size at the start (Frobenius norms), so 1 is as far as the start is large. Size now: s‖BA‖ over the base weight's norm."
      : "Size now: s‖BA‖ over the base weight's norm (Frobenius). These experts start at B = 0 with a random A that the adapter does not keep, so there is no distance to show.";
  }
}

/** Move `places` (sorted or not) as little as needed so that badges do not cover each other, inside [low, high]. */
function spread(places, low, high) {
  const gap = Math.min(2 * BADGE + 3, (high - low) / Math.max(places.length - 1, 1));
  const order = places.map((_, i) => i).sort((a, b) => places[a] - places[b]);
  const moved = order.map((i) => places[i]);
  for (let i = 1; i < moved.length; i++) moved[i] = Math.max(moved[i], moved[i - 1] + gap);
  if (moved.length) moved[moved.length - 1] = Math.min(moved.at(-1), high);
  for (let i = moved.length - 2; i >= 0; i--) moved[i] = Math.min(moved[i], moved[i + 1] - gap);
  const found = [];
  order.forEach((i, rank) => (found[i] = Math.max(low, moved[rank])));
  return found;
}
