/** Named public streams of random numbers, as pfl_lm/streams.py and numpy make them.
 *
 * BLAKE2b (RFC 7693) derives a key from labels; Philox 4x64-10 (Salmon et al. 2011, "Parallel random
 * numbers: as easy as 1, 2, 3") counts from it. Nothing here is secret.
 */
import { ascii, concat, u64, viewOf } from "./bytes.mjs";

const MASK = (1n << 64n) - 1n;
const UNIT = 2 ** 53;
const TAIL = 7.69711747013104972; // where the last strip of the ziggurat begins
const AREA = 3.9496598225815572e-3; // of each of its 256 strips
const BLOCK_BYTES = 128;
const START = [
  ...[0x6a09e667f3bcc908n, 0xbb67ae8584caa73bn, 0x3c6ef372fe94f82bn, 0xa54ff53a5f1d36f1n],
  ...[0x510e527fade682d1n, 0x9b05688c2b3e6c1fn, 0x1f83d9abfb41bd6bn, 0x5be0cd19137e2179n],
];
const SIGMA = [
  ...["0123456789abcdef", "ea489fd61c02b753", "b8c052fdae367194", "7931dcbe265a40f8"],
  ...["905724afe1bc683d", "2c6a0b834d75fe19", "c51fed4a0763928b", "db7ec13950f4862a"],
  ...["6fe9b308c2d714a5", "a2847615fb9e3cd0"],
].map((row) => Array.from(row, (digit) => parseInt(digit, 16)));
const MIXED = [
  ...[[0, 4, 8, 12], [1, 5, 9, 13], [2, 6, 10, 14], [3, 7, 11, 15]],
  ...[[0, 5, 10, 15], [1, 6, 11, 12], [2, 7, 8, 13], [3, 4, 9, 14]],
];

const turned = (word, by) => (word >> by) | ((word << (64n - by)) & MASK);

function compress(state, block, length, last) {
  const v = [...state, ...START];
  v[12] ^= BigInt(length);
  if (last) v[14] ^= MASK;
  for (let round = 0; round < 12; round++)
    MIXED.forEach(([a, b, c, d], i) => {
      const row = SIGMA[round % 10];
      v[a] = (v[a] + v[b] + block[row[2 * i]]) & MASK;
      v[d] = turned(v[d] ^ v[a], 32n);
      v[c] = (v[c] + v[d]) & MASK;
      v[b] = turned(v[b] ^ v[c], 24n);
      v[a] = (v[a] + v[b] + block[row[2 * i + 1]]) & MASK;
      v[d] = turned(v[d] ^ v[a], 16n);
      v[c] = (v[c] + v[d]) & MASK;
      v[b] = turned(v[b] ^ v[c], 63n);
    });
  return state.map((word, i) => word ^ v[i] ^ v[i + 8]);
}

/** @param {Uint8Array} content @param {string} person at most 16 letters @returns {Uint8Array} */
export function blake2b256(content, person) {
  const personal = concat(ascii(person), new Uint8Array(16 - person.length));
  let state = [...START];
  state[0] ^= 0x01010020n; // 32 bytes of digest, no key, fanout and depth 1
  state[6] ^= viewOf(personal).getBigUint64(0, true);
  state[7] ^= viewOf(personal).getBigUint64(8, true);
  const blocks = Math.max(1, Math.ceil(content.length / BLOCK_BYTES));
  const padded = concat(content, new Uint8Array(blocks * BLOCK_BYTES - content.length));
  for (let at = 0; at < padded.length; at += BLOCK_BYTES) {
    const words = Array.from({ length: 16 }, (_, i) => viewOf(padded).getBigUint64(at + 8 * i, true));
    const read = Math.min(at + BLOCK_BYTES, content.length);
    state = compress(state, words, read, at + BLOCK_BYTES === padded.length);
  }
  return concat(...state.slice(0, 4).map(u64));
}

