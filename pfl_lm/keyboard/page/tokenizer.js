// Text to the words that the model knows, as pfl_lm/text/normalisation.py states it.

import { Subwords } from "./subwords.js";

const STRAIGHT = { "‘": "'", "’": "'", "ʼ": "'", "‛": "'", "“": '"', "”": '"', "„": '"', "׳": "'", "״": '"' };
const INVISIBLE = /[\u00ad\u061c\u200e\u200f\u202a-\u202e\u2060-\u2069]/gu;
const BEGINS = /^[\p{L}\p{N}](?!\ufe0f?\u20e3)/u; // a word; a keycap such as 1️⃣ is an emoji
const NUMBER = /^\p{Nd}[\p{Nd}.,:]*$/u;

// What a word that goes on from letters in lower case may begin with: lower case makes a sigma that
// stands last a final one; in a longer word it is none.
export function beginnings(letters) {
  return letters.endsWith("ς") ? [letters, `${letters.slice(0, -1)}σ`] : [letters];
}

const LONGEST = 200; // letters before the caret that are looked at for a half-typed word

export class Tokenizer {
  // rules: bundle.json's `normalisation`; table: vocabulary.tsv; blocked: words never suggested,
  // in any form of their letters, which `letters` tells (pfl_lm/text/letters.py); forms: forms.tsv,
  // how words are usually written.
  // subwords: subwords.model, which spells the words that the vocabulary lacks; null: it has none.
  constructor(rules, table, blocked = [], letters = { accents: [], letters: {}, digits: {} }, forms = "", subwords = null) {
    this.rules = rules;
    this.forms = new Map(forms.split("\n").slice(1).filter(Boolean).map((line) => line.split("\t")));
    this.pieces = new RegExp(rules.pattern_ecmascript, "gu");
    this.stacked = new RegExp(rules.stacked_marks_ecmascript, "gu");
    this.letters = new Map(rules.letters);
    this.words = [];
    this.kinds = [];
    this.counts = [];
    this.onlyOf = []; // by id: the locale that a word belongs to alone; empty: all
    for (const line of table.split("\n").slice(1)) {
      if (!line) continue;
      const [, piece, kind, count, locale = ""] = line.split("\t");
      this.words.push(piece);
      this.kinds.push(kind);
      this.counts.push(Number(count));
      this.onlyOf.push(locale);
    }
    this.locales = [...new Set(this.onlyOf)].filter(Boolean).sort(); // none in a vocabulary of one language
    this.size = this.words.length;
    const first = this.kinds.indexOf("subword"); // a vocabulary's last ids
    this.subwords = subwords && new Subwords(this.words.slice(first), first, subwords);
    // What a word that is not listed begins with.
    this.unlisted = [rules.unk_id, ...(this.subwords?.begins() ?? [])];
    this.ids = new Map();
    this.folded = new Map();
    this.words.forEach((word, id) => {
      if (!["word", "mark", "placeholder"].includes(this.kinds[id])) return;
      this.ids.set(word, id);
      const lower = word.toLowerCase();
      if (!this.folded.has(lower)) this.folded.set(lower, id);
    });
    this.look = letters;
    const accents = letters.accents.map((range) => range.map((code) => `\\u{${code.toString(16)}}`).join("-"));
    this.silent = new RegExp(`[\\p{C}${accents.join("")}]`, "gu"); // nothing of a letter
    this.refused = new Set(blocked.map((entry) => this.wordsOf(entry))
      .filter((words) => words.length === 1).map(([word]) => this.sameLetters(word)));
    this.choose(this.locales);
  }

  // Leave out the words that belong to other languages alone: they are read as unknown ones. What was
  // read before has to be read again.
  choose(locales) {
    const isLeftOut = (locale) => locale && !locales.includes(locale);
    this.leftOut = new Set(this.onlyOf.flatMap((locale, id) => (isLeftOut(locale) ? [id] : [])));
    this.suggestible = Uint8Array.from(this.words, (word, id) =>
      this.kinds[id] === "word" && !this.leftOut.has(id) && !this.isBlocked(word) ? 1 : 0);
    // Words that share a prefix are neighbours in this order.
    this.sorted = [...this.words.keys()].filter((id) => this.suggestible[id]);
    this.keys = new Map(this.sorted.map((id) => [id, this.words[id].toLowerCase()]));
    this.sorted.sort((a, b) => (this.keys.get(a) < this.keys.get(b) ? -1 : 1));
  }

