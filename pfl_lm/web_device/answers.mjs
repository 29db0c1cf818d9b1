/** Answers to conformance vectors: one function for each kind. */
import { concat, fromHex, toHex, u64, viewOf } from "./bytes.mjs";
import { RoundConfig } from "./config.mjs";
import { KeysAdvertised } from "./device.mjs";
import { Grid, encode, withIndicator } from "./encoding.mjs";
import { SecaggError } from "./errors.mjs";
import { drawGraph } from "./graph.mjs";
import * as keys from "./keys.mjs";
import { mask, unpackCentred } from "./masks.mjs";
import { advertisedBody, readMessage } from "./messages.mjs";
import { NoiseChain, NoisePlan, skellamFromSeed, totalNoise } from "./noise.mjs";
import { Keystream, agree, publicKey } from "./primitives.mjs";
import { Rotation } from "./rotation.mjs";
import { recover, share } from "./sharing.mjs";
import * as wire from "./wire.mjs";

const ROTATION_UNIT = 64; // rotated coordinates are compared as multiples of 2^-6

const toMap = (records) =>
  new Map(Object.entries(records).map(([index, value]) => [Number(index), fromHex(value)]));
const fromMap = (records) =>
  Object.fromEntries([...records].map(([index, value]) => [index, toHex(value)]));
const ascending = (devices) => [...devices].sort((a, b) => a - b);
const numbers = (values) => Array.from(values, (value) => value + 0); // without -0
const configOf = (plain) =>
  new RoundConfig({ ...plain, model: fromHex(plain.model), payload: fromHex(plain.payload) });
const planOf = (config, variance) =>
  new NoisePlan(variance, config.cohort, config.noise_levels, config.noise_step);
const floatsOf = (hex) => new Float32Array(fromHex(hex).buffer);

/** @param {number} value @returns {string} the 8 bytes of a float64 */
function doubleHex(value) {
  const bytes = new Uint8Array(8);
  viewOf(bytes).setFloat64(0, value, true);
  return toHex(bytes);
}

/** @param {Uint8Array} tape @returns {import("./sharing.mjs").Entropy} its bytes, front to back */
function entropyOf(tape) {
  let at = 0;
  return (count) => tape.slice(at, (at += count));
}

/** Fields of a message: bytes as hexadecimal, sets as lists, records by index. */
function plainFields(content) {
  const written = {};
  for (const [name, value] of Object.entries(content)) {
    const snake = name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
    if (value instanceof Uint8Array) written[snake] = toHex(value);
    else if (value instanceof Set) written[snake] = ascending(value);
    else if (name === "outcome") Object.assign(written, plainFields(value));
    else if (value instanceof Map) {
      const bodyOf = (record) => (record instanceof Uint8Array ? record : advertisedBody(record));
      written[snake] = fromMap(new Map([...value].map(([i, record]) => [i, bodyOf(record)])));
    } else written[snake] = value;
  }
  return written;
}

async function playDevice(inputs) {
  const config = configOf(inputs.config);
  const { authority, now, ...promises } = inputs.policy;
  const key = authority === null ? null : fromHex(authority);
  const policy = { ...promises, authority: key, clock: () => now };
  const { secret, certificate } = inputs.identity ?? {};
  const identity = secret ? { secret: fromHex(secret), certificate: fromHex(certificate) } : null;
  const entropy = entropyOf(fromHex(inputs.entropy));
  const plan = inputs.variance === null ? null : planOf(config, inputs.variance);
  const vector = BigInt64Array.from(inputs.vector, BigInt);
  let state = await KeysAdvertised.join(config, inputs.index, policy, identity, entropy);
  const states = { join: state };
  const messages = [toHex(state.message)];
  const methods = { share_keys: "shareKeys", mask_input: "maskInput" };
  for (const { of, call, message } of inputs.calls) {
    const extra = call === "mask_input" ? [vector, plan] : [];
    state = await states[of][methods[call] ?? call](fromHex(message), ...extra);
    states[call] = state;
    messages.push(toHex(state.message));
  }
  return { messages };
}