/**
 * @param {string} seed a whole number in decimal digits
 * @param {...(string | number)} labels @returns {Uint8Array} 32 bytes
 */
export function streamKey(seed, ...labels) {
  const texts = labels.map((label) => (typeof label === "number" ? `i${label}` : `s${label}`));
  const parts = [`i${seed}`, ...texts].flatMap((text) => [u64(ascii(text).length), ascii(text)]);
  return blake2b256(concat(...parts), "pfl_lm stream");
}

/** Strips under exp(-x): Marsaglia and Tsang 2000, "The ziggurat method". A rounding in the last place
 * of an entry matters to one draw in 2^53. */
function ziggurat() {
  const edges = new Float64Array(256); // the right end of each strip
  edges[255] = TAIL;
  for (let i = 254; i >= 1; i--) edges[i] = -Math.log(AREA / edges[i + 1] + Math.exp(-edges[i + 1]));
  const heights = edges.map((x) => Math.exp(-x));
  const inside = edges.map((x, i) => (i < 2 ? 0 : Math.floor((edges[i - 1] / x) * UNIT)));
  const base = AREA / Math.exp(-TAIL);
  inside[0] = Math.floor((TAIL / base) * UNIT);
  edges[0] = base;
  heights[0] = 1;
  return { edges, heights, inside };
}

let strips = null; // made when it is first asked for

/** numpy's generator over Philox 4x64. */
export class PublicStream {
  #key;
  #counter = 0n;
  #words = [];
  #half = null; // the upper half of a word whose lower half was taken

  /** @param {string} seed @param {...(string | number)} labels */
  constructor(seed, ...labels) {
    const view = viewOf(streamKey(seed, ...labels));
    this.#key = [view.getBigUint64(0, true), view.getBigUint64(8, true)];
  }

  #block() {
    let [a, b, c, d] = [++this.#counter, 0n, 0n, 0n];
    let [k, l] = this.#key;
    for (let round = 0; round < 10; round++) {
      const [first, second] = [a * 0xd2e7470ee14c6c93n, c * 0xca5a826395121157n];
      [a, b, c, d] = [(second >> 64n) ^ b ^ k, second & MASK, (first >> 64n) ^ d ^ l, first & MASK];
      [k, l] = [(k + 0x9e3779b97f4a7c15n) & MASK, (l + 0xbb67ae8584caa73bn) & MASK];
    }
    this.#words.push(a, b, c, d);
  }

  #word64() {
    if (!this.#words.length) this.#block();
    return this.#words.shift();
  }

  #word32() {
    const held = this.#half;
    this.#half = null;
    if (held !== null) return held;
    const word = this.#word64();
    this.#half = word >> 32n;
    return word & 0xffffffffn;
  }

  /** @returns {number} exponential with mean 1 */
  exponential() {
    strips ??= ziggurat();
    const { edges, heights, inside } = strips;
    for (;;) {
      const word = this.#word64() >> 3n;
      const [strip, place] = [Number(word & 0xffn), Number(word >> 8n)];
      const x = place * (edges[strip] / UNIT);
      if (place < inside[strip]) return x;
      const uniform = Number(this.#word64() >> 11n) / UNIT;
      if (strip === 0) return TAIL - Math.log1p(-uniform);
      const height = heights[strip] + (heights[strip - 1] - heights[strip]) * uniform;
      if (height < Math.exp(-x)) return x;
    }
  }

  /** Whole numbers by Lemire's method (2019). @param {bigint} bound from 1 to 2^64 @returns {bigint} uniform in 0 … bound - 1 */
  below(bound) {
    if (bound === 1n) return 0n;
    const width = bound <= 1n << 32n ? 32n : 64n;
    const next = () => (width === 32n ? this.#word32() : this.#word64());
    if (bound === 1n << width) return next();
    const least = (1n << width) % bound;
    for (;;) {
      const product = next() * bound;
      if (BigInt.asUintN(Number(width), product) >= least) return product >> width;
    }
  }
}
