// The page: puts the parts together. What is typed goes from the text field to the graph and back.

import { Keys } from "./keys.js";
import { isOpen, number, openLanguage, t } from "./language.js";
import { Personal } from "./personal.js";
import { Predictor } from "./predictor.js";
import { openGraphs } from "./runtime.js";
import { Sheets } from "./sheets.js";
import { Tokenizer } from "./tokenizer.js";

const $ = (id) => document.getElementById(id);
const MARKS = ".,?!:;";
const OPENING = "[\"'“‘«(¿¡\\[]*";
// A sentence begins: at the start of the text or a line, or after a mark that ends one.
const ENDS = new RegExp(`(^|\\n\\s*|[.!?…]["'”’»)\\]]*\\s+)${OPENING}$|(^|\\s)[¿¡]$`, "u");
const CLOSED = /[\p{L}\p{N}.,!?:;…”’»)\]]$/u; // what a word does not follow without a space
const SHORT = /(^|[^\p{L}])(\p{L}\.)+\p{L}\.\s+$/u; // e.g. and the like end no sentence

class App {
  constructor(site, index, tokenizer, predictor, personal) {
    Object.assign(this, { site, index, tokenizer, predictor, personal });
    this.text = $("text");
    this.buttons = [...$("bar").children];
    this.suggestions = [];
    this.turn = 0;
    this.spaced = false; // the space before the caret came with a suggestion
    this.keys = new Keys($("keys"), (key) => this.press(key), language(index.vocabulary.locale));
    this.sheets = new Sheets(this);
    this.listen();
    this.changed();
  }

  listen() {
    this.text.addEventListener("input", () => { this.spaced = false; this.changed(); });
    document.addEventListener("selectionchange", () => {
      if (document.activeElement === this.text) this.suggest();
    });
    this.text.addEventListener("keydown", (event) => this.physical(event, true));
    this.text.addEventListener("keyup", (event) => this.physical(event, false));
    $("compose").addEventListener("submit", (event) => { event.preventDefault(); this.send(); });
    this.buttons.forEach((button, place) => {
      button.addEventListener("pointerdown", (event) => event.preventDefault());
      button.addEventListener("click", () => this.choose(place));
    });
    // What is typed with nothing focused is meant for the message.
    document.addEventListener("keydown", (event) => {
      const free = document.activeElement === document.body && !document.querySelector("dialog[open]");
      if (free && event.key.length === 1 && !event.ctrlKey && !event.metaKey) this.text.focus();
    });
  }

  physical(event, down) {
    const name = { Backspace: "erase", Enter: "send" }[event.key] ?? event.key.toLowerCase();
    this.keys.flash(name, down);
    if (!down) return;
    const place = event.altKey ? "123".indexOf(event.key) : event.key === "Tab" ? 1 : -1;
    if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      this.send();
    } else if (place >= 0 && !event.shiftKey && this.suggestions[place]) {
      event.preventDefault();
      this.choose(place);
    } else if (event.key.length === 1 && MARKS.includes(event.key) && this.spaced) {
      event.preventDefault();
      this.press(event.key);
    }
  }

  press(key) {
    if (key === "send") return this.send();
    const { selectionStart: from, selectionEnd: to, value } = this.text;
    if (key === "erase") {
      const last = [...value.slice(0, from)].at(-1) ?? "";
      this.replace(from === to ? from - last.length : from, to, "");
      this.spaced = false;
    } else if (MARKS.includes(key) && this.spaced && value[from - 1] === " ") {
      this.replace(from - 1, to, `${key} `);
    } else if (key === " " && / $/.test(value.slice(0, from)) && /\w $/.test(value.slice(0, from))) {
      this.replace(from - 1, to, ". ");
    } else {
      this.replace(from, to, key);
      this.spaced = false;
    }
    this.changed();
  }

  replace(from, to, text) {
    this.text.setRangeText(text, from, to, "end");
  }

  changed() {
    this.text.style.height = "auto";
    this.text.style.height = `${this.text.scrollHeight + 2}px`;
    if (this.keys.shift !== "locked")
      this.keys.setShift(begins(this.text.value.slice(0, this.text.selectionEnd)) ? "once" : "off");
    return this.suggest();
  }

  // Ask for suggestions; an answer that comes after the next key is thrown away.
  async suggest() {
    const turn = ++this.turn;
    const { before, typed } = this.tokenizer.atCaret(this.text.value.slice(0, this.text.selectionEnd));
    const context = this.predictor.context(before);
    try {
      const shape = shapeOf(typed, before, this.keys.shift);
      const shown = (id) => cased(this.tokenizer.shown(id), shape, this.index.vocabulary);
      const found = await this.predictor.suggest(context, typed, true, shown);
      if (turn === this.turn) this.show(before, typed, found);
    } catch (error) {
      this.failed(error);
    }
  }

  show(before, typed, found) {
    const words = found.map(({ id }) => ({ word: this.tokenizer.shown(id) }));
    // One word of one's own at most, the last of the three.
    const shape = shapeOf(typed, before, this.keys.shift);
    const shown = new Set(words.map(({ word }) => cased(word, shape, this.index.vocabulary)));
    const own = this.personal.own(typed, before)
      .filter((word) => !shown.has(cased(word, shape, this.index.vocabulary)))
      .slice(0, 1).map((word) => ({ word, own: true }));
    const wanted = typed ? this.tokenizer.normalise(typed) : "";
    const known = !wanted || this.tokenizer.id(wanted) !== this.tokenizer.rules.unk_id;
    const literal = wanted && !known ? [{ word: typed, literal: true }] : [];
    const [best, second, third] = [...words.slice(0, 3 - own.length - literal.length), ...own,
      ...words.slice(3 - own.length - literal.length)];
    this.suggestions = literal.length ? [literal[0], best, second] : [second, best, third];
    this.suggestions = this.suggestions.map((one) => one &&
      { ...one, text: one.literal ? one.word : cased(one.word, shape, this.index.vocabulary) });
    this.buttons.forEach((button, place) => {
      const one = this.suggestions[place];
      button.textContent = one ? (one.literal ? `“${one.text}”` : one.text) : "";
      button.disabled = !one;
      button.classList.toggle("own", Boolean(one?.own));
      button.setAttribute("aria-label", one ? t("page.suggestion", { word: one.text }) : t("page.noSuggestion"));
    });
    document.documentElement.dataset.suggested = `${before}|${typed}`;
  }

  choose(place) {
    const one = this.suggestions[place];
    if (!one) return;
    const caret = this.text.selectionEnd;
    const { before, typed } = this.tokenizer.atCaret(this.text.value.slice(0, caret));
    const gap = gapAfter(before, typed);
    const space = /\p{L}['’]$/u.test(one.text) ? "" : " "; // l'école is written without
    this.replace(before.length, caret, `${gap}${one.text}${space}`);
    this.spaced = space !== "";
    $("announce").textContent = one.text;
    this.changed();
  }

  async send() {
    const text = this.text.value.trim();
    if (!text) return;
    this.text.value = "";
    $("hint").hidden = true;
    const bubble = document.createElement("p");
    bubble.className = "bubble";
    bubble.dir = "auto";
    bubble.textContent = text;
    $("thread").append(bubble);
    bubble.scrollIntoView({ block: "end" });
    this.changed();
    if (this.personal.learning) await this.busy(this.personal.learn(text));
  }

  // Show that something is being learnt, then suggest with what was.
  async busy(work) {
    $("learned-open").classList.add("busy");
    this.working = (this.working ?? 0) + 1;
    try {
      await work;
    } catch (error) {
      this.failed(error);
    }
    if (--this.working === 0) $("learned-open").classList.remove("busy");
    this.count();
    await this.suggest();
  }

  count() {
    $("learned-count").textContent = number(this.personal.messages.length);
    document.documentElement.dataset.learned = this.personal.messages.length;
  }

  failed(error) {
    document.documentElement.classList.add("failed");
    $("status").textContent = t("status.modelFailed", { reason: error.message ?? String(error) });
    console.error(error);
  }
}

