/** Local training by a bundle's `train_step`: batches, learning rate, bound on the gradient, weight.
 *
 * Every number of the gradient comes from the graph; export/graphs/on_device.py is the same in Python.
 */
import { sumOfSquares } from "./encoding.mjs";

const PAD = 0;
const { fround } = Math;

/**
 * Cut a text into windows that overlap by one token; the last is filled up with 0.
 * @param {ArrayLike<number>} tokens `<s> w w </s> <s> …` @param {object} training of the scenario
 * @returns {Int32Array[]} of window + 1 words each
 */
export function windowsOf(tokens, { window, max_tokens: most }) {
  const used = Array.from(tokens).slice(0, most === null ? undefined : most + 1);
  const found = [];
  for (let at = 0; at + 1 < used.length; at += window) {
    const words = new Int32Array(window + 1).fill(PAD);
    words.set(used.slice(at, at + window + 1));
    found.push(words);
  }
  return found;
}

/** @returns {Int32Array[][]} each epoch in a new order, which is the device's own */
function batchesOf(windows, { batch_size: size, steps, epochs }) {
  const wanted = steps ?? (epochs ?? 0) * Math.ceil(windows.length / size);
  const batches = [];
  while (windows.length && batches.length < wanted) {
    const shuffled = [...windows];
    for (let i = shuffled.length - 1; i > 0; i--) {
      const j = Math.floor(Math.random() * (i + 1));
      [shuffled[i], shuffled[j]] = [shuffled[j], shuffled[i]];
    }
    for (let at = 0; at < shuffled.length; at += size) batches.push(shuffled.slice(at, at + size));
  }
  return batches.slice(0, wanted);
}

/** @returns {number} in (0, 1]: a device with little text counts less; 1 without a target */
function tokenWeight(windows, { full_weight_tokens: full }) {
  const targets = windows.reduce((sum, words) => sum + words.slice(1).filter((w) => w !== PAD).length, 0);
  return full === null || targets === 0 ? 1 : Math.min(1, targets / full);
}

/** A device that trains by a graph. */
export class Trainer {
  /**
   * @param {(inputs: object) => Promise<object>} run the graph: {name: {type, dims, data}} both ways
   * @param {[name: string, type: string, dims: number[]][]} inputs of its signature
   * @param {object} training of the scenario
   */
  constructor(run, inputs, training) {
    this.run = run;
    this.inputs = new Map(inputs.map(([name, type, dims]) => [name, { type, dims }]));
    this.training = training;
  }

  /**
   * @param {Float32Array} values what travels @param {import("./model.mjs").Parameters} parameters
   * @param {import("./payload.mjs").Payload} payload of the round
   * @param {ArrayLike<number>} tokens the device's own text
   * @returns {Promise<Float32Array>} trained - received; 0 without a target
   */
  async train(values, parameters, payload, tokens) {
    const { learning_rate: rate, decay, gradient_clip: bound } = this.training;
    const windows = windowsOf(tokens, this.training);
    const common = { ...this.#frozen(parameters), ...this.#rows(payload) };
    const now = values.slice();
    for (const [number, batch] of batchesOf(windows, this.training).entries()) {
      const given = { ...common, ...this.#tensor("values", now), ...this.#batch(batch) };
      const gradient = (await this.run(given)).gradient.data;
      const step = fround(rate * decay ** number);
      const norm = bound === null ? 0 : Math.sqrt(sumOfSquares(gradient));
      const shorter = norm > 0 ? fround(Math.min(1, bound / norm)) : 1;
      for (let i = 0; i < now.length; i++) now[i] -= fround(step * fround(gradient[i] * shorter));
    }
    const weight = fround(tokenWeight(windows, this.training));
    return now.map((value, i) => fround(value - values[i]) * weight);
  }

  #tensor(name, data) {
    return { [name]: { ...this.inputs.get(name), data } };
  }

  #batch(batch) {
    const words = new Int32Array(this.inputs.get("windows").dims.reduce((a, b) => a * b));
    batch.forEach((window, i) => words.set(window, i * window.length));
    return this.#tensor("windows", words);
  }

  /** Where each word's row stands in the payload, and the rows as candidates of the softmax. */
  #rows({ rows, inclusion }) {
    if (rows === null) return {};
    const slots = new Int32Array(this.inputs.get("slots").dims[0]).fill(-1);
    rows.forEach((word, i) => (slots[word] = i));
    return {
      ...this.#tensor("slots", slots),
      ...this.#tensor("candidates", rows),
      ...this.#tensor("log_weight", Float32Array.from(inclusion, (chance) => -Math.log(chance))),
      ...this.#tensor("inclusion", Float32Array.from(inclusion)),
    };
  }

  #frozen(parameters) {
    const given = {};
    for (const [name, data] of parameters) {
      const tensor = `frozen_${name.replaceAll(".", "_")}`;
      if (this.inputs.has(tensor)) Object.assign(given, this.#tensor(tensor, data));
    }
    return given;
  }
}
