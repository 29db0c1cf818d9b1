// What keys do to the text: marks after a suggestion, two spaces, a correction and its undoing.

import { MARKS } from "./text_rules.js";

/** @typedef {{at: number, typed: string, text: string, key: string}} Change a correction that was made */

export class Editor {
  /**
   * @param {HTMLTextAreaElement} text
   * @param {() => {from: number, typed: string, text: string} | null} correction what the word
   *   before the caret would be changed into
   * @param {(typed: string) => void} accept told of words that were typed on purpose
   */
  constructor(text, correction, accept) {
    Object.assign(this, { text, correction, accept });
    this.stop = "."; // what ends a sentence
    this.spaced = false; // the space before the caret came with a suggestion
    this.change = null; // the correction that the next deletion undoes
  }

  /** Whether a physical key does more here than it does in a text field. */
  concerns(key) {
    if (key === "erase") return this.#undoable();
    return this.#ends(key) && ((this.spaced && key !== " ") || this.correction() !== null);
  }

  /**
   * Write a character, or erase one.
   * @param {string} key
   * @param {boolean} instead in place of what was pressed last
   */
  press(key, instead = false) {
    if (key === "erase") return this.#erase();
    if (instead) this.#takeBack();
    const { value: was, selectionStart, selectionEnd } = this.text;
    this.before = { was, selectionStart, selectionEnd, spaced: this.spaced };
    const change = this.#ends(key) ? this.#correct(key) : null;
    const { selectionStart: from, selectionEnd: to, value } = this.text, before = value.slice(0, from);
    if (MARKS.includes(key) && this.spaced && before.endsWith(" ")) {
      this.#replace(from - 1, to, `${key} `);
    } else if (key === " " && /[\p{L}\p{M}\p{N}] $/u.test(before)) {
      this.#replace(from - 1, to, `${this.stop} `);
    } else {
      this.#replace(from, to, key);
      this.spaced = false;
    }
    this.change = change;
  }

  /**
   * Write a suggestion in place of what was typed.
   * @param {number} from
   * @param {string} text
   * @param {boolean} spaced whether a space comes with it: one that stands there already stays the only one
   * @param {string} rest of the word, after the caret: it goes, too
   */
  choose(from, text, spaced, rest = "") {
    let to = this.text.selectionEnd + rest.length;
    if (spaced && this.text.value[to] === " ") to += 1;
    this.#replace(from, to, spaced ? `${text} ` : text);
    this.spaced = spaced;
    this.change = null;
  }

  /** What was typed by other means: nothing is there to undo. */
  touched() {
    this.spaced = false;
    this.change = null;
  }

  #takeBack() {
    const { was, selectionStart, selectionEnd, spaced } = this.before;
    this.text.value = was;
    this.text.setSelectionRange(selectionStart, selectionEnd);
    this.spaced = spaced;
  }

  #ends(key) {
    const { selectionStart: from, selectionEnd: to } = this.text;
    return from === to && (key === " " || (key.length === 1 && MARKS.includes(key)));
  }

  #correct(key) {
    const found = this.correction();
    if (!found) return null;
    this.#replace(found.from, this.text.selectionEnd, found.text);
    return { at: found.from, typed: found.typed, text: found.text, key };
  }

  #undoable() {
    if (!this.change) return false;
    const { at, text, key } = this.change, { selectionStart: from, selectionEnd: to, value } = this.text;
    return from === to && value.slice(at, from) === text + key;
  }

  #erase() {
    const { selectionStart: from, selectionEnd: to } = this.text;
    if (this.#undoable()) {
      const { at, typed, key } = this.change;
      this.#replace(at, to, typed + key);
      this.accept(typed);
    } else {
      this.#replace(from === to ? from - this.#last().length : from, to, "");
    }
    this.touched();
  }

  // The character before the caret: a whole emoji, otherwise one code point.
  #last() {
    const before = this.text.value.slice(0, this.text.selectionStart);
    const whole = [...new Intl.Segmenter().segment(before.slice(-40))].at(-1)?.segment ?? "";
    return /\p{Extended_Pictographic}|\p{Regional_Indicator}|\u20e3/u.test(whole) ? whole : [...before].at(-1) ?? "";
  }

  #replace(from, to, text) {
    this.text.setRangeText(text, from, to, "end");
  }
}
