// Corrects a slip of the finger: which word was meant, by where keys lie and by what the model expects.
//
// A word w that the vocabulary has explains the letters typed with log P(w | before) − cost(w, typed).
// The letters explain themselves as a word that the vocabulary lacks, with log P(<unk> | before) plus
// their spelling's log-probability, or as the word that they are. A correction has to be likelier by a
// margin, which benchmarks/autocorrect.py chose on public text.

import { Inflection } from "./inflection.js";
import { Lexicon } from "./lexicon.js";
import { Slips } from "./slips.js";
import { Spelling } from "./spelling.js";

// Nats by which a correction must be likelier.
const MARGINS = {
  unknown: 4, // than a word that the vocabulary lacks
  short: 2, // more, where that has three letters at most: an abbreviation
  inflected: 4, // more, where it is a known word with an ending, such as tycoons
  known: 6, // than another word of the vocabulary
  joined: 1.8, // than the same letters without an apostrophe, such as dont
  capital: 4, // more, where the writer chose a capital: names begin with one
};
const MOST_COST = 9.5; // nats of slips looked for: two at most
const COST_OF = [4, 1.5]; // of which a short word may have fewer: a constant, and for each letter
const FEWEST = 2, MOST = 24; // letters of a word that is corrected, or meant
const FEWEST_BEGUN = 3; // letters typed of a word that is completed in spite of a slip
const RAREST = 1e-4; // of an unknown word, where the model says less

/**
 * @typedef {object} Correction
 * @property {number | null} id of the word meant; null if it is one of the owner's own
 * @property {string} word
 * @property {number} gain nats by which it is likelier than what was typed
 * @property {boolean} sure whether that is more than the margin
 */

/**
 * @typedef {object} OwnWords words that the vocabulary lacks and the owner typed
 * @property {Lexicon} lexicon
 * @property {{word: string, share: number}[]} words in its order; share: of all new words typed
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
    this.inflection = new Inflection(this.words);
    this.spelling = new Spelling(this.lexicon);
    this.accepted = new Set(); // what was typed on purpose
    this.use(keys);
  }

  /**
   * Measure slips on another layout.
   * @param {import("./layouts.js").KeyMap} keys
   */
  use(keys) {
    this.keys = keys;
    this.slips = new Slips(keys.places, this.tokenizer.rules.joiners);
  }

  /** A corrector for the words that the tokenizer has now; what was accepted stays so. */
  renewed() {
    return Object.assign(new Corrector(this.tokenizer, this.keys), { accepted: this.accepted });
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
   * @param {{own?: OwnWords, begins?: boolean}} about begins: whether a sentence begins, so that a
   *   capital tells nothing
   * @returns {Correction | null}
   */
  correct(typed, chance, { own: others = null, begins = false } = {}) {
    const word = this.tokenizer.normalise(typed), letters = word.toLowerCase();
    if (!this.#concerns(typed, letters) || others?.words.some((one) => one.word === letters)) return null;
    const id = this.tokenizer.id(word), listed = id !== this.tokenizer.rules.unk_id;
    const own = listed ? Math.log(chance(id)) : this.#unknown(letters, chance);
    const margins = this.#margins(letters, listed, !begins && typed !== typed.toLowerCase());
    let best = null;
    for (const { word: meant, id, chance: likely, cost } of this.#meant(letters, chance, others)) {
      if (meant === letters || meant.length < FEWEST) continue;
      const margin = this.#bare(meant) === letters ? margins.joined : margins.other;
      const gain = Math.log(likely) - cost - own;
      if (best === null || gain - margin > best.gain - best.margin) best = { word: meant, id, gain, margin };
    }
    return best && { id: best.id, word: best.word, gain: best.gain, sure: best.gain > best.margin };
  }

  /**
   * Words that what was typed would begin but for a slip, best first.
   * @param {string} typed
   * @param {(id: number) => number} chance
   * @param {number} count
   * @returns {{id: number, score: number}[]} score: chance times that of the slips
   */
  completions(typed, chance, count) {
    const letters = this.tokenizer.normalise(typed).toLowerCase();
    if (!this.#concerns(typed, letters) || letters.length < FEWEST_BEGUN) return [];
    return this.lexicon.near(letters, this.slips, this.#most(letters), true)
      .map(({ at, cost }) => ({ id: this.ids[at], score: chance(this.ids[at]) * Math.exp(-cost) }))
      .sort((a, b) => b.score - a.score).slice(0, count);
  }

  #most(letters) {
    return Math.min(MOST_COST, COST_OF[0] + COST_OF[1] * letters.length);
  }

  // The words near to what was typed, each with its chance here and the cost of the slips.
  *#meant(letters, chance, others) {
    const most = this.#most(letters);
    for (const { at, cost } of this.lexicon.near(letters, this.slips, most))
      yield { word: this.words[at], id: this.ids[at], chance: chance(this.ids[at]), cost };
    if (!others) return;
    const unknown = this.#unlisted(chance);
    for (const { at, cost } of others.lexicon.near(letters, this.slips, most)) {
      const { word, share } = others.words[at];
      yield { word, id: null, chance: unknown * share, cost };
    }
  }

  /**
   * The form that a word in small letters is usually written in: I, London.
   * @param {string} typed
   * @param {(word: string) => string} written form of a word inside of a sentence
   * @returns {string | null} null where it is written in small letters
   */
  capital(typed, written) {
    const id = this.tokenizer.id(this.tokenizer.normalise(typed));
    if (id === this.tokenizer.rules.unk_id || this.accepted.has(typed)) return null;
    const form = written(this.tokenizer.shown(id));
    return form !== typed && form.toLowerCase() === typed ? form : null;
  }

  // What is asked of a correction that adds an apostrophe, and of any other.
  #margins(letters, listed, capital) {
    const chosen = capital ? MARGINS.capital : 0;
    let other = chosen + (listed ? MARGINS.known : MARGINS.unknown);
    if (!listed && letters.length <= 3) other += MARGINS.short;
    if (!listed && this.inflection.has(letters)) other += MARGINS.inflected;
    return { joined: chosen + MARGINS.joined, other };
  }

  // A word without its apostrophes.
  #bare(word) {
    return [...word].filter((one) => !this.tokenizer.rules.joiners.includes(one)).join("");
  }

  // A word of letters, of a length that can be looked up, and not one typed on purpose.
  #concerns(typed, letters) {
    const joined = this.tokenizer.rules.joiners;
    const plain = [...letters].every((one) => /[\p{L}\p{M}]/u.test(one) || joined.includes(one));
    const shouted = typed.length > 1 && typed === typed.toUpperCase() && typed !== typed.toLowerCase();
    const possessive = this.inflection.words.has(letters.split(/['’]/u)[0]) && /['’]/u.test(letters);
    return plain && !shouted && !possessive && letters.length >= FEWEST && letters.length <= MOST
      && !this.accepted.has(letters);
  }

  #unknown(letters, chance) {
    return Math.log(Math.max(this.#unlisted(chance), RAREST)) + this.spelling.score(letters);
  }

  // The chance of a word that the vocabulary does not list.
  #unlisted(chance) {
    return this.tokenizer.unlisted.reduce((sum, id) => sum + chance(id), 0);
  }
}
