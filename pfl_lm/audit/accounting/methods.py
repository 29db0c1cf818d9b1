"""Every independent way to ε that is at hand, each with what it assumes and where it stops.

A method answers with a number or says why it does not apply; it never answers for a mechanism or
a sampling that its proof does not cover.
"""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from pfl_lm.audit.accounting.libraries import (
    DoesNotApply,
    closed_form,
    dp_accounting_rdp,
    gaussian_of_equal_variance,
    opacus_gdp,
    opacus_prv,
    opacus_rdp,
    pld,
    published_renyi,
)
from pfl_lm.audit.accounting.round_groups import RoundGroup


@dataclass(frozen=True)
class Method:
    """One way from groups of rounds to ε.

    Attributes:
        standing: ``bound`` proves ε; ``one-sided`` proves it for removing a user but not for
            adding one; ``approximation`` proves nothing. Only bounds certify.
        assumes: in a reader's words; ``differs``: why its figure departs from the others'.
    """

    name: str
    standing: Literal["bound", "one-sided", "approximation"]
    assumes: str
    differs: str
    compute: Callable[[Sequence[RoundGroup], float], float]


@dataclass(frozen=True)
class MethodResult:
    """One line of the table: a method and its answer, or why it has none."""

    method: Method
    epsilon: float | None
    reason: str = ""

    @property
    def is_bound(self) -> bool:
        return self.epsilon is not None and self.method.standing == "bound"


def recompute(groups: Sequence[RoundGroup], delta: float) -> list[MethodResult]:
    """Ask every method for ε at δ; δ is first reduced by what Poisson boundaries cost.

    Raises:
        ValueError: δ outside (0, 1).
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta must lie strictly between 0 and 1, got {delta}")
    counted = [group for group in groups if group.rounds and group.rate > 0]
    left = delta - sum(group.rounds * group.pivotal for group in counted if group.is_sampled)
    rows = []
    for method in METHODS:
        try:
            if left <= 0:
                raise DoesNotApply("δ is used up by rounds that one report may open or close")
            rows.append(MethodResult(method, method.compute(counted, left)))
        except (DoesNotApply, ValueError, OverflowError) as error:
            rows.append(MethodResult(method, None, str(error)))
    return rows


def best_bound(rows: Sequence[MethodResult]) -> MethodResult | None:
    """Return the row of the smallest proven ε."""
    proven = [row for row in rows if row.is_bound]
    return min(proven, key=lambda row: row.epsilon or 0.0) if proven else None


def quick_epsilon(groups: RoundGroup | Sequence[RoundGroup], delta: float) -> float:
    """Return one proven ε, by the one method that is tight for these rounds; ∞ where none is.

    None is where groups state different neighbouring relations: no data sets are neighbours by
    several of them.
    """
    groups = [groups] if isinstance(groups, RoundGroup) else groups
    if len({group.neighboring for group in groups}) > 1:
        return math.inf
    delta -= sum(group.rounds * group.pivotal for group in groups if group.is_sampled)
    if delta <= 0:
        return math.inf
    sampled = [group for group in groups if group.is_sampled]
    gaussian = all(group.mechanism == "gaussian" for group in groups)
    tight = all(p.sampling == "poisson" and p.neighboring != "replace_one" for p in sampled)
    method = published_renyi if not (gaussian and tight) else pld if sampled else closed_form
    try:
        cost = method(groups, delta)
    except ValueError:
        cost = math.inf
    return min(cost, quick_epsilon(_all_known(groups), delta)) if sampled else cost


def without_sampling(groups: Sequence[RoundGroup], delta: float) -> float:
    """Return ε against one who also knows who took part, which is never below that of others.

    Raises:
        DoesNotApply: nobody is sampled, or nothing is proven.
    """
    if not any(group.is_sampled for group in groups):
        raise DoesNotApply("everybody is in every round that is counted")
    cost = quick_epsilon(_all_known(groups), delta)
    if math.isinf(cost):
        raise DoesNotApply("nothing is proven without sampling either")
    return cost


def _all_known(groups: Sequence[RoundGroup]) -> list[RoundGroup]:
    """Return the groups for one who knows who took part in each of their rounds."""
    return [group.seen_by_server() if group.is_sampled else group for group in groups]


def _library(name: str) -> str:
    return f"{name} {importlib.metadata.version(name)}"


METHODS: tuple[Method, ...] = (
    Method(
        "closed form (Balle & Wang 2018)",
        "bound",
        "Gaussian noise, no sampling; composition of Gaussians is exact",
        "exact: nothing can be smaller",
        closed_form,
    ),
    Method(
        f"{_library('dp-accounting')}, PLD",
        "bound",
        "Gaussian noise; each user joins by an independent secret coin, or always",
        "composes the whole loss distribution, rounded upward on a grid of 1e-4",
        pld,
    ),
    Method(
        f"{_library('opacus')}, PRV",
        "one-sided",
        "as PLD, but computes the loss of removing a user only, not of adding one",
        "as PLD, plus its own error bound of 0.01",
        opacus_prv,
    ),
    Method(
        f"{_library('dp-accounting')}, RDP",
        "bound",
        "as PLD; fixed-size cohorts at two clip norms (the library alone would take one)",
        "bounds moments, not the distribution: 5% to many times larger",
        dp_accounting_rdp,
    ),
    Method(
        f"{_library('opacus')}, RDP",
        "bound",
        "as PLD",
        "as RDP, with orders up to 63 only: never below 0.14 at δ = 1e-6",
        opacus_rdp,
    ),
    Method(
        "published Rényi bounds",
        "bound",
        "any of the noises; rounding to the grid included; general amplification by sampling",
        "the only proof for discrete noise; its general amplification costs up to 4 times",
        published_renyi,
    ),
    Method(
        "without sampling",
        "bound",
        "nothing of the sampling: the exact or published bound for one who knows who took part",
        "for few rounds sampling may be proven to save less than its proof costs",
        without_sampling,
    ),
    Method(
        "Gaussian of equal variance",
        "approximation",
        "that discrete noise and rounding behave like a continuous Gaussian",
        "an approximation, not a bound: unproven for the noise in use",
        gaussian_of_equal_variance,
    ),
    Method(
        f"{_library('opacus')}, GDP",
        "approximation",
        "a central limit theorem, far from its limit at small rates",
        "an approximation, not a bound: 0.024 where the truth is 3.76",
        opacus_gdp,
    ),
)
