/** SHA-256, HKDF, AES, X25519 and Ed25519 by WebCrypto. Node 20 has all of them, and browsers that
 * know Ed25519 and X25519 (Chrome from 137, Firefox from 130, Safari from 17). */
import { concat, equal, fromHex } from "./bytes.mjs";
import { Refused } from "./errors.mjs";

const { subtle } = globalThis.crypto;
// A private key of 32 bytes in PKCS #8 (RFC 8410) is these bytes before it.
const PKCS8 = {
  X25519: fromHex("302e020100300506032b656e04220420"),
  Ed25519: fromHex("302e020100300506032b657004220420"),
};
const NO_NONCE = new Uint8Array(12);

/** @param {...Uint8Array} parts @returns {Promise<Uint8Array>} */
export const sha256 = async (...parts) =>
  new Uint8Array(await subtle.digest("SHA-256", concat(...parts)));

/**
 * @param {Uint8Array} secret @param {Uint8Array} salt @param {Uint8Array} info
 * @returns {Promise<Uint8Array>} 32 bytes
 */
export async function hkdf(secret, salt, info) {
  const key = await subtle.importKey("raw", secret, "HKDF", false, ["deriveBits"]);
  const how = { name: "HKDF", hash: "SHA-256", salt, info };
  return new Uint8Array(await subtle.deriveBits(how, key, 256));
}

/** @param {Uint8Array} key @param {"encrypt" | "decrypt"} use @param {string} name */
const aesKey = (key, use, name) => subtle.importKey("raw", key, name, false, [use]);

/**
 * @param {Uint8Array} key @param {Uint8Array} content @param {Uint8Array} associated
 * @param {Uint8Array} [nonce] @returns {Promise<Uint8Array>} the box: content and tag
 */
export async function sealGcm(key, content, associated, nonce = NO_NONCE) {
  const how = { name: "AES-GCM", iv: nonce, additionalData: associated };
  const sealed = await subtle.encrypt(how, await aesKey(key, "encrypt", "AES-GCM"), content);
  return new Uint8Array(sealed);
}

/**
 * @param {Uint8Array} key @param {Uint8Array} box @param {Uint8Array} associated
 * @returns {Promise<Uint8Array>} the content
 * @throws {Refused} the key, the box or what is associated with it is another
 */
export async function openGcm(key, box, associated) {
  const how = { name: "AES-GCM", iv: NO_NONCE, additionalData: associated };
  const imported = await aesKey(key, "decrypt", "AES-GCM");
  try {
    return new Uint8Array(await subtle.decrypt(how, imported, box));
  } catch {
    throw new Refused("a box of shares does not open: it was altered or misdirected");
  }
}

/**
 * @param {Uint8Array} key 16 or 32 bytes @param {Uint8Array} counter the first block's, 16 bytes
 * @param {number} count @returns {Promise<Uint8Array>} the key stream's first bytes
 */
export async function ctrStream(key, counter, count) {
  const how = { name: "AES-CTR", counter, length: 128 };
  const imported = await aesKey(key, "encrypt", "AES-CTR");
  return new Uint8Array(await subtle.encrypt(how, imported, new Uint8Array(count)));
}

/** @param {"X25519" | "Ed25519"} curve @param {Uint8Array} secret */
function privateKey(curve, secret) {
  const uses = curve === "X25519" ? ["deriveBits"] : ["sign"];
  return subtle.importKey("pkcs8", concat(PKCS8[curve], secret), { name: curve }, true, uses);
}

/**
 * @param {"X25519" | "Ed25519"} curve @param {Uint8Array} secret 32 bytes
 * @returns {Promise<Uint8Array>} the public key, 32 bytes
 */
export async function publicKey(curve, secret) {
  const { x } = await subtle.exportKey("jwk", await privateKey(curve, secret));
  const base64 = x.replaceAll("-", "+").replaceAll("_", "/");
  return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
}

/**
 * @param {Uint8Array} secret @param {Uint8Array} theirs a public key
 * @returns {Promise<Uint8Array>} the shared secret of X25519
 * @throws {Refused} a point of small order, whose shared secret everybody knows
 */
export async function agree(secret, theirs) {
  const mine = await privateKey("X25519", secret);
  try {
    const other = await subtle.importKey("raw", theirs, { name: "X25519" }, false, []);
    const bits = await subtle.deriveBits({ name: "X25519", public: other }, mine, 256);
    const agreed = new Uint8Array(bits);
    if (!equal(agreed, new Uint8Array(32))) return agreed;
  } catch {
    // Some implementations fail at such points themselves.
  }
  throw new Refused("a public key gives no secret: it is a point of small order");
}

/** @param {Uint8Array} secret @param {Uint8Array} content @returns {Promise<Uint8Array>} */
export async function sign(secret, content) {
  const key = await privateKey("Ed25519", secret);
  return new Uint8Array(await subtle.sign("Ed25519", key, content));
}

/**
 * @param {Uint8Array} identity @param {Uint8Array} signature @param {Uint8Array} content
 * @throws {Refused}
 */
export async function verify(identity, signature, content) {
  let sound = false;
  try {
    const key = await subtle.importKey("raw", identity, { name: "Ed25519" }, false, ["verify"]);
    sound = await subtle.verify("Ed25519", key, signature, content);
  } catch {
    // An identity that is no point of the curve has signed nothing.
  }
  if (!sound) throw new Refused("a signature does not verify");
}

/** The AES-256-CTR key stream of a 32-byte key, counter 0, read front to back. */
export class Keystream {
  #at = 0;
  #key;

  /** @param {Uint8Array} key 32 bytes; no other stream has it */
  constructor(key) {
    this.#key = key;
  }

  /** @returns {Keystream} bits that protect people: the key is drawn now and kept nowhere else */
  static secure() {
    return new Keystream(globalThis.crypto.getRandomValues(new Uint8Array(32)));
  }

  /** @param {number} count @returns {Promise<Uint8Array>} the next bytes */
  async take(count) {
    const counter = new Uint8Array(16);
    new DataView(counter.buffer).setBigUint64(8, BigInt(Math.floor(this.#at / 16)));
    const before = this.#at % 16;
    const bytes = await ctrStream(this.#key, counter, before + count);
    this.#at += count;
    return bytes.slice(before);
  }
}
