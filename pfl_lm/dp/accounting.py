"""What a list of rounds has cost: ε from concrete (mechanism, sampling, neighboring) triples.

An accountant that meets something it has no proof for answers ε = ∞ and says why; it never
guesses. Beside every ε that uses amplification by sampling stands the one that does not.

    event in which a user may take part     divergence of one round                    file
    gaussian, not sampled                   exact, composed in closed form             gaussian
    gaussian, Poisson, zero_out/add_remove  loss distributions (PRV), else Rényi       poisson
    skellam, discrete_gaussian              published Rényi bound                      discrete
      … Poisson, zero_out/add_remove        its generic amplification, Theorem 5       renyi
    any of them, fixed size                 generic amplification at sensitivity 2C    renyi
    any of them, Poisson, replace_one       the same                                   renyi
    rotation                                as not sampled, in at most k rounds

Rounds of different kinds compose in Rényi divergence.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeAlias

import numpy as np

from pfl_lm.dp import discrete, gaussian, poisson, renyi
from pfl_lm.dp.assumptions import assumptions_of
from pfl_lm.dp.events import RoundEvent
from pfl_lm.dp.renyi import Curve


@dataclass(frozen=True)
class Spent:
    """The privacy that some rounds have cost the user they cost most."""

    epsilon: float  # whoever sees what the rounds released
    epsilon_unamplified: float  # whoever also learns who took part in which round
    delta: float
    rho: float | None  # zCDP, where every round is unsampled Gaussian noise
    participations: int  # the most rounds one user may have been in
    accountant: str
    assumptions: tuple[str, ...]


Events: TypeAlias = Mapping[RoundEvent, int] | Iterable[RoundEvent]


def spent(events: Events, delta: float, tight: bool = True) -> Spent:
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

    Guarantees:
        ε is an upper bound for every user and both directions of the neighbouring relation.
        Never above ``epsilon_unamplified``.

    Raises:
        ValueError: δ outside (0, 1).
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta must lie strictly between 0 and 1, got {delta}")
    listed = [] if isinstance(events, Mapping) else list(events)
    counted = Counter(events if isinstance(events, Mapping) else listed)
    if any(count < 0 for count in counted.values()):
        raise ValueError("no event can have happened less than 0 times")
    reason = unproven(counted)
    if reason is not None:
        rounds = sum(counted.values())
        return Spent(math.inf, math.inf, delta, None, rounds, "none", (f"refused: {reason}",))
    worst = _worst_user(counted, listed)
    total = _spent(frozenset((event, n) for event, n in worst.items() if n), delta, tight)
    return replace(total, assumptions=assumptions_of(counted))


def unproven(events: Iterable[RoundEvent]) -> str | None:
    """Return why these rounds cannot be accounted for, or None."""
    for event in events:
        if event.mechanism not in ("gaussian", "skellam", "discrete_gaussian"):
            return f"mechanism {event.mechanism!r} adds no noise that is accounted for"
        if event.sampling not in ("none", "rotation", "poisson", "fixed"):
            return f"nothing is proven for sampling {event.sampling!r}"
        if event.neighboring not in ("zero_out", "add_remove", "replace_one"):
            return f"nothing is proven for neighboring {event.neighboring!r}"
        if event.neighboring == "add_remove" and event.mechanism != "gaussian":
            return (
                "removing a device removes its share of the noise too, for which no bound is "
                "proven; state zero_out"
            )
    if len({event.neighboring for event in events}) > 1:
        return "the rounds state different neighboring relations, which do not compose"
    return None


def _worst_user(counted: Counter[RoundEvent], listed: list[RoundEvent]) -> Counter[RoundEvent]:
    """Replace the rounds of each rotation by the k least noisy ones that one user may be in.

    A user is in at most k rounds that lie ``min_separation`` apart; whichever they are, they cost
    no more than the k with the least noise. Rotation rounds without a number, or two with the
    same, may all be the same user's.
    """
    worst = Counter({event: n for event, n in counted.items() if event.sampling != "rotation"})
    families: dict[RoundEvent, list[RoundEvent]] = defaultdict(list)
    for event in listed:
        if event.sampling == "rotation":
            # Reports of one rotation may vary: more shares of noise are less noisy ones
            # post-processed, so the order by noise is the order by cost.
            families[replace(event, noise_multiplier=0.0, reports=1)].append(event)
    for event, count in counted.items():
        if event.sampling == "rotation" and not listed:
            worst[replace(event, sampling="none")] += count
    for family, members in families.items():
        most = _most_participations([member.round for member in members], family.min_separation)
        members.sort(key=lambda member: member.noise_multiplier)
        worst.update(replace(member, sampling="none") for member in members[:most])
    return worst


def _most_participations(rounds: list[int | None], min_separation: int) -> int:
    """Return how many of these rounds one user may be in (greedy: earliest first is best)."""
    numbers = sorted(number for number in rounds if number is not None)
    if len(set(numbers)) < len(rounds):
        return len(rounds)
    taken, next_free = 0, -math.inf
    for number in numbers:
        if number >= next_free:
            taken, next_free = taken + 1, number + min_separation
    return taken


@lru_cache(maxsize=1024)
def _spent(events: frozenset[tuple[RoundEvent, int]], delta: float, tight: bool) -> Spent:
    rounds = [(e, n) for e, n in events if e.rate > 0 or e.sampling == "none"]
    unamplified, unamplified_by = _unsampled(rounds, delta)
    amplified, amplified_by = _sampled(rounds, delta, tight)
    exact = all(e.mechanism == "gaussian" and _is_unsampled(e) for e, _ in rounds)
    return Spent(
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
    if all(event.mechanism == "gaussian" for event, _ in events):
        return gaussian.epsilon(_joint_multiplier(events), delta), "analytic Gaussian"
    curve = sum((n * _known(event)(renyi.ORDERS) for event, n in events), _nothing())
    return renyi.epsilon(curve, delta), "Rényi"


def _sampled(events: list[tuple[RoundEvent, int]], delta: float, tight: bool) -> tuple[float, str]:
    """Return ε, and by which accountant, with what each round's sampling is proven to save."""
    if all(_is_unsampled(event) for event, _ in events):
        return math.inf, "none"
    left = delta - sum(n * event.boundary_probability for event, n in events)
    if left <= 0 or any(event.noise_multiplier == 0 for event, _ in events):
        return math.inf, "none"
    if not all(_has_loss_distribution(event) for event, _ in events):
        curve = sum((n * np.array(_round(event)) for event, n in events), _nothing())
        return renyi.epsilon(curve, left), "Rényi"
    schedule = _schedule(events)
    bound = poisson.renyi_epsilon(schedule, left)
    exact = poisson.epsilon(schedule, left) if tight else None
    return (exact, "Opacus PRV") if exact is not None and exact < bound else (bound, "Opacus RDP")


