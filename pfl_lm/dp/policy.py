"""A privacy policy: every number ε depends on; and the guarantee that follows from it.

Noise is derived, never typed: a policy states ε, δ and how people take part.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from pfl_lm.dp.clipping import Clipping
from pfl_lm.dp.device_rules import DeviceRules
from pfl_lm.dp.events import Neighboring, RoundEvent
from pfl_lm.dp.mechanisms import MECHANISMS, Mechanism
from pfl_lm.dp.policy_tables import Noise as Noise
from pfl_lm.dp.policy_tables import Participation as Participation
from pfl_lm.dp.policy_tables import Reviewed as Reviewed
from pfl_lm.validate import at_least, refuse, typed

MOST_PUBLIC_LABELS = 100


@dataclass(frozen=True)
class Policy:
    """What one deployment promises, and how people take part in it.

    Attributes:
        unit: what one promise covers: everything of a ``user``, or of a ``device``.
        neighboring: how two data sets differ by one user: their reports are replaced by zeros
            (``zero_out``), or they are there or not (``add_remove``).
        epsilon: ε that all released models together may cost; inf only where noise is at ``none``.
        delta: δ, at most 1 ÷ population.
        population: users who may take part.
        report_goal: reports that a round aims at; the denominator of the mean, always.
        rounds: the most rounds that are run under this policy.
        participation: how users come to be in a round.
        noise: who adds which noise.
        accepted_server_epsilon: ε against the server, accepted by a person; it must be stated where
            secret coins are relied on.
        clipping: how the clip norm follows the updates; left out: it stays the scenario's.
        groups: public groups that a round's reports are divided into at random; the sum of each is
            opened alone, with a whole round's noise, so that the noise on the mean is √groups times
            as large, and one that poisons its report spoils one group.
        public_labels: labels of devices that are public anyway, such as locales or classes of
            phones. A comparison of models may give figures for the devices of each; left out: for
            all devices together alone.
        devices: the least protection that devices insist on over the network.
        reviewed: figures that a person has approved; `pfl-lm check --write` writes them.

    Raises:
        ValueError: at construction, naming the field and what would be right.
    """

    unit: Literal["user", "device"]
    neighboring: Neighboring
    epsilon: float
    delta: float
    population: int
    report_goal: int
    rounds: int
    participation: Participation
    noise: Noise
    accepted_server_epsilon: float | None = None
    clipping: Clipping | None = None
    groups: int = 1
    public_labels: tuple[str, ...] = ()
    devices: DeviceRules = field(default_factory=DeviceRules)
    reviewed: Reviewed = field(default_factory=Reviewed)

    def __post_init__(self) -> None:
        typed(self)
        at_least(1, population=self.population, report_goal=self.report_goal, rounds=self.rounds)
        if self.report_goal > self.population:
            refuse(f"report_goal {self.report_goal} exceeds population {self.population}")
        if not 0 < self.delta <= 1 / self.population:
            refuse(
                f"delta must be positive and at most 1/population = {1 / self.population:.1e}, "
                f"got {self.delta}"
            )
        if not self.epsilon > 0:
            refuse(f"epsilon must be above 0, got {self.epsilon}")
        if math.isinf(self.epsilon) != (self.noise.at == "none"):
            refuse('epsilon must be inf where noise is at "none", and finite otherwise')
        if self.noise.at == "device" and self.neighboring == "add_remove":
            refuse(
                "neighboring: removing a device removes its share of the noise too, for which no "
                "bound is proven; use zero_out"
            )
        accepted = self.accepted_server_epsilon
        if accepted is not None and not accepted > 0:
            refuse(f"accepted_server_epsilon must be above 0, got {accepted}")
        if self.clipping is not None and self.noise.at == "none":
            refuse(
                "clipping: indicators without noise would tell whose update is short; leave the "
                "table out, or state noise"
            )
        self._check_rotation()
        self._check_stream()
        self._check_groups()
        self._check_public_labels()
        if self.honest_reports < 1 or not self.honest_share > 0:
            refuse("noise.honest_fraction leaves no honest report in a round")

    def _check_rotation(self) -> None:
        needed = self.different_users
        if needed > self.population:
            refuse(
                f"participation.min_separation: {self.report_goal} reports in every round, each "
                f"device once in {self.participation.min_separation}, need a population of "
                f"{needed}, not {self.population}"
            )

    def _check_stream(self) -> None:
        if not MECHANISMS[self.noise.kind].stateful or self.participation.kind == "rotation":
            return
        raise ValueError(
            f'participation.kind = "{self.participation.kind}" with noise.kind = '
            f'"{self.noise.kind}": noise that is correlated between rounds is accounted for under '
            'rotation alone; write kind = "rotation" with a min_separation, or noise.kind = '
            '"gaussian"'
        )

    def _check_public_labels(self) -> None:
        if len(self.public_labels) == 1 or len(self.public_labels) > MOST_PUBLIC_LABELS:
            refuse(
                f"public_labels has {len(self.public_labels)} entries; name 2 to "
                f"{MOST_PUBLIC_LABELS}, or leave it out"
            )
        if len(set(self.public_labels)) < len(self.public_labels):
            refuse("public_labels: a label is listed twice")
        if wrong := [name for name in self.public_labels if not name or not name.isprintable()]:
            refuse(f"public_labels: {wrong[0]!r} is no label; write one line of text")

    def _check_groups(self) -> None:
        at_least(1, groups=self.groups)
        if self.groups == 1:
            return
        if self.report_goal % self.groups or self.report_goal // self.groups < 3:
            refuse(
                f"groups = {self.groups} must divide report_goal = {self.report_goal} into equal "
                "groups of at least 3 reports"
            )
        if self.clipping is not None:
            refuse(
                "groups: a clip norm that follows the updates is read from one sum; leave out one"
            )
        if self.participation.kind != "rotation":
            refuse('groups are parts of a fixed cohort; use participation.kind = "rotation"')
        if self.noise.at == "server" or self.noise.excess == "removed":
            refuse(
                'groups need noise.at = "device" and noise.excess = "kept": every group\'s sum '
                "carries the shares of its own devices"
            )

    @property
    def mechanism(self) -> Mechanism:
        """The kind of noise, with the numbers that follow from this policy."""
        separation = self.participation.min_separation or 1
        kind = MECHANISMS[self.noise.kind]
        return kind.for_rounds(self.rounds, separation, self.participations)

    @property
    def rate(self) -> float:
        """Chance of a user to be in a given round: report_goal ÷ population."""
        return self.report_goal / self.population

    @property
    def different_users(self) -> int:
        """Users who must report before any of them may again, in full cohorts under rotation."""
        return self.report_goal * self.least_separation

    @property
    def least_separation(self) -> int:
        """How far apart two rounds of a user lie, so that nobody exceeds ``participations``.

        ``min_separation``, or ``rounds`` where these are fewer: then each user reports once.
        """
        return min(self.participation.min_separation or 1, self.rounds)

    @property
    def participations(self) -> int:
        """The most rounds one user can be in, by the separation and by the device's own count."""
        most = self.participation.max_participations
        return self.separated_rounds if most is None else min(most, self.separated_rounds)

    @property
    def separated_rounds(self) -> int:
        """The most rounds that the separation leaves: 1 + ⌊(rounds − 1)/min_separation⌋, or all."""
        return 1 + (self.rounds - 1) // (self.participation.min_separation or 1)

    @property
    def least_reports(self) -> int:
        """The public least count: a sum of fewer reports is never opened. It is that of a group.

        0 where the server adds the noise: it adds the full noise, so that even an empty sum may
        be released.
        """
        if self.noise.at != "device":
            return 0
        return _least(self.report_goal // self.groups, self.noise.tolerated_dropout)

    @property
    def most_reports(self) -> int | None:
        """Reports beyond this are dropped; None under Poisson sampling, which a cap would break."""
        return None if self.participation.kind == "poisson" else self.report_goal

    @property
    def honest_reports(self) -> int:
        """Of the least count, the shares of noise that are relied on: what a share is divided by.

        1 where the server adds the noise.
        """
        if self.noise.at != "device":
            return 1
        return math.floor(self.least_reports * self.noise.honest_fraction)

    @property
    def excess_removed(self) -> bool:
        """Does the sum carry the planned noise whatever the dropout (XNoise)?"""
        return self.noise.excess == "removed"

    @property
    def honest_share(self) -> float:
        """The least share of a sum's noise that is honest, where the excess is removed.

        Of r ≥ least_reports reports ⌊r·honest_fraction⌋ are honest, which is more than
        r·honest_fraction − 1; all carry the same noise.
        """
        fraction = self.noise.honest_fraction
        return 1.0 if fraction == 1 else fraction - 1 / max(1, self.least_reports)

    @property
    def amplified(self) -> bool:
        """Whether sampling counts: cohorts are drawn, and no least count decides about opening.

        A round with device noise opens only from its least count on, so opening may tell whether
        one user was drawn: it does where the others' reports are one short of that count. Charged
        to δ this would be enough only if it were rare at every attendance from
        (1 − tolerated_dropout)·report_goal to report_goal. At the lower end the least count is the
        mean itself, and one round's chance is about 1/√(2π·report_goal), far above any δ. So
        nothing is claimed for sampling beside a least count.
        """
        return self.participation.kind != "rotation" and self.noise.at == "server"

    @property
    def counts_are_secret(self) -> bool:
        """Whether ε holds only for readers who never learn how many reported in a round.

        Given its size a Poisson cohort is a uniform subset, for which the coins amplify nothing;
        ``epsilon_unamplified`` is what holds against a reader of counts.
        """
        return self.amplified and self.participation.kind == "poisson"

    def event(
        self,
        noise_multiplier: float,
        *,
        reports: int | None = None,
        dim: int | None = None,
        round: int | None = None,
    ) -> RoundEvent:
        """Return what one round of this policy releases.

        Args:
            noise_multiplier: planned, on the sum of ``honest_reports`` shares; where the excess
                is removed, the honest noise on every opened sum.
            reports: in the sum, which is a group's where there are several; None plans for the
                least count. Fewer carry less noise. More carry more, which is counted only where
                their number is fixed beforehand and the excess is not removed.
            dim: coordinates on the grid; None plans for ``noise.min_dim``.
            round: number of the round.
        """
        honest = self.honest_reports
        if reports is not None and self.excess_removed:
            noise_multiplier *= math.sqrt(min(1.0, reports / self.least_reports))
        elif reports is not None and self.noise.at == "device":
            honest = math.floor(reports * self.noise.honest_fraction)
            if self.participation.kind == "poisson":
                honest = min(honest, self.honest_reports)
            noise_multiplier *= math.sqrt(honest / self.honest_reports)
        event = RoundEvent(
            mechanism=self.noise.kind,
            neighboring=self.neighboring,
            sampling=self.participation.kind,
            noise_multiplier=noise_multiplier,
            rate=self.rate if self.amplified else 1.0,
            min_separation=self.participation.min_separation or 1,
            max_participations=self.participation.max_participations,
            round=round,
        )
        dim = dim or self.noise.min_dim
        return self.mechanism.event(event, dim, self.noise.grid_steps, honest)


def _least(report_goal: int, tolerated_dropout: float) -> int:
    # 5000·(1 − 0.1) is 4500.000…: rounding up must not turn it into 4501.
    return math.ceil(report_goal * (1 - tolerated_dropout) - 1e-9)
