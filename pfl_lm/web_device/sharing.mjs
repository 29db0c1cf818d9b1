/** Shamir's secret sharing over the prime 2^256 + 297. */
import { fromBigInt, toBigInt } from "./bytes.mjs";
import { InvalidValue, MalformedMessage, Refused } from "./errors.mjs";

export const PRIME = (1n << 256n) + 297n;
export const SHARE_BYTES = 33;
const COEFFICIENT_BYTES = 48; // a 384-bit number modulo the prime misses uniform by 2^-127

/** @typedef {(count: number) => Uint8Array} Entropy unpredictable bytes */

/**
 * Split a secret into one share for each holder; any `threshold` of them recover it.
 * @param {Uint8Array} secret 32 bytes @param {number[]} holders @param {number} threshold
 * @param {Entropy} entropy @returns {Map<number, Uint8Array>}
 */
export function share(secret, holders, threshold, entropy) {
  if (secret.length !== 32) throw new InvalidValue("a secret has 32 bytes");
  if (new Set(holders).size !== holders.length) throw new InvalidValue("holders must be distinct");
  if (!(threshold >= 1 && threshold <= holders.length))
    throw new InvalidValue("threshold must be from 1 to the holders");
  const random = entropy(COEFFICIENT_BYTES * (threshold - 1));
  const coefficients = []; // of the highest power first, for Horner's rule
  for (let at = 0; at < random.length; at += COEFFICIENT_BYTES)
    coefficients.push(toBigInt(random.slice(at, at + COEFFICIENT_BYTES)) % PRIME);
  coefficients.push(toBigInt(secret));
  const valueAt = (x) => coefficients.reduce((value, next) => (value * x + next) % PRIME, 0n);
  return new Map(holders.map((h) => [h, fromBigInt(valueAt(BigInt(h + 1)), SHARE_BYTES)]));
}

/**
 * @param {Map<number, Uint8Array>} shares as many as the threshold @returns {Uint8Array}
 * @throws {MalformedMessage} a share outside the field
 * @throws {Refused} the shares belong to no secret of 32 bytes
 */
export function recover(shares) {
  for (const one of shares.values()) checkShare(one);
  const points = [...shares.keys()].map((holder) => BigInt(holder + 1));
  const values = [...shares.values()].map(toBigInt);
  let total = 0n;
  points.forEach((x, i) => {
    let above = 1n;
    let below = 1n;
    for (const other of points)
      if (other !== x) [above, below] = [(above * other) % PRIME, (below * (other - x)) % PRIME];
    total += values[i] * above * inverse(below);
  });
  const value = total % PRIME;
  if (value >> 256n) throw new Refused("the shares belong to no secret: one of them is wrong");
  return fromBigInt(value, 32);
}

/** @param {Uint8Array} one @throws {MalformedMessage} */
export function checkShare(one) {
  if (one.length !== SHARE_BYTES || toBigInt(one) >= PRIME)
    throw new MalformedMessage("a share must be 33 bytes below the field's prime");
}

/** @param {bigint} value not 0 @returns {bigint} by Euclid's algorithm, positive */
function inverse(value) {
  let [a, b, x, y] = [((value % PRIME) + PRIME) % PRIME, PRIME, 1n, 0n];
  while (a > 1n) {
    const quotient = a / b;
    [a, b, x, y] = [b, a % b, y, x - quotient * y];
  }
  return ((x % PRIME) + PRIME) % PRIME;
}
