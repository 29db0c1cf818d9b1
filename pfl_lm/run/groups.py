"""A round whose sum is opened in public groups, so that one poisoned report spoils one group.

    divide    public    each place of the cohort is in one group, drawn at random for the round
    sum       server    secure aggregation of each group alone            run.aggregation
    release   server    check and decode each sum → RECORD → trimmed mean over the groups

Every user is in one group, so a round costs what one group's sum costs (parallel composition), and
each sum carries as much noise as a round without groups does: the mean's noise is √groups times as
large. A poisoner within the clip norm moves the mean of one group alone. The mean over groups
leaves out, coordinate by coordinate, the largest and the smallest; it is computed from released
sums, and costs no privacy. It takes out what stands out: a report beyond its bound, or one within
it where there is little noise. Noise that hides one user's report hides one poisoned report too.

Source: Yin, Chen, Kannan, Bartlett 2018, "Byzantine-robust distributed learning: towards optimal
statistical rates" (arXiv:1803.01498), the coordinate-wise trimmed mean, over groups in place of
machines.

Legend: g groups, d coordinates of the payload.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pfl_lm.distributed import Ranks
from pfl_lm.dp.ledger import Ledger
from pfl_lm.run.aggregation import Aggregation, absences
from pfl_lm.run.privacy import RunPrivacy
from pfl_lm.run.round import Release, ledger_entry, noisy_mean
from pfl_lm.run.sum_check import check_sum
from pfl_lm.run.trimmed import trimmed_mean
from pfl_lm.secagg.config import MessageKind, RoundConfig
from pfl_lm.secagg.errors import SecaggError, SumLost, TooFewReports
from pfl_lm.secagg.ideal import Reports
from pfl_lm.secagg.rounds import Aggregator
from pfl_lm.secagg.traffic import Traffic
from pfl_lm.server.state import Broadcast
from pfl_lm.streams import stream


def divide(seed: int, round: int, cohort: int, groups: int) -> list[list[int]]:
    """Return the places of a cohort by group: a public draw, sizes equal or one apart."""
    order = stream(seed, "groups", round).permutation(cohort)
    return [sorted(order[group::groups].tolist()) for group in range(groups)]


@dataclass
class _Group:
    """One group of a round: its places in the cohort, its sum, and why that stays closed."""

    places: list[int]
    total: Aggregator | None
    failure: SecaggError | None = None


class GroupedRound:
    """The sums of a round's groups behind the interface of one ``Aggregator``.

    Args:
        aggregation: how each group is summed; its policy says how many there are.
        cohort: devices invited.
        silent: place → the first message that a device does not send; None: dropout decides.
    """

    def __init__(
        self,
        aggregation: Aggregation,
        broadcast: Broadcast,
        cohort: int,
        silent: dict[int, MessageKind] | None = None,
    ) -> None:
        privacy = aggregation.privacy
        self.cohort = cohort
        if silent is None:
            silent = absences(aggregation.dropout, privacy.seed, broadcast.round, cohort)
        self._groups = [
            _open(aggregation, broadcast, places, silent, number)
            for number, places in enumerate(
                divide(privacy.seed, broadcast.round, cohort, privacy.groups)
            )
        ]
        self._group_of = {
            place: number for number, group in enumerate(self._groups) for place in group.places
        }

    @property
    def config(self) -> RoundConfig:
        """What devices and server of the first group that was opened agreed on."""
        return self._open_groups()[0].total.config  # type: ignore[union-attr]

    @property
    def waiting(self) -> list[int]:
        """The devices, by their place in the cohort, that will report if they are let."""
        return sorted(
            group.places[place]
            for group in self._groups
            if group.total is not None
            for place in group.total.waiting
        )

    def submit(self, vectors: Reports, devices: Sequence[int] | None = None) -> int:
        """Add the reports of these places of the cohort, each to the sum of its own group."""
        places = self.waiting[: len(vectors)] if devices is None else list(devices)
        summed = 0
        for number in {self._group_of[place] for place in places}:
            group = self._groups[number]
            rows = [row for row, place in enumerate(places) if self._group_of[place] == number]
            own = [group.places.index(places[row]) for row in rows]
            assert group.total is not None
            summed += group.total.submit(vectors[rows], own)
        return summed

    def merge(self, ranks: Ranks) -> None:
        """Bring the sums of all processes together on the first."""
        for group in self._open_groups():
            assert group.total is not None
            group.total.merge(ranks)

    def traffic(self) -> Traffic:
        """Bytes of a device that took part to the end, in the first group that was opened."""
        opened = [g for g in self._open_groups() if g.failure is None] or self._open_groups()
        assert opened[0].total is not None
        return opened[0].total.traffic()

    def release(
        self,
        privacy: RunPrivacy,
        ledger: Ledger,
        broadcast: Broadcast,
        trimmed: int,
        keep: Callable[[Release], None] = lambda released: None,
    ) -> Release:
        """Open every group's sum, and return the trimmed mean once the round is recorded.

        A group whose sum cannot be opened, or is longer than honest reports make it, is left out;
        the others go on.

        Guarantees:
            Each sum has, of its own devices, the noise that the policy plans for a sum. The ledger
            holds what the round costs before anything is returned: the cost of the group with the
            fewest reports of those that devices were asked to open. Each user is in one of them.

        Raises:
            SumLost: so few groups are left that none stays after trimming; what was asked for is
                to be paid.
            TooFewReports: the same, and no device was asked for anything.
        """
        means, records = [], []
        for number, group in enumerate(self._groups):
            mean, record = _opened(group, privacy, broadcast, number)
            records.append(record)
            if mean is not None:
                means.append(mean * len(self._groups))  # of a group: divided by its own share
        asked = [record["reports"] for record in records if record["asked"]]
        if len(means) <= 2 * trimmed:
            self._fail(asked, len(means), trimmed)
        released = Release(trimmed_mean(np.stack(means), trimmed))
        keep(released)
        entry = ledger_entry(privacy, broadcast, self.cohort, min(asked), released)
        ledger.record_round(broadcast.round, {**entry, "groups": records, "trimmed": trimmed})
        return released

    def _fail(self, asked: list[int], opened: int, trimmed: int) -> None:
        if not asked:
            failure = next(group.failure for group in self._groups if group.failure is not None)
            raise failure
        reason = f"{opened} groups opened a sum, and {trimmed} are left out at either end"
        raise SumLost(min(asked), reason)

    def _open_groups(self) -> list[_Group]:
        return [group for group in self._groups if group.total is not None]


def _open(
    aggregation: Aggregation,
    broadcast: Broadcast,
    places: list[int],
    silent: dict[int, MessageKind],
    number: int,
) -> _Group:
    """Begin the sum of one group; too few devices leave it closed and the others as they are."""
    own = {at: silent[place] for at, place in enumerate(places) if place in silent}
    try:
        return _Group(places, aggregation.open(broadcast, len(places), own, number))
    except TooFewReports as failure:
        return _Group(places, None, failure)


def _opened(
    group: _Group, privacy: RunPrivacy, broadcast: Broadcast, number: int
) -> tuple[NDArray[np.float32] | None, dict[str, Any]]:
    """Open one group's sum: its part of the mean, None where it stays closed, and its record."""
    asked, reports = False, 0
    try:
        if group.total is None:
            assert group.failure is not None
            raise group.failure
        opened, asked = group.total.close(), True
        reports = opened.reports
        check_sum(privacy, opened, group.total.config, broadcast)
        mean = noisy_mean(privacy, opened, group.total.config, broadcast, group=number).mean
        return mean, {"reports": reports, "asked": True, "failure": ""}
    except SecaggError as failure:
        group.failure = failure
        reports = getattr(failure, "reports", reports)
        asked = asked or isinstance(failure, SumLost)
        return None, {"reports": reports, "asked": asked, "failure": str(failure)}
