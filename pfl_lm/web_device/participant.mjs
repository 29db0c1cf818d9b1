/** A device that takes part in rounds over the network: network/device.py in JavaScript.
 *
 * The text, the untrained update, the noise and the masks' secrets stay here; a masked vector leaves,
 * and shares of secrets in boxes for other devices.
 */
import { equal, toHex } from "./bytes.mjs";
import { cohort } from "./cohort.mjs";
import { RoundConfig } from "./config.mjs";
import { KeysAdvertised } from "./device.mjs";
import { Grid, encode } from "./encoding.mjs";
import { Refused, SecaggError } from "./errors.mjs";
import { apply, gather, modelBytes, modelDigest } from "./model.mjs";
import { NoisePlan } from "./noise.mjs";
import { choosePayload, payloadDigest } from "./payload.mjs";
import { Keystream } from "./primitives.mjs";
import { InvitationRefused } from "./record.mjs";
import { Rotation } from "./rotation.mjs";
import { DroppedFromRound } from "./service.mjs";
import { streamKey } from "./streams.mjs";

const OVER = 255;
const KIND_AT = 5; // of a frame
const RUN = /"run":"([0-9a-f]{32})"/;
const STATED = [
  ...["cohort", "min_reports", "neighbours", "threshold", "corrupt", "window_survivors"],
  ...["noise_levels", "noise_step", "dim", "bits"],
];

/** The server's run is not the one that this app was built for. */
export class OtherTask extends Error {}

/**
 * @param {string} text what the server states @param {object} task of web_task.py
 * @returns {string} the run's id @throws {OtherTask} naming the fields that differ
 */
export function checkTaskConfig(text, task) {
  const run = RUN.exec(text)?.[1];
  if (run && text.replace(RUN, '"run":""') === task.task_config) return run;
  throw new OtherTask(
    `the server's run is not the one that this page was made for (${differences(text, task)}): ` +
      "open the server's own page, or update the app",
  );
}

function differences(text, task) {
  let theirs;
  try {
    theirs = JSON.parse(text);
  } catch {
    return "it is no JSON";
  }
  const mine = JSON.parse(task.task_config);
  const flat = (config) => ({ ...config, ...config?.scenario, scenario: null, run: null });
  const [one, other] = [flat(mine), flat(theirs)];
  const names = [...new Set([...Object.keys(one), ...Object.keys(other)])];
  const odd = names.filter((name) => JSON.stringify(one[name]) !== JSON.stringify(other[name]));
  return odd.sort().join(", ") || "run";
}

export class Participant {
  #parameters = new Map();
  #have = -1; // the round whose model these are

  /**
   * @param {object} setup
   * @param {import("./service.mjs").Service} setup.service
   * @param {object} setup.task what network/web_task.py describes
   * @param {(values: Float32Array, parameters: import("./model.mjs").Parameters,
   *   payload: import("./payload.mjs").Payload, round: number) => Promise<Float32Array>} setup.train
   *   returns the update
   * @param {import("./record.mjs").ParticipationRecord | null} setup.record null in a trial alone
   * @param {(event: {kind: string, round?: number, text: string, error?: Error}) => void} [setup.says]
   * @param {number} [setup.last] the round last taken part in, if it was joined before: in none twice
   */
  constructor({ service, task, train, record, says = () => {}, last = -1 }) {
    if (!task.trial && !(record && task.policy))
      throw new OtherTask("outside a trial a device has a policy and keeps a participation record");
    if (!task.trial && (task.reproducible || task.noise.share === null))
      throw new OtherTask("outside a trial a device adds noise of its own that nobody can repeat");
    Object.assign(this, { service, task, train, record, says, last });
    this.key = service.key;
  }

  /** Take part whenever invited, until the run is over. @returns {Promise<number>} in how many */
  async run() {
    await this.#open();
    let takenPart = 0;
    let cursor = [-1, 0];
    this.says({ kind: "waiting", text: "admitted; waits for an invitation" });
    for (;;) {
      const item = await this.service.fetch(...cursor);
      if (item.finished !== undefined) {
        this.says({ kind: "finished", text: item.finished });
        return takenPart;
      }
      if (!item.invitation && item.over === undefined && !item.frame) continue;
      cursor = [item.round, item.step];
      if (!item.invitation || item.round <= this.last) continue;
      takenPart += Number(await this.#try(item.round, item.invitation));
      cursor = [item.round, OVER];
    }
  }

  async #open() {
    const text = await this.service.open();
    const { task } = this;
    const run = checkTaskConfig(text, task);
    this.runTask = { run, policy: task.policy?.digest ?? "", seed: task.seed };
    this.#insists(() => this.record.checkTask(this.runTask));
  }

