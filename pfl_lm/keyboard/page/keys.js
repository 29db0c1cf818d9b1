// The keys of a phone: draws them, follows fingers, and says what was pressed.

import { Hold } from "./hold.js";
import { t } from "./language.js";

const DIGITS = [..."1234567890"];
const PAGES = {
  numbers: ["1234567890", "-/:;()$&@\"", ".,?!'"],
  symbols: ["[]{}#%^*+=", "_\\|~<>€£¥•", ".,?!'"],
};
const ICONS = {
  shift: '<svg viewBox="0 0 24 24" aria-hidden="true"><path d="M12 4l8 8.5h-4.5V19h-7v-6.5H4z"/></svg>',
  erase: '<svg viewBox="0 0 24 24" aria-hidden="true"><path d="M9 5h10.5A1.5 1.5 0 0 1 21 6.5v11a1.5 1.5 0 0 1-1.5 1.5H9l-6-7zM11.5 9.500l5 5m0-5l-5 5"/></svg>',
  send: '<svg viewBox="0 0 24 24" aria-hidden="true"><path d="M12 20V5m-6.5 6.5L12 5l6.5 6.5"/></svg>',
  emoji: '<svg viewBox="0 0 24 24" aria-hidden="true"><circle cx="12" cy="12" r="8.500"/><path d="M8.500 14.500c1.800 2.300 5.200 2.300 7 0M9 9.500v.5m6-.5v.5"/></svg>',
  settings: '<svg viewBox="0 0 24 24" aria-hidden="true"><path d="M4 7h9m5 0h2M4 17h2m5 0h9"/><circle cx="15.500" cy="7" r="2.300"/><circle cx="8.500" cy="17" r="2.300"/></svg>',
};
const NAMES = { erase: "keys.erase", send: "keys.send", " ": "keys.space", letters: "keys.letters",
  numbers: "keys.numbers", symbols: "keys.symbols", shift: "keys.shift", emoji: "keys.emoji",
  settings: "keys.settings" };
// Keys that a physical keyboard has not: Tab leads to them, and a screen reader to all.
const REACHED = ["letters", "numbers", "symbols", "emoji", "settings"];
const WAIT = 400, REPEAT = 60; // milliseconds before, and between, repeated deletions
const DOUBLE = 350;

/** Nothing is drawn before `use`. */
export class Keys {
  /**
   * @param {HTMLElement} element what the keys are drawn into
   * @param {(key: string, instead?: boolean) => void} press a character, " ", "erase", "send",
   *   "settings"; instead: in place of the character pressed before
   * @param {string} language what the space key says
   * @param {import("./emoji.js").Emoji} emoji draws the page of emoji
   */
  constructor(element, press, language, emoji) {
    Object.assign(this, { element, press, language, emoji });
    this.page = "letters";
    this.shift = "off"; // off, once, locked
    this.tapped = 0;
    this.hold = new Hold(element.parentElement);
    element.addEventListener("pointerdown", (event) => this.down(event));
    element.addEventListener("pointermove", (event) => this.hold.move(event));
    for (const name of ["pointerup", "pointercancel", "pointerleave"])
      element.addEventListener(name, (event) => this.up(event), true);
    // A press by keyboard or by a screen reader comes as a click alone. A sheet opens when the finger
    // has left, or the finger would close it; an emoji is written then, or scrolling would write it.
    element.addEventListener("click", (event) => {
      const key = event.target.closest(".key");
      if (key && (event.detail === 0 || this.waits(key.dataset.key))) this.act(key.dataset.key);
    });
  }

  /**
   * Draw a layout.
   * @param {import("./layouts.js").KeyMap} map
   * @param {{numberRow: boolean, haptics: boolean}} options
   */
  use(map, options) {
    Object.assign(this, { map, options });
    this.page = "letters";
    this.draw();
  }

  draw() {
    this.hold.end();
    const focused = this.element.contains(document.activeElement);
    if (this.page === "emoji") this.emoji.draw(this.element);
    else this.drawKeys();
    if (focused) this.element.querySelector('[tabindex="0"]').focus();
  }

  drawKeys() {
    const letters = this.page === "letters", { map } = this;
    const [first, second, third] = (letters ? map.rows : PAGES[this.page].map((row) => [...row]))
      .map((row) => row.map((name) => this.key(name)));
    const left = letters ? (map.shifts ? [this.key("shift", "wide other")] : [])
      : [this.key(this.page === "numbers" ? "symbols" : "numbers", "wide other")];
    const rows = [first, second, [...left, ...third, this.key("erase", "wide other")], [
      this.key(letters ? "numbers" : "letters", "wide other"),
      this.key(letters ? "emoji" : "settings", "other"), this.key(map.comma, "half"),
      this.key(" ", "space"), this.key(map.stop, "half"), this.key("send", "send"),
    ]];
    if (letters && this.options.numberRow) rows.unshift(DIGITS.map((digit) => this.key(digit, "low")));
    this.element.style.setProperty("--columns", String(letters ? Math.max(10, map.columns) : 10));
    this.element.classList.toggle("many", letters && map.columns > 10);
    this.element.replaceChildren(...rows.map((keys) => {
      const row = document.createElement("div");
      row.className = "row";
      row.append(...keys);
      return row;
    }));
    this.case();
  }

