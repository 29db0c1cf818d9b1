// How words stand in a text: where sentences begin, capitals, and the space before a suggestion.

import { t } from "./language.js";

// What may stand around the beginning and the end of a sentence, and the marks that end one, which are
// those of pfl_lm/text/normalisation.py.
const OPENING = "\"'“‘«(¿¡[", CLOSING = "\"'”’»)]", ASKS = /(^|\s)[¿¡]$/u;
const ENDS = ".!?…؟।॥۔։።፧";
const GREEK_ENDS = `${ENDS};`; // a Greek question ends in a semicolon
const CLOSED = /[\p{L}\p{N}.,!?:;…”’»)\]،؛؟।॥۔։።፧]$/u; // what a word does not follow without a space
const SHORT = /(^|[^\p{L}])\p{L}\.\p{L}\.$/u; // e.g. and the like end no sentence

// ı and i are two letters in these languages, as in Turkish.
const DOTLESS = ["tr", "az", "kk", "crh", "tt"], DOTTED = "tr";

/** Marks that take the place of the space that came with a suggestion. */
export const MARKS = ".,?!:;،؛؟।॥۔։።፧";

/** @typedef {"lower" | "title" | "upper"} Shape */

/**
 * Whether a sentence begins after a text.
 * @param {string} before
 * @param {string} locale
 */
export function begins(before, locale) {
  if (ASKS.test(before)) return true;
  const text = withoutEnd(before, OPENING), said = text.trimEnd(), space = text.slice(said.length);
  if (space && text === before && SHORT.test(said)) return false;
  if (!text || space.includes("\n")) return true;
  const marks = /^el([-_]|$)/.test(locale) ? GREEK_ENDS : ENDS;
  return Boolean(space) && marks.includes(withoutEnd(said, CLOSING).at(-1));
}

// A text without the characters of a set that stand last. It takes as many steps as there are of them; an
// expression that ends in $ would try each place of a long text.
function withoutEnd(text, set) {
  let end = text.length;
  while (end && set.includes(text[end - 1])) end--;
  return text.slice(0, end);
}

/**
 * The space that a suggestion puts between itself and what it does not follow without one.
 * @param {string} before the text before the half-typed word
 * @param {string} typed
 */
export function gapAfter(before, typed) {
  return !typed && CLOSED.test(before) ? " " : "";
}

/**
 * What of a word stands after the caret inside of it.
 * @param {string} after the text after the caret
 */
export function restOfWord(after) {
  return after.match(/^(?:['’]?[\p{L}\p{M}\p{N}\u200c\u200d])*/u)[0];
}

/**
 * How a suggestion begins: as what was typed does, or as the beginning of a sentence.
 * @param {string} typed
 * @param {string} before
 * @param {"off" | "once" | "locked"} shift
 * @param {string} locale
 * @returns {Shape}
 */
export function shapeOf(typed, before, shift, locale) {
  const letters = typed.replace(/[^\p{L}]/gu, "");
  if (letters.length > 1 && isUpper(letters) || shift === "locked") return "upper";
  if (letters) return letters[0] !== letters[0].toLowerCase() ? "title" : "lower";
  return begins(before + gapAfter(before, typed), locale) ? "title" : "lower";
}

// Whether letters are capitals; those of a script that has none are not.
function isUpper(letters) {
  return letters === letters.toUpperCase() && letters !== letters.toLowerCase();
}

/**
 * A word as it stands in a text.
 * @param {string} word as it is written inside of a sentence
 * @param {Shape} shape
 * @param {string} locale
 */
export function cased(word, shape, locale) {
  const tag = languageTag(locale);
  if (shape === "upper") return word.toLocaleUpperCase(tag);
  if (locale.startsWith("en") && /^i('|$)/.test(word)) word = `I${word.slice(1)}`;
  if (shape !== "title") return word;
  // Greek keeps the accent of a first capital, which it leaves out where all letters are capitals.
  const [first = ""] = word; // a whole letter: those of Adlam take two places
  return (tag === DOTTED ? first.toLocaleUpperCase(tag) : first.toUpperCase()) + word.slice(first.length);
}

/**
 * A language in its own words, such as français; the name of the space key where nobody knows the locale.
 * @param {string} locale
 */
export function languageName(locale) {
  try {
    const tag = locale.replace("_", "-");
    return new Intl.DisplayNames([tag], { type: "language" }).of(tag.split("-")[0]);
  } catch {
    return t("keys.space");
  }
}

// The language by whose rules a locale's capitals are made. English where a locale is none, not the
// browser's own, by which the same words would be written otherwise elsewhere.
function languageTag(locale) {
  const language = locale.replace("_", "-").split("-")[0];
  if (DOTLESS.includes(language)) return DOTTED;
  try {
    return Intl.getCanonicalLocales(language)[0];
  } catch {
    return "en";
  }
}
