// How much a string of letters looks like a word of the language: a model of three letters.

const BACKOFF = 4; // weight of the shorter context

/** Counts of letters after two, one and no letters, over the words of a vocabulary, each once. */
export class Spelling {
  /** @param {import("./lexicon.js").Lexicon} lexicon */
  constructor(lexicon) {
    this.letters = lexicon.letters;
    this.size = this.letters.size + 1; // the last one stands for a word's begin and end
    const { size } = this, edge = size - 1;
    this.counts = [0, 1, 2].map((before) => new Uint32Array(size ** (before + 1)));
    this.totals = [0, 1, 2].map((before) => new Uint32Array(size ** before));
    for (let at = 0; at + 1 < lexicon.starts.length; at++) {
      let two = edge, one = edge;
      for (let n = lexicon.starts[at]; n <= lexicon.starts[at + 1]; n++) {
        const letter = n < lexicon.starts[at + 1] ? lexicon.text[n] : edge;
        this.#contexts(two, one).forEach((context, before) => {
          this.totals[before][context]++;
          this.counts[before][context * size + letter]++;
        });
        [two, one] = [one, letter];
      }
    }
  }

  // The places of no, one and two letters before.
  #contexts(two, one) {
    return [0, one, two * this.size + one];
  }

  /**
   * Log-probability that a word is spelt so, in nats.
   * @param {string} word in lower case
   */
  score(word) {
    const { size } = this, edge = size - 1;
    let score = 0, two = edge, one = edge;
    for (const written of [...word, null]) {
      const letter = written === null ? edge : this.letters.get(written) ?? -1;
      let chance = 1 / (size + 1);
      if (letter >= 0)
        this.#contexts(two, one).forEach((context, before) => {
          const count = this.counts[before][context * size + letter];
          chance = (count + BACKOFF * chance) / (this.totals[before][context] + BACKOFF);
        });
      score += Math.log(chance);
      [two, one] = [one, letter < 0 ? edge : letter];
    }
    return score;
  }
}
