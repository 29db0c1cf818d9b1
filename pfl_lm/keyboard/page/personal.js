// What this page learnt from what was typed in it: kept here, shown, and taken back.
//
// The messages are the memory; the counts that suggestions use follow from them alone. So to forget
// a word is to drop the messages that hold it and to count the others again: what remains is exactly
// what would have been learnt had the word never been typed.

import { OwnWords } from "./own_words.js";

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
    this.read = async () => {}; // told of the last messages whenever they change
    this.count([]);
  }

  count(messages) {
    this.messages = messages;
    this.counted = new OwnWords(this.rule, this.tokenizer.rules.bos_id);
    for (const text of messages) this.counted.addMessage(this.ids(text));
  }

  ids(text) {
    const { bos_id, eos_id } = this.tokenizer.rules;
    return [bos_id, ...this.tokenizer.encode(text), eos_id];
  }

  async learn(text) {
    if (!this.learning || !this.tokenizer.encode(text).length) return;
    if (this.messages.length >= MOST) return this.relearn([...this.messages.slice(1), text]);
    this.messages.push(text);
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
    return this.read(this.messages.slice(-CARRIED).map((text) => this.ids(text)));
  }

  // Words that the vocabulary lacks, by how often they were typed: { word, count }.
  newWords() {
    const counts = new Map();
    for (const piece of this.pieces())
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

  // New words that begin with the letters typed, or that followed the word before.
  own(typed, before) {
    const start = this.tokenizer.normalise(typed), last = this.tokenizer.split(before).at(-1);
    const words = this.newWords().map(({ word }) => word);
    const begins = (word) => word.toLowerCase().startsWith(start.toLowerCase());
    if (start) return words.filter((word) => begins(word) && word !== start);
    return words.filter((word) => this.messages.some((text) => {
      const pieces = this.tokenizer.split(text);
      return pieces.some((piece, at) => piece === word && pieces[at - 1] === last && last);
    }));
  }

  // Words in their contexts, newest first, once each: { before, word, id, context }.
  habits(context) {
    const found = new Map();
    for (const text of [...this.messages].reverse()) {
      const pieces = this.tokenizer.split(text);
      pieces.forEach((word, at) => {
        const id = this.tokenizer.id(word), key = `${pieces[at - 1] ?? ""} ${word}`;
        if (!this.tokenizer.suggestible[id] || found.has(key)) return;
        found.set(key, {
          word, id, before: pieces[at - 1] ?? "", context: context(pieces.slice(0, at).join(" ")),
        });
      });
    }
    return [...found.values()];
  }

  save() {
    if (this.keeping) localStorage.setItem(this.key, JSON.stringify(this.messages));
    else localStorage.removeItem(this.key);
  }

  async restore() {
    const stored = localStorage.getItem(this.key);
    this.keeping = stored !== null;
    const messages = read(stored).filter((text) => typeof text === "string");
    if (messages.length) await this.relearn(messages.slice(-this.most));
  }
}

// What was kept; nothing where it is damaged.
function read(stored) {
  try {
    const kept = JSON.parse(stored);
    return Array.isArray(kept) ? kept : [];
  } catch {
    return [];
  }
}
