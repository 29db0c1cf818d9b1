// Taking part in the training of the shared model: off until its owner switches it on.
//
// The messages that were sent on this page are what it trains on. What leaves is one vector, clipped,
// with noise of this phone's own, and masked, so that the server reads only the sum of many.

import { NoKey, checkDates, plainKey, readKey } from "./web_device/enrolment.mjs";
import { SecaggError } from "./web_device/errors.mjs";
import { OtherTask, Participant } from "./web_device/participant.mjs";
import { DamagedRecord, InvitationRefused, ParticipationRecord } from "./web_device/record.mjs";
import { DroppedFromRound, RefusedByServer, Service } from "./web_device/service.mjs";
import { Trainer } from "./web_device/training.mjs";
import { t } from "./language.js";
import { Store } from "./store.js";

const REASONS = { NoKey, OtherTask, InvitationRefused, DamagedRecord, DroppedFromRound, RefusedByServer,
  SecaggError };
const NAME = "pfl-lm take part"; // of the lock and the channel by which pages of one browser are one device

export class TakePart {
  // task: take_part.json; graph: runs the bundle's train_step; inputs: of its signature.
  constructor(task, graph, inputs, personal, shown) {
    Object.assign(this, { task, personal, shown });
    this.trainer = new Trainer((given) => graph.run(given), inputs, task.training);
    this.state = "off";
    this.text = "";
    this.rounds = [];
    this.others = new BroadcastChannel(NAME); // pages of this browser, which keep the same
    this.others.onmessage = () => this.heed().catch((error) => this.fail(error));
  }

  // Read what this browser keeps; take a key from the link, once.
  async open() {
    try {
      this.store = await Store.open();
      const plain = plainKey(location.hash);
      if (plain !== null) await this.enrol(plain);
      this.key = await this.store.read("key");
      if (await this.store.read("record")) await this.openRecord();
      if (this.key && (await this.store.read("on"))) this.start();
      this.shown();
    } catch (error) {
      this.key ??= await this.store?.read("key");
      this.fail(error);
    }
  }

  // Write values down, and tell the other pages of this browser.
  async keep(values) {
    for (const [name, value] of Object.entries(values)) await this.store.write(name, value);
    this.others.postMessage(Object.keys(values));
  }

  // Follow what another page of this browser wrote: no page takes part once one was told to stop.
  async heed() {
    if (!this.store) return;
    const key = await this.store.read("key"), on = key && await this.store.read("on");
    if (this.on && (!on || key.secret !== this.key.secret)) this.pause();
    this.key = key;
    if (!(await this.store.read("record"))) this.record = undefined;
    else if (!this.on) await this.openRecord(); // else it writes the record itself
    if (on) this.start();
    this.shown();
  }

  async enrol(plain) {
    await checkDates(readKey(plain));
    await this.keep({ key: plain, on: null }); // a new key takes part once it is switched on again
    history.replaceState(null, "", location.pathname + location.search);
    this.enrolled = true;
  }

  async openRecord() {
    this.record = await ParticipationRecord.open(this.store.record(), this.key?.first_install ?? false);
  }

  get on() {
    return this.service !== undefined;
  }

  async switch(on) {
    if (!on) this.pause(); // first: it stops even where nothing can be written
    await this.keep({ on: on || null });
    if (on) this.start();
    this.shown();
  }

  pause() {
    this.service?.stop();
    this.service = undefined;
    this.say("off", "");
  }

  // Delete the key: this browser takes part no more, unless it is enrolled again. Its record stays.
  async leave() {
    this.pause();
    await this.keep({ on: null, key: null });
    this.key = null;
    this.shown();
  }

  // Delete the record too. A phone without one waits, because it may have taken part before.
  async forget() {
    await this.leave();
    await this.keep({ record: null });
    this.record = undefined;
    this.rounds = [];
    this.shown();
  }

  start() {
    if (this.on || !this.key) return;
    const service = new Service(new URL("./", location).href, readKey(this.key),
      (detail) => this.service === service && this.say("waiting", t("event.serverAgain", { detail })));
    this.service = service;
    this.say("waiting", t("event.otherPage"));
    const work = () => this.service === service && this.run(service);
    navigator.locks.request(NAME, work)
      .catch((error) => { if (this.service === service) this.fail(error); });
  }

  async run(service) {
    if (!this.task.trial) await this.openRecord();
    const train = async (values, parameters, payload) => {
      await this.heed(); // a page that slept was told nothing
      if (service !== this.service) throw new RefusedByServer("stopped");
      return this.trainer.train(values, parameters, payload, this.tokens());
    };
    const says = ({ kind, round, text, error }) => {
      if (service !== this.service) return;
      if (kind === "done") this.rounds.push(round);
      const said = error ? reason(error) : t(`event.${kind}`, { detail: text });
      this.say(kind, round === undefined ? said : t("event.round", { round, text: said }));
    };
    const { task } = this, record = this.record ?? null;
    this.say("waiting", t("event.server"));
    const last = this.participant?.last ?? -1;
    this.participant = new Participant({ service, task, train, record, says, last });
    await this.participant.run();
  }

  // This owner's messages, words of every language.
  tokens() {
    return this.personal.messages.flatMap((text) => this.personal.ids(text, true));
  }

  fail(error) {
    this.say("failed", reason(error));
    console.error(error);
  }

  say(state, text) {
    Object.assign(this, { state, text });
    document.documentElement.dataset.takingPart = state;
    this.shown();
  }
}

// Why it stopped, as its owner reads it; the detail is in English, for the person who is asked for help.
function reason(error) {
  const found = Object.keys(REASONS).find((name) => error instanceof REASONS[name]) ?? "other";
  return t(`reason.${found}`, { detail: error.message ?? String(error) });
}
