// Building blocks of the page. Every text goes in as text, never as markup: data cannot become part of the page's structure.

const $ = (id) => document.getElementById(id);

/** An element. `props`: `class`, `text`, `vars` (custom properties), `on` (listeners); any other key is an attribute, left out when null or false. */
function el(tag, props = {}, ...children) {
  return fill(document.createElement(tag), props, children);
}

/** The same for SVG. */
function svg(tag, props = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), props, children);
}

function fill(node, { class: name, text, vars = {}, on = {}, ...attributes }, children) {
  if (name) node.setAttribute("class", name);
  if (text !== undefined) node.textContent = text;
  for (const [key, value] of Object.entries(vars)) node.style.setProperty(key, value);
  for (const [key, value] of Object.entries(on)) node.addEventListener(key, value);
  for (const [key, value] of Object.entries(attributes)) if (value !== null && value !== false) node.setAttribute(key, value);
  node.append(...children.filter((child) => child !== null));
  return node;
}

/** Make exactly one of `nodes` a stop of the Tab key, and give it the focus if `focus`. */
function rove(nodes, index, focus) {
  nodes.forEach((node, i) => (node.tabIndex = i === index ? 0 : -1));
  if (focus) nodes[index].focus({ preventScroll: false });
}

/** Tell those who listen instead of look. */
function say(text) {
  $("said").textContent = text;
}

const percent = (share) => `${Math.round(100 * share)} %`;

/** Three significant digits, without an exponent where that is readable. */
function short(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size >= 1e5 || size < 1e-4 ? value.toExponential(1) : String(Number(value.toPrecision(3)));
}

/** 507650 as 508 k. */
function count(value) {
  for (const [unit, size] of [["M", 1e6], ["k", 1e3]]) if (value >= size) return `${Number((value / size).toPrecision(3))} ${unit}`;
  return String(value);
}
