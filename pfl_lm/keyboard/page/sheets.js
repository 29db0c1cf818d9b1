// The two sheets: what was learnt here, with a way to take it back; and what the model is.

import { number, t } from "./language.js";

const $ = (id) => document.getElementById(id);
const SHOWN = 8, LOOKED_AT = 60; // habits shown, and contexts compared to find them

export class Sheets {
  constructor(app) {
    this.app = app;
    for (const name of ["learned", "about"]) {
      const dialog = $(name);
      $(`${name}-open`).addEventListener("click", () => { dialog.showModal(); this[name](); });
      dialog.querySelector(".close").addEventListener("click", () => dialog.close());
      dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
    }
    $("forget-all").addEventListener("click", () => this.forget(null));
    $("learning").addEventListener("change", (event) => {
      app.settings.set("learning", event.target.checked);
    });
    $("keeping").addEventListener("change", (event) => {
      app.personal.keeping = event.target.checked;
      app.personal.save();
      this.note();
    });
  }

  async learned() {
    const { personal, predictor } = this.app;
    $("learning").checked = personal.learning;
    const words = personal.newWords(), count = personal.messages.length;
    this.note();
    $("forget-all").disabled = !count;
    this.list("words", words.slice(0, 30).map(({ word, count }) =>
      this.item(word, [isolated(word), count > 1 ? ` ×${number(count)}` : ""])));
    this.list("habits", []);
    const habits = personal.habits((text) => predictor.context(text), LOOKED_AT);
    const turn = (this.turn = (this.turn ?? 0) + 1), found = [];
    for (const habit of habits) {
      const then = await predictor.rank(habit.context, habit.id, false);
      const now = await predictor.rank(habit.context, habit.id, true);
      if (turn !== this.turn) return;
      if (now < then) found.push({ ...habit, then, now });
    }
    found.sort((a, b) => Math.log(b.then / b.now) - Math.log(a.then / a.now));
    this.list("habits", found.slice(0, SHOWN).map(({ word, before, then, now }) => {
      const item = this.item(word, []);
      const phrase = document.createElement("span"), places = document.createElement("span");
      const context = document.createElement("i"), better = document.createElement("b");
      context.textContent = before || t("learned.begins");
      phrase.dir = before ? "auto" : "";
      phrase.append(context, " ", isolated(word));
      better.textContent = place(now);
      places.append(t("learned.moved", { then: place(then) }), " ", better);
      item.prepend(phrase, places);
      return item;
    }));
    document.documentElement.dataset.sheet = `${words.length} ${found.length}`;
  }

  // From how much it learned, and whether the browser keeps it.
  note() {
    const { personal } = this.app, count = personal.messages.length, reason = personal.refusal;
    $("keeping").checked = personal.keeping;
    $("learned-note").textContent = reason ? t("learned.notKept", { reason })
      : count ? t("learned.note", { count }) : t("learned.nothing");
  }

  list(name, items) {
    $(`learned-${name}`).replaceChildren(...items);
    $(`${name}-title`).hidden = $(`learned-${name}`).hidden = !items.length;
  }

  item(word, texts) {
    const item = document.createElement("li"), button = document.createElement("button");
    button.type = "button";
    button.textContent = "×";
    button.setAttribute("aria-label", t("learned.forget", { word }));
    button.addEventListener("click", () => this.forget(word));
    item.append(...texts, button);
    return item;
  }

  async forget(word) {
    const { app } = this;
    this.turn = (this.turn ?? 0) + 1;
    const work = word === null ? app.personal.forgetAll() : app.personal.forget(word);
    if (word === null) {
      document.querySelectorAll(".bubble").forEach((bubble) => bubble.remove());
      $("hint").hidden = false;
    }
    await app.busy(work);
    await this.learned();
  }

  about() {
    const { index, site, predictor } = this.app;
    const entry = predictor.entry, figures = entry.parity ?? {};
    const bytes = index.files[entry.path]?.bytes;
    const facts = {
      name: isolated(index.name),
      words: number(index.vocabulary.size),
      graph: t("about.graphIs", { format: entry.format, precision: entry.precision,
        size: figure(bytes / 1e6, 1, "megabyte") }),
      runs: t(site.runtime === "web" ? "about.inPage" : "about.onComputer"),
      lastKey: figure(predictor.milliseconds, 1, "millisecond"),
      agreement: figures.top3_agreement == null ? null
        : t("about.agreementIs", { share: share(figures.top3_agreement, 1) }),
      saved: figures.keystrokes_saved == null ? null
        : t("about.savedIs", { share: share(figures.keystrokes_saved, 0) }),
      blocked: number(index.vocabulary.blocked.words),
      bundle: isolated(index.digest.slice(0, 16)),
    };
    $("about-facts").replaceChildren(...Object.entries(facts).filter(([, value]) => value)
      .flatMap(([name, value]) => {
        const term = document.createElement("dt"), said = document.createElement("dd");
        term.textContent = t(`about.${name}`);
        said.append(value);
        return [term, said];
      }));
    $("guaranteed").textContent = site.statements.guaranteed;
    $("simulated").textContent = site.statements.simulated;
  }
}

const place = (count) => t("learned.place", { count }, "ordinal");

const share = (value, digits) =>
  number(value, { style: "percent", minimumFractionDigits: digits, maximumFractionDigits: digits });

const figure = (value, digits, unit) => number(value,
  { style: "unit", unit, minimumFractionDigits: digits, maximumFractionDigits: digits });

// A text whose direction is its own.
function isolated(text) {
  const element = document.createElement("bdi");
  element.textContent = text;
  return element;
}
