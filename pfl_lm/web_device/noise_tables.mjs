/** Exact Skellam samples from random bits: certified probabilities, an alias table, inversion.
 *
 * Probabilities are whole numbers of units of 2^-256; PROTOCOL.md, section 8, has the steps.
 */
import { viewOf } from "./bytes.mjs";
import { InvalidValue } from "./errors.mjs";

const UNIT = 256n;
const PRECISION = 320n;
const TAIL_BITS = 262;
const REST = 1023; // the last outcome of the alias table: the sample is drawn by inversion
const SHARE_BITS = 20;
const CHOICES = 1024; // that a column's threshold divides
export const LARGEST_VARIANCE = 2 ** 32; // of one table

/** @param {number} variance @param {number} distance @returns {number} x with P(X ≥ t) ≤ e^-x */
function chernoffExponent(variance, distance) {
  const rise = (distance * distance) / (Math.hypot(distance, variance) + variance);
  return distance * Math.asinh(distance / variance) - rise;
}

/** @param {number} variance @returns {number} beyond which the mass is at most 2^-261 */
function tailRadius(variance) {
  const target = TAIL_BITS * Math.log(2);
  let high = 1;
  while (chernoffExponent(variance, high) < target) high *= 2;
  let low = Math.floor(high / 2);
  while (high - low > Math.max(1, Math.floor(high / 2 ** 20))) {
    const middle = Math.floor((low + high) / 2);
    if (chernoffExponent(variance, middle) < target) low = middle;
    else high = middle;
  }
  return high;
}

/** @param {number} value positive @returns {[bigint, bigint]} the double as a fraction */
export function ratioOf(value) {
  let exponent = 0n;
  let scaled = value;
  while (!Number.isInteger(scaled)) {
    scaled *= 2; // exact
    exponent += 1n;
  }
  return [BigInt(scaled), 1n << exponent];
}

/** Numbers proportional to I_k(v) for k = radius … 0 (Miller's backward recurrence). */
function* weights(variance, radius) {
  const [numerator, denominator] = ratioOf(variance);
  let [outer, inner] = [0n, 1n << PRECISION];
  yield inner;
  for (let k = radius; k > 0; k--) {
    [outer, inner] = [inner, outer + (2n * BigInt(k) * denominator * inner) / numerator];
    yield inner;
  }
}

const bitLength = (value) => BigInt(value.toString(2).length);

/** @param {number} variance @returns {bigint[]} 2^256·P(X > k) for k = 0, 1, … until it is 0 */
function survival(variance) {
  const radius = tailRadius(variance);
  let [tail, centre] = [0n, 0n];
  for (centre of weights(variance, radius)) tail += centre;
  const total = 2n * tail - centre;
  const shift = bitLength(total) + UNIT;
  const reciprocal = (1n << (shift + UNIT)) / total;
  const above = new Array(radius + 1).fill(0n);
  let sum = 0n;
  let k = radius - 1;
  for (const weight of weights(variance, radius)) {
    if (k < 0) break;
    sum += weight;
    above[k--] = (sum * reciprocal) >> shift;
  }
  return above;
}

/** @param {bigint[]} above @param {number} lowBits @returns {number[]} of 2^20, the rest's last */
function sharesOf(above, lowBits) {
  const reach = REST << lowBits;
  const least = new Array(reach).fill(0);
  const scaled = (weight) => Number(weight >> (UNIT - BigInt(SHARE_BITS + lowBits)));
  least[0] = scaled((1n << UNIT) - 2n * above[0]);
  for (let k = 1; k < Math.min(above.length, reach); k++)
    least[k] = scaled(2n * (above[k - 1] - above[k]));
  const shares = [];
  for (let at = 0; at < reach; at += 1 << lowBits)
    shares.push(Math.min(...least.slice(at, at + (1 << lowBits))));
  shares[0] = Math.min(shares[0], (1 << SHARE_BITS) - 1); // the rest is never nothing
  shares.push((1 << SHARE_BITS) - shares.reduce((sum, share) => sum + share, 0));
  return shares;
}

/** @returns {bigint[]} 2^256·P(|X| > k) in the rest, rounded down, for k falling to 0 */
function boundariesOf(above, shares, lowBits) {
  const largest = (1n << UNIT) - 1n;
  const rest = BigInt(shares[REST]);
  const boundaries = [];
  let covered = 0n; // 2^(20 + lowBits)·P(|X| > k) in the alias table
  for (let k = above.length - 2; k >= 0; k--) {
    if (k + 1 < REST << lowBits) covered += BigInt(shares[(k + 1) >> lowBits]);
    const beyond = 2n * above[k] - (covered << (UNIT - BigInt(SHARE_BITS + lowBits)));
    const boundary = (beyond << BigInt(SHARE_BITS)) / rest;
    boundaries.push(boundary < largest ? boundary : largest);
  }
  return boundaries;
}

