/** The nine messages: their bodies, written and read strictly: section 4. */
import { concat, u32 } from "./bytes.mjs";
import { MalformedMessage, Refused, WrongState } from "./errors.mjs";
import { CERTIFICATE_BYTES } from "./keys.mjs";
import { checkPacked, packedBytes } from "./masks.mjs";
import { SHARE_BYTES, checkShare } from "./sharing.mjs";
import { Reader, SERVER, unframe, writeBitmap, writeRecords } from "./wire.mjs";

const KEY_BYTES = 32;
const SIGNATURE_BYTES = 64;
const TAG_BYTES = 16;

/** @typedef {import("./config.mjs").RoundConfig} RoundConfig */
/** @typedef {Map<number, Uint8Array>} Records */

/**
 * @typedef {object} AdvertiseKeys
 * @property {Uint8Array} boxKey
 * @property {Uint8Array} maskKey
 * @property {Uint8Array} identity empty in unsigned rounds, like the next two
 * @property {Uint8Array} certificate
 * @property {Uint8Array} signature
 */

/** @typedef {{members: number, keys: Map<number, AdvertiseKeys>}} Roster */
/** @typedef {{survivors: Set<number>, dropped: Set<number>}} SurvivorSet */
/** @typedef {{outcome: SurvivorSet, signatures: Records}} UnmaskRequest */

/**
 * @typedef {object} UnmaskAnswer
 * @property {Records} selfShares
 * @property {Records} maskShares
 * @property {Uint8Array} noiseSecret the device's own, or empty
 * @property {Records} [noiseShares] in rounds with noise components
 */

/** @param {RoundConfig} config @returns {number} */
const advertisedBytes = (config) =>
  2 * KEY_BYTES + (config.signed ? KEY_BYTES + CERTIFICATE_BYTES + SIGNATURE_BYTES : 0);

/** @param {RoundConfig} config @returns {number} of a record: two commitments and a box */
const sealedBytes = (config) =>
  2 * KEY_BYTES + (2 + config.noise_levels) * SHARE_BYTES + TAG_BYTES;

/** @param {AdvertiseKeys} keys @returns {Uint8Array} */
export const advertisedBody = (keys) =>
  concat(keys.boxKey, keys.maskKey, keys.identity, keys.certificate, keys.signature);

/** @param {AdvertiseKeys} keys @param {number} device @returns {Uint8Array} what is signed */
export const signedContent = (keys, device) =>
  concat(u32(device), keys.boxKey, keys.maskKey, keys.identity);

/** @param {Roster} roster @returns {Uint8Array} */
export function rosterBody(roster) {
  const bodies = [...roster.keys].map(([device, keys]) => [device, advertisedBody(keys)]);
  return concat(u32(roster.members), writeRecords(new Map(bodies)));
}

/** @param {SurvivorSet} outcome @param {RoundConfig} config @returns {Uint8Array} */
export const outcomeBody = ({ survivors, dropped }, config) =>
  concat(writeBitmap(survivors, config.cohort), writeBitmap(dropped, config.cohort));

/** @param {UnmaskAnswer} answer @param {RoundConfig} config @returns {Uint8Array} */
export function answerBody(answer, config) {
  const shares = [writeRecords(answer.selfShares), writeRecords(answer.maskShares)];
  if (!config.noise_levels) return concat(...shares);
  const noise = writeRecords(answer.noiseShares ?? new Map());
  return concat(...shares, u32(answer.noiseSecret.length), answer.noiseSecret, noise);
}

/** @param {Reader} reader @param {RoundConfig} config @returns {AdvertiseKeys} */
function readAdvertised(reader, config) {
  const take = (size) => reader.take(config.signed ? size : 0);
  return {
    boxKey: reader.take(KEY_BYTES),
    maskKey: reader.take(KEY_BYTES),
    identity: take(KEY_BYTES),
    certificate: take(CERTIFICATE_BYTES),
    signature: take(SIGNATURE_BYTES),
  };
}

/** @param {Reader} reader @param {RoundConfig} config @returns {Roster} */
function readRoster(reader, config) {
  const members = reader.u32();
  const keys = new Map();
  for (const [device, body] of reader.records(advertisedBytes(config), config.cohort))
    keys.set(device, readAdvertised(new Reader(body), config));
  return { members, keys };
}

function readShareKeys(reader, config) {
  const seedCommitment = reader.take(KEY_BYTES);
  const noiseCommitment = reader.take(config.noise_levels ? KEY_BYTES : 0);
  const shares = reader.records(sealedBytes(config), config.cohort);
  return { seedCommitment, noiseCommitment, shares };
}

function readMasked(reader, config) {
  const packed = reader.take(packedBytes(config.dim, config.bits));
  checkPacked(packed, config.dim, config.bits);
  return { packed };
}

/** @returns {SurvivorSet} */
const readOutcome = (reader, config) => ({
  survivors: reader.bitmap(config.cohort),
  dropped: reader.bitmap(config.cohort),
});

/** @returns {UnmaskRequest} */
function readRequest(reader, config) {
  const outcome = readOutcome(reader, config);
  const signed = config.signed;
  return {
    outcome,
    signatures: signed ? reader.records(SIGNATURE_BYTES, config.cohort) : new Map(),
  };
}

function readShares(reader, config) {
  const shares = reader.records(SHARE_BYTES, config.cohort);
  for (const share of shares.values()) checkShare(share);
  return shares;
}

/** @returns {UnmaskAnswer} */
function readAnswer(reader, config) {
  const selfShares = readShares(reader, config);
  const maskShares = readShares(reader, config);
  if (!config.noise_levels) return { selfShares, maskShares, noiseSecret: new Uint8Array(0) };
  const length = reader.u32();
  if (length !== 0 && length !== KEY_BYTES)
    throw new MalformedMessage("a noise secret has 32 bytes or none");
  const noiseSecret = reader.take(length);
  return { selfShares, maskShares, noiseSecret, noiseShares: readShares(reader, config) };
}

const READERS = {
  1: readAdvertised,
  2: readRoster,
  3: readShareKeys,
  4: (reader, config) => ({ shares: reader.records(sealedBytes(config), config.cohort) }),
  5: readMasked,
  6: readOutcome,
  7: (reader) => ({ signature: reader.take(SIGNATURE_BYTES) }),
  8: readRequest,
  9: readAnswer,
};

/**
 * Read a message of one kind from one sender.
 * @param {Uint8Array} message @param {number} kind @param {RoundConfig} config
 * @param {Uint8Array} context @param {number} [sender]
 * @throws {MalformedMessage} damaged, or not in the one encoding that its content has
 * @throws {Refused} of another round, or it claims another sender than the transport knows
 * @throws {WrongState} of another kind than the one awaited
 */
export async function readMessage(message, kind, config, context, sender = SERVER) {
  const framed = await unframe(message, context);
  if (framed.sender !== sender) throw new Refused(`the message comes from ${framed.sender}`);
  if (framed.kind !== kind) throw new WrongState(`a message of kind ${framed.kind}, not ${kind}`);
  const reader = new Reader(framed.body);
  const content = READERS[kind](reader, config);
  reader.end();
  return content;
}

