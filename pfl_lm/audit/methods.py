"""Every independent way to ε that is at hand, each with what it assumes and where it stops.

A method answers with a number or says why it does not apply; it never answers for a mechanism or
a sampling that its proof does not cover.
"""

from __future__ import annotations

import importlib.metadata
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from pfl_lm.audit import opacus_numpy, renyi
from pfl_lm.audit.gaussians import gaussian_epsilon
from pfl_lm.audit.phases import Phase, coarsened

_LARGEST_GRID = 2**22  # points of a discretised loss; beyond it Opacus takes minutes


class DoesNotApply(ValueError):
    """A method that has no proof for these phases, or cannot compute them."""


@dataclass(frozen=True)
class Method:
    """One way from phases to ε.

    Attributes:
        standing: ``bound`` proves ε; ``one-sided`` proves it for removing a user but not for
            adding one; ``approximation`` proves nothing. Only bounds certify.
        assumes: in a reader's words; ``differs``: why its figure departs from the others'.
    """

    name: str
    standing: Literal["bound", "one-sided", "approximation"]
    assumes: str
    differs: str
    compute: Callable[[Sequence[Phase], float], float]


@dataclass(frozen=True)
class Row:
    """One line of the table: a method and its answer, or why it has none."""

    method: Method
    epsilon: float | None
    reason: str = ""

    @property
    def is_bound(self) -> bool:
        return self.epsilon is not None and self.method.standing == "bound"


def recompute(phases: Sequence[Phase], delta: float) -> list[Row]:
    """Ask every method for ε at δ; δ is first reduced by what Poisson boundaries cost.

    Raises:
        ValueError: δ outside (0, 1).
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta must lie strictly between 0 and 1, got {delta}")
    counted = [phase for phase in phases if phase.rounds and phase.rate > 0]
    left = delta - sum(phase.rounds * phase.boundary for phase in counted if phase.is_sampled)
    rows = []
    for method in METHODS:
        try:
            if left <= 0:
                raise DoesNotApply("δ is used up by rounds that one report may open or close")
            rows.append(Row(method, method.compute(counted, left)))
        except (DoesNotApply, ValueError, OverflowError) as error:
            rows.append(Row(method, None, str(error)))
    return rows


def best_bound(rows: Sequence[Row]) -> Row | None:
    """Return the row of the smallest proven ε."""
    proven = [row for row in rows if row.is_bound]
    return min(proven, key=lambda row: row.epsilon or 0.0) if proven else None


def quick_epsilon(phases: Phase | Sequence[Phase], delta: float) -> float:
    """Return one proven ε, by the one method that is tight for these phases; ∞ where none is."""
    phases = [phases] if isinstance(phases, Phase) else phases
    delta -= sum(phase.rounds * phase.boundary for phase in phases if phase.is_sampled)
    if delta <= 0:
        return math.inf
    sampled = [phase for phase in phases if phase.is_sampled]
    gaussian = all(phase.mechanism == "gaussian" for phase in phases)
    tight = all(p.sampling == "poisson" and p.neighboring != "replace_one" for p in sampled)
    method = published_renyi if not (gaussian and tight) else pld if sampled else closed_form
    try:
        return method(phases, delta)
    except ValueError:
        return math.inf


def closed_form(phases: Sequence[Phase], delta: float) -> float:
    """Exact for Gaussian noise without sampling: all rounds are one release of larger mean."""
    _only_gaussian(phases)
    if any(phase.is_sampled for phase in phases):
        raise DoesNotApply("users are sampled; no closed form is known")
    return gaussian_epsilon(_joint_mu(phases), delta)


def _joint_mu(phases: Sequence[Phase]) -> float:
    if any(phase.noise_multiplier == 0 for phase in phases):
        return math.inf
    squares = (p.rounds * (p.sensitivity / p.noise_multiplier) ** 2 for p in phases)
    return math.sqrt(math.fsum(squares))


def pld(phases: Sequence[Phase], delta: float) -> float:
    """dp-accounting's privacy loss distributions, rounded pessimistically."""
    import dp_accounting
    from dp_accounting import pld as library

    relation = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
    events = _add_remove_events(phases)
    # Memory grows with ε ÷ interval: at a huge ε the fourth digit is enough.
    rough = dp_accounting_rdp(phases, delta / 1000) if events else 0.0
    if not rough < 1e5:
        raise DoesNotApply("ε is beyond 100,000; there is no privacy to compute")
    interval = 1e-4 * max(1.0, rough / 20)
    accountant = library.PLDAccountant(relation, value_discretization_interval=interval)
    for event in events:
        accountant.compose(event)
    return float(accountant.get_epsilon(delta))


def dp_accounting_rdp(phases: Sequence[Phase], delta: float) -> float:
    """dp-accounting's Rényi accountant; a fixed-size cohort enters at two clip norms."""
    import dp_accounting
    from dp_accounting import rdp as library

    relations = dp_accounting.NeighboringRelation
    fixed = bool(phases) and all(p.sampling == "fixed" and p.is_sampled for p in phases)
    events = _fixed_size_events(phases) if fixed else _add_remove_events(phases)
    relation = relations.REPLACE_ONE if fixed else relations.ADD_OR_REMOVE_ONE
    accountant = library.RdpAccountant(neighboring_relation=relation)
    with _quiet("absl"):  # orders that do not converge are left out, which is sound
        for event in events:
            accountant.compose(event)
    return float(accountant.get_epsilon(delta))


