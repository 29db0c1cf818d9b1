// The page: puts the parts together. What is typed goes from the text field to the graph and back.

import { arrange, likeliest } from "./bar.js";
import { Composer } from "./composing.js";
import { Editor } from "./editor.js";
import { Emoji } from "./emoji.js";
import { Keys } from "./keys.js";
import { number, t } from "./language.js";
import { Settings } from "./settings.js";
import { Sheets } from "./sheets.js";
import { begins, cased, gapAfter, languageName, restOfWord, shapeOf } from "./text_rules.js";

const PLACES = 3, EMOJI = 3; // of words in the bar; the place after them
const COMPOSING = 229; // the code of a key that an input method takes
const $ = (id) => document.getElementById(id);

export class App {
  constructor(site, index, tokenizer, predictor, personal, layouts, emoji) {
    Object.assign(this, { site, index, tokenizer, predictor, personal, layouts });
    this.text = $("text");
    this.buttons = [...$("bar").children];
    this.suggestions = [];
    this.turn = 0;
    this.locale = index.vocabulary.locale;
    this.written = tokenizer.locales;
    this.corrector = null; // until the page is at rest
    this.composer = tokenizer.subwords && new Composer(predictor, tokenizer);
    this.editor = new Editor(this.text, () => this.correction(), (typed) => this.corrector?.accept(typed));
    this.settings = new Settings(layouts, tokenizer.locales, site.written ?? [],
      (choices) => this.setUp(choices));
    this.emoji = new Emoji(emoji, (name, kind) => this.keys.key(name, kind));
    this.keys = new Keys($("keys"), (key, instead) => this.press(key, instead), languageName(this.locale),
      this.emoji);
    this.setUp(this.settings.choices);
    this.sheets = new Sheets(this);
    this.listen();
    this.changed();
  }