  key(name, kind = "") {
    const key = document.createElement("button");
    key.type = "button";
    key.tabIndex = REACHED.includes(name) ? 0 : -1;
    key.dataset.key = name;
    key.className = `key ${kind}`;
    const label = { letters: this.map.label, numbers: "123", symbols: "#+=", " ": this.language }[name];
    key.innerHTML = ICONS[name] ?? "";
    if (!ICONS[name]) key.textContent = label ?? name;
    if (!NAMES[name]) {
      const pop = document.createElement("span");
      pop.className = "pop";
      pop.setAttribute("aria-hidden", "true");
      pop.textContent = name;
      key.append(pop);
    }
    key.setAttribute("aria-label", NAMES[name] ? t(NAMES[name]) : name);
    return key;
  }

  // A sentence begins, or goes on; what was locked stays.
  beginSentence(begins) {
    if (this.shift !== "locked") this.setShift(begins && !this.map.caseless ? "once" : "off");
  }

  setShift(shift) {
    if (this.shift !== shift) {
      this.shift = shift;
      this.case();
    }
  }

  // Show capitals or small letters on the keys.
  case() {
    const upper = this.shift !== "off";
    for (const key of this.element.querySelectorAll(".key")) {
      const name = key.dataset.key;
      if (name === "shift") {
        key.classList.toggle("on", upper);
        key.setAttribute("aria-pressed", String(upper));
        key.setAttribute("aria-label", t(this.shift === "locked" ? "keys.capsLock" : "keys.shift"));
      } else if (this.isLetter(name)) {
        const written = this.written(name, upper), shown = /^\p{M}/u.test(written) ? `◌${written}` : written;
        if (key.firstChild.data === shown) continue;
        key.firstChild.data = shown;
        key.lastChild.textContent = shown;
      }
    }
  }

  isLetter(name) {
    return this.page === "letters" && this.map.keys.has(name);
  }

  written(name, upper) {
    return upper && this.isLetter(name) ? this.map.upper(name) : name;
  }

  waits(name) {
    return name === "settings" || (this.page === "emoji" && !NAMES[name]);
  }

  down(event) {
    const key = event.target.closest(".key");
    event.preventDefault(); // the caret stays where it is
    if (!key) return;
    const name = key.dataset.key;
    if (this.waits(name)) return;
    key.setPointerCapture?.(event.pointerId);
    key.classList.add("pressed");
    if (event.pointerType !== "mouse") key.classList.add("touched");
    if (this.options.haptics && navigator.userActivation?.hasBeenActive) navigator.vibrate?.(4);
    if (this.page === "letters" && !NAMES[name])
      this.hold.begin(key, this.map.offered(name, this.shift !== "off"));
    this.act(name);
    if (name === "erase") this.repeat();
  }

  up(event) {
    const key = event.target.closest?.(".key"), chosen = this.hold.end();
    if (chosen && event.type === "pointerup") this.press(chosen, true);
    key?.classList.remove("pressed", "touched");
    if (!key || key.dataset.key === "erase") clearTimeout(this.timer);
  }

  repeat() {
    clearTimeout(this.timer);
    const again = () => {
      this.press("erase");
      this.timer = setTimeout(again, REPEAT);
    };
    this.timer = setTimeout(again, WAIT);
  }

  act(name) {
    if (name in PAGES || name === "letters" || name === "emoji") {
      this.page = name;
      this.draw();
    } else if (name === "shift") {
      const now = performance.now(), twice = now - this.tapped < DOUBLE;
      this.tapped = now;
      this.setShift(twice ? "locked" : this.shift === "off" ? "once" : "off");
    } else {
      const letter = this.isLetter(name);
      this.press(this.written(name, this.shift !== "off"));
      if (letter && this.shift === "once") this.setShift("off");
      if (name === " " && this.page !== "letters") {
        this.page = "letters";
        this.draw();
      }
    }
  }

  // A physical key shows on the screen as well.
  flash(name, pressed) {
    const found = [...this.element.querySelectorAll(".key")].find((k) => k.dataset.key === name);
    found?.classList.toggle("pressed", pressed);
  }
}
