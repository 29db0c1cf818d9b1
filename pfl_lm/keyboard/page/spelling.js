// How much a string of letters looks like a word of the language: a model of three letters.

const BACKOFF = 4; // weight of the shorter context

/** Counts of letters after two, one and no letters, over the words of a vocabulary, each once. */
export class Spelling {
  /** @param {Iterable<string>} words in lower case */
  constructor(words) {
    this.counts = new Map(); // context → letter → how often; "" → how many
    for (const word of words) {
      const letters = `^^${word}$`;
      for (let at = 2; at < letters.length; at++)
        for (const context of [letters.slice(at - 2, at), letters[at - 1], ""])
          this.#count(context, letters[at]);
    }
    this.letters = this.counts.get("")?.size ?? 0;
  }

  #count(context, letter) {
    let counts = this.counts.get(context);
    if (!counts) this.counts.set(context, counts = new Map([["", 0]]));
    counts.set("", counts.get("") + 1);
    counts.set(letter, (counts.get(letter) ?? 0) + 1);
  }

  /**
   * Log-probability that a word is spelt so, in nats.
   * @param {string} word in lower case
   */
  score(word) {
    const letters = `^^${word}$`;
    let score = 0;
    for (let at = 2; at < letters.length; at++) {
      let chance = 1 / (this.letters + 1);
      for (const context of ["", letters[at - 1], letters.slice(at - 2, at)]) {
        const counts = this.counts.get(context);
        if (counts)
          chance = ((counts.get(letters[at]) ?? 0) + BACKOFF * chance) / (counts.get("") + BACKOFF);
      }
      score += Math.log(chance);
    }
    return score;
  }
}
