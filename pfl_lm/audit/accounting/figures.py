"""The figures that stand beside ε, each derived again: what one reader believes, another uses."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from pfl_lm.audit.accounting.methods import MethodResult, best_bound
from pfl_lm.audit.accounting.stated import StatedGuarantee
from pfl_lm.audit.accounting.streams import sensitivity
from pfl_lm.audit.findings import Finding
from pfl_lm.numbers import format_epsilon

_NAME = "figures beside ε"
_TOLERANCE = 2e-3  # of ε and ρ: numerical accountants round upward, each in its own way
_EXACT = 1e-4  # of the others: a reviewed figure may be rounded


def figures(
    guarantee: StatedGuarantee, stated: Mapping[str, Any], known: list[MethodResult]
) -> Finding:
    """Hold every stated figure but ε itself against what follows from the policy.

    Args:
        stated: the manifest's guarantee, or a policy's reviewed figures; what is left out of it
            is not stated.
        known: the rows of one who knows who took part, for whom no sampling amplifies.
    """
    wrong = [*_unequal(guarantee, stated), *_too_small(guarantee, stated, known)]
    if wrong:
        return Finding(_NAME, False, f"Beside ε is stated what does not follow: {wrong[0]}.")
    return Finding(
        _NAME, True, "δ, counts of rounds and reports, and shares follow from the policy."
    )


def _unequal(guarantee: StatedGuarantee, stated: Mapping[str, Any]) -> Iterator[str]:
    most = None if guarantee.participation == "poisson" else guarantee.report_goal
    expected = {
        "delta": guarantee.delta,
        "participations": guarantee.participations,
        "least_reports": guarantee.least_reports,
        "most_reports": most,
        "honest_reports": guarantee.honest_reports,
        "share_multiplier": guarantee.expected_share,
    }
    for name, value in expected.items():
        if name in stated and not _agree(stated[name], value):
            yield f"{name} = {stated[name]}, and it is {value}"


def _agree(stated: float | None, value: float | None) -> bool:
    if stated is None or value is None:
        return stated is value
    return math.isclose(stated, value, rel_tol=_EXACT)


def _too_small(
    guarantee: StatedGuarantee, stated: Mapping[str, Any], known: list[MethodResult]
) -> Iterator[str]:
    """Yield figures that state less than is proven; None is ∞ for an ε, and unstated for a ρ."""
    best = best_bound(known)
    least = math.inf if best is None or best.epsilon is None else best.epsilon
    unamplified = stated.get("epsilon_unamplified")
    if unamplified is not None and unamplified < least - _TOLERANCE * max(1.0, least):
        yield (
            f"epsilon_unamplified = {unamplified:g}, and against one who knows who took part "
            f"{format_epsilon(least)} is proven"
        )
    rho, true = stated.get("rho"), _rho(guarantee)
    if rho is not None and (true is None or rho < true * (1 - _TOLERANCE)):
        yield f"rho = {rho:g}, and it is {'not proven' if true is None else f'{true:.4g}'}"
    moved, moves = stated.get("sensitivity"), _sensitivity(guarantee)
    if moved is not None and moved < moves * (1 - _TOLERANCE):
        yield f"sensitivity = {moved:g}, and it is {moves:.4g}"


def _rho(guarantee: StatedGuarantee) -> float | None:
    """Return ρ of Gaussian noise where nothing is sampled (Bun & Steinke 2016); else None."""
    group = guarantee.round_group()
    if group.mechanism != "gaussian" or group.is_sampled:
        return None
    if not group.noise_multiplier:
        return math.inf
    return group.rounds * (group.sensitivity / group.noise_multiplier) ** 2 / 2


def _sensitivity(guarantee: StatedGuarantee) -> float:
    if guarantee.stream is None:
        return 1.0
    times = max(1, guarantee.participations)
    return sensitivity(guarantee.stream, guarantee.min_separation, times)
