// From a text to words: runs the `predict` graph, once for each word and once for each letter.

export const DROP = -1e4; // a score that must not count; the graph's own constant
const KEPT = 400; // states remembered

export class Predictor {
  // graph: what runs; entry: its lines in bundle.json; personal: what was learnt here.
  constructor(graph, entry, tokenizer, personal, limits) {
    Object.assign(this, { graph, entry, tokenizer, personal, limits });
    this.ports = new Map(entry.interface.inputs.map(([name, type, dims]) => [name, { type, dims }]));
    this.start = {};
    for (const name of Object.values(entry.interface.state)) this.start[name] = this.zeros(name);
    this.noAdapter = this.ports.has("down")
      ? { down: this.zeros("down"), up: this.zeros("up") } : {};
    this.states = new Map();
    this.turn = Promise.resolve();
    this.milliseconds = 0;
  }

  zeros(name) {
    const { type, dims } = this.ports.get(name);
    const size = dims.reduce((product, length) => product * length, 1);
    return this.tensor(name, type === "int32" ? new Int32Array(size) : new Float32Array(size));
  }

  tensor(name, data) {
    return { ...this.ports.get(name), data };
  }

  // Ids that stand for a text: the sign of a message's begin, then its words.
  context(text) {
    const ids = this.tokenizer.encode(text);
    const room = this.limits.context ? Math.floor(this.limits.context / 2) : Infinity;
    return [this.tokenizer.rules.bos_id, ...(ids.length > room ? ids.slice(-room) : ids)];
  }

  // The words to suggest after a context, given the letters typed of the next one:
  // [{ id, score }], best first.
  async suggest(context, typed, personal = true) {
    const found = await this.run(context, this.mask(typed, personal), personal);
    const { words, scores } = found;
    return [...words.data]
      .map((id, place) => ({ id: Number(id), score: scores.data[place] }))
      .filter(({ id, score }) => score > DROP / 2 && this.tokenizer.suggestible[id]);
  }

  // The place of a word among all that may be suggested, 1 for the first.
  async rank(context, id, personal) {
    const { logits } = await this.run(context, this.mask("", false), personal);
    const bias = personal ? this.personal.bias : null;
    const score = (word) => logits.data[word] + (bias ? bias[word] : 0);
    const own = score(id);
    let better = 1;
    for (const word of this.tokenizer.sorted) if (score(word) > own) better++;
    return better;
  }

  mask(typed, personal) {
    const bias = personal ? this.personal.bias : null;
    if (!typed) return bias ?? new Float32Array(this.tokenizer.size);
    const mask = new Float32Array(this.tokenizer.size).fill(DROP);
    for (const id of this.tokenizer.completions(typed)) mask[id] = bias ? bias[id] : 0;
    return mask;
  }

  // One run at a time: the graph's memory is its own.
  async run(context, mask, personal) {
    const before = await this.after(context.slice(0, -1));
    return this.call(context.at(-1), before, mask, personal);
  }

  async after(context) {
    if (!context.length) return this.start;
    const key = context.join(" ");
    if (this.states.has(key)) return this.states.get(key);
    const before = await this.after(context.slice(0, -1));
    const found = await this.call(context.at(-1), before, this.mask("", false), false);
    const next = {};
    for (const [output, input] of Object.entries(this.entry.interface.state))
      next[input] = this.tensor(input, found[output].data);
    if (this.states.size > KEPT) this.states.clear();
    this.states.set(key, next);
    return next;
  }

  call(token, state, mask, personal) {
    const adapter = personal && this.personal.up && this.ports.has("down")
      ? { down: this.tensor("down", this.personal.down), up: this.tensor("up", this.personal.up) }
      : this.noAdapter;
    const inputs = {
      token: this.tensor("token", Int32Array.of(token)),
      mask: this.tensor("mask", mask), ...adapter, ...state,
    };
    const done = this.turn.then(async () => {
      const began = performance.now();
      const found = await this.graph.run(inputs);
      this.milliseconds = performance.now() - began;
      return found;
    });
    this.turn = done.catch(() => {});
    return done;
  }
}
