/** What a device checks before it goes on: the sentences "Refuse" of section 4. */
import { ascii, equal, toHex } from "./bytes.mjs";
import { Refused } from "./errors.mjs";
import { drawGraph } from "./graph.mjs";
import { CLOCK_LEEWAY, checkCertificate, checkSignature } from "./keys.mjs";
import { advertisedBody, outcomeBody, rosterBody, signedContent } from "./messages.mjs";
import { sha256 } from "./primitives.mjs";
import { LABEL } from "./wire.mjs";

export const KEYS = "advertised keys"; // purposes of signatures
export const SURVIVORS = "survivor set";

/**
 * The other devices as one device knows them.
 * @typedef {object} Peers
 * @property {number} members
 * @property {Map<number, import("./messages.mjs").AdvertiseKeys>} keys
 * @property {number[]} neighbours they share masks with the device
 * @property {number[]} holders they get shares of its secrets
 * @property {import("./graph.mjs").Graph | null} graph known in signed rounds
 */

/** @param {boolean} broken @param {string} message */
function refuse(broken, message) {
  if (broken) throw new Refused(message);
}

const subset = (some, of) => [...some].every((device) => of.has(device));

/**
 * @param {import("./messages.mjs").Roster} roster @param {object} me the device's secrets
 * @param {import("./messages.mjs").AdvertiseKeys} mine
 * @returns {Promise<Peers>} @throws {Refused}
 */
export async function checkRoster(roster, me, mine) {
  const { config, policy } = me;
  const least = Math.max(policy.least_cohort, config.min_reports);
  refuse(
    roster.members < least || roster.members > config.cohort,
    `${roster.members} devices advertised keys, of a cohort of ${config.cohort}`,
  );
  const peers = config.signed
    ? await signedPeers(roster, me, mine)
    : unsignedPeers(roster, me, mine);
  checkDistinct([...peers.keys.values()].flatMap((keys) => [keys.boxKey, keys.maskKey]));
  refuse(config.threshold > peers.holders.length, "too few holders for the threshold");
  return peers;
}

function unsignedPeers(roster, { config, index }, mine) {
  const neighbours = [...roster.keys.keys()];
  refuse(roster.keys.has(index), "a device is not its own neighbour");
  refuse(
    neighbours.length !== Math.min(config.neighbours, roster.members - 1),
    `${neighbours.length} neighbours where the graph has ${config.neighbours}`,
  );
  const complete = neighbours.length === roster.members - 1;
  const holders = complete ? [...neighbours, index].sort((a, b) => a - b) : neighbours;
  const keys = new Map([...roster.keys, [index, mine]]);
  return { members: roster.members, keys, neighbours, holders, graph: null };
}

async function signedPeers(roster, { config, context, index, policy }, mine) {
  const own = roster.keys.get(index);
  const itself = own && equal(advertisedBody(own), advertisedBody(mine));
  refuse(
    roster.keys.size !== roster.members || !itself,
    "the roster does not list everybody once, this device with its own keys",
  );
  const everybody = [...roster.keys.values()];
  checkDistinct(everybody.map((keys) => keys.identity));
  const now = policy.clock();
  for (const { identity, certificate } of everybody)
    await checkCertificate(policy.authority, identity, certificate, now, CLOCK_LEEWAY);
  const seed = await sha256(LABEL, ascii("roster"), context, rosterBody(roster));
  const graph = await drawGraph(seed, [...roster.keys.keys()], config.neighbours);
  const neighbours = graph.neighbours(index);
  for (const other of neighbours) {
    const keys = roster.keys.get(other);
    const content = signedContent(keys, other);
    await checkSignature(keys.identity, keys.signature, context, KEYS, content);
  }
  const holders = graph.holders(index);
  return { members: roster.members, keys: roster.keys, neighbours, holders, graph };
}

/** @param {Iterable<number>} dealers @param {Peers} peers @throws {Refused} */
export function checkInbox(dealers, peers, config) {
  const known = [...dealers];
  refuse(!subset(known, new Set(peers.holders)), "shares came from a device that is no neighbour");
  refuse(known.length < config.threshold, `${known.length} neighbours shared keys, too few`);
}

/**
 * @param {import("./messages.mjs").SurvivorSet} outcome @param {Peers} peers
 * @param {Set<number>} dealers of the inbox @throws {Refused}
 */
export function checkOutcome({ survivors, dropped }, peers, dealers, config, index) {
  const all = new Set([...survivors, ...dropped]);
  refuse(all.size < survivors.size + dropped.size, "a device is listed as both alive and dropped");
  refuse(!survivors.has(index), "this device's own report is not among the survivors");
  refuse(survivors.size < config.min_reports, `a sum of ${survivors.size} reports, too few`);
  refuse(all.size > peers.members, "more devices are listed than advertised keys");
  const listed = peers.holders.filter((holder) => all.has(holder));
  refuse(
    listed.length !== dealers.size || !subset(listed, dealers),
    "the neighbours listed are not those who shared keys",
  );
  const alive = listed.filter((holder) => survivors.has(holder)).length;
  refuse(alive < config.threshold, "fewer neighbours survive than shares are needed");
  if (!peers.graph) return;
  refuse(!subset(all, peers.keys), "a device is listed that is not on the roster");
  refuse(
    !peers.graph.complete && peers.graph.leastInWindow(survivors) < config.window_survivors,
    `${peers.graph.degree / 2} consecutive devices hold too few survivors`,
  );
}

/**
 * @param {import("./messages.mjs").UnmaskRequest} request @param {Peers} peers
 * @throws {Refused}
 */
export async function checkQuorum({ outcome, signatures }, peers, config, context) {
  refuse(!subset(signatures.keys(), outcome.survivors), "a device signed that did not survive");
  const needed = config.quorum(peers.members);
  refuse(signatures.size < needed, `${signatures.size} signatures, the quorum is ${needed}`);
  const content = outcomeBody(outcome, config);
  for (const [other, signature] of signatures) {
    const { identity } = peers.keys.get(other);
    await checkSignature(identity, signature, context, SURVIVORS, content);
  }
}

/** @param {Uint8Array[]} values */
function checkDistinct(values) {
  const distinct = new Set(values.map(toHex));
  refuse(distinct.size !== values.length, "a key is listed twice: every device has its own keys");
}
