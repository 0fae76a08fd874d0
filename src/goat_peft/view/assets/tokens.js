// The text or image of the moment, each token coloured by the experts it uses.

/** What a reader sees for white space and for nothing. */
const visible = (token) => (token.trim() ? token.trim() : token.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replaceAll(" ", "␣") || "∅");

class Tokens {
  /** `layerStep(by)` moves the whole page to another layer. */
  constructor(data, layerStep) {
    this.data = data;
    this.layerStep = layerStep;
    this.routings = data.texts.map((text) => new Routing(text, data.experts));
    this.at = 0;
    this.alone = null;
    this.nodes = [];
    const stage = $("stage");
    stage.addEventListener("keydown", (event) => this.key(event));
    stage.addEventListener("focusin", (event) => this.show(this.nodes.indexOf(event.target)));
    stage.addEventListener("focusout", () => this.hide());
    stage.addEventListener("mouseover", (event) => this.show(this.nodes.indexOf(event.target.closest("button"))));
    stage.addEventListener("mouseleave", () => this.show(this.nodes.indexOf(document.activeElement)));
    addEventListener("scroll", () => this.place(), { passive: true, capture: true });
    this.drawLegend();
  }

  drawLegend() {
    this.buttons = Array.from({ length: this.data.experts.count }, (_, i) =>
      el("button", { type: "button", "aria-pressed": "false", on: { click: () => this.only(this.alone === i ? null : i) } }, chip(i), el("span", { class: "of" })),
    );
    $("legend").replaceChildren(el("span", { class: "word", text: "Show one expert alone:" }), ...this.buttons);
  }

  /** Dim every token that does not use expert `i`; null shows all. */
  only(i) {
    this.alone = i;
    this.buttons.forEach((button, index) => button.setAttribute("aria-pressed", String(index === i)));
    this.paint();
  }

  draw(textIndex, layer) {
    const before = this.routing;
    this.routing = this.routings[textIndex];
    this.layer = layer;
    this.rows = this.routing.of(layer);
    const { text } = this.routing;
    const kind = this.rows.length === text.tokens.length ? (text.grid ? "image" : "words") : this.rows.length ? "whole" : "none";
    const focused = this.nodes.includes(document.activeElement);
    if (before !== this.routing || kind !== this.kind) {
      this.kind = kind;
      this.build(text);
    }
    this.at = Math.min(this.at, Math.max(this.nodes.length - 1, 0));
    this.paint();
    if (this.nodes.length) rove(this.nodes, this.at, focused);
    if (focused) this.show(this.at);
    this.drawShare();
  }

  build(text) {
    this.hide();
    const stage = $("stage");
    if (this.kind === "none") {
      this.nodes = [];
      stage.replaceChildren(el("p", { class: "lead", text: "This layer does not read the tokens of this text one by one; choose another layer." }));
    } else if (this.kind === "whole") {
      this.nodes = [el("button", { type: "button" })];
      const plain = text.picture ? el("img", { class: "bare", src: text.picture, alt: "" }) : el("p", { class: "plain", text: text.tokens.map(visible).join(" ") });
      stage.replaceChildren(el("p", { class: "lead", text: `This layer reads one vector for the whole ${text.picture ? "image" : "text"}.` }), el("div", { class: "words" }, ...this.nodes), plain);
    } else if (this.kind === "image") {
      this.buildImage(text, stage);
    } else {
      this.nodes = text.tokens.map(() => el("button", { type: "button" }));
      const more = text.cut ? el("p", { class: "plain", text: `… and ${text.cut} more tokens, which are not on this page` }) : null;
      stage.replaceChildren(...[el("div", { class: "words" }, ...this.nodes), more].filter(Boolean));
    }
  }

  buildImage(text, stage) {
    const { rows, columns, first } = text.grid;
    this.nodes = text.tokens.map(() => el("button", { type: "button" }));
    const picture = el("img", { src: text.picture, alt: `${text.title} ${text.note}` });
    const patches = el("div", { class: "patches", vars: { "--rows": rows, "--columns": columns } }, picture, ...this.nodes.slice(first));
    const rest = first ? [el("p", { text: "Tokens that are no patch:" }), el("div", { class: "words" }, ...this.nodes.slice(0, first))] : [];
    const beside = el("div", { class: "beside" }, el("img", { class: "bare", src: text.picture, alt: "The image by itself" }), ...rest);
    stage.replaceChildren(el("div", { class: "image" }, patches, beside));
  }

  paint() {
    this.nodes.forEach((node, i) => {
      const row = this.rows[i];
      const experts = used(row, this.data.experts.shared);
      const dim = this.alone !== null && row.weights[this.alone] === 0;
      const shown = this.alone === null || dim ? experts[0].expert : this.alone;
      node.className = `${this.classOf(i)} ${look(shown)}${dim ? " dim" : ""}`;
      node.style.setProperty("--weight", row.weights[shown].toFixed(3));
      node.setAttribute("aria-label", `${this.name(i)}: ${experts.map(({ expert, weight }) => `expert ${expert + 1} ${percent(weight)}`).join(", ")}`);
      node.replaceChildren(...(this.isPatch(i) ? [el("span", { text: String(shown + 1) })] : this.inside(this.name(i), experts)));
    });
  }

  isPatch(i) {
    return this.kind === "image" && i >= this.routing.text.grid.first;
  }

  classOf(i) {
    if (this.isPatch(i)) return "patch";
    const { tokens, kinds } = this.routing.text;
    return this.kind === "whole" ? "token" : `token ${kinds[i]}${tokens[i].trim() ? "" : " blank"}`;
  }

  name(i) {
    const { text } = this.routing;
    if (this.kind === "whole") return text.picture ? "whole image" : "whole text";
    return visible(text.tokens[i]);
  }

