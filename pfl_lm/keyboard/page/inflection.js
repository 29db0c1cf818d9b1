// Forms of known words that a vocabulary lacks: a known word with an ending that many others have.

const LONGEST = 3; // letters of an ending
const SHARE = 1 / 60; // of the vocabulary's words that end so and are a word without it
const SHORTEST = 3; // letters of a word that takes an ending

export class Inflection {
  /** @param {string[]} words in lower case */
  constructor(words) {
    this.words = new Set(words);
    const counts = new Map();
    for (const word of words)
      for (const [stem, ending] of parts(word))
        if (this.words.has(stem)) counts.set(ending, (counts.get(ending) ?? 0) + 1);
    this.endings = new Set([...counts].filter(([, count]) => count > SHARE * words.length).map(([ending]) => ending));
  }

  /**
   * Whether a word is a known one with an ending, such as tycoons.
   * @param {string} word in lower case
   */
  has(word) {
    return parts(word).some(([stem, ending]) => this.endings.has(ending) && this.words.has(stem));
  }
}

function parts(word) {
  const most = Math.min(LONGEST, word.length - SHORTEST);
  return Array.from({ length: Math.max(0, most) }, (_, n) => [word.slice(0, -n - 1), word.slice(-n - 1)]);
}