// How a suggestion begins: as what was typed does, or as the beginning of a sentence.
function shapeOf(typed, before, shift) {
  const letters = typed.replace(/[^\p{L}]/gu, "");
  if (letters.length > 1 && letters === letters.toUpperCase() || shift === "locked") return "upper";
  if (letters) return letters[0] !== letters[0].toLowerCase() ? "title" : "lower";
  return begins(before + gapAfter(before, typed)) ? "title" : "lower";
}

// The space that a suggestion puts between itself and what it does not follow without one.
function gapAfter(before, typed) {
  return !typed && CLOSED.test(before) ? " " : "";
}

function begins(before) {
  return ENDS.test(before) && !SHORT.test(before);
}

function cased(word, shape, words) {
  const tag = words.locale.replaceAll("_", "-") || "en"; // ı and i are two letters in Turkish
  if (shape === "upper") return word.toLocaleUpperCase(tag);
  if (words.locale.startsWith("en") && /^i('|$)/.test(word)) word = `I${word.slice(1)}`;
  return shape === "title" ? word[0].toLocaleUpperCase(tag) + word.slice(1) : word;
}

function language(locale) {
  try {
    const tag = locale.replace("_", "-");
    return new Intl.DisplayNames([tag], { type: "language" }).of(tag.split("-")[0]);
  } catch {
    return t("keys.space");
  }
}

async function get(path, kind = "json") {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer[kind]();
}

async function start() {
  const site = await get("site.json");
  const index = await get("bundle/bundle.json");
  await openLanguage(site, index.vocabulary.locale);
  const [table, blocked, forms] = await Promise.all([
    get("bundle/tokenizer/vocabulary.tsv", "text"), get("bundle/blocklist.txt", "text"),
    index.vocabulary.written_forms ? get("bundle/tokenizer/forms.tsv", "text") : "",
  ]);
  const tokenizer = new Tokenizer(
    { ...index.vocabulary.normalisation, ...index.vocabulary.special_ids }, table, blocked.split("\n"),
    index.vocabulary.blocked.same_letters, forms);
  const open = await openGraphs(site);
  const entry = index.graphs.find((graph) => graph.path === site.predict);
  const personal = new Personal(index.digest, tokenizer, site.own_words);
  const predictor = new Predictor(open(entry.path), entry, tokenizer, personal, index.limits);
  personal.read = (messages) => predictor.carry(messages);
  const app = new App(site, index, tokenizer, predictor, personal);
  window.app = app;
  await app.suggest();
  if (document.documentElement.classList.contains("failed")) return;
  document.documentElement.classList.add("ready");
  $("title").textContent = index.title ?? t("status.unnamed");
  $("status").textContent = t(site.runtime === "web" ? "status.inPage" : "status.onComputer");
  app.keys.draw();
  app.text.focus(); // no keyboard of the phone's own appears: inputmode is none
  await app.busy(personal.restore());
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
