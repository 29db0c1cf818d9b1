"""Who takes part in a round: a rule, a seed and a round number give the cohort, and nothing else.

poisson   every user with probability ``size_or_rate``, independently. Amplifies privacy, but only
          while the seed stays secret and nobody caps the cohort.
rotation  ``size_or_rate`` users of the round's slot; each user has one of ``min_separation``
          slots for ever. Participations are ≥ ``min_separation`` rounds apart, whether or not
          the seed is known.
fixed     ``size_or_rate`` users, every set equally likely. The shipped libraries' amplification
          is unsound here: account it without.

Work and memory are those of the cohort, at any population. The draws come from a named stream
(Philox), so that a simulation can be repeated; a deployment that claims amplification must flip
its coins where no adversary knows the key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from pfl_lm.streams import key, stream
from pfl_lm.validate import at_least, one_of, within

Users = np.ndarray[Any, np.dtype[np.int64]]
Words = np.ndarray[Any, np.dtype[np.uint64]]

_FEISTEL_ROUNDS = 10  # as in FFX/FF1; four are enough for Luby and Rackoff on wide halves


@dataclass(frozen=True)
class CohortRule:
    """How participation is decided.

    Args:
        kind: see above.
        population: users 0 … population − 1.
        size_or_rate: users per cohort, over-selection included (rotation, fixed: an integer), or
            each user's probability per round (poisson: in (0, 1]).
        min_separation: smallest r₂ − r₁ between two participations; rotation only, else 1.

    Raises:
        ValueError: at construction: a field out of range, or a population too small.
    """

    kind: Literal["poisson", "rotation", "fixed"]
    population: int
    size_or_rate: float
    min_separation: int = 1

    def __post_init__(self) -> None:
        one_of(("poisson", "rotation", "fixed"), kind=self.kind)
        within(1, 2**62, population=self.population)
        if self.kind != "rotation" and self.min_separation != 1:
            raise ValueError(f'min_separation belongs to kind = "rotation", not "{self.kind}"')
        at_least(1, min_separation=self.min_separation)
        if self.kind == "poisson":
            if not 0 < self.size_or_rate <= 1:
                raise ValueError(f"a Poisson rate must lie in (0, 1], got {self.size_or_rate}")
            return
        if not (self.size_or_rate >= 1 and float(self.size_or_rate).is_integer()):
            raise ValueError(f"a cohort size must be a whole number ≥ 1, got {self.size_or_rate}")
        needed = int(self.size_or_rate) * self.min_separation
        if needed > self.population:
            raise ValueError(
                f"population = {self.population} is too small: cohorts of {int(self.size_or_rate)}"
                f" at min_separation = {self.min_separation} need {needed} users"
            )


def cohort(rule: CohortRule, seed: int, round: int) -> Users:
    """Return the users invited to a round, sorted: int64[n].

    Args:
        seed: of the run; for Poisson sampling it must be secret for amplification to hold.
        round: from 0.

    Guarantees:
        * No user twice. The same (rule, seed, round) gives the same cohort; no state is kept.
        * poisson: the users taken are distributed as independent coin flips: their number is
          binomial and, given it, every set of that size is equally likely.
        * rotation: two rounds that invite the same user differ by a multiple of min_separation.
    """
    if round < 0:
        raise ValueError(f"round must not be negative, got {round}")
    random = stream(seed, "cohort", rule.kind, round)
    if rule.kind == "poisson":
        count = int(random.binomial(rule.population, rule.size_or_rate))
        return _subset(rule.population, count, random)
    size = int(rule.size_or_rate)
    if rule.kind == "fixed":
        return _subset(rule.population, size, random)
    slot = round % rule.min_separation
    # Places slot, slot + min_separation, … of the shuffled population belong to this slot.
    members = (rule.population - slot + rule.min_separation - 1) // rule.min_separation
    places = slot + rule.min_separation * _subset(members, size, random)
    users = Permutation(rule.population, key(seed, "rotation slots")).invert(places)
    return np.sort(users)


def slots(rule: CohortRule, seed: int, users: Users) -> Users:
    """Return each user's rotation slot, int64[n]: they may take part in rounds r ≡ slot only.

    For a device that decides alone whether it is invited, and for an auditor.
    """
    if rule.kind != "rotation":
        raise ValueError(f'only kind = "rotation" has slots, not "{rule.kind}"')
    places = Permutation(rule.population, key(seed, "rotation slots")).apply(users)
    return places % rule.min_separation


def _subset(population: int, count: int, random: np.random.Generator) -> Users:
    """Return a uniform subset of 0 … population − 1, sorted: int64[count], memory O(count)."""
    if count > population // 2:
        absent = _subset(population, population - count, random)
        return np.delete(np.arange(population, dtype=np.int64), absent)
    drawn = random.integers(population, size=count + count // 2)
    while True:
        # The first ``count`` different values of an endless uniform sequence.
        values, first = np.unique(drawn, return_index=True)
        if len(values) >= count:
            earliest = np.argsort(first)[:count]
            return np.sort(values[earliest])
        drawn = np.concatenate([drawn, random.integers(population, size=count)])


@dataclass(frozen=True)
class Permutation:
    """A keyed pseudorandom permutation of 0 … size − 1, computed one element at a time.

    A Feistel network with AES-256 as its round function, over the least number of bits that holds
    ``size``; results outside are permuted again until they fall inside (twice on average).

    Guarantees:
        A bijection for every key, so separation never rests on the cipher. That the order looks
        random does: Luby–Rackoff, for sizes large against the number of queries.

    Source: NIST SP 800-38G (FF1) for the construction; Black and Rogaway 2002, "Ciphers with
    arbitrary finite domains", for cycle walking.
    """

    size: int
    secret: bytes = field(repr=False)

    def apply(self, elements: Users) -> Users:
        """Return the place of each element: int64[n] → int64[n]."""
        return self._walk(elements, range(_FEISTEL_ROUNDS))

    def invert(self, places: Users) -> Users:
        """Return the element at each place: int64[n] → int64[n]."""
        return self._walk(places, range(_FEISTEL_ROUNDS - 1, -1, -1))

    def _walk(self, elements: Users, rounds: range) -> Users:
        if len(elements) and not (elements.min() >= 0 and elements.max() < self.size):
            raise ValueError(f"elements must lie in 0 … {self.size - 1}")
        cipher = Cipher(algorithms.AES(hashlib.sha256(self.secret).digest()), modes.ECB())
        encrypt = cipher.encryptor().update
        images = self._feistel(elements.astype(np.uint64), rounds, encrypt)
        while len(outside := np.flatnonzero(images >= self.size)):
            images[outside] = self._feistel(images[outside], rounds, encrypt)
        return images.astype(np.int64)

    def _feistel(self, elements: Words, rounds: range, encrypt: Callable[[bytes], bytes]) -> Words:
        """Change each half in turn by a function of the other: undone in reverse order."""
        width = max(2, (self.size - 1).bit_length())
        low = np.uint64(width // 2)
        masks = ((1 << (width - width // 2)) - 1, (1 << (width // 2)) - 1)
        halves = [elements >> low, elements & np.uint64(masks[1])]
        for number in rounds:
            changed, other = number % 2, 1 - number % 2
            blocks = np.empty((len(elements), 2), dtype="<u8")
            blocks[:, 0], blocks[:, 1] = halves[other], number
            words = np.frombuffer(encrypt(blocks.tobytes()), dtype="<u8")[::2]
            halves[changed] = halves[changed] ^ (words & np.uint64(masks[changed]))
        return (halves[0] << low) | halves[1]
