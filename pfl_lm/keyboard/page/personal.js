// What this page learnt from what was typed in it: kept here, shown, and taken back.
//
// The messages are the memory; the values that the graph uses follow from them alone, in order.
// So to forget a word is to drop the messages that hold it and to learn the others again: what
// remains is exactly what would have been learnt had the word never been typed.

const STORE = "pfl-lm keyboard";

export class Personal {
  // entry, plan: of the graph to learn with, and how; absent in a bundle that cannot learn.
  // down: the adapter's fixed half.
  constructor(name, tokenizer, entry, plan, down, site) {
    Object.assign(this, { tokenizer, entry, plan, down });
    this.key = `${STORE} ${name}`;
    this.messages = [];
    this.learning = true;
    this.keeping = false;
    this.turn = 0;
    this.waiting = new Map();
    this.reset();
    if (entry) {
      this.worker = new Worker(new URL("./training.js", import.meta.url), { type: "module" });
      this.worker.onmessage = ({ data }) => this.answered(data);
      this.worker.postMessage({ open: { entry, plan, site } });
    }
  }

  // Nothing learnt: every value is zero.
  reset() {
    this.values = this.up = this.bias = null;
    if (this.entry) this.use(new Float32Array(this.entry.interface.inputs[0][2][0]));
  }

  use(values) {
    this.values = values;
    this.up = values.subarray(0, this.plan.adapter);
    this.bias = values.subarray(this.plan.adapter);
  }

  async learn(text) {
    if (!this.learning || !this.tokenizer.encode(text).length) return;
    this.messages.push(text);
    if (this.messages.length > this.most) return this.relearn(this.messages.slice(-this.most));
    this.save();
    await this.train([text]);
  }

  get most() {
    return this.plan?.messages ?? 100;
  }

  async forget(word) {
    const gone = (text) => this.tokenizer.split(text).includes(word);
    await this.relearn(this.messages.filter((text) => !gone(text)));
  }

  forgetAll() {
    return this.relearn([]);
  }

  async relearn(messages) {
    this.messages = messages;
    this.save();
    const mine = ++this.turn; // what is still being learnt no longer counts
    this.reset();
    if (messages.length) await this.train(messages, mine);
  }

  train(texts, turn = this.turn) {
    if (!this.worker) return Promise.resolve();
    const { bos_id, eos_id } = this.tokenizer.rules;
    const messages = texts.map((text) => [bos_id, ...this.tokenizer.encode(text), eos_id]);
    const done = (this.before ?? Promise.resolve()).then(() => {
      if (turn !== this.turn) return;
      return new Promise((resolve, reject) => {
        this.waiting.set(turn, { resolve, reject });
        this.worker.postMessage({ turn, messages, values: Float32Array.from(this.values) });
      });
    });
    this.before = done.catch(() => {});
    return done;
  }

  answered({ turn, values, error }) {
    const { resolve, reject } = this.waiting.get(turn) ?? {};
    this.waiting.delete(turn);
    if (values && turn === this.turn) this.use(values);
    if (error) reject?.(new Error(error));
    else resolve?.();
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

  unknown(piece) {
    return this.tokenizer.id(piece) === this.tokenizer.rules.unk_id && /^\p{L}/u.test(piece);
  }

  // New words that begin with the letters typed, or that followed the word before.
  own(typed, before) {
    const start = this.tokenizer.normalise(typed), last = this.tokenizer.split(before).at(-1);
    const words = this.newWords().map(({ word }) => word);
    if (start) return words.filter((word) => word.startsWith(start) && word !== start);
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
    if (stored) await this.relearn(JSON.parse(stored));
  }
}