def _has_loss_distribution(event: RoundEvent) -> bool:
    known = event.sampling == "poisson" and event.neighboring != "replace_one"
    return event.mechanism == "gaussian" and (known or _is_unsampled(event))


def _schedule(events: list[tuple[RoundEvent, int]]) -> poisson.Schedule:
    """Merge the unsampled rounds into one, which is exact, and equal Poisson phases."""
    drawn = [(e.noise_multiplier, e.rate, n) for e, n in events if not _is_unsampled(e)]
    always = [(e, n) for e, n in events if _is_unsampled(e)]
    return poisson.phases(drawn + ([(_joint_multiplier(always), 1.0, 1)] if always else []))


def _joint_multiplier(events: list[tuple[RoundEvent, int]]) -> float:
    return gaussian.composed((e.noise_multiplier / _sensitivity(e), n) for e, n in events)


def _sensitivity(event: RoundEvent) -> int:
    """Return by how many clip norms one user moves the sum of a round that he is known to be in.

    Whoever removes a user from a cohort of fixed size puts another one in his place.
    """
    moved = event.sampling == "fixed" and event.neighboring == "add_remove"
    return 2 if event.neighboring == "replace_one" or moved else 1


@lru_cache(maxsize=4096)
def _round(event: RoundEvent) -> tuple[float, ...]:
    """Return the Rényi curve of one round with what its sampling is proven to save."""
    known = _known(event)
    if _is_unsampled(event):
        return tuple(known(renyi.ORDERS))
    if _has_loss_distribution(event):
        return tuple(poisson.curve(event.noise_multiplier, event.rate))
    if event.sampling == "poisson" and event.neighboring != "replace_one":
        return tuple(renyi.amplified_by_poisson(known, event.rate))
    amplified = renyi.amplified_by_fixed_size(_divergence(event, 2), event.rate)
    return tuple(np.minimum(amplified, known(renyi.ORDERS)))


def _nothing() -> Curve:
    return np.zeros(len(renyi.ORDERS))


def _known(event: RoundEvent) -> renyi.CurveFunction:
    """Return the divergences of a round in which the user is known to take part."""
    return _divergence(event, _sensitivity(event))


def _divergence(event: RoundEvent, sensitivity: int) -> renyi.CurveFunction:
    """Return orders → Rényi divergence of sums that differ by ``sensitivity`` clip norms."""
    z = event.noise_multiplier
    if z == 0:
        return lambda orders: np.full(orders.shape, np.inf)
    if event.mechanism == "gaussian":
        return lambda orders: orders * sensitivity**2 / (2 * z**2)
    norm = discrete.grid_norm(event.grid_steps, event.dim)
    rounded = discrete.rounded_norm(norm, event.dim)
    l1, l2 = sensitivity * discrete.l1_norm(rounded, event.dim), sensitivity * rounded
    if event.mechanism == "skellam":
        return lambda orders: discrete.skellam(orders, l1, l2, (z * norm) ** 2)
    share = z * norm / math.sqrt(event.reports)
    return lambda orders: discrete.discrete_gaussian(
        orders, l1, l2, share, event.reports, event.dim
    )
