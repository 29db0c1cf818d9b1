/** What travels in a round, by public randomness: pfl_lm/payload/layout.py and rows.py. */
import { ascii, concat, fromHex, u64 } from "./bytes.mjs";
import { sha256 } from "./primitives.mjs";
import { PublicStream } from "./streams.mjs";

/**
 * The coordinates of one round.
 * @typedef {object} Payload
 * @property {Int32Array | null} rows the words whose rows travel, ascending; null: all, or none
 * @property {Float64Array | null} inclusion the probability with which each of them was drawn
 */

/** @param {object} task of web_task.py @param {number} round @returns {Payload} */
export function choosePayload({ rows: rule, seed }, round) {
  if (rule === null) return { rows: null, inclusion: null };
  const { count, always, words } = rule;
  const weights = rule.weights === null ? new Float64Array(words).fill(1) : doubles(rule.weights);
  const fixed = new Set(always);
  const random = new PublicStream(seed, "rows", round);
  const others = [];
  for (let word = 0; word < words; word++)
    if (!fixed.has(word)) others.push({ word, arrival: random.exponential() / weights[word] });
  others.sort((a, b) => a.arrival - b.arrival);
  const drawn = count - fixed.size;
  const missed = others[drawn].arrival; // the first word that is not taken
  const equal = rule.weights === null || weights.every((weight) => weight === weights[0]);
  const chance = (word) =>
    equal ? drawn / others.length : -Math.expm1(-weights[word] * missed);
  const taken = [
    ...always.map((word) => [word, 1]),
    ...others.slice(0, drawn).map(({ word }) => [word, chance(word)]),
  ].sort(([a], [b]) => a - b);
  const [rows, inclusion] = [0, 1].map((at) => taken.map((one) => one[at]));
  return { rows: Int32Array.from(rows), inclusion: Float64Array.from(inclusion) };
}

/** @param {string} base64 @returns {Float64Array} */
function doubles(base64) {
  return new Float64Array(Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0)).buffer);
}

/** @param {object} task @param {Payload} payload @returns {Promise<Uint8Array>} names what travels */
export async function payloadDigest(task, { rows }) {
  if (rows === null) return fromHex(task.round.payload); // the same in every round
  const shapes = new Map(task.parameters.map(({ name, shape }) => [name, shape]));
  const segments = task.travels.map(({ name, rows: some }) => {
    const [first, ...rest] = shapes.get(name);
    const shape = [some ? rows.length : first, ...rest];
    const written = `(${shape.join(", ")}${shape.length === 1 ? "," : ""})`;
    return `${name}|${written}|${some ? "False" : "True"};`;
  });
  return sha256(ascii(segments.join("")), ...Array.from(rows, u64), ascii(task.outside));
}
