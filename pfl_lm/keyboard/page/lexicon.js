// The words of a vocabulary, and which of them lie near to what was typed: a table of edit costs.
//
// Words are sorted, so neighbours share a prefix and the rows of the table that belong to it. Where no
// way to go on costs little enough, all words with that prefix are passed over.

const LONGEST = 40; // letters of a word that can be meant

export class Lexicon {
  /** @param {string[]} words in lower case, sorted */
  constructor(words) {
    this.letters = new Map(); // letter → its number
    this.starts = new Uint32Array(words.length + 1);
    words.forEach((word, at) => { this.starts[at + 1] = this.starts[at] + word.length; });
    this.text = new Uint16Array(this.starts[words.length]); // numbers of all words' letters
    this.shared = new Uint8Array(words.length); // letters that a word shares with the one before it
    words.forEach((word, at) => {
      for (let n = 0; n < word.length; n++) this.text[this.starts[at] + n] = this.#number(word[n]);
      this.shared[at] = sharedLength(word, words[at - 1] ?? "");
    });
    this.least = new Float64Array(LONGEST + 1); // of each row
  }

  #number(letter) {
    if (!this.letters.has(letter)) this.letters.set(letter, this.letters.size);
    return this.letters.get(letter);
  }

  /**
   * The words that may have been meant: where they stand among the words, and what the slips cost.
   * @param {string} typed in lower case
   * @param {import("./slips.js").Slips} slips
   * @param {number} most nats
   * @param {boolean} begun whether only the beginning of a word was typed
   * @returns {{at: number, cost: number}[]}
   */
  near(typed, slips, most, begun = false) {
    const { starts, text, shared, least } = this, found = [], width = typed.length + 1;
    const costs = this.#costs(typed, slips), rows = new Float64Array((LONGEST + 1) * width);
    for (let at = 1; at < width; at++) rows[at] = rows[at - 1] + costs.extra[at - 1];
    const reached = [Infinity]; // by depth: the least cost at which what was typed begins the word
    least[0] = 0;
    let filled = 0; // rows that belong to the word before
    for (let at = 0; at < shared.length; at++) {
      if (shared[at] > filled) { // begins as a word does that was given up
        if (begun && reached[filled] <= most) found.push({ at, cost: reached[filled] });
        continue;
      }
      const from = starts[at], length = Math.min(starts[at + 1] - from, LONGEST);
      let depth = filled = shared[at];
      while (depth < length && (least[depth] <= most
        || (depth > 0 && least[depth - 1] + costs.swapped <= most))) {
        fill(rows, width, depth, text, from, costs, least);
        filled = ++depth;
        reached[depth] = Math.min(reached[depth - 1], rows[depth * width + width - 1]);
      }
      const whole = depth === starts[at + 1] - from ? rows[depth * width + width - 1] : Infinity;
      const cost = begun ? reached[depth] : whole;
      if (cost <= most) found.push({ at, cost });
    }
    return found;
  }

  // What `fill` needs of one typed word: costs by place typed and by number of the letter meant.
  #costs(typed, slips) {
    const letters = [...this.letters.keys()], replaced = new Float64Array(typed.length * letters.length);
    const extra = new Float64Array(typed.length);
    for (let at = 0; at < typed.length; at++) {
      extra[at] = slips.extra(typed[at], typed[at - 1], typed[at + 1]);
      letters.forEach((letter, n) => {
        replaced[at * letters.length + n] = slips.replaced(letter, typed[at]);
      });
    }
    return { typed: Int32Array.from(typed, (letter) => this.letters.get(letter) ?? -1), replaced, extra,
      omitted: Float64Array.from(letters, (letter) => slips.omitted(letter)), letters: letters.length,
      undoubled: slips.omitted("a", "a"), swapped: slips.swapped };
  }
}

// Write the row of costs after one letter more of the word; entry n is that of the first n letters typed.
function fill(rows, width, depth, text, from, costs, least) {
  const letter = text[from + depth], before = depth > 0 ? text[from + depth - 1] : -1;
  const omitted = letter === before ? costs.undoubled : costs.omitted[letter];
  const above = depth * width, row = above + width, swapped = above - width;
  let lowest = rows[row] = rows[above] + omitted;
  for (let at = 1; at < width; at++) {
    let cost = rows[above + at - 1] + costs.replaced[(at - 1) * costs.letters + letter];
    const left = rows[above + at] + omitted, more = rows[row + at - 1] + costs.extra[at - 1];
    if (left < cost) cost = left;
    if (more < cost) cost = more;
    if (at > 1 && depth > 0 && letter !== before && costs.typed[at - 2] === letter
      && costs.typed[at - 1] === before) cost = Math.min(cost, rows[swapped + at - 2] + costs.swapped);
    rows[row + at] = cost;
    if (cost < lowest) lowest = cost;
  }
  least[depth + 1] = lowest;
}

function sharedLength(one, other) {
  const most = Math.min(one.length, other.length, LONGEST);
  let at = 0;
  while (at < most && one[at] === other[at]) at++;
  return at;
}
