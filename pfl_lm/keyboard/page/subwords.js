// Subwords: how a word that the vocabulary lacks is spelled by pieces of it.
//
// A spelling is the sequence of pieces whose log-probabilities sum up to most, as sentencepiece's
// unigram model finds it (Kudo 2018, "Subword regularization", section 3.2). A letter that no piece
// has is spelled by the bytes of its UTF-8 form.

const BEGINS = "\u2581"; // sentencepiece's mark of a piece that begins a word
const UNKNOWN = 10; // nats below the least likely piece: what a letter costs that no piece has
const BYTE = /^<0x([0-9A-F]{2})>$/;

export class Subwords {
  /**
   * @param {string[]} names of a vocabulary's subwords, in the order of their ids
   * @param {number} first the id of the first one
   * @param {Uint8Array} model the file `subwords.model`
   */
  constructor(names, first, model) {
    Object.assign(this, { names, first });
    this.scores = scoresOf(model).slice(1); // the first piece is the model's own <unk>
    if (this.scores.length !== names.length) throw new Error("subwords.model is of another vocabulary");
    this.places = new Map(); // letters → place among the subwords
    this.bytes = new Map(); // byte → place
    names.forEach((name, place) => {
      const byte = name.match(BYTE);
      if (byte) this.bytes.set(parseInt(byte[1], 16), place);
      else this.places.set(name, place);
    });
    this.longest = Math.max(...[...this.places.keys()].map((name) => name.length));
    this.unknown = Math.fround(Math.min(...[...this.places.values()].map((place) => this.scores[place]))
      - UNKNOWN);
  }

  /** Whether the piece at a place begins a word. */
  isFirst(place) {
    return this.names[place].startsWith(BEGINS);
  }

  /** Ids of the pieces that begin a word. */
  begins() {
    return this.names.flatMap((_, place) => (this.isFirst(place) ? [this.first + place] : []));
  }

  /** Whether a piece is a byte. */
  isByte(place) {
    return BYTE.test(this.names[place]);
  }

  /** The letters that a piece adds to a word. */
  letters(place) {
    return this.isFirst(place) ? this.names[place].slice(1) : this.names[place];
  }

  /**
   * The ids that spell a word.
   * @param {string} word as the vocabulary reads it
   * @returns {number[]}
   */
  encode(word) {
    const text = BEGINS + word, best = [{ score: 0 }]; // by length: the best spelling of so many units
    for (let at = 0; at < text.length; at++) {
      if (!best[at]) continue; // inside of a letter
      const letter = String.fromCodePoint(text.codePointAt(at)).length;
      let alone = false; // whether a piece is this letter
      for (let length = letter; length <= this.longest && at + length <= text.length; length++) {
        const place = this.places.get(text.slice(at, at + length));
        if (place === undefined) continue;
        alone ||= length === letter;
        better(best, at, length, this.scores[place], place);
      }
      if (!alone) better(best, at, letter, this.unknown, null);
    }
    return this.#path(text, best);
  }

  #path(text, best) {
    const ids = []; // the last one first
    for (let end = text.length; end > 0; end = best[end].from) {
      const { place, from } = best[end];
      if (place !== null) ids.push(this.first + place);
      else ids.push(...[...new TextEncoder().encode(text.slice(from, end))].reverse()
        .map((byte) => this.first + this.bytes.get(byte)));
    }
    return ids.reverse();
  }
}

// Sums are of 32 bits, as sentencepiece's; of two equal ones the spelling found first stays.
function better(best, from, length, score, place) {
  const sum = Math.fround(best[from].score + score), end = from + length;
  if (!best[end] || sum > best[end].score) best[end] = { score: sum, place, from };
}

// The scores of a sentencepiece ModelProto's pieces: field 1, of whose fields the second is the score.
function scoresOf(model) {
  const scores = [];
  for (const { number, bytes } of fields(model)) {
    if (number !== 1) continue;
    const score = fields(bytes).find((field) => field.number === 2)?.bytes;
    scores.push(score ? new DataView(score.buffer, score.byteOffset, 4).getFloat32(0, true) : 0);
  }
  return scores;
}

// The fields of a protocol buffers message that have bytes: those of a length of their own, or of 4 or 8.
function fields(message) {
  const found = [];
  let at = 0;
  const number = () => {
    let value = 0, factor = 1, byte;
    do {
      byte = message[at++];
      value += (byte & 127) * factor;
      factor *= 128;
    } while (byte & 128);
    return value;
  };
  while (at < message.length) {
    const tag = number(), kind = tag & 7;
    if (kind === 0) {
      number();
      continue;
    }
    const size = kind === 2 ? number() : kind === 5 ? 4 : 8;
    found.push({ number: Math.floor(tag / 8), bytes: message.subarray(at, at + size) });
    at += size;
  }
  return found;
}
