/** The model on its way to a device, and what names it: network/model_delta.py. */
import { ascii, concat, u32, u64 } from "./bytes.mjs";
import { choosePayload } from "./payload.mjs";
import { sha256 } from "./primitives.mjs";

const MOST_ROUNDS = 256; // a device that missed more of them gets the whole model

/** @typedef {Map<string, Float32Array>} Parameters by name, in the order of the model's description */

/** @param {Uint8Array} bytes @returns {Float32Array} */
const floats = (bytes) => new Float32Array(bytes.slice().buffer);

/** @param {Float32Array} values @returns {Uint8Array} */
const bytesOf = (values) => new Uint8Array(values.buffer, values.byteOffset, values.byteLength);

const product = (shape) => shape.reduce((size, length) => size * length, 1);

/** @param {object} task of web_task.py @returns {number} of the whole model: no answer is longer */
export const modelBytes = ({ parameters }) =>
  4 * parameters.reduce((sum, { shape }) => sum + product(shape), 0);

/** @returns {{name: string, size: number, rows: Int32Array | null, width: number}[]} */
function segmentsOf(task, rows) {
  const shapes = new Map(task.parameters.map(({ name, shape }) => [name, shape]));
  return task.travels.map(({ name, rows: some }) => {
    const [first, ...rest] = shapes.get(name);
    const width = product(rest);
    return { name, width, rows: some ? rows : null, size: width * (some ? rows.length : first) };
  });
}

/** @returns what a device lacks, as segments; null where it lacks the whole model */
function changed(task, have, want) {
  if (!(have >= 0 && have <= want && want <= have + MOST_ROUNDS)) return null;
  if (have === want) return [];
  const moved = new Set();
  for (let round = task.rows ? have : want; round < want; round++)
    for (const word of choosePayload(task, round).rows) moved.add(word);
  return segmentsOf(task, Int32Array.from(moved).sort());
}

/**
 * The model of round `want` from that of round `have` and what was received.
 * @param {object} task of web_task.py @param {Parameters} parameters @param {Uint8Array} received
 * @param {number} have -1: none @param {number} want
 * @returns {Parameters | null} null where another number of values came
 */
export function apply(task, parameters, received, have, want) {
  const lacking = changed(task, have, want);
  const all = ({ name, shape }) => ({ name, size: product(shape), rows: null });
  const segments = lacking ?? task.parameters.map(all);
  if (received.length !== 4 * segments.reduce((sum, { size }) => sum + size, 0)) return null;
  const updated = new Map(lacking ? parameters : []);
  let at = 0;
  for (const { name, size, rows, width } of segments) {
    const part = floats(received.subarray(at, (at += 4 * size)));
    if (rows === null) updated.set(name, part);
    else {
      const table = updated.get(name).slice();
      rows.forEach((row, i) => table.set(part.subarray(i * width, (i + 1) * width), row * width));
      updated.set(name, table);
    }
  }
  return updated;
}

/**
 * @param {object} task @param {Parameters} parameters
 * @param {import("./payload.mjs").Payload} payload @returns {Float32Array} what travels, flat
 */
export function gather(task, parameters, payload) {
  const parts = segmentsOf(task, payload.rows).map(({ name, size, rows, width }) => {
    const table = parameters.get(name);
    if (rows === null) return bytesOf(table);
    const part = new Float32Array(size);
    rows.forEach((row, i) => part.set(table.subarray(row * width, (row + 1) * width), i * width));
    return bytesOf(part);
  });
  return floats(concat(...parts));
}

/** @param {string} taskConfig as it was received @param {Parameters} parameters */
export async function modelDigest(taskConfig, parameters) {
  const stated = await sha256(new TextEncoder().encode(taskConfig));
  const parts = [ascii("pfl_lm network 2 model"), stated];
  for (const name of [...parameters.keys()].sort()) {
    const values = parameters.get(name);
    parts.push(u32(name.length), ascii(name), u64(values.length), bytesOf(values));
  }
  return sha256(...parts);
}