  /** Hold something against this device's own record: always, but in a trial. */
  #insists(rule) {
    if (!this.task.trial) rule();
  }

  async #try(round, invitation) {
    this.last = round;
    try {
      await this.#takePart(round, invitation);
    } catch (error) {
      const known = [DroppedFromRound, InvitationRefused, SecaggError];
      if (!known.some((kind) => error instanceof kind)) throw error;
      this.says({ kind: "left", round, text: error.message, error });
      return false;
    }
    this.says({ kind: "done", round, text: "took part" });
    return true;
  }

  /** Download, train, protect, and speak the protocol to its end: once in a round. */
  async #takePart(round, invitation) {
    const { task, says } = this;
    if (!(round >= 0 && round < task.rounds))
      throw new InvitationRefused(`round ${round} is none of the run's rounds 0 to ${task.rounds - 1}`);
    this.#insists(() => this.record.check(this.runTask, task.policy, round));
    if (invitation.clip_norm !== 0) throw new Refused("the server states a clip norm; it does not move");
    says({ kind: "training", round, text: "downloads and trains" });
    await this.#receive(round, invitation.model);
    const payload = choosePayload(task, round);
    const config = await this.#config(round, payload, invitation);
    const values = gather(task, this.#parameters, payload);
    const update = await this.train(values, this.#parameters, payload, round);
    const { place } = invitation;
    const clock = () => Date.now() / 1000;
    const rules = { ...task.device, authority: this.key.authority, clock };
    const keys = await KeysAdvertised.join(config, place, rules, this.key);
    says({ kind: "reporting", round, text: "exchanges keys" });
    const vector = await this.#protect(update, round);
    const shared = await keys.shareKeys(await this.#exchange(round, keys.message));
    const inbox = await this.#exchange(round, shared.message);
    const masked = await shared.maskInput(inbox, vector, this.#removable());
    if (!task.trial) await this.record.enter(this.runTask, task.policy, round);
    let holder = masked;
    if (config.signed) holder = await masked.confirm(await this.#exchange(round, masked.message));
    const answer = await holder.unmask(await this.#exchange(round, holder.message));
    await this.service.send(round, answer.message, 0); // without a wait: the page says that it is done
  }

  /** Bring the model up to date; it must be the one that the invitation is about. */
  async #receive(round, stated) {
    for (const have of this.#have < 0 ? [-1] : [this.#have, -1]) {
      const values = await this.service.model(have, round, modelBytes(this.task));
      const model = apply(this.task, this.#parameters, values, have, round);
      if (model && equal(await modelDigest(this.service.taskConfig, model), stated)) {
        [this.#parameters, this.#have] = [model, round];
        return;
      }
    }
    throw new DroppedFromRound("the model that came is not the one that the round is about");
  }

  /** What the round must be like; any other is refused, naming what differs. */
  async #config(round, chosen, invitation) {
    const { task, key } = this;
    const invited = await cohort(task.cohort, task.seed, round);
    if (invited[invitation.place] !== key.number)
      throw new Refused(`device ${key.number} is not invited by the task configuration's cohort rule`);
    const { model } = invitation; // it is that of the model that this device holds: see #receive
    const payload = await payloadDigest(task, chosen);
    const config = new RoundConfig({ ...task.round, round, model, payload });
    for (const name of STATED)
      if (invitation[name] !== config[name])
        throw new Refused(`the server states ${name} = ${invitation[name]}, not ${config[name]}`);
    if (!equal(invitation.payload, payload) || invitation.adversary !== Number(config.signed))
      throw new Refused(`the server states another payload or adversary: ${toHex(invitation.payload)}`);
    return config;
  }

  /** (Rotate,) clip, encode, and add this device's own share of the noise. */
  async #protect(update, round) {
    const { grid, noise, reproducible, rotate, round: fields, seed } = this.task;
    if (update.length !== fields.dim) throw new Refused("the update has another number of entries");
    const own = Float32Array.from(update);
    if (rotate) {
      const rotation = await Rotation.of(fields.dim, streamKey(seed, "rotation", round));
      rotation.forward(own);
    }
    const bits = reproducible
      ? new Keystream(streamKey(seed, "device", round, this.key.number))
      : Keystream.secure();
    const steps = new Grid(fields.dim, grid.clip_norm, grid.grid_steps);
    const { vector } = await encode(own, steps, noise.share, bits);
    return BigInt64Array.from(vector, BigInt);
  }

  #removable() {
    const { noise, round } = this.task;
    if (noise.removable === null) return null;
    return new NoisePlan(noise.removable, round.cohort, round.noise_levels, round.noise_step);
  }

  /** Send a message and return the server's next. @throws {DroppedFromRound} */
  async #exchange(round, message) {
    const kind = message[KIND_AT];
    let item = await this.service.send(round, message, kind);
    for (;;) {
      if (item.frame && item.round === round) return item.frame;
      if (item.over !== undefined || item.invitation || item.finished !== undefined || item.frame)
        throw new DroppedFromRound(item.over || "the round ended in the meantime");
      item = await this.service.fetch(round, kind);
    }
  }
}
