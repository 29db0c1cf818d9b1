"""From a privacy budget to the noise that meets it, never erring towards less noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from pfl_lm.dp.accounting.accountant import chance_of_taking_part, compose
from pfl_lm.dp.accounting.divergences import is_gaussian
from pfl_lm.dp.events import RoundEvent

_DIGITS = 6  # significant digits of a derived noise multiplier, rounded up
_STREAM_DIGITS = 9  # of a stream's: published figures of production runs have eight
_LARGEST = 1e9


def noise_multiplier(event: RoundEvent, rounds: int, epsilon: float, delta: float) -> float:
    """Return (nearly) the smallest noise multiplier at which ``rounds`` such rounds cost ≤ ε.

    Args:
        event: what one round releases; its own noise multiplier is ignored.
        rounds: how many rounds the user may be in.

    | case | noise multiplier |
    |---|---|
    | ε = ∞, or no rounds, or rate = 0 | 0 |

    Guarantees:
        The returned value itself, after rounding up to six digits (nine for a stream of correlated
        noise), was accounted for and costs at most ε. It exceeds the smallest such value by at
        most 2e-4 of it (2e-6 without sampling), the accountant's own looseness aside.

    Raises:
        ValueError: ε ≤ 0 or NaN, or no noise multiplier reaches it, with the reason; or every one
            does, because δ is at least the chance that a user takes part at all.
    """
    if not epsilon > 0:
        raise ValueError(f"epsilon must be above 0, got {epsilon}")

    def cost(z: float, tight: bool) -> float:
        return compose({replace(event, noise_multiplier=z): rounds}, delta, tight).epsilon

    if cost(0.0, False) <= epsilon:
        return 0.0
    chance = chance_of_taking_part([(event, rounds)])
    if chance <= delta - rounds * event.pivotal_probability:
        raise ValueError(
            f"delta = {delta:g} is at least {chance:.3g}, the chance that a user is in any of the "
            "rounds: any noise meets epsilon and protects nobody who is in one; state a smaller "
            "delta, below 1/population"
        )
    if not cost(_LARGEST, False) <= epsilon:
        raise ValueError(
            f"no noise multiplier reaches epsilon = {epsilon} at delta = {delta}: "
            f"{_reason(event, rounds, delta)}"
        )
    digits, tolerance = (_DIGITS, 1e-7) if event.stream is None else (_STREAM_DIGITS, 1e-10)
    refine = is_gaussian(event) and event.sampling == "poisson"
    high = _ceil(
        _root(lambda z: cost(z, False), epsilon, 1.0, 1e-2 if refine else tolerance), digits
    )
    if refine:
        high = _ceil(_root(lambda z: cost(z, True), epsilon, high, 1e-4), digits)
    while cost(high, True) > epsilon:  # the accountant's own wobble
        high = _ceil(high * (1 + 10.0 ** (1 - digits)), digits)
    return high


def _reason(event: RoundEvent, rounds: int, delta: float) -> str:
    """Say why no noise is enough: the accountant has no proof, or the budget is too small."""
    planned = compose({replace(event, noise_multiplier=_LARGEST): rounds}, delta)
    if planned.accountant == "none" and planned.assumptions:
        return planned.assumptions[0]
    return (
        f"{rounds:,} rounds cost more at any noise; state a larger epsilon, a larger delta or "
        "fewer rounds"
    )


def _root(cost: Callable[[float], float], target: float, start: float, tolerance: float) -> float:
    """Return z with cost(z) ≤ target, at most ``tolerance`` (relative) above where it crosses.

    Secant steps in log-log, kept inside the bracket, where ε is nearly a power of z.
    """
    low, high = start, start
    at_low = at_high = cost(start)
    while at_high > target:
        low, at_low = high, at_high
        high *= 1.5
        at_high = cost(high)
    while at_low <= target:
        high, at_high = low, at_low
        low /= 1.25
        at_low = cost(low)
    while high / low > 1 + tolerance:
        middle = _between(low, at_low, high, at_high, target)
        at_middle = cost(middle)
        if at_middle <= target:
            high, at_high = middle, at_middle
        else:
            low, at_low = middle, at_middle
        if at_middle <= target:  # probe just below: closes the bracket where the step was good
            below = high / (1 + tolerance)
            if below > low and (at_below := cost(below)) > target:
                low, at_low = below, at_below
    return high


def _between(low: float, at_low: float, high: float, at_high: float, target: float) -> float:
    """Return where the chord in log-log meets the target, well inside (low, high)."""
    share = 0.5
    if 0 < at_high < at_low < math.inf:
        share = math.log(at_low / target) / math.log(at_low / at_high)
    return float(low * (high / low) ** min(max(share + 1e-3, 0.02), 0.98))


def _ceil(value: float, digits: int) -> float:
    """Round up to so many significant digits."""
    unit = 10.0 ** (math.floor(math.log10(value)) - digits + 1)
    rounded = float(f"{math.ceil(value / unit) * unit:.{digits - 1}e}")
    return rounded if rounded >= value else float(f"{rounded + unit:.{digits - 1}e}")
