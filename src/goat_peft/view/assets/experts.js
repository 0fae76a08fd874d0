// Experts: their look, and the routing weights of a text.

const COLOURS = 8;

/** Classes that give an element expert `i`'s colour and, beyond the palette, its pattern. */
function look(i) {
  const round = Math.floor(i / COLOURS) % 4;
  return `e${i % COLOURS}${round ? ` p${round}` : ""}`;
}

const chip = (i) => el("span", { class: `chip ${look(i)}`, text: String(i + 1) });

const bytes = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));

/** Routing of one text in all layers; `of(layer)` gives what each of its rows uses, the weights from 0 to 1. */
class Routing {
  constructor(text, experts) {
    this.text = text;
    this.experts = experts.count;
    this.shared = experts.shared;
    this.weights = bytes(text.weights);
    this.probabilities = bytes(text.probabilities);
    this.starts = [];
    text.rows.reduce((start, rows, layer) => ((this.starts[layer] = start), start + rows), 0);
  }

  /** For each row of a layer (a token, or one for the whole text): weights of all experts, and probabilities of those that are routed. */
  of(layer) {
    const routed = this.experts - this.shared;
    return Array.from({ length: this.text.rows[layer] }, (_, row) => {
      const at = this.starts[layer] + row;
      return {
        weights: Array.from(this.weights.subarray(at * this.experts, (at + 1) * this.experts), (step) => step / 255),
        probabilities: Array.from(this.probabilities.subarray(at * routed, (at + 1) * routed), (step) => step / 255),
      };
    });
  }
}

/** Experts that a row uses beside the shared ones, the heaviest first. */
function used(row, shared) {
  return row.weights
    .map((weight, expert) => ({ expert, weight }))
    .filter(({ expert, weight }) => expert >= shared && weight > 0)
    .sort((a, b) => b.weight - a.weight);
}
