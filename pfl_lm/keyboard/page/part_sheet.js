// The sheet about taking part: what would leave, what it costs, and the switch.

const $ = (id) => document.getElementById(id);
const STATES = {
  off: "Off", waiting: "Waiting", training: "Training", reporting: "Reporting", done: "Reported", left: "Left out",
  finished: "Finished", failed: "Stopped",
};
const STAYS = "Nothing you type leaves it.";
const STAYS_TAKING_PART = "Your messages stay here. While you take part, what your phone learned from "
  + "them leaves, clipped, noised and masked.";

export class PartSheet {
  constructor(part) {
    this.part = part;
    const dialog = this.dialog = $("part");
    $("part-open").hidden = false;
    $("part-open").addEventListener("click", () => this.open());
    dialog.querySelector(".close").addEventListener("click", () => dialog.close());
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
    $("taking-part").addEventListener("change", (event) => part.switch(event.target.checked));
    $("part-leave").addEventListener("click", () => part.leave());
    $("part-forget").addEventListener("click", () => part.forget());
  }

  open() {
    if (!this.dialog.open) this.dialog.showModal();
    this.show();
  }

  show() {
    const { part } = this, { task, key, on } = part;
    $("part-open").classList.toggle("on", on);
    $("stays").textContent = on ? STAYS_TAKING_PART : STAYS;
    $("taking-part").checked = on;
    $("taking-part").disabled = !key;
    $("part-leave").disabled = !key;
    $("part-forget").disabled = !part.record && part.state !== "failed";
    $("part-note").textContent = key
      ? "While this is on and the page is open, your phone trains the shared model on the messages that "
        + "you sent here. The messages stay here."
      : "To take part, open the link that you were given: it holds a key for this phone.";
    $("part-state").textContent = [STATES[part.state], part.text].filter(Boolean).join(" · ");
    $("part-state").classList.toggle("failed", part.state === "failed");
    this.list("part-leaves", leaves(task, part.personal.messages.length));
    this.list("part-costs", costs(task, part.record, part.rounds));
    $("part-policy").textContent = task.trial
      ? "This is a trial: its noise is made for an experiment, and nobody is protected." : task.statement;
    $("part-ends").textContent = "Leave deletes the key. Forget deletes the record too" + (task.trial ? "."
      : `: then this phone waits ${task.policy.trust_days} days before it takes part again.`);
  }

  list(name, facts) {
    $(name).replaceChildren(...Object.entries(facts).flatMap(([title, text]) => {
      const term = document.createElement("dt"), said = document.createElement("dd");
      term.textContent = title;
      said.textContent = text;
      return [term, said];
    }));
  }
}

function leaves(task, messages) {
  const { round, grid, upload_bytes: bytes, noise_multiplier: noise } = task;
  return {
    "Trained on": `${messages} message${messages === 1 ? "" : "s"} kept here`,
    "Sent": `${round.dim.toLocaleString("en")} numbers, ${size(bytes)}`,
    "Clipped": `to length ${figure(grid.clip_norm)}`,
    "Noise": noise ? `${figure(noise, Math.floor)} × that, on the sum` : "none",
    "Masked": `read in sums of ${round.min_reports.toLocaleString("en")} or more`,
  };
}

function costs(task, record, rounds) {
  const { policy } = task;
  if (!policy || task.trial) return { "Rounds": `${rounds.length} on this page` };
  const past = record?.participations.length ?? 0;
  const next = past < policy.participations ? policy.costs[past] : undefined;
  return {
    "Rounds": `${past} of at most ${policy.participations}`,
    "ε so far": figure(record?.epsilon ?? 0),
    "ε after next": next === undefined ? "none is left" : figure(next),
    "ε at most": `${figure(policy.epsilon)}, δ = ${policy.delta}`,
  };
}

// Four digits; ε is rounded up, and noise down.
const figure = (value, round = Math.ceil) => {
  const unit = 10 ** (Math.floor(Math.log10(value || 1)) - 3);
  return Number((round(value / unit) * unit).toPrecision(4)).toString();
};

function size(bytes) {
  return bytes < 1e6 ? `${Math.ceil(bytes / 1e3)} KB` : `${(bytes / 1e6).toFixed(1)} MB`;
}
