/** Frames, records and bitmaps: PROTOCOL.md, section 2. */
import { ascii, concat, equal, u32, u64, viewOf } from "./bytes.mjs";
import { MalformedMessage, Refused } from "./errors.mjs";
import { sealGcm, sha256 } from "./primitives.mjs";

export const VERSION = 5;
export const LABEL = ascii(`pfl_lm secagg ${VERSION} `);
export const SERVER = 0xffffffff;
const MAGIC = ascii("PFSA");
const HEADER_BYTES = 52;
const CHECKSUM_BYTES = 16;
const FRAME_BYTES = HEADER_BYTES + CHECKSUM_BYTES;

/**
 * @param {number} kind @param {number} sender @param {Uint8Array} context @param {Uint8Array} body
 * @returns {Promise<Uint8Array>}
 */
export async function frame(kind, sender, context, body) {
  const start = concat(MAGIC, Uint8Array.of(VERSION, kind, 0, 0));
  const header = concat(start, u32(sender), u64(body.length), context);
  return concat(header, body, await checksum(header, context, body));
}

async function checksum(header, context, body) {
  const nonce = (await sha256(header)).slice(0, 12);
  return sealGcm(context.slice(0, 16), new Uint8Array(0), body, nonce);
}

/**
 * @param {Uint8Array} message @param {Uint8Array} context
 * @returns {Promise<{kind: number, sender: number, body: Uint8Array}>}
 * @throws {MalformedMessage} not a frame of this version, cut, lengthened or damaged
 * @throws {Refused} a sound frame of another round, model, payload or configuration
 */
export async function unframe(message, context) {
  if (message.length < FRAME_BYTES)
    throw new MalformedMessage(`a message has at least ${FRAME_BYTES} bytes`);
  const view = viewOf(message);
  if (!equal(message.subarray(0, 4), MAGIC) || view.getUint16(6, true))
    throw new MalformedMessage("these bytes are no message of secure aggregation");
  if (message[4] !== VERSION)
    throw new MalformedMessage(`version ${message[4]} of the protocol is not spoken here`);
  if (view.getBigUint64(12, true) !== BigInt(message.length - FRAME_BYTES))
    throw new MalformedMessage("the message states another length of its body");
  const header = message.slice(0, HEADER_BYTES);
  const theirs = header.slice(20);
  const body = message.slice(HEADER_BYTES, -CHECKSUM_BYTES);
  const sound = await checksum(header, theirs, body);
  if (!equal(sound, message.slice(-CHECKSUM_BYTES)))
    throw new MalformedMessage("the checksum does not match: the message was damaged");
  if (!equal(theirs, context))
    throw new Refused("the message belongs to another round, model, payload or configuration");
  return { kind: message[5], sender: view.getUint32(8, true), body };
}

/** Reads a body from front to back, and insists that nothing is left. */
export class Reader {
  #at = 0;
  #body;

  /** @param {Uint8Array} body */
  constructor(body) {
    this.#body = body;
  }

  /** @param {number} count @returns {Uint8Array} the next bytes */
  take(count) {
    if (count > this.#body.length - this.#at)
      throw new MalformedMessage("the body ends in the middle of a field");
    this.#at += count;
    return this.#body.slice(this.#at - count, this.#at);
  }

  /** @returns {number} */
  u32() {
    return viewOf(this.take(4)).getUint32(0, true);
  }

  /**
   * @param {number} size of a record's bytes @param {number} indices
   * @returns {Map<number, Uint8Array>}
   */
  records(size, indices) {
    const count = this.u32();
    const raw = new Reader(this.take(count * (4 + size)));
    const records = new Map();
    let last = -1;
    for (let i = 0; i < count; i++) {
      const index = raw.u32();
      if (index <= last || index >= indices)
        throw new MalformedMessage("indices must ascend, each once, inside the cohort");
      records.set(index, raw.take(size));
      last = index;
    }
    return records;
  }

  /** @param {number} indices @returns {Set<number>} */
  bitmap(indices) {
    const packed = this.take(Math.ceil(indices / 8));
    const members = new Set();
    for (let i = 0; i < 8 * packed.length; i++) {
      if (!((packed[i >> 3] >> (i & 7)) & 1)) continue;
      if (i >= indices) throw new MalformedMessage("the unused bits of a bitmap must be zero");
      members.add(i);
    }
    return members;
  }

  end() {
    if (this.#at !== this.#body.length)
      throw new MalformedMessage("the body goes on after its last field");
  }
}

/** @param {Map<number, Uint8Array>} records @returns {Uint8Array} */
export function writeRecords(records) {
  const ascending = [...records].sort(([a], [b]) => a - b);
  const parts = ascending.flatMap(([index, record]) => [u32(index), record]);
  return concat(u32(records.size), ...parts);
}

/** @param {Iterable<number>} members @param {number} indices @returns {Uint8Array} */
export function writeBitmap(members, indices) {
  const bits = new Uint8Array(Math.ceil(indices / 8));
  for (const member of members) bits[member >> 3] |= 1 << (member & 7);
  return bits;
}
