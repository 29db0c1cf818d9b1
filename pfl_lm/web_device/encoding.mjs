/** From an update to integers: (the indicator,) clip, round at random to the grid, add a share of noise.
 *
 * All products and sums of float32 round once each, as Math.fround does.
 */
import { addSkellam } from "./noise.mjs";
import { LARGEST_VARIANCE, tableOf } from "./noise_tables.mjs";

const TRIES = 64;
const MARGIN = 2 ** -22;
const LANES = 256;
const STRETCH = 65536;
const { fround } = Math;

/** The integer grid of a round. */
export class Grid {
  /** @param {number} dim @param {number} clipNorm @param {number} gridSteps */
  constructor(dim, clipNorm, gridSteps) {
    this.clipNorm = clipNorm;
    const norm = gridSteps * Math.sqrt(dim);
    this.scale = norm / clipNorm;
    const always = norm + Math.sqrt(dim);
    // √(2 ln(1/β)) of the rounding bound is 1 at β = e^(−1/2).
    const rounded = Math.sqrt(norm ** 2 + dim / 4 + (norm + Math.sqrt(dim) / 2));
    this.normBoundSquared = Math.floor(Math.min(always, rounded) ** 2);
  }
}

/** @param {Float32Array} values @returns {number} in one order of summation */
export function sumOfSquares(values) {
  let total = 0;
  for (let start = 0; start < values.length; start += STRETCH) {
    const lanes = new Float64Array(LANES);
    const end = Math.min(start + STRETCH, values.length);
    for (let i = start; i < end; i++) lanes[(i - start) % LANES] += values[i] * values[i];
    for (let half = LANES / 2; half >= 1; half /= 2)
      for (let lane = 0; lane < half; lane++) lanes[lane] += lanes[lane + half];
    total += lanes[0];
  }
  return total;
}

/**
 * Clip an update to make room, and put behind whether it was short: it is encoded next.
 * @param {Float32Array} update @param {number} clipNorm @param {number} weight of an indicator
 * @returns {{joint: Float32Array, short: boolean}}
 */
export function withIndicator(update, clipNorm, weight) {
  const norm = Math.sqrt(sumOfSquares(update));
  const short = norm <= clipNorm;
  const kept = Math.sqrt(1 - weight * weight);
  const factor = fround(short ? kept : (kept * clipNorm) / norm);
  const joint = new Float32Array(update.length + 1);
  for (let i = 0; i < update.length; i++) joint[i] = update[i] * factor;
  joint[update.length] = (short ? weight : -weight) * clipNorm;
  return { joint, short };
}

/**
 * Clip, round and add noise.
 * @param {Float32Array} update @param {Grid} grid
 * @param {number | null} variance of the device's share of Skellam noise, in grid steps squared
 * @param {import("./primitives.mjs").Keystream} bits
 * @returns {Promise<{vector: Float64Array, norm: number, clipped: boolean}>} the norm is NaN where
 *   the update was not finite
 */
export async function encode(update, grid, variance, bits) {
  const norm = Math.sqrt(sumOfSquares(update));
  const limit = grid.clipNorm * (1 - MARGIN);
  const finite = Number.isFinite(norm);
  const clip = !finite ? 0 : norm <= limit ? 1 : limit / norm;
  const vector = new Float64Array(update.length);
  await write(update, clip * grid.scale, grid, variance ?? 0, bits, vector);
  return { vector, norm: finite ? norm : NaN, clipped: clip !== 1 };
}

async function write(update, factor, grid, variance, bits, out) {
  const table = variance > 0 && variance <= LARGEST_VARIANCE ? tableOf(variance) : null;
  for (let attempt = 0; factor !== 0 && attempt < TRIES; attempt++) {
    const dithers = await takeDithers(update.length, table, bits);
    const squares = roundAtRandom(update, factor, dithers, out);
    const left = table ? table.addWords(dithers.words, out) : [];
    if (squares > grid.normBoundSquared) continue; // the noise is discarded unseen
    if (table) await table.addRest(left, out, bits);
    else await addSkellam(variance, out, bits);
    return;
  }
  out.fill(0);
  if (factor !== 0) roundTowardsZero(update, factor, grid, out);
  await addSkellam(variance, out, bits);
}

/** A word of 32 bits serves the rounding and the table; without a table 16 bits the rounding. */
async function takeDithers(count, table, bits) {
  if (!table) {
    const words = new Uint16Array((await bits.take(2 * count)).buffer);
    return { words, width: 16, of: (word) => word };
  }
  const words = new Uint32Array((await bits.take(4 * count)).buffer);
  const keep = (1 << table.spareBits) - 1;
  return { words, width: table.spareBits, of: (word) => (word >>> 1) & keep };
}

/** @returns {number} the sum of squares of what was written */
function roundAtRandom(update, factor, { words, width, of }, out) {
  const unit = 0.5 ** width;
  const narrow = fround(factor);
  let squares = 0;
  for (let i = 0; i < update.length; i++) {
    const scaled = fround(update[i] * (factor < 2 ** -64 ? factor : narrow));
    out[i] = Math.floor(fround(scaled + (of(words[i]) * unit + unit / 2)));
    squares += out[i] * out[i];
  }
  return squares;
}

function roundTowardsZero(update, factor, grid, out) {
  let squares = 0;
  for (let i = 0; i < update.length; i++) {
    out[i] = Math.trunc(update[i] * factor);
    squares += out[i] * out[i];
  }
  if (squares > grid.normBoundSquared) out.fill(0);
}
