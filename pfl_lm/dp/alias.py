"""Exact draws from a thousand outcomes by one small table: Walker's alias method in integers.

What is here in numpy is the definition; ``native/encode.c`` computes the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pfl_lm.dp import loops
from pfl_lm.dp.arrays import Cells, Int64s, Octets, Room, Words

COLUMN_BITS = 10  # 2^10 entries of four bytes stay in the first cache
REST = (1 << COLUMN_BITS) - 1  # the last outcome: the sample is drawn in another way
WORD_BITS = 31  # of a word of 32, the highest of which is the sign
SIGN = 1 << WORD_BITS
_BLOCK = 1 << 14  # words at a time, for numpy's temporaries to stay in a cache


@dataclass(frozen=True)
class Alias:
    """Turns words of 32 uniform bits into signed integers, or into the outcome ``REST``.

    A word is, from its highest bit down: a sign; a column c of 10 bits; ``low_bits`` bits l; the
    other 21 − low_bits bits v. The outcome is c if v is below the column's threshold, and the
    column's other outcome if not. Outcome j < ``REST`` means the magnitude j·2^low_bits + l.

    Guarantees:
        With uniform words, outcome j comes with probability exactly shares[j]/2^(31 − low_bits)
        and, given any outcome, sign and l are uniform and independent of it: (c, v) takes
        2^(31 − low_bits) values, all alike, and exactly shares[j] of them choose j.

    Source: Walker 1977, "An efficient method for generating discrete random variables with general
    distributions"; Vose 1991 (building the table).
    """

    entries: Words  # uint32[1024]: threshold · 2^10 + the other outcome
    low_bits: int

    @classmethod
    def of(cls, shares: Sequence[int], low_bits: int) -> Alias:
        """Build the table of 1,024 whole shares that sum to 2^(31 − low_bits).

        Raises:
            ValueError: another number of shares, or another sum.
        """
        full = 1 << (WORD_BITS - COLUMN_BITS - low_bits)
        left = [int(share) for share in shares]
        if len(left) != REST + 1 or sum(left) != full * len(left) or min(left) < 0:
            raise ValueError(f"need {REST + 1} shares that sum to 2^{WORD_BITS - low_bits}")
        thresholds, others = [full] * len(left), list(range(len(left)))
        small = [j for j, share in enumerate(left) if share < full]
        large = [j for j, share in enumerate(left) if share > full]
        while small:  # whose columns the large ones fill up; both end together, sums being equal
            j, giver = small.pop(), large[-1]
            thresholds[j], others[j] = left[j], giver
            left[giver] -= full - left[j]
            if left[giver] <= full:
                large.pop()
                if left[giver] < full:
                    small.append(giver)
        entries = np.array(thresholds, dtype=np.uint32) << np.uint32(COLUMN_BITS)
        entries |= np.array(others, dtype=np.uint32)
        entries.flags.writeable = False
        return cls(entries, low_bits)

    def add(self, random: Octets, out: Int64s) -> Words:
        """Add to int64[n] what the words choose, which are the first n of uint32 in ``random``.

        Returns:
            The places left to the rest, to which nothing is added, in ascending order; each with
            its word's sign as its highest bit. The next call may write over them.
        """
        compiled = loops.encode()
        if compiled is None:
            return self.add_words(random[: 4 * len(out)].view(np.uint32), out)
        left = room_for_places(len(out))
        table = self.entries.ctypes.data, self.low_bits, left.ctypes.data
        count = compiled.add_samples(len(out), random.ctypes.data, *table, out.ctypes.data)
        return left[:count]

    def add_words(self, words: Words, out: Int64s) -> Words:
        """The same from uint32[n] words: the definition."""
        left = [np.empty(0, np.uint32)]
        for begin in range(0, len(out), _BLOCK):
            block = words[begin : begin + _BLOCK]
            samples, rest = self._samples(block)
            out[begin : begin + _BLOCK] += samples
            left.append((rest + begin).astype(np.uint32) | block[rest] & np.uint32(SIGN))
        return np.concatenate(left)

    def _samples(self, words: Words) -> tuple[Cells, Int64s]:
        """Return each word's sample, 0 for the rest, and the places of the rest."""
        low_end = WORD_BITS - COLUMN_BITS
        shift = low_end - self.low_bits
        column = words >> np.uint32(low_end) & np.uint32(REST)
        outcome = np.take(self.entries, column, mode="clip")
        threshold = outcome >> np.uint32(COLUMN_BITS)
        outcome &= np.uint32(REST)
        np.putmask(outcome, (words & np.uint32((1 << shift) - 1)) < threshold, column)
        rest = np.flatnonzero(outcome == REST)
        low = words >> np.uint32(shift) & np.uint32((1 << self.low_bits) - 1)
        samples = (outcome << np.uint32(self.low_bits) | low).view(np.int32)
        samples[rest] = 0
        negative = np.negative((words >> np.uint32(WORD_BITS)).view(np.int32))  # 0 or −1, all ones
        samples ^= negative
        samples -= negative
        return samples, rest


_room = Room(np.uint32)


def room_for_places(count: int) -> Words:
    """Return uint32[count] to note places in, which this thread's next call writes over.

    Raises:
        ValueError: more coordinates than 31 bits can name.
    """
    if count > SIGN:
        raise ValueError(f"a vector has at most 2^31 coordinates, got {count}")
    return _room.of(count)
