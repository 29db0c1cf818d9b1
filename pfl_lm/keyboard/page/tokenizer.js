// Text to the words that the model knows, as pfl_lm/language/normalisation.py states it.

const STRAIGHT = { "‘": "'", "’": "'", "ʼ": "'", "‛": "'", "“": '"', "”": '"', "„": '"' };
const NUMBER = /^\p{Nd}[\p{Nd}.,:]*$/u;

export class Tokenizer {
  // rules: bundle.json's `normalisation`; table: vocabulary.tsv; blocked: words never suggested.
  constructor(rules, table, blocked = []) {
    this.rules = rules;
    this.pieces = new RegExp(rules.pattern_ecmascript, "gu");
    this.words = [];
    this.kinds = [];
    this.counts = [];
    for (const line of table.split("\n").slice(1)) {
      if (!line) continue;
      const [, piece, kind, count] = line.split("\t");
      this.words.push(piece);
      this.kinds.push(kind);
      this.counts.push(Number(count));
    }
    this.size = this.words.length;
    this.ids = new Map();
    this.folded = new Map();
    this.words.forEach((word, id) => {
      if (!["word", "mark", "placeholder"].includes(this.kinds[id])) return;
      this.ids.set(word, id);
      const lower = word.toLowerCase();
      if (!this.folded.has(lower)) this.folded.set(lower, id);
    });
    const refused = new Set(blocked);
    this.suggestible = Uint8Array.from(this.words, (word, id) =>
      this.kinds[id] === "word" && !refused.has(word) ? 1 : 0);
    // Words that share a prefix are neighbours in this order.
    this.sorted = [...this.words.keys()].filter((id) => this.suggestible[id]);
    this.keys = new Map(this.sorted.map((id) => [id, this.words[id].toLowerCase()]));
    this.sorted.sort((a, b) => (this.keys.get(a) < this.keys.get(b) ? -1 : 1));
  }

  normalise(text) {
    text = text.normalize("NFKC").replace(/[‘’ʼ‛“”„]/g, (mark) => STRAIGHT[mark]);
    return this.rules.casing === "lower" ? text.toLowerCase().normalize("NFC") : text;
  }

  split(text) {
    return this.normalise(text).match(this.pieces) ?? [];
  }

  id(piece) {
    if (piece[0] === "." && piece.length > 1) piece = "...";
    else if (this.rules.numbers === "placeholder" && NUMBER.test(piece)) piece = "<number>";
    if (this.ids.has(piece)) return this.ids.get(piece);
    if (this.rules.casing === "natural") {
      const lower = piece.toLowerCase();
      return this.ids.get(lower) ?? this.folded.get(lower) ?? this.rules.unk_id;
    }
    return this.rules.unk_id;
  }

  encode(text) {
    return this.split(text).map((piece) => this.id(piece));
  }

  // The half-typed word at the end of a text, and the text before it.
  atCaret(text) {
    const typed = text.match(/[\p{L}\p{N}\p{M}'’_@#-]*$/u)[0];
    return { before: text.slice(0, text.length - typed.length), typed };
  }

  // Ids of the words that begin with `prefix`, in order.
  completions(prefix) {
    const wanted = this.normalise(prefix).toLowerCase();
    if (!wanted) return this.sorted;
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
