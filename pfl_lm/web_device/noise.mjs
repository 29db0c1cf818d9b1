/** Skellam noise from a stream or a seed, and the removable components of a round. */
import { ascii, u32 } from "./bytes.mjs";
import { InvalidValue } from "./errors.mjs";
import { LARGEST_VARIANCE, tableOf } from "./noise_tables.mjs";
import { Keystream, sha256 } from "./primitives.mjs";
import { LABEL } from "./wire.mjs";

const LARGEST = 2 ** 44;

/**
 * Add independent exact Skellam noise to each whole number, in place.
 * @param {number} variance 0 adds nothing @param {Float64Array} out @param {Keystream} bits
 */
export async function addSkellam(variance, out, bits) {
  if (!(variance >= 0 && variance <= LARGEST))
    throw new InvalidValue("a Skellam variance must lie in [0, 2^44]");
  if (variance === 0) return;
  let parts = 1;
  while (variance / parts > LARGEST_VARIANCE) parts *= 2;
  for (let i = 0; i < parts; i++) await tableOf(variance / parts).addTo(out, bits);
}

/** @param {Uint8Array} seed @param {number} variance @param {number} dim */
export async function skellamFromSeed(seed, variance, dim) {
  const noise = new Float64Array(dim);
  await addSkellam(variance, noise, new Keystream(seed));
  return noise;
}

/** The variances of a round's removable components. */
export class NoisePlan {
  /** @param {number} variance on the sum @param {number} cohort @param {number} levels */
  constructor(variance, cohort, levels, step = 1) {
    if (!(variance >= 0)) throw new InvalidValue("variance must not be negative");
    if (step < 1 || levels < 0 || levels * step >= cohort)
      throw new InvalidValue("levels × step must leave part of the cohort");
    Object.assign(this, { variance, cohort, levels, step });
  }

  /** @returns {number} variance of the share that always stays */
  get share() {
    return this.variance / this.cohort;
  }

  /** @param {number} level from 1 @returns {number} variance of that component */
  component(level) {
    const now = this.cohort - level * this.step;
    return (this.variance * this.step) / (now * (now + this.step));
  }

  /** @param {number} reports @returns {number} components that stay */
  kept(reports) {
    const level = Math.ceil((this.cohort - reports) / this.step);
    if (!(level >= 0 && level <= this.levels)) throw new InvalidValue("the noise would fall short");
    return level;
  }

  /** @param {number} reports @returns {number} variance on the sum of so many */
  achieved(reports) {
    return (reports * this.variance) / (this.cohort - this.kept(reports) * this.step);
  }
}

/** The secrets of one device's components, from that of level `start` upwards. */
export class NoiseChain {
  constructor(first, context, device, levels, start = 1) {
    Object.assign(this, { first, context, device, levels, start });
  }

  /** @returns {Promise<Uint8Array[]>} of levels `start` to `levels` */
  async secrets() {
    const chain = [this.first];
    while (chain.length <= this.levels - this.start)
      chain.push(await this.#hash("next", chain[chain.length - 1]));
    return chain;
  }

  /** @returns {Promise<Map<number, Uint8Array>>} the seed of each level's noise */
  async seeds() {
    const seeds = new Map();
    for (const [i, secret] of (await this.secrets()).entries())
      seeds.set(this.start + i, await this.#hash("seed", secret));
    return seeds;
  }

  /** @returns {Promise<Uint8Array>} the end of the chain */
  async commitment() {
    return this.#hash("next", (await this.secrets()).at(-1));
  }

  #hash(purpose, secret) {
    return sha256(LABEL, ascii(`noise ${purpose}`), this.context, u32(this.device), secret);
  }
}

/** @returns {Promise<Float64Array>} the noise of the chains' levels */
export async function totalNoise(plan, chains, dim) {
  const total = new Float64Array(dim);
  for (const chain of chains)
    for (const [level, seed] of await chain.seeds()) {
      const noise = await skellamFromSeed(seed, plan.component(level), dim);
      noise.forEach((sample, i) => (total[i] += sample));
    }
  return total;
}

/** @param {BigInt64Array} vector @returns {Promise<BigInt64Array>} with a device's components */
export async function addComponents(plan, chain, vector) {
  const noise = await totalNoise(plan, [chain], vector.length);
  return vector.map((entry, i) => entry + BigInt(noise[i]));
}