/** Walker's alias table in Vose's order. @param {number[]} shares */
function aliasOf(shares) {
  const left = [...shares];
  const thresholds = new Array(left.length).fill(CHOICES);
  const others = left.map((_, j) => j);
  const small = [];
  const large = [];
  left.forEach((share, j) => {
    if (share < CHOICES) small.push(j);
    else if (share > CHOICES) large.push(j);
  });
  while (small.length) {
    const j = small.pop();
    const giver = large[large.length - 1];
    thresholds[j] = left[j];
    others[j] = giver;
    left[giver] -= CHOICES - left[j];
    if (left[giver] > CHOICES) continue;
    large.pop();
    if (left[giver] < CHOICES) small.push(giver);
  }
  return { thresholds, others };
}

/** One Skellam distribution, ready to turn uniform bits into samples. */
export class SkellamTable {
  /** @param {number} variance in (0, 2^32] */
  constructor(variance) {
    if (!(variance > 0 && variance <= LARGEST_VARIANCE))
      throw new InvalidValue("one table's variance must lie in (0, 2^32]");
    const above = survival(variance);
    let lowBits = 0;
    while ((REST << lowBits) ** 2 < 16 * variance) lowBits++;
    const shares = sharesOf(above, lowBits);
    this.lowBits = lowBits;
    this.alias = aliasOf(shares);
    this.boundaries = boundariesOf(above, shares, lowBits);
  }

  /** @returns {number} bits of a word, from its second lowest on, that decide nothing here */
  get spareBits() {
    return 31 - SHARE_BITS - this.lowBits;
  }

  /**
   * Add what words choose; return where the rest has to be drawn, with the sign of each.
   * @param {Uint32Array} words @param {Float64Array} out @returns {[number, number][]}
   */
  addWords(words, out) {
    const { thresholds, others } = this.alias;
    const shift = 22 - this.lowBits;
    const left = [];
    words.forEach((word, i) => {
      const column = word >>> 22;
      const choice = (word >>> (shift - 10)) & (CHOICES - 1);
      const outcome = choice < thresholds[column] ? column : others[column];
      const sign = word & 1 ? -1 : 1;
      const low = (word >>> shift) & ((1 << this.lowBits) - 1);
      if (outcome === REST) left.push([i, sign]);
      else out[i] += sign * ((outcome << this.lowBits) + low);
    });
    return left;
  }

  /**
   * Add the samples that the words left to the rest.
   * @param {[number, number][]} left @param {Float64Array} out
   * @param {import("./primitives.mjs").Keystream} bits
   */
  async addRest(left, out, bits) {
    if (!left.length) return;
    const numbers = viewOf(await bits.take(8 * left.length));
    for (let i = 0; i < left.length; i++) {
      const [place, sign] = left[i];
      const number = numbers.getBigUint64(8 * i, true);
      const magnitude = this.#magnitude(number);
      if (magnitude !== null) out[place] += sign * magnitude;
    }
    for (let i = 0; i < left.length; i++) {
      const [place, sign] = left[i];
      const number = numbers.getBigUint64(8 * i, true);
      if (this.#magnitude(number) === null) out[place] += sign * (await this.#exact(number, bits));
    }
  }

  /** @returns {number | null} null where the first 64 bits do not decide */
  #magnitude(number) {
    const first = (i) => this.boundaries[i] >> 192n;
    let [low, high] = [0, this.boundaries.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (first(middle) < number) low = middle + 1;
      else high = middle;
    }
    const tied = low < this.boundaries.length ? first(low) : (1n << 64n) - 1n;
    return tied === number ? null : this.boundaries.length - low;
  }

  async #exact(number, bits) {
    const more = viewOf(await bits.take(24));
    let uniform = number << 192n;
    for (let i = 0; i < 3; i++) uniform |= more.getBigUint64(8 * i, true) << BigInt(64 * i);
    const at = this.boundaries.findIndex((boundary) => uniform < boundary);
    return at < 0 ? 0 : this.boundaries.length - at;
  }

  /** Add one sample to each number. @param {Float64Array} out */
  async addTo(out, bits) {
    const bytes = await bits.take(4 * out.length);
    await this.addRest(this.addWords(new Uint32Array(bytes.buffer), out), out, bits);
  }
}

const tables = new Map();

/** @param {number} variance @returns {SkellamTable} built, or found */
export function tableOf(variance) {
  if (!tables.has(variance)) {
    if (tables.size >= 24) tables.delete(tables.keys().next().value);
    tables.set(variance, new SkellamTable(variance));
  }
  return tables.get(variance);
}
