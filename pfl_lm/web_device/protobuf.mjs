/** The messages of network/aggregation.proto: their bytes, written and read. */
import { concat } from "./bytes.mjs";
import { MalformedMessage } from "./errors.mjs";

/** Fields by number: their names and types. A oneof's fields are absent unless they were sent. */
const MESSAGES = {
  ChallengeRequest: { 1: ["device", "uint"] },
  ChallengeResponse: { 1: ["nonce", "bytes"] },
  AuthenticateRequest: { 1: ["nonce", "bytes"], 2: ["signature", "bytes"], 3: ["certificate", "bytes"] },
  Session: { 1: ["token", "bytes"], 2: ["task_config", "string"] },
  Cursor: { 1: ["round", "int64"], 2: ["step", "uint"] },
  Item: {
    1: ["round", "int64"],
    2: ["step", "uint"],
    3: ["invitation", "Invitation"],
    4: ["frame", "bytes?"],
    5: ["over", "string?"],
    6: ["finished", "string?"],
  },
  Invitation: {
    1: ["place", "uint"],
    2: ["model", "bytes"],
    3: ["payload", "bytes"],
    4: ["cohort", "uint"],
    5: ["min_reports", "uint"],
    6: ["neighbours", "uint"],
    7: ["threshold", "uint"],
    8: ["corrupt", "uint"],
    9: ["window_survivors", "uint"],
    10: ["noise_levels", "uint"],
    11: ["noise_step", "uint"],
    12: ["dim", "uint"],
    13: ["bits", "uint"],
    14: ["adversary", "uint"],
    15: ["clip_norm", "double"],
  },
  Upload: { 1: ["round", "int64"], 2: ["size", "uint"], 3: ["part", "bytes"], 4: ["seen", "uint"] },
  Version: { 1: ["have", "int64"], 2: ["want", "int64"] },
  Chunk: { 1: ["values", "bytes"] },
};
const WIRE = { uint: 0, int64: 0, double: 1 }; // the others have type 2: a length comes first
const ABSENT = { uint: 0, int64: 0, double: 0, bytes: new Uint8Array(0), string: "" };
const LONGEST = 10; // bytes of a varint

/** @param {number | bigint} value from -2^63 to 2^64 - 1 @returns {Uint8Array} */
export function varint(value) {
  const parts = [];
  let left = BigInt.asUintN(64, BigInt(value));
  for (; left >= 0x80n; left >>= 7n) parts.push(Number(left & 0x7fn) | 0x80);
  return Uint8Array.of(...parts, Number(left));
}

/** @param {string} name of the message @param {object} content @returns {Uint8Array} */
export function encode(name, content) {
  const parts = [];
  for (const [number, [field, type]] of Object.entries(MESSAGES[name])) {
    const given = content[field];
    const value = typeof given === "string" ? new TextEncoder().encode(given) : given;
    const wire = WIRE[type] ?? 2;
    const tag = varint((Number(number) << 3) | wire);
    if (wire === 0 && value) parts.push(tag, varint(value));
    else if (wire === 2 && value?.length) parts.push(tag, varint(value.length), value);
  }
  return concat(...parts);
}

/** Reads varints and stretches from front to back. */
class Cursor {
  constructor(bytes) {
    this.bytes = bytes;
    this.at = 0;
  }

  get ended() {
    return this.at === this.bytes.length;
  }

  varint() {
    let value = 0n;
    for (let place = 0; place < LONGEST; place++) {
      const [byte] = this.take(1);
      value |= BigInt(byte & 0x7f) << BigInt(7 * place);
      if (byte < 0x80) return value;
    }
    throw new MalformedMessage("a varint has at most 10 bytes");
  }

  take(count) {
    if (!(count <= this.bytes.length - this.at))
      throw new MalformedMessage("the message ends in the middle of a field");
    this.at += count;
    return this.bytes.slice(this.at - count, this.at);
  }
}

/** @param {bigint} value @returns {number} @throws {MalformedMessage} it is no safe integer */
function safe(value) {
  const number = Number(value);
  if (!Number.isSafeInteger(number)) throw new MalformedMessage("a number is beyond 2^53");
  return number;
}

/** @throws {MalformedMessage} */
function text(bytes) {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    throw new MalformedMessage("a text is no UTF-8");
  }
}

function readField(cursor, wire, type) {
  if (wire !== (WIRE[type] ?? 2)) throw new MalformedMessage("a field has another type");
  if (wire === 1) {
    const bytes = cursor.take(8);
    return new DataView(bytes.buffer).getFloat64(0, true);
  }
  const value = cursor.varint();
  if (type === "int64") return Number(BigInt.asIntN(64, value)); // what ends a run has round 2^62
  if (wire === 0) return safe(value);
  const bytes = cursor.take(safe(value));
  if (type.startsWith("bytes")) return bytes;
  return type.startsWith("string") ? text(bytes) : decode(type, bytes);
}

function skip(cursor, wire) {
  if (wire === 0) cursor.varint();
  else if (wire === 1) cursor.take(8);
  else if (wire === 2) cursor.take(safe(cursor.varint()));
  else if (wire === 5) cursor.take(4);
  else throw new MalformedMessage("a field of an unknown type");
}

/**
 * @param {string} name of the message @param {Uint8Array} bytes
 * @returns {object} @throws {MalformedMessage} these bytes are no such message
 */
export function decode(name, bytes) {
  const fields = MESSAGES[name];
  const content = {};
  for (const [field, type] of Object.values(fields))
    if (type in ABSENT) content[field] = ABSENT[type];
  const cursor = new Cursor(bytes);
  while (!cursor.ended) {
    const tag = safe(cursor.varint());
    const [number, wire] = [Math.floor(tag / 8), tag % 8];
    if (!fields[number]) skip(cursor, wire);
    else content[fields[number][0]] = readField(cursor, wire, fields[number][1]);
  }
  return content;
}

/** @param {Uint8Array} message @returns {Uint8Array} with its length before it, as in a stream */
export const delimited = (message) => concat(varint(message.length), message);

/** @param {string} name @param {Uint8Array} bytes of a stream @returns {object[]} its messages */
export function decodeAll(name, bytes) {
  const cursor = new Cursor(bytes);
  const found = [];
  while (!cursor.ended) found.push(decode(name, cursor.take(safe(cursor.varint()))));
  return found;
}