  inside(word, experts) {
    const [top, ...others] = experts.slice(0, 3);
    const mix = experts.map(({ expert, weight }) => el("i", { class: look(expert), vars: { "--share": weight.toFixed(3) } }));
    const who = el("span", { class: "who" }, el("b", { text: String(top.expert + 1) }), others.map(({ expert }) => ` ${expert + 1}`).join("") + (experts.length > 3 ? " …" : ""));
    return [el("span", { class: "word", text: word }), el("span", { class: "mix" }, ...mix), who];
  }

  /** The box with all weights of token `i`. */
  show(i) {
    if (i < 0) return this.hide();
    this.hide();
    this.shown = i;
    const { text } = this.routing;
    const row = this.rows[i];
    const { shared } = this.data.experts;
    const lines = row.weights.map((weight, expert) => {
      const p = expert < shared ? "always" : percent(row.probabilities[expert - shared]);
      const rail = el("div", { class: "rail" }, el("i", { class: look(expert), vars: { "--share": `${(100 * weight).toFixed(1)}%` } }));
      return el("tr", { class: weight > 0 ? "used" : "idle" }, el("td", {}, chip(expert)), el("td", { class: "meter" }, rail), el("td", { text: weight > 0 ? percent(weight) : "–" }), el("td", { text: p }));
    });
    const head = el("tr", {}, ...["expert", "", "weight", "router"].map((title) => el("th", { scope: "col", text: title })));
    const place = this.kind === "whole" ? "one vector for all tokens" : `token ${i + 1} of ${text.tokens.length}`;
    $("tip").replaceChildren(el("h3", { text: this.name(i) }), el("p", { text: `${place}, ${this.data.layers[this.layer].short}` }), el("table", {}, el("thead", {}, head), el("tbody", {}, ...lines)));
    $("tip").hidden = false;
    this.nodes[i].setAttribute("aria-describedby", "tip");
    this.place();
  }

  place() {
    if (this.shown === undefined || $("tip").hidden) return;
    const tip = $("tip");
    const target = this.nodes[this.shown].getBoundingClientRect();
    const { width, height } = tip.getBoundingClientRect();
    const left = Math.max(8, Math.min(target.left + target.width / 2 - width / 2, innerWidth - width - 8));
    const below = target.bottom + 8 + height < innerHeight || target.top < height + 8;
    tip.style.left = `${left}px`;
    tip.style.top = `${below ? target.bottom + 8 : target.top - height - 8}px`;
  }

  hide() {
    if (this.shown !== undefined) this.nodes[this.shown]?.removeAttribute("aria-describedby");
    this.shown = undefined;
    $("tip").hidden = true;
  }

  key(event) {
    const here = this.nodes.indexOf(event.target);
    if (here < 0 || event.ctrlKey || event.altKey || event.metaKey) return;
    const moves = { ArrowLeft: () => here - 1, ArrowRight: () => here + 1, ArrowUp: () => this.beside(here, -1), ArrowDown: () => this.beside(here, 1), Home: () => 0, End: () => this.nodes.length - 1 };
    if (event.key === "Escape") return this.hide();
    if (event.key === "PageUp" || event.key === "PageDown") {
      event.preventDefault();
      this.at = here;
      this.layerStep(event.key === "PageUp" ? -1 : 1);
      say(`Layer ${this.data.layers[this.layer].short}. ${this.nodes[this.at]?.getAttribute("aria-label") ?? ""}`);
    } else if (moves[event.key]) {
      event.preventDefault();
      this.at = Math.max(0, Math.min(moves[event.key](), this.nodes.length - 1));
      rove(this.nodes, this.at, true);
    }
  }

  /** The token nearest in the line above (-1) or below (1). */
  beside(here, way) {
    const from = this.nodes[here].getBoundingClientRect();
    const middle = from.left + from.width / 2;
    const lines = this.nodes.map((node, i) => ({ i, box: node.getBoundingClientRect() })).filter(({ box }) => (box.top - from.top) * way > from.height / 2);
    if (!lines.length) return here;
    const line = way > 0 ? Math.min(...lines.map(({ box }) => box.top)) : Math.max(...lines.map(({ box }) => box.top));
    const near = lines.filter(({ box }) => Math.abs(box.top - line) < from.height / 2);
    return near.reduce((best, one) => (Math.abs(one.box.left + one.box.width / 2 - middle) < Math.abs(best.box.left + best.box.width / 2 - middle) ? one : best)).i;
  }

  /** How this text's routed weight is spread over the experts. */
  drawShare() {
    const { count, shared } = this.data.experts;
    const sums = Array.from({ length: count }, (_, i) => (i < shared ? 0 : this.rows.reduce((sum, row) => sum + row.weights[i], 0)));
    const total = sums.reduce((a, b) => a + b, 0) || 1;
    this.buttons.forEach((button, i) => {
      button.querySelector(".of").textContent = i < shared ? "always" : percent(sums[i] / total);
      button.setAttribute("aria-label", `Expert ${i + 1}, ${i < shared ? "serves every token" : `${percent(sums[i] / total)} of the weight`}`);
    });
    const parts = sums.map((sum, i) => (sum ? el("span", { class: look(i), vars: { "--share": (sum / total).toFixed(4) }, text: sum / total > 0.03 ? String(i + 1) : "" }) : null));
    const what = this.routing.text.picture ? "image" : "text";
    const text = `Routed weight of this ${what} in this layer, by expert (even would be ${percent(1 / (count - shared))} each)`;
    $("share").replaceChildren(text, el("div", { class: "row", "aria-hidden": "true" }, ...parts));
    $("share").hidden = !this.rows.length;
  }
}