  listen() {
    this.text.addEventListener("input", () => { this.editor.touched(); this.changed(); });
    document.addEventListener("selectionchange", () => {
      if (document.activeElement === this.text && this.asked !== this.place()) this.moved();
    });
    addEventListener("storage", ({ key }) => {
      if (key === this.personal.key || key === null) this.busy(this.personal.heed());
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
    if (!down || event.isComposing || event.keyCode === COMPOSING) return;
    const place = event.altKey ? "123".indexOf(event.key) : event.key === "Tab" ? 1 : -1;
    if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      this.send();
    } else if (place >= 0 && !event.shiftKey && this.suggestions[place]) {
      event.preventDefault();
      this.choose(place);
    } else if (!event.ctrlKey && !event.metaKey && this.editor.concerns(name)) {
      event.preventDefault();
      this.press(name);
    }
  }

  press(key, instead) {
    if (key === "send") return this.send();
    if (key === "settings") return this.settings.open();
    if (this.keys.page === "emoji" && key !== "erase") this.emoji.use(key);
    this.editor.press(key, instead);
    this.changed();
  }

  // Suggest the words of these languages; what was learnt is read again without the others'.
  write(locales) {
    if (locales.join() === this.written.join()) return;
    this.written = locales;
    this.tokenizer.choose(locales);
    if (this.corrector) this.corrector = this.corrector.renewed();
    if (this.sheets) this.busy(this.personal.relearn(this.personal.messages));
  }

  // Lay the keys out, and choose the words, as the settings say.
  setUp(choices) {
    const map = this.layouts.open(choices.layout);
    this.keys.use(map, choices);
    this.editor.stop = map.stop;
    this.personal.learning = choices.learning;
    this.corrector?.use(map);
    this.write(this.settings.languages);
    document.documentElement.classList.toggle("rtl", Boolean(map.layout.rtl));
  }

  // What a space would put in place of the word before the caret; null if it stays.
  correction() {
    const caret = this.text.selectionEnd, { before, typed } = this.wordAt(caret);
    const ends = caret === this.text.selectionStart && !restOfWord(this.text.value.slice(caret));
    const found = ends && typed && this.meant(before, typed);
    return found?.sure && found.text !== typed ? { from: before.length, typed, text: found.text } : null;
  }

  // What was meant by a half-typed word: { text, sure }; null where nothing speaks for another.
  meant(before, typed) {
    const chance = this.predictor.chancesNow(this.predictor.context(before));
    if (!this.settings.choices.autocorrect || !this.corrector || !chance) return null;
    const about = { own: this.personal.lexicon(), begins: begins(before, this.locale) };
    const found = this.corrector.correct(typed, chance, about);
    const shape = shapeOf(typed, before, this.keys.shift, this.locale);
    const capital = found?.sure ? null : this.corrector.capital(typed, (word) => cased(word, "lower", this.locale));
    if (capital) return { text: capital, sure: true };
    if (!found) return null;
    const word = found.id === null ? this.personal.written(found.word) : this.tokenizer.shown(found.id);
    return { text: cased(word, shape, this.locale), sure: found.sure };
  }

  // Text and caret, by which suggestions are asked once.
  place() {
    return `${this.text.selectionEnd} ${this.text.value}`;
  }

  wordAt(caret) {
    return this.tokenizer.atCaret(this.text.value.slice(0, caret));
  }

  changed() {
    this.text.style.height = "auto";
    this.text.style.height = `${this.text.scrollHeight + 2}px`;
    return this.goOn();
  }

  // The caret stands elsewhere: a mark belongs to no suggestion there.
  moved() {
    this.editor.touched();
    return this.goOn();
  }

  // Show capitals and suggestions for the place of the caret.
  goOn() {
    this.keys.beginSentence(begins(this.text.value.slice(0, this.text.selectionEnd), this.locale));
    return this.suggest();
  }

  // Ask for suggestions once the glyph is on the screen; an answer that comes after the next key is
  // thrown away.
  async suggest() {
    const turn = ++this.turn;
    this.asked = this.place();
    await painted();
    if (turn !== this.turn) return;
    const { before, typed } = this.wordAt(this.text.selectionEnd);
    const context = this.predictor.context(before);
    try {
      const shape = shapeOf(typed, before, this.keys.shift, this.locale);
      const inShape = (word) => cased(word, shape, this.locale), shown = (id) => inShape(this.tokenizer.shown(id));
      const found = await this.predictor.suggest(context, typed, true, shown);
      if (turn !== this.turn) return;
      this.recovered();
      const words = found.map(({ id, score }) => ({ text: shown(id), score }));
      this.show(before, typed, words);
      if (!this.composer) return;
      // Words that pieces spell, beside the listed ones, which stand there already.
      const least = words.length === PLACES ? words.at(-1).score : 0;
      const spelled = await this.composer.compose(context, typed, least, () => turn !== this.turn);
      if (turn !== this.turn) return;
      const composed = spelled.map(({ word, score }) => ({ text: inShape(word), score }));
      if (composed.length) this.show(before, typed, words, composed);
      document.documentElement.dataset.composed = `${before}|${typed}`;
    } catch (error) {
      this.failed(error);
    }
  }

  show(before, typed, words, composed = []) {
    const normal = typed && this.tokenizer.normalise(typed), { unk_id } = this.tokenizer.rules;
    const known = !typed || this.tokenizer.id(normal) !== unk_id || this.personal.knows(normal);
    const all = [...words, ...this.ownWords(before, typed), ...composed];
    if (!known && all.length < 2) all.push(...this.inSpiteOfSlips(before, typed));
    const once = all.filter(({ text }, at) => all.findIndex((one) => one.text === text) === at);
    const chance = typed ? null : this.predictor.chancesNow(this.predictor.context(before));
    this.suggestions = [...arrange(typed, known, once, typed ? this.meant(before, typed) : null),
      likeliest(this.index.vocabulary.emoji_ids ?? [], this.tokenizer.words, chance)];
    this.buttons.forEach((button, place) => {
      const one = this.suggestions[place];
      button.textContent = one ? (one.literal ? `“${one.text}”` : one.text) : "";
      button.disabled = !one;
      button.hidden = place === EMOJI && !one;
      button.classList.toggle("own", Boolean(one?.own));
      button.classList.toggle("fixes", Boolean(one?.fixes));
      button.setAttribute("aria-label", one ? t("page.suggestion", { word: one.text }) : t("page.noSuggestion"));
    });
    document.documentElement.dataset.suggested = `${before}|${typed}`;
  }

  // Words of the owner's own that go on from what was typed.
  ownWords(before, typed) {
    const { shares } = this.personal.counted.mixture(this.predictor.context(before));
    const unknown = this.tokenizer.unlisted.reduce((sum, id) => sum + (shares.get(id) ?? 0), 0);
    const shape = shapeOf(typed, before, this.keys.shift, this.locale);
    return this.personal.own(typed, before).map(({ word, share }) =>
      ({ text: cased(this.personal.written(word), shape, this.locale), score: share * unknown, own: true }));
  }

  // Words that what was typed would begin but for a slip; they come after those that it begins.
  inSpiteOfSlips(before, typed) {
    const chance = this.predictor.chancesNow(this.predictor.context(before));
    if (!this.settings.choices.autocorrect || !this.corrector || !chance) return [];
    const shape = shapeOf(typed, before, this.keys.shift, this.locale);
    return this.corrector.completions(typed, chance, 2)
      .map(({ id, score }) => ({ text: cased(this.tokenizer.shown(id), shape, this.locale), score: score * 1e-9 }));
  }

  choose(place) {
    const one = this.suggestions[place];
    if (!one) return;
    const { before, typed } = this.wordAt(this.text.selectionEnd);
    if (one.literal) this.corrector?.accept(typed);
    const spaced = !/\p{L}['’]$/u.test(one.text); // l'école is written without
    const rest = typed ? restOfWord(this.text.value.slice(this.text.selectionEnd)) : "";
    this.editor.choose(before.length, `${gapAfter(before, typed)}${one.text}`, spaced, rest);
    $("announce").textContent = one.text;
    this.changed();
  }

  async send() {
    const text = this.text.value.trim();
    if (!text) return;
    this.text.value = "";
    $("hint").hidden = true;
    const bubble = document.createElement("p");
    Object.assign(bubble, { className: "bubble", dir: "auto" });
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

  // What failed before has an answer again.
  recovered() {
    const page = document.documentElement.classList;
    if (!page.contains("ready") || !page.contains("failed")) return;
    page.remove("failed");
    this.showRuntime();
  }

  showRuntime() {
    $("status").textContent = t(this.site.runtime === "web" ? "status.inPage" : "status.onComputer");
  }

  failed(error) {
    document.documentElement.classList.add("failed");
    $("status").textContent = t("status.modelFailed", { reason: error.message ?? String(error) });
    console.error(error);
  }
}

// The next frame has been painted; a page that nobody sees paints none.
function painted() {
  return new Promise((done) => {
    requestAnimationFrame(() => setTimeout(done));
    setTimeout(done, 60);
  });
}
