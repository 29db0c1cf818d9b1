/** The public random rotation: signs and the orthonormal Hadamard transform on one or two blocks. */
import { Keystream } from "./primitives.mjs";

const { fround } = Math;

export class Rotation {
  #turns;

  constructor(turns) {
    this.#turns = turns;
  }

  /** @param {number} dim @param {Uint8Array} seed 32 public bytes @returns {Promise<Rotation>} */
  static async of(dim, seed) {
    const block = 2 ** Math.floor(Math.log2(dim));
    const bits = new Keystream(seed);
    const turns = [];
    for (const start of block === dim ? [0] : [0, dim - block])
      turns.push({ start, block, signs: await bits.take(Math.ceil(block / 8)) });
    return new Rotation(turns);
  }

  /** Rotate in place. @param {Float32Array} row */
  forward(row) {
    for (const { start, block, signs } of this.#turns) {
      const part = row.subarray(start, start + block);
      turnSigns(part, signs);
      hadamard(part);
    }
  }

  /** Rotate back in place. @param {Float32Array} row */
  inverse(row) {
    for (const { start, block, signs } of [...this.#turns].reverse()) {
      const part = row.subarray(start, start + block);
      hadamard(part);
      turnSigns(part, signs);
    }
  }
}

/** Bit i of the signs, least significant first, turns number i. */
function turnSigns(part, signs) {
  for (let i = 0; i < part.length; i++) if ((signs[i >> 3] >> (i & 7)) & 1) part[i] = -part[i];
}

/** @param {Float32Array} part of a power of two numbers */
function hadamard(part) {
  const scale = fround(1 / Math.sqrt(part.length));
  for (let i = 0; i < part.length; i++) part[i] *= scale;
  for (let half = 1; half < part.length; half *= 2)
    for (let pair = 0; pair < part.length; pair += 2 * half)
      for (let i = pair; i < pair + half; i++) {
        const [a, b] = [part[i], part[i + half]];
        part[i] = a + b;
        part[i + half] = a - b;
      }
}
