/** Bytes: hexadecimal, little-endian integers, concatenation, comparison. */

const encoder = new TextEncoder();

/** @param {string} text ASCII @returns {Uint8Array} */
export const ascii = (text) => encoder.encode(text);

/** @param {...Uint8Array} parts @returns {Uint8Array} */
export function concat(...parts) {
  const whole = new Uint8Array(parts.reduce((size, part) => size + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

/** @param {...number} values @returns {Uint8Array} each as u32, little-endian */
export function u32(...values) {
  const bytes = new Uint8Array(4 * values.length);
  const view = new DataView(bytes.buffer);
  values.forEach((value, i) => view.setUint32(4 * i, value, true));
  return bytes;
}

/** @param {number | bigint} value @returns {Uint8Array} */
export function u64(value) {
  const bytes = new Uint8Array(8);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(value), true);
  return bytes;
}

/** @param {string} hex @returns {Uint8Array} */
export function fromHex(hex) {
  const bytes = new Uint8Array(hex.length / 2);
  for (let i = 0; i < bytes.length; i++) bytes[i] = parseInt(hex.slice(2 * i, 2 * i + 2), 16);
  return bytes;
}

/** @param {Uint8Array} bytes @returns {string} */
export const toHex = (bytes) =>
  Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");

/** @param {Uint8Array} a @param {Uint8Array} b @returns {boolean} */
export const equal = (a, b) => a.length === b.length && a.every((byte, i) => byte === b[i]);

/** @param {Uint8Array} bytes little-endian @returns {bigint} */
export const toBigInt = (bytes) =>
  bytes.length ? BigInt("0x" + toHex(Uint8Array.from(bytes).reverse())) : 0n;

/** @param {bigint} value @param {number} size @returns {Uint8Array} little-endian */
export const fromBigInt = (value, size) =>
  fromHex(value.toString(16).padStart(2 * size, "0")).reverse();

/** @param {Uint8Array} bytes @returns {DataView} */
export const viewOf = (bytes) => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
