// The two sheets: what was learnt here, with a way to take it back; and what the model is.

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
      app.personal.learning = event.target.checked;
    });
    $("keeping").addEventListener("change", (event) => {
      app.personal.keeping = event.target.checked;
      app.personal.save();
    });
  }

  async learned() {
    const { personal, predictor } = this.app;
    $("learning").checked = personal.learning;
    $("keeping").checked = personal.keeping;
    const words = personal.newWords(), count = personal.messages.length;
    $("learned-note").textContent = count
      ? `From ${count} message${count > 1 ? "s" : ""}, on this page only. Forgetting a word drops `
        + "every message that holds it."
      : "Nothing yet. Send a message, and it learns from it, on this page only.";
    $("forget-all").disabled = !count;
    this.list("words", words.slice(0, 30).map(({ word, count }) =>
      this.item(word, [word, count > 1 ? ` ×${count}` : ""])));
    this.list("habits", []);
    const habits = personal.habits((text) => predictor.context(text));
    const turn = (this.turn = (this.turn ?? 0) + 1), found = [];
    for (const habit of habits.slice(0, LOOKED_AT)) {
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
      context.textContent = before ? `${before} ` : "begins with ";
      phrase.append(context, word);
      better.textContent = ordinal(now);
      places.append(`${ordinal(then)} → `, better);
      item.prepend(phrase, places);
      return item;
    }));
    document.documentElement.dataset.sheet = `${words.length} ${found.length}`;
  }

  list(name, items) {
    $(`learned-${name}`).replaceChildren(...items);
    $(`${name}-title`).hidden = $(`learned-${name}`).hidden = !items.length;
  }

  item(word, texts) {
    const item = document.createElement("li"), button = document.createElement("button");
    button.type = "button";
    button.textContent = "×";
    button.setAttribute("aria-label", `Forget ${word}`);
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
      "Name": index.name,
      "Words": index.vocabulary.size.toLocaleString("en"),
      "Graph": `${entry.format} ${entry.precision}, ${(bytes / 1e6).toFixed(1)} MB`,
      "Runs": site.runtime === "web" ? "in this page; what you type stays in it"
        : "on this computer; what you type stays on it",
      "Last key": `${predictor.milliseconds.toFixed(1)} ms`,
      "Top-3 agreement": figures.top3_agreement == null ? null
        : `${(100 * figures.top3_agreement).toFixed(1)}% with the trained model`,
      "Keystrokes saved": figures.keystrokes_saved == null ? null
        : `${(100 * figures.keystrokes_saved).toFixed(0)}% on held-out text`,
      "Blocked words": index.vocabulary.blocked.words.toLocaleString("en"),
      "Bundle": index.digest.slice(0, 16),
    };
    $("about-facts").replaceChildren(...Object.entries(facts).filter(([, value]) => value)
      .flatMap(([name, value]) => {
        const term = document.createElement("dt"), said = document.createElement("dd");
        term.textContent = name;
        said.textContent = value;
        return [term, said];
      }));
    $("guaranteed").textContent = site.statements.guaranteed;
    $("simulated").textContent = site.statements.simulated;
  }
}

function ordinal(n) {
  const tens = n % 100, last = n % 10;
  const end = tens > 10 && tens < 14 ? "th" : ["th", "st", "nd", "rd"][last] ?? "th";
  return `${n.toLocaleString("en")}${end}`;
}
