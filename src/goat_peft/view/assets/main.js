// Puts the page together: one text and one layer are chosen, and every part draws them.

const data = JSON.parse($("data").textContent);
const state = { layer: 0, text: 0 };
const parts = [];

drawHead();
if (data.experts) {
  drawExperts();
} else {
  $("no-experts").textContent = `This run trained with ${data.run.method}, which has no routed GOAT experts, so there is no routing to show; its curves are below.`;
  $("no-experts").hidden = false;
}
drawCurves(data.curves);

function drawHead() {
  const { run, experts } = data;
  const active = experts && experts.active !== null ? `, ${experts.active} for each token` : "";
  $("name").textContent = run.name;
  $("about").textContent = [run.model, run.task.replaceAll("_", " "), experts ? `${run.method}: ${experts.count} experts${active}` : run.method].join(" · ");
  const figures = Object.entries(run.figures).map(([name, value]) => [name.replaceAll("_", " "), short(value), ""]);
  figures.push(["trained parameters", count(run.trained), ` of ${count(run.parameters)}`], ["training time", short(Math.round(run.seconds)), " s"]);
  $("figures").append(...figures.map(([name, value, rest]) => el("div", {}, el("dt", { text: name }), el("dd", { text: value }, el("small", { text: rest })))));
  const size = `${(document.documentElement.outerHTML.length / 1e6).toFixed(1)} MB`;
  $("foot").append("Run of ", run.created.slice(0, 10), " in ", el("code", { text: run.folder }), " by ", el("code", { text: run.command }), `. This page (${size}) loads nothing else.`);
}

function drawExperts() {
  for (const id of ["layerbar", "load", "weight"]) $(id).hidden = false;
  data.layers.forEach((layer, i) => $("layer").append(el("option", { value: i, text: layer.short })));
  parts.push(new Load(data, chooseLayer), new Weight(data));
  if (data.texts.length) {
    $("routing").hidden = false;
    const tokens = new Tokens(data, (by) => chooseLayer(state.layer + by));
    parts.unshift({ draw: (layer) => tokens.draw(state.text, layer) });
    data.texts.forEach((text, i) => $("text").append(el("option", { value: i, text: text.start ? `${text.title}: ${text.start}` : text.title })));
    $("routing-rule").textContent = rule(data.experts);
    $("text").addEventListener("change", () => chooseText(Number($("text").value)));
    if (data.texts[0].grid) {
      document.querySelector("label[for=text]").textContent = "Image";
      $("routing-title").textContent = "Which expert reads which patch";
    }
    chooseText(0);
  }
  $("layer").addEventListener("change", () => chooseLayer(Number($("layer").value)));
  $("layer-back").addEventListener("click", () => chooseLayer(state.layer - 1));
  $("layer-on").addEventListener("click", () => chooseLayer(state.layer + 1));
  chooseLayer(0);
}

function rule({ router, active, shared, count: all }) {
  const ways = { topk: `the ${active} experts that its router finds best`, softmax: "all experts, more or less", threshold: "the experts above a learned threshold", top_p: "the fewest experts that reach the wanted probability" };
  const always = shared ? ` Experts 1 to ${shared} of ${all} serve every token.` : "";
  return `Each token uses ${ways[router]}. Colour and number: the heaviest expert; the stronger the colour, the larger its weight.${always}`;
}

function chooseText(index) {
  state.text = index;
  const left = data.left_out ? ` · ${data.left_out} more did not fit the page's size` : "";
  $("text-note").textContent = data.texts[index].note + left;
  if (parts.length) parts[0].draw(state.layer);
}

function chooseLayer(index) {
  if (index < 0 || index >= data.layers.length) return;
  state.layer = index;
  $("layer").value = String(index);
  $("layer").title = data.layers[index].name;
  $("layer-back").disabled = index === 0;
  $("layer-on").disabled = index === data.layers.length - 1;
  $("layer-place").textContent = `${index + 1} of ${data.layers.length}`;
  for (const part of parts) part.draw(index);
}
