// Words that pieces spell, beside the words of the list: pfl_lm/evaluation/composing.py in the page.
//
// Its docstring states the rules. The graph reads one piece at a time here, so each beginning of a word
// costs a run of it; what it said is kept until the word is typed. A key that is pressed meanwhile ends
// the search.

import { beginnings } from "./tokenizer.js";

const BEAM = 8; // beginnings of words that are gone on with at once
const MOST_PIECES = 6; // of a composed word
const LEAST = 1e-300;

export class Composer {
  /**
   * @param {import("./predictor.js").Predictor} predictor
   * @param {import("./tokenizer.js").Tokenizer} tokenizer one with subwords
   */
  constructor(predictor, tokenizer) {
    const { subwords } = tokenizer, places = subwords.names.map((_, place) => place);
    Object.assign(this, { predictor, tokenizer, subwords });
    this.goesOn = places.filter((place) => !subwords.isFirst(place)); // bytes among them
    this.usable = new Map([true, false].map((begins) => [begins, byLetters(subwords,
      places.filter((place) => subwords.isFirst(place) === begins && !subwords.isByte(place)))]));
    this.text = null; // what the model said of the text before the word
    this.rows = new Map(); // beginning → { state, row } after it
  }

  /**
   * The likeliest words that pieces spell: { word, score }, best first.
   * @param {number[]} context ids of the text before the word
   * @param {string} typed letters of it
   * @param {number} least the probability below which a word is of no use
   * @param {() => boolean} stopped whether nobody waits for the answer
   * @param {number} count how many, at most
   * @returns {Promise<{word: string, score: number}[] | null>} null if it was stopped
   */
  async compose(context, typed, least, stopped = () => false, count = 3) {
    const text = await this.predictor.reading(context, true);
    if (text !== this.text) {
      this.text = text;
      this.rows = new Map([["", { state: text.state, row: this.logs(text, context) }]]);
    }
    const { rows } = this, search = new Search(this, this.tokenizer.split(typed).join("").toLowerCase(), least, count);
    while (search.beam.length) {
      for (const { ids } of search.beam)
        if (!rows.has(ids.join(" ")) && !(await this.read(rows, context, ids, stopped))) return null;
      search.goOn(search.beam.map(({ ids }) => rows.get(ids.join(" ")).row));
    }
    return search.found.map(({ letters, chance }) =>
      ({ word: this.tokenizer.forms.get(letters) ?? letters, score: Math.exp(chance) }));
  }

  // Read the last piece of a beginning, unless nobody waits; say whether it was read.
  async read(rows, context, ids, stopped) {
    await breath();
    if (stopped()) return false;
    const read = await this.predictor.step(ids.at(-1), rows.get(ids.slice(0, -1).join(" ")).state);
    rows.set(ids.join(" "), { state: read.state, row: this.logs(read, [...context, ...ids]) });
    return true;
  }

  // The log-probability of each subword, as the owner's words change it.
  logs({ scores, highest, total }, context) {
    const { factor, shares } = this.predictor.personal.counted.mixture(context);
    const { first, names } = this.subwords, constant = Math.log(factor) - highest - Math.log(total);
    const row = Float64Array.from(names, (_, place) => scores[first + place] + constant);
    for (const [id, share] of shares)
      if (id >= first) row[id - first] = Math.log(Math.exp(row[id - first]) + share);
    return row;
  }

  // The log-probability that no piece goes on.
  logEnd(row) {
    let going = 0;
    for (const place of this.goesOn) going += Math.exp(row[place]);
    return Math.log(Math.max(LEAST, 1 - going));
  }

  // The places of the pieces that agree with letters still to come.
  fitting(begins, rest) {
    const { letters, places } = this.usable.get(begins);
    const between = (low, high) => places.slice(reached(letters, low), reached(letters, high));
    const found = beginnings(rest).flatMap((whole) =>
      between((one) => one >= whole, (one) => one > whole && !one.startsWith(whole)));
    for (let end = 0; end < rest.length; end++) { // pieces that are a part of these letters
      const part = rest.slice(0, end);
      found.push(...between((one) => one >= part, (one) => one > part));
    }
    return found;
  }

  // Whether these ids are the word's own spelling, and no list blocks it.
  mayShow(word, ids) {
    if (!/^[\p{L}\p{N}]/u.test(word)) return false;
    const own = this.tokenizer.encode(word);
    return own.length === ids.length && own.every((id, at) => id === ids[at]) && !this.tokenizer.isBlocked(word);
  }
}

// One beam, from piece to piece.
class Search {
  constructor(composer, typed, least, count) {
    Object.assign(this, { composer, typed, count });
    this.least = Math.log(Math.max(least, LEAST));
    this.beam = [{ chance: 0, letters: "", ids: [] }];
    this.found = [];
  }

  // End the beginnings that may end, and add a piece to those that may go on.
  goOn(rows) {
    const { composer, typed } = this, { subwords } = composer, longer = [];
    this.beam.forEach((beginning, at) => {
      const row = rows[at], rest = typed.slice(beginning.letters.toLowerCase().length);
      if (beginning.letters && !rest) this.#end(beginning, row);
      if (beginning.ids.length === MOST_PIECES) return;
      for (const place of composer.fitting(!beginning.ids.length, rest))
        keep(longer, { chance: beginning.chance + row[place], beginning, place }, BEAM);
    });
    const floor = this.#floor();
    this.beam = longer.filter(({ chance }) => chance > floor).map(({ chance, beginning, place }) =>
      ({ chance, letters: beginning.letters + subwords.letters(place), ids: [...beginning.ids, subwords.first + place] }));
  }

  #end({ chance, letters, ids }, row) {
    const whole = chance + this.composer.logEnd(row);
    if (whole > this.#floor() && this.composer.mayShow(letters, ids))
      keep(this.found, { chance: whole, letters }, this.count);
  }

  #floor() {
    return this.found.length === this.count ? Math.max(this.least, this.found.at(-1).chance) : this.least;
  }
}

// Put something in its place among the likeliest, at most `count` of them; equal ones keep their order.
function keep(likeliest, one, count) {
  if (likeliest.length === count && one.chance <= likeliest[count - 1].chance) return;
  let at = likeliest.length;
  while (at > 0 && likeliest[at - 1].chance < one.chance) at--;
  likeliest.splice(at, 0, one);
  likeliest.length = Math.min(likeliest.length, count);
}

function byLetters(subwords, places) {
  const small = new Map(places.map((place) => [place, subwords.letters(place).toLowerCase()]));
  const order = [...places].sort((a, b) => (small.get(a) < small.get(b) ? -1 : 1));
  return { letters: order.map((place) => small.get(place)), places: order };
}

// Where sorted letters begin to hold.
function reached(letters, holds) {
  let low = 0, high = letters.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (holds(letters[middle])) high = middle;
    else low = middle + 1;
  }
  return low;
}

// Let the page answer what has happened meanwhile, such as a touch.
const { port1, port2 } = new MessageChannel(), waiting = [];
port1.onmessage = () => waiting.shift()();
function breath() {
  return new Promise((done) => {
    waiting.push(done);
    port2.postMessage(0);
  });
}
