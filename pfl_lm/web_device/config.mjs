/** A round's public description and its context, and what a device insists on: section 1. */
import { ascii, concat, u32, u64 } from "./bytes.mjs";
import { InvalidValue, Refused } from "./errors.mjs";
import { sha256 } from "./primitives.mjs";
import { LABEL } from "./wire.mjs";

const ADVERSARIES = ["semi-honest", "active"];

/**
 * What devices and server agree on before a round.
 * @typedef {object} RoundFields
 * @property {number} round
 * @property {Uint8Array} model SHA-256
 * @property {Uint8Array} payload SHA-256
 * @property {number} dim
 * @property {number} bits of the ring, 8 to 64
 * @property {number} cohort
 * @property {number} min_reports
 * @property {number} neighbours
 * @property {number} threshold
 * @property {number} corrupt
 * @property {number} window_survivors
 * @property {"semi-honest" | "active"} adversary
 * @property {number} noise_levels
 * @property {number} noise_step
 */

/**
 * What a device insists on, whatever a server proposes.
 * @typedef {object} DevicePolicy
 * @property {number} least_reports
 * @property {number} least_cohort
 * @property {number} least_neighbours
 * @property {"semi-honest" | "active"} adversary the weakest server it accepts to withstand
 * @property {Uint8Array | null} authority the Ed25519 key that certifies identities
 * @property {() => number} clock seconds since 1970
 */

/** @param {boolean} holds @param {string} message */
function demand(holds, message) {
  if (!holds) throw new InvalidValue(message);
}

const within = (value, least, most) => Number.isInteger(value) && value >= least && value <= most;

export class RoundConfig {
  /** @param {RoundFields} fields @throws {InvalidValue} numbers that no round may have */
  constructor(fields) {
    Object.assign(this, fields);
    demand(within(this.round, 0, Number.MAX_SAFE_INTEGER), "round must be an integer from 0");
    demand(this.model.length === 32 && this.payload.length === 32, "digests have 32 bytes");
    demand(within(this.dim, 1, 2 ** 40 - 1), "dim must be from 1 to 2^40");
    demand(within(this.bits, 8, 64), "bits must be an integer from 8 to 64");
    demand(within(this.cohort, 3, 2 ** 31 - 1), "cohort must be from 3 to 2^31 devices");
    demand(within(this.min_reports, 2, this.cohort), "min_reports must be from 2 to the cohort");
    demand(within(this.noise_levels, 0, 2 ** 16 - 1), "noise_levels must be from 0 to 2^16");
    demand(within(this.noise_step, 1, 2 ** 31 - 1), "noise_step must be from 1 to 2^31");
    const covered = this.noise_levels * this.noise_step;
    demand(
      this.noise_levels === 0 || this.cohort - this.min_reports <= covered,
      "min_reports allows more dropouts than the noise components cover",
    );
    demand(ADVERSARIES.includes(this.adversary), "adversary must be semi-honest or active");
    this.#checkGraph();
  }

  #checkGraph() {
    const { neighbours: k, threshold: t, cohort } = this;
    const complete = k === cohort - 1;
    demand(within(k, 2, cohort - 1) && (k % 2 === 0 || complete), "neighbours must be even or all");
    const holders = complete ? cohort : k;
    demand(k < 2 * t && t <= holders, "threshold must exceed half of the neighbours");
    demand(within(this.corrupt, 0, cohort - 1), "corrupt must be below the cohort");
    demand(within(this.window_survivors, 0, k >> 1), "window_survivors must be at most k/2");
  }

  /** @returns {boolean} */
  get signed() {
    return this.adversary === "active";
  }

  /** @param {number} members @returns {number} signatures that make a survivor set unique */
  quorum(members) {
    return Math.floor((members + this.corrupt) / 2) + 1;
  }

  /** @param {number} reports @returns {number} removable components that stay */
  noiseLevel(reports) {
    return Math.ceil((this.cohort - reports) / this.noise_step);
  }

  /** @returns {Promise<Uint8Array>} the salt of every key */
  context() {
    const { neighbours, threshold, corrupt, window_survivors } = this;
    const numbers = u32(
      ...[this.cohort, this.min_reports, neighbours, threshold, corrupt, window_survivors],
      ...[this.noise_levels, this.noise_step],
    );
    const end = Uint8Array.of(this.bits, ADVERSARIES.indexOf(this.adversary));
    const start = [LABEL, ascii("context"), u64(this.round), this.model, this.payload];
    return sha256(...start, numbers, u64(this.dim), end);
  }
}

/**
 * Refuse a round that promises less than the policy.
 * @param {DevicePolicy} policy @param {RoundConfig} config @throws {Refused}
 */
export function checkPolicy(policy, config) {
  if (config.min_reports < policy.least_reports)
    throw new Refused(`min_reports is ${config.min_reports}, below ${policy.least_reports}`);
  if (config.cohort < policy.least_cohort)
    throw new Refused(`the cohort is ${config.cohort}, below ${policy.least_cohort}`);
  if (config.neighbours < Math.min(policy.least_neighbours, config.cohort - 1))
    throw new Refused(`${config.neighbours} neighbours are fewer than the policy's`);
  if (policy.adversary === "active" && !config.signed)
    throw new Refused("this device takes part only with signed keys and survivors");
  if (config.signed && !policy.authority)
    throw new Refused("signed rounds need the authority's public key in the device's policy");
}
