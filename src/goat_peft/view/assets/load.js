// The heat map: layers down, experts across; load as the run measured it, or how far experts moved.

const MOVES = [["moved_product", "how far BA moved"], ["moved_A", "how far A moved"], ["moved_B", "how far B moved"]];

class Load {
  /** `choose(layer)` moves the whole page to a layer. */
  constructor(data, choose) {
    this.data = data;
    this.choose = choose;
    const routed = data.experts.count - data.experts.shared;
    const shares = data.texts_load.map((row) => {
      const total = row.reduce((a, b) => a + b, 0);
      return total ? row.map((number) => number / total) : null;
    });
    const loads = [...data.load, ...(shares.length ? [{ title: "the texts of this page", shares }] : [])];
    this.sources = loads.map(({ title, shares }) => ({
      title: `share of routed tokens: ${title}`, rows: shares, first: data.experts.shared, paint: (value) => this.against(value * routed), text: (value) => String(Math.round(100 * value)), told: percent,
      scale: { label: "% of the routed tokens;", low: "a quarter of even", high: "4 times even", steps: [-1, -0.5, 0, 0.5, 1].map((x) => this.tone(x)) },
    }));
    for (const [key, title] of MOVES) this.addMove(key, title);
    this.sources.forEach(({ title }, i) => $("load-source").append(el("option", { value: i, text: title })));
    $("load-source").addEventListener("change", () => this.draw(this.layer));
    $("load-map").addEventListener("keydown", (event) => this.key(event));
  }

  addMove(key, title) {
    const rows = this.data.layers.map((layer) => layer.experts.map((expert) => expert[key]));
    const known = rows.flat().filter((value) => value > 0);
    if (!known.length) return;
    const low = Math.log(Math.min(...known));
    const span = Math.log(Math.max(...known)) - low || 1;
    const amount = (value) => ({ tone: "var(--far)", amount: value > 0 ? (Math.log(value) - low) / span : 0 });
    this.sources.push({
      title: `${title} from its start`, rows, first: 0, paint: amount, text: (value) => String(Number(value.toPrecision(2))), told: (value) => `${short(value)} times its start's size`,
      scale: { label: "distance over the size at the start;", low: short(Math.exp(low)), high: short(Math.exp(low + span)), steps: [0, 0.25, 0.5, 0.75, 1].map((x) => ({ tone: "var(--far)", amount: x })) },
    });
  }

  /** Colour of a share that is `ratio` times the even one. */
  against(ratio) {
    return this.tone(Math.max(-1, Math.min(1, Math.log2(Math.max(ratio, 1e-3)) / 2)));
  }

  tone(x) {
    return { tone: x < 0 ? "var(--less)" : "var(--more)", amount: Math.abs(x) };
  }

  draw(layer) {
    this.layer = layer;
    const source = this.sources[$("load-source").value];
    if (source !== this.source) this.build(source);
    this.lines.forEach((line, i) => line.setAttribute("aria-selected", String(i === layer)));
    const column = this.at ? this.at % this.width : 0;
    this.at = layer * this.width + column;
    rove(this.cells, this.at, this.cells.includes(document.activeElement));
    this.reveal();
  }

  /** Scroll the map, not the page, to the chosen row. */
  reveal() {
    const box = $("load-map");
    const row = this.lines[this.layer];
    const head = box.querySelector("thead").offsetHeight;
    if (row.offsetTop - head < box.scrollTop) box.scrollTop = row.offsetTop - head;
    else if (row.offsetTop + row.offsetHeight > box.scrollTop + box.clientHeight) box.scrollTop = row.offsetTop + row.offsetHeight - box.clientHeight;
  }

  build(source) {
    this.source = source;
    this.width = source.rows.find(Boolean).length;
    const names = Array.from({ length: this.width }, (_, i) => i + source.first);
    const head = el("tr", {}, el("th", { scope: "col", text: "layer" }), ...names.map((i) => el("th", { scope: "col", "aria-label": `expert ${i + 1}` }, chip(i))));
    this.cells = [];
    this.lines = this.data.layers.map((layer, l) => {
      const cells = names.map((expert, i) => this.cell(source, l, expert, source.rows[l]?.[i] ?? null));
      this.cells.push(...cells);
      const name = el("th", { scope: "row", title: layer.name, text: layer.short, on: { click: () => this.choose(l) } });
      return el("tr", {}, name, ...cells);
    });
    const table = el("table", { class: "map", role: "grid", "aria-labelledby": "load-title", "aria-describedby": "load-source" }, el("thead", {}, head), el("tbody", {}, ...this.lines));
    $("load-map").replaceChildren(table);
    const { label, low, high, steps } = source.scale;
    const ramp = el("span", { class: "ramp" }, ...steps.map(({ tone, amount }) => el("i", { vars: { "--tone": tone, "--amount": amount } })));
    $("load-scale").replaceChildren(el("span", { text: label }), el("span", { class: "ends" }, low, ramp, high));
  }

  cell(source, layer, expert, value) {
    const name = `${this.data.layers[layer].short}, expert ${expert + 1}`;
    const on = { click: () => this.choose(layer) };
    if (value === null) return el("td", { class: "none", text: "–", "aria-label": `${name}: not known`, on });
    const { tone, amount } = source.paint(value);
    return el("td", { text: source.text(value), "aria-label": `${name}: ${source.told(value)}`, vars: { "--tone": tone, "--amount": amount.toFixed(3) }, on });
  }

  key(event) {
    const here = this.cells.indexOf(event.target);
    if (here < 0 || event.ctrlKey || event.altKey || event.metaKey) return;
    const row = Math.floor(here / this.width) * this.width;
    const moves = { ArrowLeft: Math.max(row, here - 1), ArrowRight: Math.min(row + this.width - 1, here + 1), ArrowUp: here - this.width, ArrowDown: here + this.width, Home: row, End: row + this.width - 1 };
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      this.at = here;
      this.choose(Math.floor(here / this.width));
    } else if (event.key in moves) {
      event.preventDefault();
      if (moves[event.key] < 0 || moves[event.key] >= this.cells.length) return;
      this.at = moves[event.key];
      rove(this.cells, this.at, true);
    }
  }
}