  // What all forms of the same letters share.
  sameLetters(word) {
    const folded = word.normalize("NFKC").toLowerCase().normalize("NFD").replace(this.silent, "");
    const read = (text, table) => [...text].map((one) => table[one] ?? one).join("");
    const plain = read(folded, this.look.letters);
    return /\p{L}/u.test(plain) ? read(plain, this.look.digits) : plain;
  }

  isBlocked(word) {
    return this.refused.size > 0 && this.refused.has(this.sameLetters(word));
  }

  // Whether a word that the vocabulary lacks is a blocked one, or one with a mark put into it.
  isBlockedAsNew(word) {
    const bare = [...word].filter((one) => !this.rules.joiners.includes(one)).join("");
    return this.isBlocked(word) || this.isBlocked(bare);
  }

  wordsOf(entry) {
    return this.split(entry).filter((piece) => BEGINS.test(piece));
  }

  // How a word is written inside of the sentences of a text, as often as it stands there.
  writtenForms(text, word) {
    const pieces = this.plain(text).match(this.pieces) ?? [];
    return pieces.filter((piece, at) => BEGINS.test(pieces[at - 1] ?? "")
      && this.normalise(piece) === word);
  }

  normalise(text) {
    text = this.plain(text);
    if (this.letters.size) text = [...text].map((one) => this.letters.get(one) ?? one).join("");
    return this.rules.casing === "lower" ? text.toLowerCase().normalize("NFC") : text;
  }

  // Text with its capitals and its letters, as its writer has them.
  plain(text) {
    text = text.replace(INVISIBLE, "").replace(/\u200b/gu, " ");
    text = text.replace(this.stacked, "$1").normalize("NFKC");
    return text.replace(/[‘’ʼ‛“”„׳״]/gu, (mark) => STRAIGHT[mark]);
  }

  split(text) {
    return this.normalise(text).match(this.pieces) ?? [];
  }

  id(piece) {
    return this.readAs(this.listed(piece));
  }

  // What an id is read as, which may be left out.
  readAs(id) {
    return this.leftOut.has(id) ? this.rules.unk_id : id;
  }

  // The id of a piece in the whole vocabulary.
  listed(piece) {
    if (piece[0] === "." && piece.length > 1) piece = "...";
    else if (this.rules.numbers === "placeholder" && NUMBER.test(piece)) piece = "<number>";
    if (this.ids.has(piece)) return this.ids.get(piece);
    if (this.rules.casing === "natural") {
      const lower = piece.toLowerCase();
      return this.ids.get(lower) ?? this.folded.get(lower) ?? this.rules.unk_id;
    }
    return this.rules.unk_id;
  }

  // whole: read words that are left out, too.
  encode(text, whole = false) {
    return this.split(text).flatMap((piece) => this.idsOf(piece, whole));
  }

  // The ids that stand for one piece of a text: several where subwords spell it.
  idsOf(piece, whole) {
    const id = this.listed(piece), lacks = id === this.rules.unk_id;
    if (lacks && this.subwords && BEGINS.test(piece)) return this.subwords.encode(piece);
    return [whole ? id : this.readAs(id)];
  }

  // A word as it is shown inside of a sentence.
  shown(id) {
    return this.forms.get(this.words[id]) ?? this.words[id];
  }

  // The half-typed word at the end of a text, and the text before it: the last piece that the
  // text would be cut into, with the apostrophes after it.
  atCaret(text) {
    const tail = text.slice(-LONGEST).match(/[\p{L}\p{N}\p{M}\u200c\u200d'’ʼ׳״·":_@#-]*$/u)[0];
    const core = tail.replace(/['’ʼ׳]+$/u, "");
    const last = this.split(core).at(-1);
    for (let at = 0; last && at < core.length; at++) {
      const rest = core.slice(at);
      if (!BEGINS.test(rest) || !/[\p{L}\p{N}\p{M}]$/u.test(rest)) continue;
      const pieces = this.split(rest);
      if (pieces.length === 1 && pieces[0] === last)
        return { before: text.slice(0, text.length - tail.length + at), typed: tail.slice(at) };
    }
    return { before: text, typed: "" };
  }

  // Ids of the words that begin with `prefix`, in order.
  completions(prefix) {
    const wanted = this.normalise(prefix).toLowerCase();
    if (!wanted) return this.sorted;
    return beginnings(wanted).flatMap((one) => this.beginningWith(one));
  }

  beginningWith(wanted) {
    const from = this.search((key) => key >= wanted);
    const to = this.search((key) => key > wanted && !key.startsWith(wanted));
    return this.sorted.slice(from, to);
  }

  search(reached) {
    let low = 0, high = this.sorted.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (reached(this.keys.get(this.sorted[middle]))) high = middle;
      else low = middle + 1;
    }
    return low;
  }
}
