// Opens the page: fetches the bundle, puts the parts together, says what failed.

import { App } from "./app.js";
import { Corrector } from "./autocorrect.js";
import { isOpen, openLanguage, t } from "./language.js";
import { Layouts } from "./layouts.js";
import { Personal } from "./personal.js";
import { Predictor } from "./predictor.js";
import { openGraphs } from "./runtime.js";
import { Tokenizer } from "./tokenizer.js";

const $ = (id) => document.getElementById(id);

async function get(path, kind = "json") {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer[kind]();
}

async function start() {
  const site = await get("site.json");
  const index = await get("bundle/bundle.json");
  await openLanguage(site, index.vocabulary.locale);
  const [table, blocked, layouts, emoji, forms] = await Promise.all([
    get("bundle/tokenizer/vocabulary.tsv", "text"), get("bundle/blocklist.txt", "text"),
    get("layouts.json"), get("emoji.json"),
    index.vocabulary.written_forms ? get("bundle/tokenizer/forms.tsv", "text") : "",
  ]);
  const spells = /\tsubword\t/.test(table); // words that it does not list, by pieces
  const subwords = spells ? new Uint8Array(await get("bundle/tokenizer/subwords.model", "arrayBuffer")) : null;
  const tokenizer = new Tokenizer(
    { ...index.vocabulary.normalisation, ...index.vocabulary.special_ids }, table, blocked.split("\n"),
    index.vocabulary.blocked.same_letters, forms, subwords);
  const open = await openGraphs(site);
  const entry = index.graphs.find((graph) => graph.path === site.predict);
  const personal = new Personal(index.digest, tokenizer, site.own_words);
  const predictor = new Predictor(open(entry.path), entry, tokenizer, personal, index.limits);
  personal.read = (messages) => predictor.carry(messages);
  const app = new App(site, index, tokenizer, predictor, personal,
    new Layouts(layouts, index.vocabulary.locale ?? ""), emoji);
  window.app = app;
  await app.suggest();
  if (document.documentElement.classList.contains("failed")) return;
  document.documentElement.classList.add("ready");
  $("title").textContent = index.title ?? t("status.unnamed");
  app.showRuntime();
  app.text.focus(); // no keyboard of the phone's own appears: inputmode is none
  await app.busy(personal.restore());
  setTimeout(() => { app.corrector = new Corrector(tokenizer, app.keys.map); });
  if (site.take_part) await openTakePart(app, open);
}

// On a page that a server of rounds gave: its owner may take part.
async function openTakePart(app, open) {
  const [{ TakePart }, { PartSheet }] = await Promise.all([import("./take_part.js"), import("./part_sheet.js")]);
  const task = await get("take_part.json");
  const { inputs } = app.index.graphs.find((graph) => graph.path === task.train_step).signature;
  const part = new TakePart(task, open(task.train_step), inputs, app.personal, () => sheet.show());
  const sheet = new PartSheet(part);
  app.part = part;
  await part.open();
  if (part.enrolled) sheet.open();
}

start().catch((error) => {
  document.documentElement.classList.add("failed");
  const reason = error.message;
  $("status").textContent = isOpen() ? t("status.bundleFailed", { reason }) : reason;
});
