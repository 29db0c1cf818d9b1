// How likely fingers slip: what one word costs as a slip for another, in nats, from where keys lie.

const ACCENT = 1.5; // a letter typed without its accent; also a final form, as ς for σ
const WRONG_ACCENT = 8; // a letter typed with an accent that it has not: that takes a long press
const NEAR = 2.4, SPREAD = 2; // a neighbouring key: NEAR + SPREAD · distance², in widths of a key
const FAR = 8; // any other key
const JOINER = 0.3; // an apostrophe left out, or one too many
// Nats of one slip of each kind.
const COST = { omitted: 5.5, undoubled: 2.5, extra: 5.5, doubled: 3.5, brushed: 4.5, swapped: 4 };

/** The keys of a layout as fingers meet them. */
export class Slips {
  /**
   * @param {Map<string, [number, number]>} places of the keys, in widths of a key
   * @param {string} joiners marks inside of words that may be left out
   */
  constructor(places, joiners) {
    Object.assign(this, { places, joiners, swapped: COST.swapped, costs: new Map() });
  }

  /**
   * Cost of `typed` where `meant` was meant.
   * @param {string} meant
   * @param {string} typed
   * @returns {number}
   */
  replaced(meant, typed) {
    if (meant === typed) return 0;
    const pair = meant + typed;
    let cost = this.costs.get(pair);
    if (cost === undefined) this.costs.set(pair, cost = this.#between(meant, typed));
    return cost;
  }

  #between(meant, typed) {
    const bare = base(meant);
    if (bare === base(typed)) return typed === bare ? ACCENT : WRONG_ACCENT;
    const one = this.places.get(meant) ?? this.places.get(bare), other = this.places.get(typed);
    if (!one || !other) return FAR;
    const squared = (one[0] - other[0]) ** 2 + (one[1] - other[1]) ** 2;
    return Math.min(FAR, NEAR + SPREAD * squared);
  }

  /**
   * Cost of leaving a letter out.
   * @param {string} letter
   * @param {string} before the letter before it in the word
   */
  omitted(letter, before) {
    if (this.joiners.includes(letter)) return JOINER;
    return letter === before ? COST.undoubled : COST.omitted;
  }

  /**
   * Cost of a letter too many.
   * @param {string} letter
   * @param {string} before the letter typed before it
   * @param {string} after the letter typed after it
   */
  extra(letter, before, after) {
    if (this.joiners.includes(letter)) return JOINER;
    if (letter === before) return COST.doubled;
    const brushed = (other) => other && this.replaced(other, letter) < FAR;
    return brushed(before) || brushed(after) ? COST.brushed : COST.extra;
  }
}

const bases = new Map();

// A letter without its accents; σ of ς.
function base(letter) {
  let found = bases.get(letter);
  if (found === undefined) {
    found = letter === "ς" ? "σ" : letter === "đ" ? "d" : letter === "ł" ? "l" : letter === "ø" ? "o"
      : letter.normalize("NFD").replace(/\p{M}/gu, "") || letter;
    bases.set(letter, found);
  }
  return found;
}
