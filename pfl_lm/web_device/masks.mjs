/** Vectors of b-bit fields, and masks: key streams read as such vectors. */
import { viewOf } from "./bytes.mjs";
import { MalformedMessage } from "./errors.mjs";
import { ctrStream } from "./primitives.mjs";

const SLACK = 16; // bytes behind the last field that reading may touch

/** @typedef {Uint32Array | BigUint64Array} Words ring elements: 32-bit words up to b = 32 */

/** @param {number} count @param {number} bits */
export const packedBytes = (count, bits) => Math.ceil((count * bits) / 8);

/** @param {number} count @param {number} bits @returns {Words} */
const zeros = (count, bits) => (bits <= 32 ? new Uint32Array(count) : new BigUint64Array(count));

/**
 * Add `sign` times a packed vector to words, modulo the words' size.
 * @param {Words} words @param {Uint8Array} packed @param {number} bits @param {1 | -1} sign
 */
function addPacked(words, packed, bits, sign) {
  const room = new Uint8Array(packed.length + SLACK);
  room.set(packed);
  const view = viewOf(room);
  if (words instanceof Uint32Array) addNarrow(words, view, bits, sign);
  else addWide(words, view, BigInt(bits), BigInt(sign));
}

function addNarrow(words, view, bits, sign) {
  const keep = bits === 32 ? 0xffffffff : (1 << bits) - 1;
  for (let j = 0; j < words.length; j++) {
    const first = j * bits;
    const [at, shift] = [Math.floor(first / 8), first % 8];
    let field = view.getUint32(at, true) >>> shift;
    if (shift + bits > 32) field |= view.getUint8(at + 4) << (32 - shift);
    words[j] += sign * ((field & keep) >>> 0); // a Uint32Array wraps as the ring does
  }
}

function addWide(words, view, bits, sign) {
  const keep = (1n << bits) - 1n;
  for (let j = 0; j < words.length; j++) {
    const first = j * Number(bits);
    const [at, shift] = [Math.floor(first / 8), first % 8];
    const low = view.getBigUint64(at, true) >> BigInt(shift);
    const high = shift ? BigInt(view.getUint8(at + 8)) << BigInt(64 - shift) : 0n;
    words[j] += sign * ((low | high) & keep);
  }
}

/** @param {Words} words @param {number} bits @returns {Uint8Array} unused bits zero */
export function pack(words, bits) {
  const packed = new Uint8Array(packedBytes(words.length, bits));
  const keep = (1n << BigInt(bits)) - 1n;
  let held = 0n; // bits that no byte has taken yet
  let count = 0;
  let at = 0;
  for (const word of words) {
    held |= (BigInt(word) & keep) << BigInt(count);
    count += bits;
    for (; count >= 8; count -= 8, held >>= 8n) packed[at++] = Number(held & 0xffn);
  }
  if (count) packed[at] = Number(held);
  return packed;
}

/**
 * @param {Uint8Array} packed @param {number} dim @param {number} bits
 * @throws {MalformedMessage} another length, or unused bits that are set
 */
export function checkPacked(packed, dim, bits) {
  const length = packedBytes(dim, bits);
  if (packed.length !== length)
    throw new MalformedMessage(`a vector takes ${length} bytes, not ${packed.length}`);
  const unused = 8 * length - dim * bits;
  if (unused && packed[length - 1] >> (8 - unused))
    throw new MalformedMessage("the unused bits after a packed vector must be zero");
}

/** @returns {bigint[]} the elements in [-2^(b-1), 2^(b-1)) @throws {MalformedMessage} */
export function unpackCentred(packed, dim, bits) {
  checkPacked(packed, dim, bits);
  const words = zeros(dim, bits);
  addPacked(words, packed, bits, 1);
  return Array.from(words, (word) => BigInt.asIntN(bits, BigInt(word)));
}

/**
 * @param {number} bits @param {BigInt64Array} vector @param {Uint8Array[]} plus seeds, 32 bytes
 * @param {Uint8Array[]} minus @returns {Promise<Uint8Array>} packed
 */
export async function mask(bits, vector, plus, minus) {
  const words = zeros(vector.length, bits);
  const narrow = words instanceof Uint32Array;
  vector.forEach((entry, j) => {
    words[j] = narrow ? Number(BigInt.asUintN(32, entry)) : BigInt.asUintN(64, entry);
  });
  const size = packedBytes(vector.length, bits);
  for (const [seeds, sign] of [[plus, 1], [minus, -1]])
    for (const seed of seeds)
      addPacked(words, await ctrStream(seed.slice(0, 16), seed.slice(16), size), bits, sign);
  return pack(words, bits);
}
