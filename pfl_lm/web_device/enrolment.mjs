/** A device's key, as an enrolment link carries it once: `pfl-lm device link`. */
import { fromHex } from "./bytes.mjs";
import { checkCertificate } from "./keys.mjs";
import { publicKey } from "./primitives.mjs";

const NAME = "enrol=";
const FIELDS = { secret: 32, certificate: 80, authority: 32, server: 32 }; // their bytes

/** The link carries no key that can be used. */
export class NoKey extends Error {}

/**
 * @param {string} fragment of an address: `#enrol=…`, which browsers send to no server
 * @returns {object | null} the key as plain JSON; null where the fragment is no enrolment
 * @throws {NoKey}
 */
export function plainKey(fragment) {
  const [, coded] = fragment.split(NAME);
  if (coded === undefined) return null;
  let plain;
  try {
    plain = JSON.parse(atob(coded.replaceAll("-", "+").replaceAll("_", "/")));
  } catch {
    throw new NoKey("the link is cut or damaged; ask for another one");
  }
  readKey(plain);
  return plain;
}

/** @param {object} plain JSON @returns {import("./service.mjs").DeviceKey} @throws {NoKey} */
export function readKey(plain) {
  const key = { number: plain?.number };
  let whole = Number.isInteger(key.number) && key.number >= 0;
  for (const [name, size] of Object.entries(FIELDS)) {
    whole &&= typeof plain[name] === "string" && /^([0-9a-f]{2})*$/.test(plain[name]);
    if (whole) key[name] = fromHex(plain[name]);
    whole &&= key[name].length === size;
  }
  if (!whole) throw new NoKey("the link holds no whole device's key; ask for another one");
  return key;
}

/** Refuse a key whose certificate is not the authority's or not valid now. @throws {Refused} */
export async function checkDates(key, now = Date.now() / 1000) {
  const identity = await publicKey("Ed25519", key.secret);
  await checkCertificate(key.authority, identity, key.certificate, now, 0);
}
