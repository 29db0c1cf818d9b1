"""What a list of rounds has cost: ε from concrete (mechanism, sampling, neighboring) triples.

An accountant that meets something it has no proof for answers ε = ∞ and says why; it never
guesses. Beside every ε that uses amplification by sampling stands the one that does not.

    event in which a user may take part     divergence of one round                    file
    gaussian, not sampled                   exact, composed in closed form             gaussian
      … on the server's lattice             a charge to δ beside the exact curves      lattice
    gaussian, Poisson, zero_out/add_remove  loss distributions (PRV), else Rényi       poisson
    skellam, discrete_gaussian              published Rényi bound                      discrete
      … Poisson, zero_out/add_remove        its generic amplification, Theorem 5       renyi
    any of them, fixed size                 generic amplification at sensitivity 2C    renyi
    any of them, Poisson, replace_one       the same                                   renyi
    rotation                                as not sampled, in at most k rounds
    a stream, rotation                      one Gaussian release at noise ÷ sensitivity
    any noise, δ ≥ 1 − ∏(1 − rate)          ε = 0: a user is hardly in any round   accountant

Rounds of different kinds compose in Rényi divergence.

Runs and questions on the same people, each with rounds numbered for itself, compose likewise,
however they were interleaved (``compose_all``). Each is an interactive mechanism, and what bounds a
composition of releases bounds one of interactive mechanisms too: by trade-off functions (Vadhan and
Zhang 2023, arXiv:2207.08335) and by Rényi divergence (Lyu 2022, arXiv:2207.09397). A stream is such
a mechanism. It costs one Gaussian release, whatever its inputs depended on (Denisov et al. 2022,
arXiv:2202.08312, Theorem 2.1), and in Rényi divergence row by row: it adds independent noise to
each row of Cx, and along every history the rows' squared shifts sum to at most the squared
sensitivity. Within one history a stream composes with nothing: a run has one mechanism.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np

from pfl_lm.dp.accounting import gaussian, lattice, poisson, renyi
from pfl_lm.dp.accounting.assumptions import assumptions_of
from pfl_lm.dp.accounting.divergences import (
    DIVERGENCES,
    divergence,
    is_gaussian,
    known_divergence,
    sensitivity,
)
from pfl_lm.dp.accounting.renyi import Curve
from pfl_lm.dp.accounting.streams import unsupported_stream
from pfl_lm.dp.accounting.worst_user import Events, History
from pfl_lm.dp.events import RoundEvent
from pfl_lm.dp.mechanisms import MECHANISMS


@dataclass(frozen=True)
class PrivacyCost:
    """The privacy that some rounds have cost the user they cost most."""

    epsilon: float  # against those who see what rounds released
    epsilon_unamplified: float  # and also learn who took part in which round
    delta: float
    rho: float | None  # zCDP, where every round is unsampled Gaussian noise
    participations: int  # the most rounds one user may have been in
    accountant: str
    assumptions: tuple[str, ...]


def compose(events: Events, delta: float, tight: bool = True) -> PrivacyCost:
    """Compose rounds into (ε, δ).

    Args:
        events: one per opened round, or how often each occurred. Rounds of a rotation come one
            by one, with their ``round``.
        delta: the target δ, 0 < δ < 1.
        tight: also try the tight accountant (tenths of a second a history, seconds the first
            time); without it Rényi bounds alone, in milliseconds: looser, and as sound.

    | case | ε |
    |---|---|
    | no rounds, or rate = 0 | 0 |
    | noise_multiplier = 0 | ∞ |
    | rate = 1 | as not sampled |
    | unknown mechanism, sampling or neighboring; several neighborings | ∞, with the reason |
    | a stream with other noise, other numbers, or a round it has twice | ∞, with the reason |

    Guarantees:
        ε is an upper bound for every user and both directions of the neighbouring relation.
        Never above ``epsilon_unamplified``.

    Raises:
        ValueError: δ outside (0, 1).
    """
    return compose_all([events], delta, tight)


def compose_all(histories: Sequence[Events], delta: float, tight: bool = True) -> PrivacyCost:
    """Compose several runs and questions on the same people into (ε, δ).

    Args:
        histories: the rounds of each, as ``compose`` takes them; a separation counts within one.

    Guarantees:
        ε bounds what a user has spent who was in as many rounds of every history as it allows,
        however the rounds of different histories were interleaved, and whatever they depended on.

    Raises:
        ValueError: δ outside (0, 1).
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta must lie strictly between 0 and 1, got {delta}")
    read = [History.of(events) for events in histories]
    everything = sum((history.counted for history in read), Counter[RoundEvent]())
    reasons = [unsupported_reason(history.counted) or history.fault() for history in read]
    reason = next((r for r in reasons if r), None) or _several_relations(everything)
    if reason is not None:
        refused = (f"refused: {reason}",)
        rounds = everything.total()
        return PrivacyCost(math.inf, math.inf, delta, None, rounds, "none", refused)
    worst = sum((history.of_worst_user() for history in read), Counter[RoundEvent]())
    spent = frozenset((event, n) for event, n in worst.items() if n)
    total = _spent(spent, delta, tight, _registered())
    return replace(
        total,
        participations=sum(history.participations() for history in read),
        assumptions=assumptions_of(everything),
    )


