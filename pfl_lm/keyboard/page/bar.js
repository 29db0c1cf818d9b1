// The places of the bar above the keys: what was typed, what was meant, what comes next; an emoji.

/**
 * @typedef {object} Shown
 * @property {string} text what a tap writes
 * @property {boolean} [literal] it is what was typed
 * @property {boolean} [own] a word of the owner's own, which the vocabulary lacks
 * @property {boolean} [fixes] a space writes it in place of what was typed
 */

/**
 * Choose what the bar shows, from left to right; the best stands in the middle.
 * @param {string} typed the half-typed word
 * @param {boolean} known whether the vocabulary or the owner has it
 * @param {{text: string, score: number, own?: boolean}[]} words that go on from it, in any order
 * @param {{text: string, sure: boolean} | null} correction what was meant
 * @returns {(Shown | undefined)[]} three
 */
export function arrange(typed, known, words, correction) {
  const literal = { text: typed, literal: true };
  if (correction?.sure) {
    const others = words.filter(({ text }) => text !== correction.text && text !== typed);
    return [literal, { text: correction.text, fixes: true }, rank(others, 1)[0]];
  }
  if (!typed || known) {
    const [best, second, third] = rank(words, 3);
    return [second, best, third];
  }
  return [literal, ...rank(words, 2)];
}

/**
 * Choose the emoji of the fourth place, which stands there until a letter is typed.
 * @param {number[]} ids of the emoji that the bundle lists
 * @param {string[]} words by id
 * @param {((id: number) => number) | null} chance of each word; null: not known yet
 * @returns {Shown | undefined}
 */
export function likeliest(ids, words, chance) {
  if (!ids.length || !chance) return undefined;
  return { text: words[ids.reduce((best, id) => (chance(id) > chance(best) ? id : best))] };
}

// The best first; a word of the owner's own is among them where there is more than one place.
function rank(words, places) {
  const ranked = [...words].sort((a, b) => b.score - a.score), own = ranked.findIndex((one) => one.own);
  if (places > 1 && own >= places) ranked.splice(places - 1, 0, ...ranked.splice(own, 1));
  return ranked.slice(0, places).map(({ text, own }) => ({ text, own }));
}
