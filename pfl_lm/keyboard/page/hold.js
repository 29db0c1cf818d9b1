// A long press: what a key offers beside its own character, in a row above it that a finger slides over.

const AFTER = 380; // milliseconds
const IN_A_ROW = 6;

export class Hold {
  /** @param {HTMLElement} board what the row is placed in */
  constructor(board) {
    this.board = board;
    this.box = null;
  }

  /**
   * Open after a while, unless `end` comes first.
   * @param {HTMLElement} key
   * @param {string[]} offered the first is chosen where the finger does not move
   */
  begin(key, offered) {
    this.end();
    if (offered.length) this.timer = setTimeout(() => this.#open(key, offered), AFTER);
  }

  #open(key, offered) {
    this.box = document.createElement("div");
    this.box.className = "hold";
    this.box.style.setProperty("--in-a-row", String(Math.min(offered.length, IN_A_ROW)));
    this.box.append(...offered.map((one) => {
      const choice = document.createElement("span");
      choice.dataset.choice = one;
      choice.textContent = /^\p{M}/u.test(one) ? `◌${one}` : one.replace("\u200c", "⸽");
      return choice;
    }));
    this.board.append(this.box);
    const board = this.board.getBoundingClientRect(), at = key.getBoundingClientRect();
    const most = board.width - this.box.offsetWidth - 4;
    const left = Math.max(4, Math.min(at.left - board.left, most));
    this.box.style.left = `${left}px`;
    this.box.style.top = `${at.top - board.top - this.box.offsetHeight - 6}px`;
    this.#mark(this.box.firstChild);
    key.classList.remove("touched"); // its own picture would lie over the row
    this.opened = { x: at.left + at.width / 2, y: at.top + at.height / 2 };
  }

  #mark(choice) {
    for (const one of this.box.children) one.classList.toggle("on", one === choice);
    this.choice = choice?.dataset.choice ?? null;
  }

  /** @param {PointerEvent} event */
  move({ clientX, clientY }) {
    if (!this.box) return;
    const { x, y } = this.opened;
    if (Math.hypot(clientX - x, clientY - y) < 24) return; // the finger has hardly moved
    let best = null, least = 90; // a finger that is far from all of them takes none
    for (const one of this.box.children) {
      const box = one.getBoundingClientRect();
      const away = Math.abs(clientX - box.left - box.width / 2)
        + Math.max(0, box.top - clientY, clientY - box.bottom) / 2;
      if (away < least) [best, least] = [one, away];
    }
    this.#mark(best);
  }

  /**
   * The finger has left the key.
   * @returns {string | null} what was chosen
   */
  end() {
    clearTimeout(this.timer);
    if (!this.box) return null;
    this.box.remove();
    this.box = null;
    return this.choice;
  }
}