def unsupported_reason(events: Iterable[RoundEvent]) -> str | None:
    """Return why these rounds cannot be accounted for, or None."""
    if (reason := unsupported_stream(events := list(events))) is not None:
        return reason
    for event in events:
        if event.mechanism not in DIVERGENCES and event.stream is None:
            return f"mechanism {event.mechanism!r} adds no noise that is accounted for"
        if event.sampling not in ("none", "rotation", "poisson", "fixed"):
            return f"nothing is proven for sampling {event.sampling!r}"
        if event.neighboring not in ("zero_out", "add_remove", "replace_one"):
            return f"nothing is proven for neighboring {event.neighboring!r}"
        if event.neighboring == "add_remove" and MECHANISMS[event.mechanism].place == "device":
            return (
                "removing a device removes its share of the noise too, for which no bound is "
                "proven; state zero_out"
            )
    return _several_relations(events)


def _several_relations(events: Iterable[RoundEvent]) -> str | None:
    if len({event.neighboring for event in events}) > 1:
        return "the rounds state different neighboring relations, which do not compose"
    return None


def _registered() -> frozenset[Any]:
    """Return the proofs that hold now: a cost that was computed from others is not theirs."""
    return frozenset(DIVERGENCES.items())


@lru_cache(maxsize=1024)
def _spent(
    events: frozenset[tuple[RoundEvent, int]],
    delta: float,
    tight: bool,
    registered: frozenset[Any],  # the proofs that it rests on
) -> PrivacyCost:
    rounds = [(e, n) for e, n in events if e.rate > 0 or e.sampling == "none"]
    unamplified, unamplified_by = _unsampled(rounds, delta)
    amplified, amplified_by = _sampled(rounds, delta, tight)
    exact = all(is_gaussian(e) and _is_unsampled(e) for e, _ in rounds)
    return PrivacyCost(
        epsilon=min(amplified, unamplified),
        epsilon_unamplified=unamplified,
        delta=delta,
        rho=gaussian.rho(_joint_multiplier(rounds)) if exact else None,
        participations=sum(n for _, n in rounds),
        accountant=amplified_by if amplified < unamplified else unamplified_by,
        assumptions=(),
    )


def _is_unsampled(event: RoundEvent) -> bool:
    return event.sampling == "none" or event.rate == 1


def _unsampled(events: list[tuple[RoundEvent, int]], delta: float) -> tuple[float, str]:
    """Return ε, and by which accountant, for a user who is in every one of these rounds."""
    if all(is_gaussian(event) for event, _ in events):
        exact = partial(gaussian.epsilon, _joint_multiplier(events))
        epsilon = lattice.epsilon(exact, exact(delta), _rounds(events), delta)
        if epsilon < math.inf:
            return epsilon, "analytic Gaussian"
        return lattice.renyi_epsilon(_joint_multiplier(events), delta), "Rényi"
    curve = sum((n * known_divergence(event)(renyi.ORDERS) for event, n in events), _nothing())
    return renyi.epsilon(curve, delta), "Rényi"


