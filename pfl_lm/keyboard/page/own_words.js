// Counts of the owner's words beside the shared model, as pfl_lm/models/own_words.py states it.

export class OwnWords {
  // rule: { strengths, discounts } of bundle.json; begin: the id that begins a message.
  constructor({ strengths, discounts }, begin) {
    Object.assign(this, { strengths, discounts, begin });
    this.counts = new Map(); // context → word → how often
  }

  // Count the words of one message: [begin, …, end].
  addMessage(ids) {
    for (let at = 1; at < ids.length; at++)
      for (const context of this.contexts(ids.slice(Math.max(0, at - 2), at))) {
        const counts = this.counts.get(context) ?? new Map();
        this.counts.set(context, counts.set(ids[at], (counts.get(ids[at]) ?? 0) + 1));
      }
  }

  // What becomes of the model's probabilities: factor · p + share, shares of few words.
  mixture(before) {
    let factor = 1;
    const shares = new Map();
    this.contexts(before).forEach((context, level) => {
      const counts = this.counts.get(context);
      if (!counts) return;
      const strength = this.strengths[level], discount = this.discounts[level];
      let total = strength;
      for (const count of counts.values()) total += count;
      const below = (strength + discount * counts.size) / total;
      factor *= below;
      for (const [word, share] of shares) shares.set(word, share * below);
      for (const [word, count] of counts)
        shares.set(word, (shares.get(word) ?? 0) + (count - discount) / total);
    });
    return { factor, shares };
  }

  // The contexts of a word after these words, the shorter first; none reaches behind a begin.
  contexts(before) {
    let last = before.slice(-2);
    if (last.length === 2 && last[1] === this.begin) last = last.slice(1);
    return Array.from({ length: last.length + 1 }, (_, n) => last.slice(last.length - n).join(" "));
  }
}
