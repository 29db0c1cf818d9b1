/** The model on its way to a device, and what names it: network/model_delta.py. */
import { ascii, concat, u32, u64 } from "./bytes.mjs";
import { sha256 } from "./primitives.mjs";

const MOST_ROUNDS = 256; // a device that missed more of them gets the whole model

/** @typedef {Map<string, Float32Array>} Parameters by name, in the order of the model's description */

/** @param {Uint8Array} bytes @returns {Float32Array} */
const floats = (bytes) => new Float32Array(bytes.slice().buffer);

/** @param {Float32Array} values @returns {Uint8Array} */
const bytesOf = (values) => new Uint8Array(values.buffer, values.byteOffset, values.byteLength);

/**
 * The model of round `want` from that of round `have` and what was received.
 * @param {object} task of web_task.py @param {Parameters} parameters @param {Uint8Array} received
 * @param {number} have -1: none @param {number} want
 * @returns {Parameters | null} null where another number of values came
 */
export function apply(task, parameters, received, have, want) {
  const changed = have >= 0 && have <= want && want <= have + MOST_ROUNDS;
  const sizes = new Map(task.parameters.map(({ name, size }) => [name, size]));
  const names = !changed ? [...sizes.keys()] : have === want ? [] : task.travels;
  const total = names.reduce((sum, name) => sum + sizes.get(name), 0);
  if (received.length !== 4 * total) return null;
  const updated = new Map(changed ? parameters : []);
  let at = 0;
  for (const name of names) {
    updated.set(name, floats(received.subarray(at, (at += 4 * sizes.get(name)))));
  }
  return updated;
}

/** @param {object} task @param {Parameters} parameters @returns {Float32Array} what travels, flat */
export const gather = (task, parameters) =>
  floats(concat(...task.travels.map((name) => bytesOf(parameters.get(name)))));

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