def _rounds(events: list[tuple[RoundEvent, int]]) -> int:
    return sum(count for _, count in events)


def _sampled(events: list[tuple[RoundEvent, int]], delta: float, tight: bool) -> tuple[float, str]:
    """Return ε, and by which accountant, with what each round's sampling is proven to save."""
    if all(_is_unsampled(event) for event, _ in events):
        return math.inf, "none"
    left = delta - sum(n * event.pivotal_probability for event, n in events)
    if left <= 0 or any(event.noise_multiplier == 0 for event, _ in events):
        return math.inf, "none"
    if chance_of_taking_part(events) <= left:
        return 0.0, "chance of taking part"
    if not all(_has_loss_distribution(event) for event, _ in events):
        curve = _summed(events)
        return renyi.epsilon(curve, left), "Rényi"
    schedule, rounds = _schedule(events), _rounds(events)
    moments = partial(poisson.renyi_epsilon, schedule)
    first = moments(left)
    of_integer_order = _summed(events)
    bound = min(
        lattice.epsilon(moments, first, rounds, left), renyi.epsilon(of_integer_order, left)
    )
    losses = partial(_losses, schedule)
    exact = lattice.epsilon(losses, first, rounds, left) if tight else math.inf
    return (exact, "Opacus PRV") if exact < bound else (bound, "Opacus RDP")


def chance_of_taking_part(events: Iterable[tuple[RoundEvent, int]]) -> float:
    """Return the chance that a user is in any of these rounds, rounded up.

    Guarantees:
        At a δ of this chance or more the rounds are (0, δ)-DP, whatever their noise: given that
        the user is in none of them, their outputs are distributed as without the user, so the two
        distributions differ by at most this chance in total variation.
    """
    absent = sum(n * math.log1p(-event.rate) for event, n in events if event.rate < 1)
    certain = any(_is_unsampled(event) and n for event, n in events)
    return 1.0 if certain else min(-math.expm1(absent) * (1 + 1e-12), 1.0)


def _losses(schedule: poisson.Schedule, delta: float) -> float:
    """Return ε by composing loss distributions; ∞ where they cannot be had."""
    epsilon = poisson.epsilon(schedule, delta)
    return math.inf if epsilon is None else epsilon


def _has_loss_distribution(event: RoundEvent) -> bool:
    known = event.sampling == "poisson" and event.neighboring != "replace_one"
    return is_gaussian(event) and (known or _is_unsampled(event))


def _schedule(events: list[tuple[RoundEvent, int]]) -> poisson.Schedule:
    """Merge the unsampled rounds into one, which is exact, and equal Poisson phases."""
    drawn = [(e.noise_multiplier, e.rate, n) for e, n in events if not _is_unsampled(e)]
    always = [(e, n) for e, n in events if _is_unsampled(e)]
    return poisson.phases(drawn + ([(_joint_multiplier(always), 1.0, 1)] if always else []))


def _joint_multiplier(events: list[tuple[RoundEvent, int]]) -> float:
    return gaussian.composed((e.noise_multiplier / sensitivity(e), n) for e, n in events)


@lru_cache(maxsize=4096)
def _round(event: RoundEvent, registered: frozenset[Any]) -> tuple[float, ...]:
    """Return the Rényi curve of one round with what its sampling is proven to save."""
    known = known_divergence(event)
    if _is_unsampled(event):
        return tuple(known(renyi.ORDERS))
    if _has_loss_distribution(event):
        return tuple(poisson.curve(event.noise_multiplier, event.rate))
    if event.sampling == "poisson" and event.neighboring != "replace_one":
        return tuple(renyi.amplified_by_poisson(known, event.rate))
    amplified = renyi.amplified_by_fixed_size(divergence(event, 2), event.rate)
    return tuple(np.minimum(amplified, known(renyi.ORDERS)))


def _summed(events: Iterable[tuple[RoundEvent, int]]) -> Curve:
    """Return the Rényi curve of rounds, each as often as it is counted."""
    known = _registered()
    return sum((n * np.array(_round(event, known)) for event, n in events), _nothing())


def _nothing() -> Curve:
    return np.zeros(len(renyi.ORDERS))
