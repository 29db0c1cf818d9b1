// What this page learnt from what was typed in it: kept here, shown, and taken back.
//
// The messages are the memory; the counts that suggestions use follow from them alone. So to forget
// a word is to drop the messages that hold it and to count the others again: what remains is exactly
// what would have been learnt had the word never been typed.

import { Lexicon } from "./lexicon.js";
import { OwnWords } from "./own_words.js";
import { beginnings } from "./tokenizer.js";

const STORE = "pfl-lm keyboard";
const MOST = 2000; // messages kept
const CARRIED = 8; // messages that the model reads on from

export class Personal {
  // rule: how counts are mixed into the model's predictions, of bundle.json.
  constructor(name, tokenizer, rule) {
    Object.assign(this, { tokenizer, rule });
    this.key = `${STORE} ${name}`;
    this.learning = true;
    this.keeping = false;
    this.refusal = ""; // why the browser does not keep what it was told to keep
    this.read = async () => {}; // told of the last messages whenever they change
    this.count([]);
  }

  count(messages) {
    this.messages = messages;
    this.remembered = new Map(); // what follows from the messages, by the question
    this.counted = new OwnWords(this.rule, this.tokenizer.rules.bos_id);
    for (const text of messages) this.counted.addMessage(this.ids(text));
  }

  // whole: read words that are left out, too, as the shared model is trained.
  ids(text, whole = false) {
    const { bos_id, eos_id } = this.tokenizer.rules;
    return [bos_id, ...this.tokenizer.encode(text, whole), eos_id];
  }

  async learn(text) {
    if (!this.learning || !this.tokenizer.encode(text).length) return;
    if (this.messages.length >= MOST) return this.relearn([...this.messages.slice(1), text]);
    this.messages.push(text);
    this.remembered.clear();
    this.counted.addMessage(this.ids(text));
    await this.changed();
  }

  async forget(word) {
    const gone = (text) => this.tokenizer.split(text).includes(word);
    await this.relearn(this.messages.filter((text) => !gone(text)));
  }

  forgetAll() {
    return this.relearn([]);
  }

  relearn(messages) {
    this.count(messages);
    return this.changed();
  }

  changed() {
    this.save();
    return this.carry();
  }

  carry() {
    return this.read(this.messages.slice(-CARRIED).map((text) => this.ids(text)));
  }

  // An answer that the messages give, kept until there are others.
  once(question, answer) {
    if (!this.remembered.has(question)) this.remembered.set(question, answer());
    return this.remembered.get(question);
  }

  // Words that the vocabulary lacks, by how often they were typed: { word, count }.
  newWords() {
    return this.once("new words", () => this.counts(this.pieces()));
  }

  // New words among pieces: { word, count }, the most frequent first.
  counts(pieces) {
    const counts = new Map();
    for (const piece of pieces)
      if (this.unknown(piece)) counts.set(piece, (counts.get(piece) ?? 0) + 1);
    return [...counts].map(([word, count]) => ({ word, count }))
      .sort((a, b) => b.count - a.count || (a.word < b.word ? -1 : 1));
  }

  *pieces() {
    for (const text of this.messages) yield* this.tokenizer.split(text);
  }

  // A word to learn: one that the vocabulary lacks and that nobody has blocked.
  unknown(piece) {
    if (this.tokenizer.isBlockedAsNew(piece)) return false;
    return this.tokenizer.id(piece) === this.tokenizer.rules.unk_id && /^\p{L}/u.test(piece);
  }

  // New words that begin with the letters typed, or that followed the word before, each with its
  // share of all new words typed, or of those that followed: { word, share }.
  own(typed, before) {
    const start = this.tokenizer.normalise(typed).toLowerCase(), last = this.tokenizer.split(before).at(-1);
    const goesOn = (word) => word !== start && beginnings(start).some((one) => word.startsWith(one));
    const found = start ? this.newWords() : this.followers(last);
    const all = found.reduce((total, { count }) => total + count, 0);
    return found.filter(({ word }) => goesOn(word.toLowerCase()))
      .map(({ word, count }) => ({ word, share: count / all }));
  }

  // New words that followed a word: { word, count }.
  followers(last) {
    if (!last) return [];
    return this.once(`after ${last}`, () => this.counts(this.messages.flatMap((text) => {
      const pieces = this.tokenizer.split(text);
      return pieces.filter((_, at) => pieces[at - 1] === last);
    })));
  }

  // Whether its owner typed a word that the vocabulary lacks.
  knows(word) {
    return this.lexicon().words.some((one) => one.word === word.toLowerCase());
  }

  // The new words in small letters, in order, with their shares of all: what a slip may have meant.
  lexicon() {
    return this.once("lexicon", () => {
      const found = this.newWords(), all = found.reduce((total, { count }) => total + count, 0);
      const words = found.map(({ word, count }) => ({ word: word.toLowerCase(), share: count / all }))
        .sort((a, b) => (a.word < b.word ? -1 : 1));
      return { words, lexicon: new Lexicon(words.map(({ word }) => word)) };
    });
  }

  // A new word as its owner writes it: Zorblax, where it was mostly written so inside of sentences.
  written(word) {
    return this.once(`written ${word}`, () => {
      const counts = new Map();
      for (const text of this.messages)
        for (const form of this.tokenizer.writtenForms(text, word)) counts.set(form, (counts.get(form) ?? 0) + 1);
      return [...counts].sort((a, b) => b[1] - a[1])[0]?.[0] ?? word;
    });
  }

  // Words in their contexts, newest first, once each and at most so many: { before, word, id, context }.
  habits(context, most) {
    const found = new Map();
    for (const text of [...this.messages].reverse()) {
      const pieces = this.tokenizer.split(text);
      for (let at = 0; at < pieces.length; at++) {
        const word = pieces[at], before = pieces[at - 1] ?? "";
        const id = this.tokenizer.id(word), key = `${before} ${word}`;
        if (!this.tokenizer.suggestible[id] || found.has(key)) continue;
        if (found.size === most) return [...found.values()];
        found.set(key, { word, id, before, context: context(pieces.slice(0, at).join(" ")) });
      }
    }
    return [...found.values()];
  }

  // Keep the messages, or nothing. A browser may refuse: it then keeps nothing, not what was there before.
  save() {
    this.refusal = "";
    try {
      if (this.keeping) localStorage.setItem(this.key, JSON.stringify(this.messages));
      else localStorage.removeItem(this.key);
    } catch (error) {
      if (!this.keeping) return; // it lets nothing be kept at all
      this.keeping = false;
      this.save();
      this.refusal = error.message;
    }
  }

  async restore() {
    const stored = kept(this.key);
    this.keeping = stored !== null;
    const messages = read(stored);
    if (messages.length) await this.relearn(messages);
  }

  // Follow another page of this browser, which keeps, or forgets, in the same place.
  async heed() {
    const stored = kept(this.key), was = this.keeping;
    this.keeping = stored !== null;
    if (!this.keeping) return; // what this page learnt is its own
    this.count(was ? read(stored) : [...read(stored), ...this.messages].slice(-MOST));
    if (!was) this.save();
    await this.carry();
  }
}

function kept(key) {
  try {
    return localStorage.getItem(key);
  } catch {
    return null; // the browser lets nothing be kept
  }
}

// The messages that were kept; none where they are damaged.
function read(stored) {
  try {
    const messages = JSON.parse(stored);
    return Array.isArray(messages) ? messages.filter((text) => typeof text === "string").slice(-MOST) : [];
  } catch {
    return [];
  }
}
