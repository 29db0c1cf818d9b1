// Layouts of keys: which one a locale has, what each key offers to a long press, and where keys lie.

const DIGITS = "1234567890";
const MARKS = ["?", "!", ":", ";", "'", "\"", "-", "(", ")", "…"]; // of a long press on the full stop
const PITCH = 1.4; // height of a row in widths of a key

/**
 * @typedef {object} Layout of keys, as layouts.json states it
 * @property {string} name
 * @property {string[]} rows the keys of each row, parted by spaces
 * @property {string[]} [shifted] rows that shift shows, where a script has no capitals
 * @property {Record<string, string>} [holds] what a long press on a key offers, parted by spaces
 * @property {boolean} [rtl] whether the script runs from right to left
 * @property {boolean} [caseless]
 * @property {string} [label] of the key that leads back to the letters; ABC if left out
 * @property {string} [comma]
 * @property {string} [stop] what ends a sentence, where it is no full stop
 * @property {string} [question]
 * @property {string} [semicolon]
 */

export class Layouts {
  /**
   * @param {object} data layouts.json
   * @param {string} locale of the vocabulary, such as fr_CA
   */
  constructor(data, locale) {
    const tag = locale.replace("-", "_"), language = tag.split("_")[0];
    this.data = data;
    this.locale = data.locales[tag] ?? data.locales[language] ?? { layouts: ["qwerty"] };
    this.language = language;
    const latin = /q/.test(data.layouts[this.locale.layouts[0]].rows.join(""));
    /** Names of the layouts to choose from, the default first; every script has a Latin one beside. */
    this.names = [...new Set([...this.locale.layouts, ...(latin ? data.latin : data.latin.slice(0, 1))])];
  }

  /**
   * @param {string} [name] one of `names`
   * @returns {KeyMap}
   */
  open(name = this.names[0]) {
    if (!this.names.includes(name)) name = this.names[0];
    return new KeyMap(name, this.data.layouts[name], this.locale, this.data.holds, this.language);
  }
}

/** A layout for a locale. */
export class KeyMap {
  /**
   * @param {string} id
   * @param {Layout} layout
   * @param {{letters?: string, holds?: Record<string, string>}} locale
   * @param {Record<string, string>} holds of all Latin layouts
   * @param {string} language
   */
  constructor(id, layout, locale, holds, language) {
    Object.assign(this, { id, layout, locale, holds, language });
    this.rows = layout.rows.map((row) => row.split(" "));
    this.shifted = layout.shifted?.map((row) => row.split(" "));
    this.columns = Math.max(...this.rows.map((row) => row.length));
    this.comma = layout.comma ?? ",";
    this.stop = layout.stop ?? ".";
    this.caseless = Boolean(layout.caseless);
    this.label = layout.label ?? "ABC";
    this.keys = new Set(this.rows.flat());
    this.places = this.#places();
  }

  /**
   * What a long press on a key offers while shift is on, or off.
   * @param {string} key
   * @param {boolean} upper
   * @returns {string[]}
   */
  offered(key, upper) {
    if (!upper || !this.keys.has(key)) return this.alternatives(key);
    if (this.caseless) return this.alternatives(this.upper(key));
    return this.alternatives(key).map((one) => this.upper(one));
  }

  /** Whether shift does anything. */
  get shifts() {
    return !this.caseless || Boolean(this.shifted);
  }

  /**
   * What a long press on a key offers, the first as default: the locale's letters, the digit of a
   * key in the first row, then the letters of other languages.
   * @param {string} key in lower case, or what shift shows where a script has no capitals
   * @returns {string[]}
   */
  alternatives(key) {
    if (key === this.stop) return this.#marks();
    const own = this.locale.letters ?? "", parted = (all) => all ? all.split(" ") : [];
    const latin = parted(this.holds[key]);
    const first = [...parted(this.locale.holds?.[key]), ...parted(this.layout.holds?.[key]),
      ...[...own].filter((one) => latin.includes(one))];
    const place = this.rows[0].indexOf(key);
    const digit = place >= 0 && DIGITS[place] ? [DIGITS[place]] : [];
    return [...new Set([...first, ...digit, ...latin])].filter((one) => one !== key);
  }

  #marks() {
    const { comma = ",", question, semicolon } = this.layout;
    const own = [question, semicolon, this.stop === "." ? null : ".", comma === "," ? null : ","];
    return [...new Set([...own.filter(Boolean), ...MARKS])];
  }

  /**
   * The capital of a key's letter.
   * @param {string} letter
   */
  upper(letter) {
    if (this.caseless) return this.#shiftedKey(letter);
    return letter === "ß" ? "ẞ" : letter.toLocaleUpperCase(this.language);
  }

  #shiftedKey(key) {
    if (!this.shifted) return key;
    for (const [at, row] of this.rows.entries())
      if (row.includes(key)) return this.shifted[at][row.indexOf(key)] ?? key;
    return key;
  }

  // Key → [x, y] of its middle, in widths of a key. A shifted key lies where its key does, and a
  // letter of a long press where its key does unless it has a key of its own.
  #places() {
    const places = new Map();
    this.rows.forEach((row, y) => row.forEach((key, x) => {
      places.set(key, [x + (this.columns - row.length) / 2, y * PITCH]);
    }));
    for (const key of [...places.keys()])
      for (const other of [this.#shiftedKey(key), ...this.alternatives(key)])
        if (!places.has(other) && /\p{L}|\p{M}/u.test(other)) places.set(other, places.get(key));
    return places;
  }
}