@contextmanager
def _quiet(logger: str) -> Iterator[None]:
    talker = logging.getLogger(logger)
    before, talker.disabled = talker.disabled, True
    try:
        yield
    finally:
        talker.disabled = before


def _add_remove_events(phases: Sequence[Phase]) -> list[Any]:
    """Build the library's events; all unsampled rounds are one Gaussian release, exactly."""
    import dp_accounting as library

    _only_gaussian(phases)
    _only_poisson(phases)
    events = []
    for phase in coarsened(p for p in phases if p.is_sampled):
        noise = library.GaussianDpEvent(phase.noise_multiplier)
        drawn = library.PoissonSampledDpEvent(phase.rate, noise)
        events.append(library.SelfComposedDpEvent(drawn, phase.rounds))
    if always := [p for p in phases if not p.is_sampled]:
        events.append(library.GaussianDpEvent(1 / _joint_mu(always)))
    return events


def _fixed_size_events(phases: Sequence[Phase]) -> list[Any]:
    import dp_accounting as library

    _only_gaussian(phases)
    events = []
    for phase in coarsened(phases):
        # The library takes sensitivity 1 under replacement; the truth is two clip norms.
        noise = library.GaussianDpEvent(phase.noise_multiplier / 2)
        cohort = max(1, math.ceil(phase.rate * phase.population))
        drawn = library.SampledWithoutReplacementDpEvent(phase.population, cohort, noise)
        events.append(library.SelfComposedDpEvent(drawn, phase.rounds))
    return events


def opacus_prv(phases: Sequence[Phase], delta: float) -> float:
    """Opacus' numerical composition; its stated error of 0.01 is part of the figure."""
    schedule = _schedule(phases)
    delta_error = delta / 1000
    with np.errstate(all="ignore"):
        half = opacus_numpy.rdp_epsilon(schedule, delta_error / 4) + 3
    rounds = sum(count for *_, count in schedule)
    mesh = 0.01 / math.sqrt(rounds * math.log(12 / delta_error) / 2)
    if not 2 * half / mesh <= _LARGEST_GRID:
        raise DoesNotApply("so little noise needs a discretisation that takes minutes")
    return opacus_numpy.prv_epsilon(schedule, delta)


def opacus_rdp(phases: Sequence[Phase], delta: float) -> float:
    """Opacus' Rényi accountant, with its own orders (up to 63)."""
    return opacus_numpy.rdp_epsilon(_schedule(phases), delta)


def opacus_gdp(phases: Sequence[Phase], delta: float) -> float:
    """Opacus' central-limit formula: no bound."""
    schedule = _schedule(phases)
    if len(schedule) != 1 or schedule[0][1] >= 1:
        raise DoesNotApply("the formula knows equal Poisson rounds only")
    return opacus_numpy.gdp_epsilon(*schedule[0], delta)


def _schedule(phases: Sequence[Phase]) -> list[tuple[float, float, int]]:
    _only_gaussian(phases)
    _only_poisson(phases)
    schedule = [
        (p.noise_multiplier, p.rate, p.rounds) for p in coarsened(q for q in phases if q.is_sampled)
    ]
    if always := [p for p in phases if not p.is_sampled]:
        schedule.append((1 / _joint_mu(always), 1.0, 1))
    if not schedule:
        raise DoesNotApply("nothing was released")
    return schedule


def published_renyi(phases: Sequence[Phase], delta: float) -> float:
    """The published Rényi bounds of discrete noise and of general amplification."""
    epsilon = renyi.epsilon(coarsened(phases) if len(phases) > 12 else phases, delta)
    if math.isinf(epsilon):
        raise DoesNotApply("there is no noise to account for")
    return epsilon


def gaussian_of_equal_variance(phases: Sequence[Phase], delta: float) -> float:
    """What continuous Gaussian noise of the same variance would cost."""
    if all(phase.mechanism == "gaussian" for phase in phases):
        raise DoesNotApply("the noise is Gaussian; see the other rows")
    same = [replace(phase, mechanism="gaussian") for phase in phases]
    if all(not phase.is_sampled for phase in same):
        return closed_form(same, delta)
    return pld(same, delta)


def _only_gaussian(phases: Sequence[Phase]) -> None:
    kinds = sorted({phase.mechanism for phase in phases} - {"gaussian"})
    if kinds:
        raise DoesNotApply(f"knows Gaussian noise only, not {', '.join(kinds)}")
    if any(phase.noise_multiplier == 0 for phase in phases):
        raise DoesNotApply("there is no noise to account for")


def _only_poisson(phases: Sequence[Phase]) -> None:
    for phase in phases:
        if phase.sampling == "fixed" and phase.is_sampled:
            raise DoesNotApply("assumes Poisson sampling; the cohorts have a fixed size")
        if phase.is_sampled and phase.neighboring == "replace_one":
            raise DoesNotApply("has no proof for Poisson sampling when one user replaces another")


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
