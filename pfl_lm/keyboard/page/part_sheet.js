// The sheet about taking part: what would leave, what it costs, and the switch.

import { number, t } from "./language.js";

const $ = (id) => document.getElementById(id);

export class PartSheet {
  constructor(part) {
    this.part = part;
    const dialog = this.dialog = $("part");
    $("part-open").hidden = false;
    $("part-open").addEventListener("click", () => this.open());
    dialog.querySelector(".close").addEventListener("click", () => dialog.close());
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
    const tries = (work) => work.catch((error) => part.fail(error)); // the browser may refuse to write
    $("taking-part").addEventListener("change", (event) => tries(part.switch(event.target.checked)));
    $("part-leave").addEventListener("click", () => tries(part.leave()));
    $("part-forget").addEventListener("click", () => tries(part.forget()));
  }

  open() {
    if (!this.dialog.open) this.dialog.showModal();
    this.show();
  }

  show() {
    const { part } = this, { task, key, on } = part;
    $("part-open").classList.toggle("on", on);
    $("stays").textContent = t(on ? "page.staysTakingPart" : "page.stays");
    $("taking-part").checked = on;
    $("taking-part").disabled = !key;
    $("part-leave").disabled = !key;
    $("part-forget").disabled = !part.store || (!part.record && part.state !== "failed");
    $("part-note").textContent = t(key ? "part.note" : "part.noKey");
    $("part-state").textContent = [t(`state.${part.state}`), part.text].filter(Boolean).join(" · ");
    $("part-state").classList.toggle("failed", part.state === "failed");
    this.list("part-leaves", leaves(task, part.personal.messages.length));
    this.list("part-costs", costs(task, part.record, part.rounds));
    $("part-policy").textContent = task.trial ? t("part.trial") : sentence(task);
    $("part-statement").hidden = task.trial;
    $("part-statement").querySelector("p").textContent = task.statement;
    $("part-ends").textContent = task.trial ? t("part.ends")
      : t("part.endsWaits", { count: task.policy.trust_days });
  }

  list(name, facts) {
    $(name).replaceChildren(...Object.entries(facts).flatMap(([title, text]) => {
      const term = document.createElement("dt"), said = document.createElement("dd");
      term.textContent = t(`part.${title}`);
      said.textContent = text;
      return [term, said];
    }));
  }
}

// The policy in a sentence, where its noise is the phones' own.
function sentence({ rounds, policy }) {
  if (!policy?.costs.length) return "";
  const most = t("part.times", { count: policy.participations });
  const { epsilon, delta, unit } = policy;
  return t(`part.policy_${unit}`, { rounds, epsilon: figure(epsilon), delta: exact(delta), most });
}

function leaves(task, messages) {
  const { round, grid, upload_bytes: bytes, noise_multiplier: noise } = task;
  return {
    trainedOn: t("part.trainedOnIs", { count: messages }),
    sent: t("part.sentIs", { count: round.dim, size: size(bytes) }),
    clipped: t("part.clippedIs", { length: figure(grid.clip_norm) }),
    noise: noise ? t("part.noiseIs", { multiplier: figure(noise, Math.floor) }) : t("part.noNoise"),
    masked: t("part.maskedIs", { least: round.min_reports }),
  };
}

function costs(task, record, rounds) {
  const { policy } = task;
  if (!policy || task.trial) return { rounds: t("part.roundsHere", { rounds: rounds.length }) };
  const past = record?.participations.length ?? 0;
  const next = past < policy.participations ? policy.costs[past] : undefined;
  const { epsilon, delta, participations: most } = policy;
  return {
    rounds: t("part.roundsOf", { rounds: past, most }),
    epsilonNow: figure(record?.epsilon ?? 0),
    epsilonNext: next === undefined ? t("part.noneLeft") : figure(next),
    epsilonMost: t("part.epsilonMostIs", { epsilon: figure(epsilon), delta: exact(delta) }),
  };
}

// Four digits; ε is rounded up, and noise down.
const figure = (value, round = Math.ceil) => {
  const unit = 10 ** (Math.floor(Math.log10(value || 1)) - 3);
  return number(round(value / unit) * unit, { maximumSignificantDigits: 4 });
};

const exact = (value) => number(value, { maximumSignificantDigits: 17 });

function size(bytes) {
  const [value, unit] = bytes < 1e6 ? [Math.ceil(bytes / 1e3), "kilobyte"] : [bytes / 1e6, "megabyte"];
  return number(value, { style: "unit", unit, maximumFractionDigits: 1 });
}
