// The page of emoji: those used last, then groups of common ones to scroll through.

import { t } from "./language.js";

const LAST = 16; // kept while the page is open
const GROUPS = ["keys.faces", "keys.people", "keys.hearts", "keys.nature", "keys.food", "keys.activities",
  "keys.places"]; // what a screen reader calls those of emoji.json

export class Emoji {
  /**
   * @param {string[]} groups of emoji.json, each parted by spaces; the first stands for its group
   * @param {(name: string, kind: string) => HTMLElement} key draws a key
   */
  constructor(groups, key) {
    this.groups = groups.map((group) => group.split(" "));
    this.key = key;
    this.last = [];
  }

  /** @param {HTMLElement} element of the keys */
  draw(element) {
    const list = document.createElement("div"), tabs = document.createElement("div");
    list.className = "emoji";
    tabs.className = "row tabs";
    const groups = this.last.length ? [this.last, ...this.groups] : this.groups;
    const parts = groups.map((group) => {
      const part = document.createElement("div");
      part.append(...group.map((one) => this.key(one, "emoji-key")));
      return part;
    });
    list.append(...parts);
    tabs.append(this.key("letters", "wide other"), ...groups.map((group, at) => {
      const tab = document.createElement("button");
      tab.type = "button";
      tab.tabIndex = -1;
      tab.textContent = group === this.last ? "🕘" : group[0];
      tab.setAttribute("aria-label", t(group === this.last ? "keys.lastEmoji" : GROUPS[this.groups.indexOf(group)]));
      tab.addEventListener("click", () => { list.scrollTop = parts[at].offsetTop - list.offsetTop; });
      return tab;
    }), this.key("erase", "wide other"));
    element.classList.remove("many");
    element.replaceChildren(list, tabs);
  }

  /**
   * Remember that it was used.
   * @param {string} one
   */
  use(one) {
    this.last = [one, ...this.last.filter((other) => other !== one)].slice(0, LAST);
  }
}
