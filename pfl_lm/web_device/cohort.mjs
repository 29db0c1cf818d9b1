/** Whom a round invites: pfl_lm/dp/cohort.py, rotation. */
import { concat, u64, viewOf } from "./bytes.mjs";
import { ctrStream, sha256 } from "./primitives.mjs";
import { PublicStream, streamKey } from "./streams.mjs";

const FEISTEL_ROUNDS = 10;

/**
 * @typedef {object} CohortRule
 * @property {number} population devices 0 … population - 1
 * @property {number} size of a cohort
 * @property {number} min_separation
 */

/**
 * @param {CohortRule} rule @param {string} seed in decimal @param {number} round
 * @returns {Promise<number[]>} the devices invited, ascending: a device's place is its index here
 */
export async function cohort({ population, size, min_separation: slots }, seed, round) {
  const random = new PublicStream(seed, "cohort", "rotation", round);
  const slot = round % slots;
  const members = Math.floor((population - slot + slots - 1) / slots);
  const places = subset(members, size, random).map((place) => slot + slots * place);
  const secret = streamKey(seed, "rotation slots");
  const permutation = new Permutation(population, await sha256(secret));
  const found = [];
  for (const place of places) found.push(await permutation.invert(place));
  return found.sort((a, b) => a - b);
}

/** @returns {number[]} a uniform subset, ascending: the first different numbers of the stream */
function subset(population, count, random) {
  if (count > Math.floor(population / 2)) {
    const absent = new Set(subset(population, population - count, random));
    return Array.from({ length: population }, (_, i) => i).filter((i) => !absent.has(i));
  }
  const drawn = [];
  const draw = (more) => {
    for (let i = 0; i < more; i++) drawn.push(Number(random.below(BigInt(population))));
  };
  draw(count + Math.floor(count / 2));
  for (;;) {
    const different = [...new Set(drawn)]; // in the order in which they came
    if (different.length >= count) return different.slice(0, count).sort((a, b) => a - b);
    draw(count);
  }
}

/** A keyed permutation of 0 … size - 1: a Feistel network with AES-256, walked into the range. */
class Permutation {
  /** @param {number} size @param {Uint8Array} key 32 bytes */
  constructor(size, key) {
    this.size = BigInt(size);
    this.key = key;
    const width = BigInt(Math.max(2, (this.size - 1n).toString(2).length));
    this.low = width / 2n;
    this.masks = [(1n << (width - this.low)) - 1n, (1n << this.low) - 1n];
  }

  /** @param {number} place @returns {Promise<number>} the element that has it */
  async invert(place) {
    let image = BigInt(place);
    do image = await this.#feistel(image);
    while (image >= this.size);
    return Number(image);
  }

  async #feistel(element) {
    const halves = [element >> this.low, element & this.masks[1]];
    for (let number = FEISTEL_ROUNDS - 1; number >= 0; number--) {
      const [changed, other] = [number % 2, 1 - (number % 2)];
      const block = concat(u64(halves[other]), u64(number));
      // One block of the key stream is the cipher of its counter.
      const word = viewOf(await ctrStream(this.key, block, 16)).getBigUint64(0, true);
      halves[changed] ^= word & this.masks[changed];
    }
    return (halves[0] << this.low) | halves[1];
  }
}
