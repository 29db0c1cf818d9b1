// Corrects a slip of the finger: which word was meant, by where keys lie and by what the model expects.
//
// A word w that the vocabulary has explains the letters typed with log P(w | before) − cost(w, typed).
// The letters explain themselves as a word that the vocabulary lacks, with log P(<unk> | before) plus
// their spelling's log-probability, or as the word that they are. A correction has to be likelier by a
// margin, which benchmarks/autocorrect.py chose on public text.

import { Lexicon } from "./lexicon.js";
import { Slips } from "./slips.js";
import { Spelling } from "./spelling.js";

/** Nats by which a correction must be likelier. */
export const MARGINS = {
  unknown: 2, // than a word that the vocabulary lacks
  known: 6, // than another word of the vocabulary
  capital: 4, // more, where the writer chose a capital: names begin with one
};
const MOST_COST = 9.5; // nats of slips looked for: two at most
const FEWEST = 2, MOST = 24; // letters of a word that is corrected
const RAREST = 1e-4; // of an unknown word, where the model says less

/**
 * @typedef {object} Correction
 * @property {number} id of the word meant
 * @property {number} gain nats by which it is likelier than what was typed
 * @property {boolean} sure whether that is more than the margin
 */

export class Corrector {
  /**
   * @param {import("./tokenizer.js").Tokenizer} tokenizer
   * @param {import("./layouts.js").KeyMap} keys
   */
  constructor(tokenizer, keys) {
    this.tokenizer = tokenizer;
    this.ids = tokenizer.sorted;
    this.words = this.ids.map((id) => tokenizer.keys.get(id));
    this.lexicon = new Lexicon(this.words);
    this.spelling = new Spelling(this.words);
    this.accepted = new Set(); // what was typed on purpose
    this.use(keys);
  }

  /**
   * Measure slips on another layout.
   * @param {import("./layouts.js").KeyMap} keys
   */
  use(keys) {
    this.slips = new Slips(keys.places, this.tokenizer.rules.joiners);
  }

  /**
   * Never correct this word again.
   * @param {string} typed
   */
  accept(typed) {
    this.accepted.add(this.tokenizer.normalise(typed).toLowerCase());
  }

  /**
   * The word that was meant by what was typed, or null where nothing speaks for another.
   * @param {string} typed
   * @param {(id: number) => number} chance of each word after the text before
   * @param {{known?: (word: string) => boolean, begins?: boolean}} about known: words of the
   *   owner's own; begins: whether a sentence begins, so that a capital tells nothing
   * @returns {Correction | null}
   */
  correct(typed, chance, { known = () => false, begins = false } = {}) {
    const word = this.tokenizer.normalise(typed), letters = word.toLowerCase();
    if (!this.#concerns(typed, letters) || known(word)) return null;
    const id = this.tokenizer.id(word), listed = id !== this.tokenizer.rules.unk_id;
    const own = listed ? Math.log(chance(id)) : this.#unknown(letters, chance);
    let margin = listed ? MARGINS.known : MARGINS.unknown;
    if (!begins && typed !== typed.toLowerCase()) margin += MARGINS.capital;
    let best = null;
    for (const { at, cost } of this.lexicon.near(letters, this.slips, MOST_COST)) {
      const gain = Math.log(chance(this.ids[at])) - cost - own;
      if (this.words[at] !== letters && (best === null || gain > best.gain))
        best = { id: this.ids[at], gain, sure: gain > margin };
    }
    return best;
  }

  // A word of letters, of a length that can be looked up, and not one typed on purpose.
  #concerns(typed, letters) {
    const joined = this.tokenizer.rules.joiners;
    const plain = [...letters].every((one) => /[\p{L}\p{M}]/u.test(one) || joined.includes(one));
    const shouted = typed.length > 1 && typed === typed.toUpperCase() && typed !== typed.toLowerCase();
    return plain && !shouted && letters.length >= FEWEST && letters.length <= MOST
      && !this.accepted.has(letters);
  }

  #unknown(letters, chance) {
    return Math.log(Math.max(chance(this.tokenizer.rules.unk_id), RAREST)) + this.spelling.score(letters);
  }
}
