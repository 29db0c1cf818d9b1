// How the keyboard is set up, kept in this browser once its owner changed it: a sheet of its own.

import { listed, t } from "./language.js";
import { languageName } from "./text_rules.js";

const KEY = "pfl-lm keyboard settings";
const USUAL = { layout: "", numberRow: false, autocorrect: true, haptics: true,
  languages: "", learning: true };
const SWITCHES = { autocorrect: "settings.autocorrect", numberRow: "settings.numberRow",
  haptics: "settings.haptics" };

/**
 * @typedef {{layout: string, numberRow: boolean, autocorrect: boolean, haptics: boolean, languages: string,
 *   learning: boolean}} Choices languages: locales that the owner writes, spaces between; empty: as the page
 *   was given; learning: from what is sent
 */

export class Settings {
  /**
   * @param {{names: string[], data: {layouts: Record<string, {name: string}>}}} layouts
   * @param {string[]} locales of the vocabulary, if it has several
   * @param {string[]} given those that the owner writes until they choose; none: all
   * @param {(choices: Choices) => void} changed
   */
  constructor(layouts, locales, given, changed) {
    Object.assign(this, { layouts, locales, changed });
    this.given = given.length ? locales.filter((one) => given.includes(one)) : locales;
    /** @type {Choices} */
    this.choices = { ...USUAL, ...read() };
    addEventListener("storage", ({ key }) => { if (key === KEY || key === null) this.heed(); });
  }

  /** The languages of the vocabulary that the owner writes. A choice for another vocabulary is passed over. */
  get languages() {
    const kept = this.choices.languages.split(" ");
    return kept.every((one) => this.locales.includes(one)) ? kept : this.given;
  }

  /** Open the sheet; it is built when it is first opened. */
  open() {
    this.dialog ??= this.#build();
    this.dialog.showModal();
  }

  /** Choose, and keep the choice where the browser lets anything be kept. */
  set(name, value) {
    this.choices = { ...this.choices, [name]: value };
    try {
      localStorage.setItem(KEY, JSON.stringify(this.choices));
    } catch (error) {
      console.warn(error); // the choice holds until the page is closed
    }
    this.changed(this.choices);
  }

  /** Follow a choice that was made on another page of this browser. */
  heed() {
    this.choices = { ...USUAL, ...read() };
    this.dialog?.remove(); // it is built anew when it is opened
    this.dialog = undefined;
    this.changed(this.choices);
  }

  #build() {
    const dialog = document.createElement("dialog"), sheet = document.createElement("div");
    const grip = document.createElement("div"), title = document.createElement("h2");
    dialog.id = "settings";
    Object.assign(sheet, { className: "sheet", tabIndex: -1, autofocus: true });
    grip.className = "grip";
    title.textContent = t("page.title");
    title.id = "settings-title";
    dialog.setAttribute("aria-labelledby", title.id);
    const switches = Object.keys(SWITCHES).filter((name) => name !== "haptics" || "vibrate" in navigator);
    const languages = this.locales.length > 1 ? [this.#languages()] : [];
    sheet.append(grip, title, this.#layouts(), ...languages, ...switches.map((name) => this.#switch(name)), this.#close(dialog));
    dialog.append(sheet);
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
    document.body.append(dialog);
    return dialog;
  }

  #layouts() {
    const names = this.layouts.names.map((id) => [id, this.layouts.data.layouts[id].name]);
    return this.#oneOf("layout", t("settings.layout"), names, this.layouts.open(this.choices.layout).id);
  }

  #languages() {
    const sets = [this.locales, ...this.locales.map((one) => [one])];
    const names = sets.map((some) => [some.join(" "), listed(some.map(languageName))]);
    return this.#oneOf("languages", t("settings.languages"), names, this.languages.join(" "));
  }

  // A choice of one value: [value, its name].
  #oneOf(name, title, values, chosen) {
    const group = document.createElement("fieldset"), legend = document.createElement("legend");
    group.className = "layouts";
    legend.textContent = title;
    group.append(legend, ...values.map(([value, said]) => this.#input("radio", name, value === chosen, said,
      (input) => { if (input.checked) this.set(name, value); })));
    return group;
  }

  #switch(name) {
    const label = this.#input("checkbox", name, this.choices[name], t(SWITCHES[name]),
      (input) => this.set(name, input.checked));
    label.className = "switch";
    return label;
  }

  #input(type, name, checked, text, changed) {
    const label = document.createElement("label"), input = document.createElement("input");
    Object.assign(input, { type, name: `settings-${name}`, checked });
    input.addEventListener("change", () => changed(input));
    label.append(input, ` ${text}`);
    return label;
  }

  #close(dialog) {
    const actions = document.createElement("div"), button = document.createElement("button");
    actions.className = "actions";
    Object.assign(button, { type: "button", className: "close", textContent: t("page.done") });
    button.addEventListener("click", () => dialog.close());
    actions.append(button);
    return actions;
  }
}

// What was kept, as far as it has the right types; nothing where it is damaged.
function read() {
  try {
    const kept = JSON.parse(localStorage.getItem(KEY)) ?? {};
    return Object.fromEntries(Object.entries(USUAL).filter(([name, usual]) => typeof kept[name] === typeof usual)
      .map(([name]) => [name, kept[name]]));
  } catch {
    return {};
  }
}
