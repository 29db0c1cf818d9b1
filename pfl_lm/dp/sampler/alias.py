"""Exact draws from a thousand outcomes by one small table: Walker's alias method in integers.

What is here in numpy is the definition; ``native/encode.c`` computes the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pfl_lm import native
from pfl_lm.dp.sampler.arrays import Cells, Int64s, Integers, Octets, Room, Words

COLUMN_BITS = 10  # 2^10 entries of four bytes stay in the first cache
REST = (1 << COLUMN_BITS) - 1  # the last outcome: the sample is drawn in another way
CHOICE_BITS = 10  # of a word, that a column's threshold divides
SHARE_BITS = COLUMN_BITS + CHOICE_BITS  # outcomes have whole shares of 2^20
SIGN = 1 << 31  # of a noted place
_THRESHOLD_BITS = CHOICE_BITS + 1
_BLOCK = 1 << 14  # words at a time, for numpy's temporaries to stay in a cache


@dataclass(frozen=True)
class Alias:
    """Turns words of 32 uniform bits into signed integers, or into the outcome ``REST``.

    A word is, from its highest bit down: a column c of 10 bits; ``low_bits`` bits l; 10 bits v;
    ``spare_bits`` that decide nothing here; a sign. The outcome is c if v is below the column's
    threshold, and the column's other outcome if not. Outcome j < ``REST`` means the magnitude
    j·2^low_bits + l.

    Guarantees:
        With uniform words, outcome j comes with probability exactly shares[j]/2^20 and, given any
        outcome, sign, l and the spare bits are uniform and independent of it: (c, v) takes 2^20
        values, all alike, and exactly shares[j] of them choose j.

    Source: Walker 1977, "An efficient method for generating discrete random variables with general
    distributions"; Vose 1991 (building the table).
    """

    entries: Cells  # int32[1024]: (other outcome − c)·2^low_bits·2^11 + threshold
    low_bits: int  # at most 9

    @property
    def spare_bits(self) -> int:
        """How many bits of a word are left for another purpose, from its second lowest on."""
        return 31 - SHARE_BITS - self.low_bits

    @classmethod
    def of(cls, shares: Sequence[int], low_bits: int) -> Alias:
        """Build the table of 1,024 whole shares that sum to 2^20.

        Raises:
            ValueError: another number of shares, or another sum; low_bits outside 0..9.
        """
        full = 1 << CHOICE_BITS
        left = [int(share) for share in shares]
        if len(left) != REST + 1 or sum(left) != full * len(left) or min(left) < 0:
            raise ValueError(f"need {REST + 1} shares that sum to 2^{SHARE_BITS}")
        if not 0 <= low_bits <= 9:
            raise ValueError(f"low_bits must lie in 0..9, got {low_bits}")
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
        steps = np.array(others, np.int32) - np.arange(len(others), dtype=np.int32)
        entries = np.left_shift(steps, low_bits + _THRESHOLD_BITS, dtype=np.int32)
        entries += np.array(thresholds, np.int32)
        entries.flags.writeable = False
        return cls(entries, low_bits)

    def add(self, random: Octets, out: Integers) -> Words:
        """Add what words choose to int32[n] or int64[n]: the first n of uint32 in ``random``.

        Returns:
            The places left to the rest, to which nothing is added, in ascending order; each with
            its word's sign as its highest bit. The next call may write over them.
        """
        compiled = native.load("encode")
        if compiled is None:
            return self.add_words(random[: 4 * len(out)].view(np.uint32), out)
        left = room_for_places(len(out))
        table = self.entries.ctypes.data, self.low_bits, left.ctypes.data
        into = out.itemsize, out.ctypes.data
        count = compiled.add_samples(len(out), random.ctypes.data, *table, *into)
        return left[:count]

    def add_words(self, words: Words, out: Integers) -> Words:
        """The same from uint32[n] words: the definition."""
        left = [np.empty(0, np.uint32)]
        for begin in range(0, len(out), _BLOCK):
            block = words[begin : begin + _BLOCK]
            samples, rest = self._samples(block)
            out[begin : begin + _BLOCK] += samples
            left.append((rest + begin).astype(np.uint32) | block[rest] << np.uint32(31))
        return np.concatenate(left)

    def _samples(self, words: Words) -> tuple[Cells, Int64s]:
        """Return each word's sample, 0 for the rest, and the places of the rest."""
        shift = 32 - COLUMN_BITS - self.low_bits
        entry = np.take(self.entries, words >> np.uint32(32 - COLUMN_BITS), mode="clip")
        choice = words >> np.uint32(shift - CHOICE_BITS) & np.uint32((1 << CHOICE_BITS) - 1)
        below = choice.view(np.int32) < (entry & np.int32((1 << _THRESHOLD_BITS) - 1))
        entry >>= np.int32(_THRESHOLD_BITS)
        np.putmask(entry, below, 0)
        samples = (words >> np.uint32(shift)).view(np.int32)
        samples += entry
        rest = np.flatnonzero(samples >= REST << self.low_bits)
        samples[rest] = 0
        negative = np.negative((words & np.uint32(1)).view(np.int32))  # 0 or −1, all ones
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
