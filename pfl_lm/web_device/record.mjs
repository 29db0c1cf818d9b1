/** The participation record of a phone, and in which rounds it may take part by it: the rules of
 * network/participation_rules.py. A round stands in the record before the report leaves. */

const VERSION = 1;
const DAY = 86400; // seconds
// s since 1970. A phone that lost its battery starts at 1970: a trust period that began then would be
// over when its clock is set.
const [EARLIEST, LATEST] = [1672531200, 253402300799]; // 2023-01-01, and the end of the year 9999
const NO_DATE = "this phone's clock tells no date between 2023 and 9999; set the clock right";

/** The record forbids this participation; the message names the rule. */
export class InvitationRefused extends Error {}

/** What is kept is no record. */
export class DamagedRecord extends Error {}

/**
 * @typedef {object} Storage where a record is kept
 * @property {() => Promise<any>} read what was written last, or null
 * @property {(content: object) => Promise<void>} write returns when it is durable
 *
 * @typedef {{run: string, policy: string, seed: string}} Task
 * @typedef {Task & {time: number, round: number, epsilon: number, min_separation: number,
 *   most_rounds: number, epsilon_limit: number}} Participation
 */

const isDate = (seconds) => EARLIEST <= seconds && seconds <= LATEST;
const moment = (seconds) =>
  new Date(1000 * Math.min(seconds, LATEST)).toISOString().slice(0, 16).replace("T", " ");
const day = (seconds) => moment(seconds).slice(0, 10);
// As Python prints an ε: three decimals, whole from 1,000 on, rounded up and never smaller than it is.
const figure = (value) => {
  if (!(value < Infinity)) return "∞";
  const decimals = value < 1000 ? 3 : 0;
  const near = Number(value.toFixed(decimals));
  const digits = { minimumFractionDigits: decimals, maximumFractionDigits: decimals };
  return (near < value ? near + 10 ** -decimals : near).toLocaleString("en-US", digits);
};

export class ParticipationRecord {
  #storage;
  #clock;

  /** Use `open`. */
  constructor(storage, clock, content) {
    this.#storage = storage;
    this.#clock = clock;
    this.content = content;
  }

  /**
   * Read the record, or begin one.
   * @param {Storage} storage
   * @param {boolean} firstInstall vouch that this phone's user never took part before
   * @param {() => number} clock seconds since 1970
   * @throws {DamagedRecord}
   * @throws {InvitationRefused} a new record, and the clock tells no date
   */
  static async open(storage, firstInstall = false, clock = () => Date.now() / 1000) {
    const kept = await storage.read();
    if (kept !== null) return new ParticipationRecord(storage, clock, checked(kept));
    const began = clock();
    refuse(isDate(began) ? null : NO_DATE);
    const content = { version: VERSION, began, is_first: firstInstall, participations: [] };
    await storage.write(content);
    return new ParticipationRecord(storage, clock, content);
  }

  /** @returns {Participation[]} the oldest first */
  get participations() {
    return this.content.participations;
  }

  /** @returns {number} ε of all of them together, against everyone */
  get epsilon() {
    return this.participations.at(-1)?.epsilon ?? 0;
  }

  /** @param {Task} task @throws {InvitationRefused} it is about another run, policy or seed */
  checkTask(task) {
    refuse(otherTask(this.participations, task));
  }

  /** @param {Task} task @param {object} policy of web_task.py @param {number} round */
  check(task, policy, round) {
    refuse(refusal(this.content, task, policy, round, this.#clock()));
  }

  /** Write a participation down, durably, and only if `check` allows it. */
  async enter(task, policy, round) {
    const kept = checked(await this.#storage.read()); // another page may have written meanwhile
    this.content = kept;
    this.check(task, policy, round);
    const entry = {
      ...{ time: this.#clock(), ...task, round, epsilon: cost(policy, kept.participations.length + 1) },
      min_separation: policy.min_separation,
      most_rounds: policy.participations,
      epsilon_limit: policy.epsilon,
    };
    const content = { ...kept, participations: [...kept.participations, entry] };
    await this.#storage.write(content);
    this.content = content;
  }
}

/** @param {string | null} reason */
function refuse(reason) {
  if (reason !== null) throw new InvitationRefused(reason);
}

/** @returns {number} ε of a user's first rounds together; ∞ beyond those that were accounted for */
const cost = (policy, rounds) => policy.costs[rounds - 1] ?? Infinity;

/** @returns {string | null} the rule by which a phone must not take part; null where it may */
export function refusal({ began, is_first, participations: past }, task, policy, round, now) {
  const from = began + (is_first ? 0 : policy.trust_days * DAY);
  if (!isDate(now)) return NO_DATE;
  if (!(began <= now))
    return (
      `this phone's clock says ${moment(now)}, and its record began at ` +
      `${moment(began)} (UTC); set the clock right`
    );
  if (now < from)
    return (
      `this phone's record began on ${day(began)}: it takes part from ${day(from)} on ` +
      `(devices.trust_days = ${policy.trust_days}), because it may have taken part before a reinstall`
    );
  return otherTask(past, task) ?? spacing(past, policy, round) ?? budget(past, policy);
}

function otherTask(past, task) {
  for (const name of ["policy", "seed", "run"])
    for (const entry of past)
      if (entry[name] !== task[name])
        return (
          `this phone took part under another ${name} (${entry[name].slice(0, 16)}, on ` +
          `${day(entry.time)}); this one is ${task[name].slice(0, 16)}: its ε would not cover both`
        );
  return null;
}

function spacing(past, policy, round) {
  const least = policy.min_separation;
  if (!(round >= 0 && round < policy.rounds))
    return `round ${round} is none of the policy's rounds 0 to ${policy.rounds - 1}`;
  for (const { round: earlier } of past) {
    if (earlier === round) return `this phone took part in round ${round} already`;
    if (earlier > round) return `round ${round} is over: this phone took part in round ${earlier}`;
    if (round - earlier < least)
      return (
        `round ${round} is inside min_separation = ${least} of round ${earlier}: ` +
        `their difference is ${round - earlier}`
      );
  }
  return null;
}

function budget(past, policy) {
  const epsilon = cost(policy, past.length + 1);
  if (past.length < policy.participations && epsilon <= policy.epsilon) return null;
  return (
    `this phone took part in ${past.length} of the policy's ${policy.participations} rounds, and ` +
    `epsilon would be ${figure(epsilon)} where the policy's is ${figure(policy.epsilon)}`
  );
}

/** @throws {DamagedRecord} */
function checked(kept) {
  const kinds = {
    ...{ time: "number", run: "string", policy: "string", seed: "string", round: "number" },
    ...{ epsilon: "number", min_separation: "number", most_rounds: "number" },
    epsilon_limit: "number",
  };
  const sound = (entry) =>
    Object.entries(kinds).every(([name, kind]) => typeof entry?.[name] === kind) &&
    isDate(entry.time) &&
    Number.isInteger(entry.round) &&
    !Number.isNaN(entry.epsilon);
  const whole =
    kept?.version === VERSION &&
    typeof kept.began === "number" &&
    isDate(kept.began) &&
    typeof kept.is_first === "boolean" &&
    Array.isArray(kept.participations) &&
    kept.participations.every(sound);
  if (!whole)
    throw new DamagedRecord("what is kept is no participation record; forget it: the phone then waits");
  return kept;
}
