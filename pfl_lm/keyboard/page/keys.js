// The keys of a phone: draws them, follows fingers, and says what was pressed.

import { t } from "./language.js";

const PAGES = {
  letters: ["qwertyuiop", "asdfghjkl", "zxcvbnm"],
  numbers: ["1234567890", "-/:;()$&@\"", ".,?!'"],
  symbols: ["[]{}#%^*+=", "_\\|~<>€£¥•", ".,?!'"],
};
const ICONS = {
  shift: '<svg viewBox="0 0 24 24" aria-hidden="true"><path d="M12 4l8 8.5h-4.5V19h-7v-6.5H4z"/></svg>',
  erase: '<svg viewBox="0 0 24 24" aria-hidden="true"><path d="M9 5h10.5A1.5 1.5 0 0 1 21 6.5v11a1.5 1.5 0 0 1-1.5 1.5H9l-6-7zM11.5 9.500l5 5m0-5l-5 5"/></svg>',
  send: '<svg viewBox="0 0 24 24" aria-hidden="true"><path d="M12 20V5m-6.5 6.5L12 5l6.5 6.5"/></svg>',
};
const NAMES = { erase: "keys.erase", send: "keys.send", " ": "keys.space", letters: "keys.letters",
  numbers: "keys.numbers", symbols: "keys.symbols", shift: "keys.shift" };
const HOLD = 400, REPEAT = 60; // milliseconds before, and between, repeated deletions
const DOUBLE = 350;

export class Keys {
  // press(key): a character, " ", "erase" or "send".
  constructor(element, press, language) {
    Object.assign(this, { element, press, language });
    this.page = "letters";
    this.shift = "off"; // off, once, locked
    this.tapped = 0;
    this.draw();
    element.addEventListener("pointerdown", (event) => this.down(event));
    for (const name of ["pointerup", "pointercancel", "pointerleave"])
      element.addEventListener(name, (event) => this.up(event), true);
    // A press by keyboard or by a screen reader comes as a click alone.
    element.addEventListener("click", (event) => {
      const key = event.target.closest(".key");
      if (key && event.detail === 0) this.act(key.dataset.key);
    });
  }

  draw() {
    const [first, second, third] = PAGES[this.page].map((row) => [...row].map((c) => this.key(c)));
    const left = this.page === "letters" ? this.key("shift", "wide other")
      : this.key(this.page === "numbers" ? "symbols" : "numbers", "wide other");
    const mode = this.page === "letters" ? "numbers" : "letters";
    const rows = [first, second, [left, ...third, this.key("erase", "wide other")], [
      this.key(mode, "wide other"), this.key(",", "half"), this.key(" ", "space"),
      this.key(".", "half"), this.key("send", "send"),
    ]];
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
    key.tabIndex = -1;
    key.dataset.key = name;
    key.className = `key ${kind}`;
    const label = { letters: "ABC", numbers: "123", symbols: "#+=", " ": this.language }[name];
    key.innerHTML = ICONS[name] ?? "";
    if (!ICONS[name]) key.textContent = label ?? name;
    if (name.length === 1 && name !== " ") {
      const pop = document.createElement("span");
      pop.className = "pop";
      pop.setAttribute("aria-hidden", "true");
      pop.textContent = name;
      key.append(pop);
    }
    key.setAttribute("aria-label", NAMES[name] ? t(NAMES[name]) : name);
    return key;
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
      } else if (/^[a-z]$/.test(name)) {
        const shown = upper ? name.toUpperCase() : name;
        key.firstChild.data = shown;
        key.lastChild.textContent = shown;
      }
    }
  }

  down(event) {
    const key = event.target.closest(".key");
    event.preventDefault(); // the caret stays where it is
    if (!key) return;
    key.setPointerCapture?.(event.pointerId);
    key.classList.add("pressed");
    if (event.pointerType !== "mouse") key.classList.add("touched");
    if (navigator.userActivation?.hasBeenActive) navigator.vibrate?.(4);
    this.act(key.dataset.key);
    if (key.dataset.key === "erase") this.repeat();
  }

  up(event) {
    const key = event.target.closest?.(".key");
    key?.classList.remove("pressed", "touched");
    if (!key || key.dataset.key === "erase") clearTimeout(this.timer);
  }

  repeat() {
    clearTimeout(this.timer);
    const again = () => {
      this.press("erase");
      this.timer = setTimeout(again, REPEAT);
    };
    this.timer = setTimeout(again, HOLD);
  }

  act(name) {
    if (name in PAGES) {
      this.page = name;
      this.draw();
    } else if (name === "shift") {
      const now = performance.now(), twice = now - this.tapped < DOUBLE;
      this.tapped = now;
      this.setShift(twice ? "locked" : this.shift === "off" ? "once" : "off");
    } else {
      const letter = /^[a-z]$/.test(name);
      this.press(letter && this.shift !== "off" ? name.toUpperCase() : name);
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
