/** A device's secrets, sharing them among their holders, and reading what others dealt. */
import { concat, equal } from "./bytes.mjs";
import { KEYS } from "./checks.mjs";
import { Refused } from "./errors.mjs";
import { Sealer, commit, keyPair, signFor } from "./keys.mjs";
import { signedContent } from "./messages.mjs";
import { NoiseChain } from "./noise.mjs";
import { agree, publicKey } from "./primitives.mjs";
import { SHARE_BYTES, share } from "./sharing.mjs";

const KEY_BYTES = 32;
const COMMITMENTS_BYTES = 2 * KEY_BYTES;
const NOTHING = new Uint8Array(0);

/** Fresh keys and seeds of one device in one round: 32 bytes of entropy each. */
export async function drawSecrets(config, index, policy, identity, entropy) {
  const context = await config.context();
  const [box, mask, seed, root] = [1, 2, 3, 4].map(() => entropy(KEY_BYTES));
  const chain = new NoiseChain(root, context, index, config.noise_levels);
  const noise = config.noise_levels ? chain : null;
  const pairs = { boxPair: await keyPair(box), maskPair: await keyPair(mask) };
  return { config, context, index, policy, identity, entropy, ...pairs, seed, noise };
}

/** @returns {Promise<import("./messages.mjs").AdvertiseKeys>} signed where the round is */
export async function advertise({ config, context, index, identity, boxPair, maskPair }) {
  const keys = { boxKey: boxPair.public, maskKey: maskPair.public };
  if (!config.signed)
    return { ...keys, identity: NOTHING, certificate: NOTHING, signature: NOTHING };
  const own = await publicKey("Ed25519", identity.secret);
  const unsigned = { ...keys, identity: own, certificate: identity.certificate };
  const content = signedContent(unsigned, index);
  return { ...unsigned, signature: await signFor(identity.secret, context, KEYS, content) };
}

/** @returns {Promise<Map<number, Uint8Array>>} the secret behind the boxes to and from holders */
export async function agreeOnBoxes(me, peers) {
  const agreed = new Map();
  for (const holder of peers.holders)
    agreed.set(holder, await agree(me.boxPair.secret, peers.keys.get(holder).boxKey));
  return agreed;
}

/**
 * Share all secrets of the device; seal one box for each holder.
 * @returns {Promise<{seedCommitment: Uint8Array, noiseCommitment: Uint8Array,
 *   records: Map<number, Uint8Array>}>} the parts of message 3
 */
export async function deal(me, peers, agreed) {
  const { config, context, index } = me;
  const noise = me.noise ? await me.noise.secrets() : [];
  const secrets = [me.maskPair.secret, me.seed, ...noise];
  const dealt = secrets.map((one) => share(one, peers.holders, config.threshold, me.entropy));
  const records = new Map();
  for (const holder of peers.holders) {
    const shares = dealt.map((byHolder) => byHolder.get(holder));
    const open = await commitShares(context, index, holder, shares);
    const theirs = [holder, peers.keys.get(holder).boxKey];
    const mine = [index, me.boxPair.public];
    const sealer = await Sealer.between(agreed.get(holder), context, mine, theirs);
    records.set(holder, concat(open, await sealer.seal(concat(...shares), open)));
  }
  const seedCommitment = await commit(context, "seed", index, index, me.seed);
  const noiseCommitment = me.noise ? await me.noise.commitment() : NOTHING;
  return { seedCommitment, noiseCommitment, records };
}

/** @returns {Promise<Uint8Array[] | null>} a dealer's shares; null where they are worthless */
export async function openBox(me, peers, agreed, dealer, record) {
  const { context, index } = me;
  const open = record.slice(0, COMMITMENTS_BYTES);
  const theirs = [dealer, peers.keys.get(dealer).boxKey];
  const mine = [index, me.boxPair.public];
  const sealer = await Sealer.between(agreed.get(dealer), context, theirs, mine);
  let content;
  try {
    content = await sealer.open(record.slice(COMMITMENTS_BYTES), open);
  } catch (error) {
    if (error instanceof Refused) return null; // one bad dealer must not cost others the round
    throw error;
  }
  const shares = [];
  for (let at = 0; at < content.length; at += SHARE_BYTES)
    shares.push(content.slice(at, at + SHARE_BYTES));
  return equal(await commitShares(context, dealer, index, shares), open) ? shares : null;
}

async function commitShares(context, dealer, holder, shares) {
  const mask = await commit(context, "mask share", dealer, holder, shares[0]);
  return concat(mask, await commit(context, "self share", dealer, holder, shares[1]));
}
