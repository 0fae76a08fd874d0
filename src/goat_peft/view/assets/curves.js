// Training curves: one chart for each kind of figure, lines told apart by dash and label as well as by colour.

function drawCurves(charts) {
  $("training").hidden = !charts.length;
  $("curves").replaceChildren(
    ...charts.map((chart) => {
      const host = el("div", { class: "chart" });
      responsive(host, () => curveLabel(chart), (width, height) => plotCurves(chart, width, height));
      return el("div", {}, el("h3", { text: chart.title }), host, valuesTable(chart));
    }),
  );
}

function curveLabel({ title, lines }) {
  return `${title}. ${lines.map(({ label, steps, values }) => `${label}: ${short(values[0])} at step ${steps[0]}, ${short(values.at(-1))} at step ${steps.at(-1)}`).join("; ")}`;
}

function plotCurves({ title, lines, even }, width, height) {
  const named = lines.length > 1 || lines[0].label !== title.toLowerCase();
  const values = lines.flatMap((line) => line.values).concat(even === null ? [] : [even]);
  const steps = lines.flatMap((line) => line.steps);
  const pad = (Math.max(...values) - Math.min(...values)) * 0.08 || Math.abs(values[0]) * 0.1 || 1;
  const y = [Math.min(...values) - pad, Math.max(...values) + pad];
  const { X, Y, nodes } = axes(width, height, { x: [Math.min(...steps), Math.max(...steps)], y, xTitle: "step", right: 24, top: named ? 30 : 14 });
  if (even !== null) {
    nodes.push(svg("line", { class: "even", x1: X(Math.min(...steps)), x2: X(Math.max(...steps)), y1: Y(even), y2: Y(even) }));
    nodes.push(svg("text", { x: X(Math.max(...steps)), y: Y(even) - 5, "text-anchor": "end", text: "perfect balance" }));
  }
  lines.forEach((line, i) => {
    const dots = line.steps.length <= 12 ? line.steps.map((step, at) => svg("circle", { class: "dot", cx: X(step), cy: Y(line.values[at]), r: 3.5 })) : [];
    nodes.push(svg("g", { class: `s${i % 4}` }, svg("polyline", { class: "line", points: points(line.steps, line.values, X, Y) }), ...dots, ...(named ? key(line, i) : [])));
  });
  return nodes;

  /** A piece of the line and its name, above the plot. */
  function key({ label }, i) {
    const at = 46 + lines.slice(0, i).reduce((sum, line) => sum + 46 + 7 * line.label.length, 0);
    return [svg("line", { class: "line", x1: at, x2: at + 26, y1: 10, y2: 10 }), svg("text", { class: "end", x: at + 32, y: 14, text: label })];
  }
}

function valuesTable({ lines }) {
  const steps = [...new Set(lines.flatMap((line) => line.steps))].sort((a, b) => a - b);
  const rows = steps.map((step) => {
    const cells = lines.map((line) => line.values[line.steps.indexOf(step)]);
    return el("tr", {}, el("td", { text: String(step) }), ...cells.map((value) => el("td", { text: value === undefined ? "" : short(value) })));
  });
  const head = el("tr", {}, ...["step", ...lines.map(({ label }) => label)].map((title) => el("th", { scope: "col", text: title })));
  const table = el("table", { class: "figure-table" }, el("thead", {}, head), el("tbody", {}, ...rows));
  return el("details", {}, el("summary", { text: "Values" }), el("div", { class: "scroll", tabindex: 0 }, table));
}