async function sealerOf(inputs) {
  const pair = await keys.keyPair(fromHex(inputs.secret));
  const theirs = fromHex(inputs.theirs);
  const parties = [[inputs.me, pair.public], [inputs.other, theirs]];
  const [dealer, holder] = inputs.deals ? parties : parties.reverse();
  const agreed = await agree(pair.secret, theirs);
  return keys.Sealer.between(agreed, fromHex(inputs.context), dealer, holder);
}

const derivations = {
  context: async ({ config }) => ({ context: toHex(await configOf(config).context()) }),
  hkdf: async ({ label, secret, context, info }) => ({
    key: toHex(await keys.derive(label, fromHex(secret), fromHex(context), fromHex(info))),
  }),
  public_key: async ({ secret }) => ({
    x25519: toHex(await publicKey("X25519", fromHex(secret))),
    ed25519: toHex(await publicKey("Ed25519", fromHex(secret))),
  }),
  agree: async (inputs) => ({
    agreed: toHex(await agree(fromHex(inputs.secret), fromHex(inputs.public))),
  }),
  async pair_mask_seed({ secret, theirs, context, me, other }) {
    const pair = await keys.keyPair(fromHex(secret));
    const seed = await keys.pairMaskSeed(pair, fromHex(theirs), fromHex(context), me, other);
    return { seed: toHex(seed) };
  },
  self_mask_seed: async ({ secret, context, device }) => ({
    seed: toHex(await keys.selfMaskSeed(fromHex(secret), fromHex(context), device)),
  }),
  async mask({ bits, vector, plus, minus }) {
    const seeds = [plus, minus].map((signed) => signed.map(fromHex));
    return { packed: toHex(await mask(bits, BigInt64Array.from(vector, BigInt), ...seeds)) };
  },
  unpack: ({ packed, dim, bits }) => ({
    centred: unpackCentred(fromHex(packed), dim, bits).map(String),
  }),
  share: ({ secret, holders, threshold, entropy }) => ({
    shares: fromMap(share(fromHex(secret), holders, threshold, entropyOf(fromHex(entropy)))),
  }),
  recover: ({ shares }) => ({ secret: toHex(recover(toMap(shares))) }),
  async graph({ seed, members, degree }) {
    const graph = await drawGraph(fromHex(seed), members, degree);
    const each = (of) => Object.fromEntries(members.map((device) => [device, of(device)]));
    const neighbours = each((device) => graph.neighbours(device));
    return { cycle: graph.cycle, neighbours, holders: each((device) => graph.holders(device)) };
  },
  commit: async ({ context, purpose, dealer, holder, value }) => ({
    commitment: toHex(
      await keys.commit(fromHex(context), purpose, dealer, holder, fromHex(value)),
    ),
  }),
};

const envelopes = {
  frame: async ({ kind, sender, context, body }) => ({
    frame: toHex(await wire.frame(kind, sender, fromHex(context), fromHex(body))),
  }),
  async unframe({ frame, context }) {
    const { body, ...header } = await wire.unframe(fromHex(frame), fromHex(context));
    return { ...header, body: toHex(body) };
  },
  write_records: ({ records }) => ({ body: toHex(wire.writeRecords(toMap(records))) }),
  read_records({ body, size, cohort }) {
    const reader = new wire.Reader(fromHex(body));
    const records = fromMap(reader.records(size, cohort));
    reader.end();
    return { records };
  },
  write_bitmap: ({ members, cohort }) => ({ bitmap: toHex(wire.writeBitmap(members, cohort)) }),
  read_bitmap({ bitmap, cohort }) {
    const reader = new wire.Reader(fromHex(bitmap));
    const members = ascending(reader.bitmap(cohort));
    reader.end();
    return { members };
  },
  async seal(inputs) {
    const sealer = await sealerOf(inputs);
    return { box: toHex(await sealer.seal(fromHex(inputs.content), fromHex(inputs.public))) };
  },
  async open(inputs) {
    const sealer = await sealerOf(inputs);
    return { content: toHex(await sealer.open(fromHex(inputs.box), fromHex(inputs.public))) };
  },
  sign: async ({ secret, context, purpose, content }) => ({
    signature: toHex(
      await keys.signFor(fromHex(secret), fromHex(context), purpose, fromHex(content)),
    ),
  }),
  async check_signature({ identity, signature, context, purpose, content }) {
    const [by, signed, round, what] = [identity, signature, context, content].map(fromHex);
    await keys.checkSignature(by, signed, round, purpose, what);
    return { signature };
  },
  async certify({ authority_secret, device_secret, not_before, not_after }) {
    const identity = await publicKey("Ed25519", fromHex(device_secret));
    const dates = concat(u64(not_before), u64(not_after));
    return { certificate: toHex(await keys.certify(fromHex(authority_secret), identity, dates)) };
  },
  async check_certificate({ authority, identity, certificate, now, leeway }) {
    const [by, whose, held] = [authority, identity, certificate].map(fromHex);
    await keys.checkCertificate(by, whose, held, now, leeway);
    return { certificate };
  },
};

