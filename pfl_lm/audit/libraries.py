"""Each library and theorem asked for ε; each refuses what its proof does not cover."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from pfl_lm.audit import opacus_numpy, renyi
from pfl_lm.audit.gaussians import gaussian_epsilon
from pfl_lm.audit.phases import Phase, coarsened

_LARGEST_GRID = 2**22  # points of a discretised loss; beyond it Opacus takes minutes


class DoesNotApply(ValueError):
    """A method that has no proof for these phases, or cannot compute them."""


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
    # Memory grows with ε ÷ interval: at a huge ε the fourth digit is enough.
    uncut = [replace(phase, most_reports=0) for phase in phases]
    rough = dp_accounting_rdp(uncut, delta / 1000) if uncut else 0.0
    if not rough < 1e5:
        raise DoesNotApply("ε is beyond 100,000; there is no privacy to compute")
    coarser = math.ceil(math.log2(max(1.0, rough / 20)))
    return float(_composed(tuple(phases), 1e-4 * 2**coarser).get_epsilon(delta))


@lru_cache(maxsize=16)
def _composed(phases: tuple[Phase, ...], interval: float) -> Any:
    """Compose once for all δ at which a table asks."""
    import dp_accounting
    from dp_accounting import pld as library

    accountant = library.PLDAccountant(
        dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE,
        value_discretization_interval=interval,
    )
    for event in _add_remove_events(phases, may_cut=True):
        accountant.compose(event)
    return accountant


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


def _add_remove_events(phases: Sequence[Phase], may_cut: bool = False) -> list[Any]:
    """Build the library's events; all unsampled rounds are one Gaussian release, exactly."""
    import dp_accounting as library

    _only_gaussian(phases)
    _only_poisson(phases, may_cut)
    events = []
    for phase in coarsened(p for p in phases if p.is_sampled):
        drawn = _drawn(phase)
        events.append(library.SelfComposedDpEvent(drawn, phase.rounds))
    if always := [p for p in phases if not p.is_sampled]:
        events.append(library.GaussianDpEvent(1 / _joint_mu(always)))
    return events


def _drawn(phase: Phase) -> Any:
    import dp_accounting as library

    if phase.most_reports:
        return library.TruncatedSubsampledGaussianDpEvent(
            phase.population, phase.rate, phase.most_reports, phase.noise_multiplier
        )
    noise = library.GaussianDpEvent(phase.noise_multiplier)
    return library.PoissonSampledDpEvent(phase.rate, noise)


def repeat_and_select(phases: Sequence[Phase], delta: float, mean: float, shape: float) -> float:
    """Return ε of the best of a random number of trainings, the number planned beforehand.

    Args:
        mean: of that number.
        shape: 1 geometric, 0 logarithmic, inf Poisson.

    Source: Papernot & Steinke 2022, arXiv 2110.03620, as dp-accounting's Rényi accountant has it.
    """
    import dp_accounting as library
    from dp_accounting import rdp
    from dp_accounting.dp_event import RepeatAndSelectDpEvent

    once = library.ComposedDpEvent(_add_remove_events(phases))
    accountant = rdp.RdpAccountant(
        neighboring_relation=library.NeighboringRelation.ADD_OR_REMOVE_ONE
    )
    with _quiet("absl"):
        accountant.compose(RepeatAndSelectDpEvent(once, mean, shape))
    return float(accountant.get_epsilon(delta))


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
    if any(phase.most_reports for phase in phases):
        raise DoesNotApply("assumes that no cohort is cut to a largest size")
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


def _only_poisson(phases: Sequence[Phase], may_cut: bool = False) -> None:
    for phase in phases:
        if phase.most_reports and not may_cut:
            raise DoesNotApply("assumes that no cohort is cut to a largest size")
        if phase.sampling == "fixed" and phase.is_sampled:
            raise DoesNotApply("assumes Poisson sampling; the cohorts have a fixed size")
        if phase.is_sampled and phase.neighboring == "replace_one":
            raise DoesNotApply("has no proof for Poisson sampling when one user replaces another")
