/** What is derived from keys: seeds of masks, boxes, commitments, signatures: section 3. */
import { ascii, concat, toBigInt, u32 } from "./bytes.mjs";
import { Refused } from "./errors.mjs";
import { agree, hkdf, openGcm, publicKey, sealGcm, sha256, sign, verify } from "./primitives.mjs";
import { LABEL } from "./wire.mjs";

export const CERTIFICATE_BYTES = 80;
export const CLOCK_LEEWAY = 3600; // seconds by which a device's clock may differ

/** @typedef {{secret: Uint8Array, public: Uint8Array}} KeyPair an X25519 pair of one round */
/** @typedef {{secret: Uint8Array, certificate: Uint8Array}} Identity a long-term Ed25519 key */
/** @typedef {[index: number, boxKey: Uint8Array]} Party */

/** @param {Uint8Array} secret 32 bytes @returns {Promise<KeyPair>} */
export const keyPair = async (secret) => ({ secret, public: await publicKey("X25519", secret) });

/** The function H of the protocol. */
export const derive = (label, secret, context, info) =>
  hkdf(secret, context, concat(LABEL, ascii(label), info));

/**
 * @param {KeyPair} mine @param {Uint8Array} theirs @param {Uint8Array} context
 * @param {number} me @param {number} other @returns {Promise<Uint8Array>}
 */
export async function pairMaskSeed(mine, theirs, context, me, other) {
  const [low, high] = me < other ? [mine.public, theirs] : [theirs, mine.public];
  const info = concat(u32(Math.min(me, other), Math.max(me, other)), low, high);
  return derive("pair mask", await agree(mine.secret, theirs), context, info);
}

/** @param {Uint8Array} secret @param {Uint8Array} context @param {number} device */
export const selfMaskSeed = (secret, context, device) =>
  derive("self mask", secret, context, u32(device));

/** The box from one dealer to one holder; its key seals once. */
export class Sealer {
  /** @param {Uint8Array} key @param {Uint8Array} header */
  constructor(key, header) {
    this.key = key;
    this.header = header;
  }

  /**
   * @param {Uint8Array} agreed @param {Uint8Array} context @param {Party} dealer
   * @param {Party} holder @returns {Promise<Sealer>}
   */
  static async between(agreed, context, dealer, holder) {
    const header = u32(dealer[0], holder[0]);
    const info = concat(header, dealer[1], holder[1]);
    return new Sealer(await derive("share box", agreed, context, info), header);
  }

  /** @param {Uint8Array} content @param {Uint8Array} open what travels beside the box */
  seal(content, open) {
    return sealGcm(this.key, content, concat(this.header, open));
  }

  /** @param {Uint8Array} box @param {Uint8Array} open @throws {Refused} */
  open(box, open) {
    return openGcm(this.key, box, concat(this.header, open));
  }
}

/**
 * @param {Uint8Array} context @param {"mask share" | "self share" | "seed"} kind
 * @param {number} dealer @param {number} holder @param {Uint8Array} value
 */
export const commit = (context, kind, dealer, holder, value) =>
  sha256(LABEL, ascii(`${kind} commitment`), context, u32(dealer, holder), value);

/** @returns {Promise<Uint8Array>} a signature for one purpose in one round */
export const signFor = (secret, context, purpose, content) =>
  sign(secret, concat(LABEL, ascii(purpose), context, content));

/** @throws {Refused} */
export const checkSignature = (identity, signature, context, purpose, content) =>
  verify(identity, signature, concat(LABEL, ascii(purpose), context, content));

/**
 * The authority's part; here so that the vectors of certificates can be answered.
 * @param {Uint8Array} authoritySecret @param {Uint8Array} identity a public key
 * @param {Uint8Array} dates both, 16 bytes
 */
export async function certify(authoritySecret, identity, dates) {
  const content = concat(LABEL, ascii("identity"), identity, dates);
  return concat(dates, await sign(authoritySecret, content));
}

/**
 * @param {Uint8Array} authority @param {Uint8Array} identity @param {Uint8Array} certificate
 * @param {number} now seconds since 1970 @param {number} leeway in seconds
 * @throws {Refused}
 */
export async function checkCertificate(authority, identity, certificate, now, leeway) {
  if (certificate.length !== CERTIFICATE_BYTES)
    throw new Refused(`a certificate has ${CERTIFICATE_BYTES} bytes, not ${certificate.length}`);
  const dates = certificate.slice(0, 16);
  await verify(authority, certificate.slice(16), concat(LABEL, ascii("identity"), identity, dates));
  // Number rounds dates beyond 2^53, which lie 285 million years ahead.
  const [notBefore, notAfter] = [dates.slice(0, 8), dates.slice(8)].map(toBigInt).map(Number);
  if (now < notBefore - leeway) throw new Refused("the certificate is not valid yet");
  if (now > notAfter + leeway) throw new Refused("the certificate expired");
}
