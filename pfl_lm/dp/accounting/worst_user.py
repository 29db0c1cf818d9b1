"""From recorded rounds to those that one user may have been in, at the worst."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

from pfl_lm.dp.accounting.streams import as_one_release, most_participations, repeated_round
from pfl_lm.dp.events import RoundEvent

Events: TypeAlias = Mapping[RoundEvent, int] | Iterable[RoundEvent]


@dataclass(frozen=True)
class History:
    """The rounds of one run, or of one question.

    Attributes:
        counted: the events, and how often each occurred.
        listed: the same one by one, with their rounds; empty where only counts are known.
    """

    counted: Counter[RoundEvent]
    listed: tuple[RoundEvent, ...]

    @classmethod
    def of(cls, events: Events) -> History:
        """Count events; raises ValueError for a count below 0."""
        listed = () if isinstance(events, Mapping) else tuple(events)
        counted = Counter(events if isinstance(events, Mapping) else listed)
        if any(count < 0 for count in counted.values()):
            raise ValueError("no event can have happened less than 0 times")
        return cls(counted, listed)

    def fault(self) -> str | None:
        """Return why these are not rounds of one stream, each of them once, or None."""
        return repeated_round(self.counted, list(self.listed))

    @property
    def streams(self) -> dict[RoundEvent, int]:
        """The rounds whose noise is correlated."""
        return {event: n for event, n in self.counted.items() if event.stream is not None and n}

    def of_worst_user(self) -> Counter[RoundEvent]:
        """Return what the user had to do with whom these rounds cost most: unsampled, or drawn."""
        if streams := self.streams:
            return as_one_release(streams)
        return _least_noisy(self.counted, self.listed)

    def participations(self) -> int:
        """Return the most rounds that one user may have been in."""
        if streams := self.streams:
            return min(sum(streams.values()), *(most_participations(event) for event in streams))
        worst = self.of_worst_user()
        return sum(n for event, n in worst.items() if event.rate > 0 or event.sampling == "none")


def _least_noisy(
    counted: Counter[RoundEvent], listed: tuple[RoundEvent, ...]
) -> Counter[RoundEvent]:
    """Replace the rounds of each rotation by the k least noisy ones that one user may be in.

    A user is in at most k rounds that lie ``min_separation`` apart; whichever they are, they cost
    no more than the k with the least noise. Where payloads differ, each is counted as the smallest:
    the same noise on fewer coordinates costs no less. Rotation rounds without a number, or two
    with the same, may all be the same user's.
    """
    worst = Counter({event: n for event, n in counted.items() if event.sampling != "rotation"})
    families: dict[RoundEvent, list[RoundEvent]] = defaultdict(list)
    for event in listed:
        if event.sampling == "rotation":
            # Reports of one rotation may vary: more shares of noise are less noisy ones
            # post-processed, so the order by noise is the order by cost.
            families[replace(event, noise_multiplier=0.0, reports=1, dim=1)].append(event)
    for event, count in counted.items():
        if event.sampling == "rotation" and not listed:
            worst[replace(event, sampling="none")] += count
    for family, members in families.items():
        most = _most_separated([member.round for member in members], family.min_separation)
        most = min(most, family.max_participations or most)
        members.sort(key=lambda member: member.noise_multiplier)
        smallest = min(member.dim for member in members)
        worst.update(replace(member, sampling="none", dim=smallest) for member in members[:most])
    return worst


def _most_separated(rounds: list[int | None], min_separation: int) -> int:
    """Return how many of these rounds one user may be in (greedy: earliest first is best)."""
    numbers = sorted(number for number in rounds if number is not None)
    if len(set(numbers)) < len(rounds):
        return len(rounds)
    taken, next_free = 0, -math.inf
    for number in numbers:
        if number >= next_free:
            taken, next_free = taken + 1, number + min_separation
    return taken
