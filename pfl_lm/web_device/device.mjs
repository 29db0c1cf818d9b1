/** A device in a round: one class for each state, bytes in and bytes out.
 *
 *     KeysAdvertised --shareKeys--> KeysShared --maskInput--> InputMasked
 *     InputMasked --(signed rounds: confirm--> SurvivorsConfirmed)--unmask--> Unmasked
 *
 * A state has one message to send, `message`, and takes one message. It is left once. To send again
 * is to send `message` again. A message that is refused ends the round for this device.
 */
import { concat } from "./bytes.mjs";
import * as checks from "./checks.mjs";
import { checkPolicy } from "./config.mjs";
import { advertise, agreeOnBoxes, deal, drawSecrets, openBox } from "./dealing.mjs";
import { InvalidValue, Refused, WrongState } from "./errors.mjs";
import { pairMaskSeed, selfMaskSeed, signFor } from "./keys.mjs";
import { mask } from "./masks.mjs";
import { advertisedBody, answerBody, outcomeBody, readMessage } from "./messages.mjs";
import { addComponents } from "./noise.mjs";
import { frame, writeRecords } from "./wire.mjs";

/** @param {number} count @returns {Uint8Array} */
const systemEntropy = (count) => {
  const random = new Uint8Array(count);
  const atOnce = 65536; // getRandomValues gives no more in one call
  for (let at = 0; at < count; at += atOnce)
    globalThis.crypto.getRandomValues(random.subarray(at, at + atOnce));
  return random;
};

const only = (shares, devices, at) =>
  new Map([...shares].filter(([d]) => devices.has(d)).map(([d, held]) => [d, held[at]]));

class State {
  #left = false;

  /** @param {object} me @param {Uint8Array} message */
  constructor(me, message) {
    this.me = me;
    this.message = message;
  }

  /** Do what leaves the state; only a refusal or success does leave it. */
  async leave(work) {
    if (this.#left) throw new WrongState("this state was left; its message can be sent again");
    this.#left = true; // at once, so that no second call begins while this one waits
    try {
      return await work(this.me);
    } catch (error) {
      if (!(error instanceof Refused)) this.#left = false;
      throw error;
    }
  }

  read(message, kind) {
    return readMessage(message, kind, this.me.config, this.me.context);
  }
}

const write = (me, kind, body) => frame(kind, me.index, me.context, body);

export class KeysAdvertised extends State {
  /**
   * Take part in a round.
   * @param {import("./config.mjs").RoundConfig} config as the device itself derived it
   * @param {number} index its place in the cohort
   * @param {import("./config.mjs").DevicePolicy} policy
   * @param {import("./keys.mjs").Identity | null} identity needed in signed rounds
   * @param {import("./sharing.mjs").Entropy} entropy anything but the default is for tests
   * @throws {Refused} the round promises less than the policy demands
   */
  static async join(config, index, policy, identity = null, entropy = systemEntropy) {
    checkPolicy(policy, config);
    if (!(index >= 0 && index < config.cohort)) throw new InvalidValue("index outside the cohort");
    if (config.signed && !identity) throw new InvalidValue("identity is needed: keys are signed");
    const me = await drawSecrets(config, index, policy, identity, entropy);
    return new KeysAdvertised(me, await write(me, 1, advertisedBody(await advertise(me))));
  }

  /** Deal shares of the device's secrets to their holders. @param {Uint8Array} roster */
  shareKeys(roster) {
    return this.leave(async (me) => {
      const theirs = await this.read(roster, 2);
      const peers = await checks.checkRoster(theirs, me, await advertise(me));
      const agreed = await agreeOnBoxes(me, peers);
      const { seedCommitment, noiseCommitment, records } = await deal(me, peers, agreed);
      const body = concat(seedCommitment, noiseCommitment, writeRecords(records));
      return new KeysShared(me, await write(me, 3, body), peers, agreed);
    });
  }
}

export class KeysShared extends State {
  constructor(me, message, peers, agreed) {
    super(me, message);
    this.peers = peers;
    this.agreed = agreed;
  }

