// From a text to words: runs the `predict` graph, once for each word and once for each letter.

const KEPT = 400; // states remembered
const READ = 300, LEFT_OUT = 150; // words that are read of a longer text; how many are left out at once
const SUGGESTIONS = 3;

export class Predictor {
  // graph: what runs; entry: its lines in bundle.json; personal: what was learnt here.
  constructor(graph, entry, tokenizer, personal, limits) {
    Object.assign(this, { graph, entry, tokenizer, personal, limits });
    this.ports = new Map(entry.signature.inputs.map(([name, type, dims]) => [name, { type, dims }]));
    this.start = {};
    for (const name of Object.values(entry.signature.state)) this.start[name] = this.zeros(name);
    this.unused = {}; // inputs that a keyboard without an adapter leaves at zero
    for (const name of ["mask", "down", "up"])
      if (this.ports.has(name)) this.unused[name] = this.zeros(name);
    this.carried = this.start; // the state after the messages that were sent
    this.states = new Map();
    this.turn = Promise.resolve();
    this.carries = 0;
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
    const from = this.limits.context ? Math.max(0, ids.length - Math.floor(this.limits.context / 2))
      : LEFT_OUT * Math.ceil(Math.max(0, ids.length - READ) / LEFT_OUT); // so that states serve again
    return [this.tokenizer.rules.bos_id, ...ids.slice(from)];
  }

  // Read the messages that were sent, so that suggestions go on from there. A transformer's state
  // holds few words: it begins every message anew.
  async carry(messages) {
    const mine = ++this.carries;
    let state = this.start;
    if (!this.limits.context)
      for (const token of messages.flat().slice(-READ)) {
        if (mine !== this.carries) return;
        state = this.next(await this.call(token, state));
      }
    if (mine !== this.carries) return;
    this.carried = state;
    this.states.clear();
  }

  // The words to suggest after a context, given the letters typed of the next one:
  // [{ id, score }], best first. Words that are shown alike are one: `shown` says how.
  async suggest(context, typed, personal = true, shown = (id) => id) {
    const chance = await this.chances(context, personal);
    const best = [];
    for (const id of this.tokenizer.completions(typed)) {
      const score = chance(id);
      if (best.length === SUGGESTIONS && score <= best.at(-1).score) continue;
      const name = shown(id), alike = best.findIndex((one) => one.name === name);
      if (alike >= 0 && best[alike].score >= score) continue;
      if (alike >= 0) best.splice(alike, 1);
      best.push({ id, score, name });
      best.sort((a, b) => b.score - a.score);
      best.length = Math.min(best.length, SUGGESTIONS);
    }
    return best.map(({ id, score }) => ({ id, score }));
  }

  // The place of a word among all that may be suggested, 1 for the first.
  async rank(context, id, personal) {
    const chance = await this.chances(context, personal), own = chance(id);
    let better = 1;
    for (const word of this.tokenizer.sorted) if (chance(word) > own) better++;
    return better;
  }

  // The probability of each word after a context: the model's, mixed with the owner's words.
  async chances(context, personal) {
    return this.mixed(await this.reading(context, personal), context, personal);
  }

  // What the model said after a context.
  async reading(context, personal) {
    return this.latest(context, personal) ?? this.read(context, personal);
  }

  // What `chances` returns, without waiting: null if the model has not read the context last.
  chancesNow(context) {
    const found = this.latest(context, true);
    return found && this.mixed(found, context, true);
  }

  // The letters of one word ask for the same scores again and again: the last ones are kept.
  latest(context, personal) {
    const { of, root, leftOut } = this.scored ?? {};
    const same = of === name(context, personal) && root === this.carried && leftOut === this.tokenizer.leftOut;
    return same ? this.scored : null;
  }

  async read(context, personal) {
    const root = this.carried, { leftOut } = this.tokenizer;
    const before = await this.after(context.slice(0, -1), personal);
    const read = await this.step(context.at(-1), before), of = name(context, personal);
    this.remember(of, root, read.state);
    return this.scored = { of, root, leftOut, ...read };
  }

  // Read one word after a state: the scores of all words, what makes them probabilities, the state.
  async step(token, before) {
    const found = await this.call(token, before), scores = found.logits.data;
    let highest = -Infinity, total = 0;
    for (const id of this.tokenizer.leftOut) scores[id] = -Infinity;
    for (const score of scores) if (score > highest) highest = score;
    for (const score of scores) total += Math.exp(score - highest);
    return { scores, highest, total, state: this.next(found) };
  }

  mixed({ scores, highest, total }, context, personal) {
    const { factor, shares } = personal
      ? this.personal.counted.mixture(context) : { factor: 1, shares: new Map() };
    return (id) => factor * Math.exp(scores[id] - highest) / total + (shares.get(id) ?? 0);
  }

  async after(context, personal) {
    if (!context.length) return personal ? this.carried : this.start;
    const key = name(context, personal);
    if (this.states.has(key)) return this.states.get(key);
    const root = this.carried;
    const before = await this.after(context.slice(0, -1), personal);
    const state = this.next(await this.call(context.at(-1), before));
    this.remember(key, root, state);
    return state;
  }

  remember(key, root, state) {
    if (root !== this.carried) return; // of messages that were forgotten meanwhile
    if (this.states.size > KEPT) this.states.clear();
    this.states.set(key, state);
  }

  next(found) {
    const state = {};
    for (const [output, input] of Object.entries(this.entry.signature.state))
      state[input] = this.tensor(input, found[output].data);
    return state;
  }

  // One run at a time: the graph's memory is its own.
  call(token, state) {
    const inputs = { token: this.tensor("token", Int32Array.of(token)), ...this.unused, ...state };
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

function name(context, personal) {
  return `${personal} ${context.join(" ")}`;
}