const encodings = {
  async noise_chain({ first, context, device, levels, start }) {
    const chain = new NoiseChain(fromHex(first), fromHex(context), device, levels, start);
    const secrets = (await chain.secrets()).map(toHex);
    const seeds = fromMap(await chain.seeds());
    return { secrets, seeds, commitment: toHex(await chain.commitment()) };
  },
  noise_plan({ variance, cohort, levels, step, reports }) {
    const plan = new NoisePlan(variance, cohort, levels, step);
    const components = [];
    for (let level = 1; level <= levels; level++) components.push(doubleHex(plan.component(level)));
    const achieved = doubleHex(plan.achieved(reports));
    return { share: doubleHex(plan.share), components, kept: plan.kept(reports), achieved };
  },
  skellam: async ({ seed, variance, dim }) => ({
    noise: numbers(await skellamFromSeed(fromHex(seed), variance, dim)),
  }),
  async noise_components({ config, variance, first, device }) {
    const round = configOf(config);
    const context = await round.context();
    const chain = new NoiseChain(fromHex(first), context, device, round.noise_levels);
    return { noise: numbers(await totalNoise(planOf(round, variance), [chain], round.dim)) };
  },
  async superfluous({ config, variance, opened, reports }) {
    const round = configOf(config);
    const plan = planOf(round, variance);
    const context = await round.context();
    const start = plan.kept(reports) + 1;
    const chains = [...toMap(opened)].map(
      ([device, secret]) => new NoiseChain(secret, context, device, plan.levels, start),
    );
    return { noise: numbers(await totalNoise(plan, chains, round.dim)) };
  },
  async rotate({ seed, row, inverse }) {
    const values = floatsOf(row);
    const rotation = await Rotation.of(values.length, fromHex(seed));
    if (inverse) rotation.inverse(values);
    else rotation.forward(values);
    return { rotated: numbers(values).map((value) => Math.round(value * ROTATION_UNIT) + 0) };
  },
  grid({ dim, clip_norm, grid_steps }) {
    const { scale, normBoundSquared } = new Grid(dim, clip_norm, grid_steps);
    return { scale: doubleHex(scale), norm_bound_squared: String(normBoundSquared) };
  },
  indicate({ update, clip_norm, indicator_weight }) {
    const { joint, short } = withIndicator(floatsOf(update), clip_norm, indicator_weight);
    return { joint: toHex(new Uint8Array(joint.buffer)), short };
  },
  async encode({ update, seed, dim, clip_norm, grid_steps, variance }) {
    const grid = new Grid(dim, clip_norm, grid_steps);
    const bits = new Keystream(fromHex(seed));
    const { vector, norm, clipped } = await encode(floatsOf(update), grid, variance, bits);
    return {
      vector: numbers(vector),
      norm: Number.isNaN(norm) ? null : doubleHex(norm),
      clipped,
    };
  },
};

const devices = {
  async read_message({ config, frame, kind, sender }) {
    const round = configOf(config);
    const context = await round.context();
    return { fields: plainFields(await readMessage(fromHex(frame), kind, round, context, sender)) };
  },
  device: playDevice,
};

const kinds = { ...derivations, ...envelopes, ...encodings, ...devices };

/**
 * @param {{kind: string, inputs: object}} request
 * @returns {Promise<object>} {output}, {refused: code} or {unsupported: kind}
 */
export async function answer({ kind, inputs }) {
  if (!Object.hasOwn(kinds, kind)) return { unsupported: kind };
  try {
    return { output: await kinds[kind](inputs) };
  } catch (error) {
    if (error instanceof SecaggError) return { refused: error.code, message: error.message };
    throw error;
  }
}