  /**
   * Mask a vector that is clipped, encoded and has the noise share that stays.
   * @param {Uint8Array} inbox @param {BigInt64Array} vector
   * @param {import("./noise.mjs").NoisePlan | null} plan of the components that the device adds
   */
  async maskInput(inbox, vector, plan = null) {
    const { config, noise } = this.me;
    if (vector.length !== config.dim) throw new InvalidValue("the vector has another length");
    const whole = plan && noise ? await addComponents(plan, noise, vector) : vector;
    return this.leave(async (me) => {
      const { shares } = await this.read(inbox, 4);
      checks.checkInbox(shares.keys(), this.peers, config);
      const held = new Map();
      for (const [dealer, record] of shares) {
        const opened = await openBox(me, this.peers, this.agreed, dealer, record);
        if (opened) held.set(dealer, opened);
      }
      const dealers = new Set(shares.keys());
      const { plus, minus } = await maskSeeds(me, this.peers, dealers);
      const message = await write(me, 5, await mask(config.bits, whole, plus, minus));
      return new InputMasked(me, message, { peers: this.peers, dealers, held });
    });
  }
}

/** After masking: the device holds shares of its dealers' secrets. */
class Holder extends State {
  constructor(me, message, holding) {
    super(me, message);
    this.holding = holding;
  }

  check(outcome) {
    const { peers, dealers } = this.holding;
    checks.checkOutcome(outcome, peers, dealers, this.me.config, this.me.index);
  }

  /** One share for each dealer, never two: the survivor set says of which secret. */
  async answer({ survivors, dropped }) {
    const { held } = this.holding;
    const { config, noise } = this.me;
    const answer = {
      selfShares: only(held, survivors, 1),
      maskShares: only(held, dropped, 0),
      noiseSecret: new Uint8Array(0),
    };
    const level = config.noiseLevel(survivors.size);
    if (noise && level < config.noise_levels) {
      answer.noiseSecret = (await noise.secrets())[level];
      answer.noiseShares = only(held, survivors, 2 + level);
    }
    return new Unmasked(this.me, await write(this.me, 9, answerBody(answer, config)));
  }
}

export class InputMasked extends Holder {
  /** Sign the survivor set (signed rounds). @param {Uint8Array} message */
  async confirm(message) {
    const { config, context } = this.me;
    if (!config.signed) throw new WrongState("this round does not sign its survivors");
    return this.leave(async (me) => {
      const outcome = await this.read(message, 6);
      this.check(outcome);
      const content = outcomeBody(outcome, config);
      const signature = await signFor(me.identity.secret, context, checks.SURVIVORS, content);
      return new SurvivorsConfirmed(me, await write(me, 7, signature), this.holding, outcome);
    });
  }

  /** Answer with shares (unsigned rounds). @param {Uint8Array} request */
  async unmask(request) {
    if (this.me.config.signed) throw new WrongState("the survivors must be confirmed first");
    return this.leave(async () => {
      const { outcome } = await this.read(request, 8);
      this.check(outcome);
      return this.answer(outcome);
    });
  }
}

export class SurvivorsConfirmed extends Holder {
  constructor(me, message, holding, outcome) {
    super(me, message, holding);
    this.outcome = outcome;
  }

  /** Answer with shares once a quorum has signed the same survivor set. */
  unmask(request) {
    return this.leave(async (me) => {
      const checked = await this.read(request, 8);
      const same = (a, b) => a.size === b.size && [...a].every((device) => b.has(device));
      const { survivors, dropped } = checked.outcome;
      if (!same(survivors, this.outcome.survivors) || !same(dropped, this.outcome.dropped))
        throw new Refused("the server asks about another survivor set than it had signed");
      await checks.checkQuorum(checked, this.holding.peers, me.config, me.context);
      return this.answer(checked.outcome);
    });
  }
}

/** The device has answered, and has nothing more to say in this round. */
export class Unmasked extends State {}

async function maskSeeds(me, peers, dealers) {
  const { context, index, maskPair } = me;
  const plus = [await selfMaskSeed(me.seed, context, index)];
  const minus = [];
  for (const other of dealers) {
    if (other === index) continue;
    const theirs = peers.keys.get(other).maskKey;
    const seed = await pairMaskSeed(maskPair, theirs, context, index, other);
    (index < other ? plus : minus).push(seed);
  }
  return { plus, minus };
}
