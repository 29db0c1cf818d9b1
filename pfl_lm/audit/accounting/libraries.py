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

from pfl_lm.audit.accounting import opacus as opacus
from pfl_lm.audit.accounting import renyi
from pfl_lm.audit.accounting.round_groups import RoundGroup, coarsened
from pfl_lm.audit.gaussians import gaussian_epsilon

_LARGEST_GRID = 2**22  # points of a discretised loss; beyond it Opacus takes minutes


class DoesNotApply(ValueError):
    """A method that has no proof for these rounds, or cannot compute them."""


def closed_form(groups: Sequence[RoundGroup], delta: float) -> float:
    """Exact for Gaussian noise without sampling: all rounds are one release of larger mean."""
    _only_gaussian(groups)
    if any(group.is_sampled for group in groups):
        raise DoesNotApply("users are sampled; no closed form is known")
    return gaussian_epsilon(_joint_mu(groups), delta)


def _joint_mu(groups: Sequence[RoundGroup]) -> float:
    if any(group.noise_multiplier == 0 for group in groups):
        return math.inf
    squares = (p.rounds * (p.sensitivity / p.noise_multiplier) ** 2 for p in groups)
    return math.sqrt(math.fsum(squares))


def pld(groups: Sequence[RoundGroup], delta: float) -> float:
    """dp-accounting's privacy loss distributions, rounded pessimistically."""
    # Memory grows with ε ÷ interval: at a huge ε the fourth digit is enough.
    uncut = [replace(group, most_reports=0) for group in groups]
    rough = dp_accounting_rdp(uncut, delta / 1000) if uncut else 0.0
    if not rough < 1e5:
        raise DoesNotApply("ε is beyond 100,000; there is no privacy to compute")
    coarser = math.ceil(math.log2(max(1.0, rough / 20)))
    return float(_composed(tuple(groups), 1e-4 * 2**coarser).get_epsilon(delta))


@lru_cache(maxsize=16)
def _composed(groups: tuple[RoundGroup, ...], interval: float) -> Any:
    """Compose once for all δ at which a table asks."""
    import dp_accounting
    from dp_accounting import pld as library

    accountant = library.PLDAccountant(
        dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE,
        value_discretization_interval=interval,
    )
    for event in _add_remove_events(groups, may_cut=True):
        accountant.compose(event)
    return accountant


def dp_accounting_rdp(groups: Sequence[RoundGroup], delta: float) -> float:
    """dp-accounting's Rényi accountant; a fixed-size cohort enters at two clip norms."""
    import dp_accounting
    from dp_accounting import rdp as library

    relations = dp_accounting.NeighboringRelation
    fixed = bool(groups) and all(p.sampling == "fixed" and p.is_sampled for p in groups)
    events = _fixed_size_events(groups) if fixed else _add_remove_events(groups)
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


def _add_remove_events(groups: Sequence[RoundGroup], may_cut: bool = False) -> list[Any]:
    """Build the library's events; all unsampled rounds are one Gaussian release, exactly."""
    import dp_accounting as library

    _only_gaussian(groups)
    _only_poisson(groups, may_cut)
    events = []
    for group in coarsened(p for p in groups if p.is_sampled):
        drawn = _drawn(group)
        events.append(library.SelfComposedDpEvent(drawn, group.rounds))
    if always := [p for p in groups if not p.is_sampled]:
        events.append(library.GaussianDpEvent(1 / _joint_mu(always)))
    return events


def _drawn(group: RoundGroup) -> Any:
    import dp_accounting as library

    if group.most_reports:
        return library.TruncatedSubsampledGaussianDpEvent(
            group.population, group.rate, group.most_reports, group.noise_multiplier
        )
    noise = library.GaussianDpEvent(group.noise_multiplier)
    return library.PoissonSampledDpEvent(group.rate, noise)


def repeat_and_select(
    groups: Sequence[RoundGroup], delta: float, mean: float, shape: float
) -> float:
    """Return ε of the best of a random number of trainings, the number planned beforehand.

    Args:
        mean: of that number.
        shape: 1 geometric, 0 logarithmic, inf Poisson.

    Source: Papernot & Steinke 2022, arXiv 2110.03620, as dp-accounting's Rényi accountant has it.
    """
    import dp_accounting as library
    from dp_accounting import rdp
    from dp_accounting.dp_event import RepeatAndSelectDpEvent

    once = library.ComposedDpEvent(_add_remove_events(groups))
    accountant = rdp.RdpAccountant(
        neighboring_relation=library.NeighboringRelation.ADD_OR_REMOVE_ONE
    )
    with _quiet("absl"):
        accountant.compose(RepeatAndSelectDpEvent(once, mean, shape))
    return float(accountant.get_epsilon(delta))


def _fixed_size_events(groups: Sequence[RoundGroup]) -> list[Any]:
    import dp_accounting as library

    _only_gaussian(groups)
    events = []
    for group in coarsened(groups):
        # The library takes sensitivity 1 under replacement; the truth is two clip norms.
        noise = library.GaussianDpEvent(group.noise_multiplier / 2)
        cohort = max(1, math.ceil(group.rate * group.population))
        drawn = library.SampledWithoutReplacementDpEvent(group.population, cohort, noise)
        events.append(library.SelfComposedDpEvent(drawn, group.rounds))
    return events


def opacus_prv(groups: Sequence[RoundGroup], delta: float) -> float:
    """Opacus' numerical composition; its stated error of 0.01 is part of the figure."""
    schedule = _schedule(groups)
    delta_error = delta / 1000
    with np.errstate(all="ignore"):
        half = opacus.rdp_epsilon(schedule, delta_error / 4) + 3
    rounds = sum(count for *_, count in schedule)
    mesh = 0.01 / math.sqrt(rounds * math.log(12 / delta_error) / 2)
    if not 2 * half / mesh <= _LARGEST_GRID:
        raise DoesNotApply("so little noise needs a discretisation that takes minutes")
    return opacus.prv_epsilon(schedule, delta)


def opacus_rdp(groups: Sequence[RoundGroup], delta: float) -> float:
    """Opacus' Rényi accountant, with its own orders (up to 63)."""
    return opacus.rdp_epsilon(_schedule(groups), delta)


def opacus_gdp(groups: Sequence[RoundGroup], delta: float) -> float:
    """Opacus' central-limit formula: no bound."""
    schedule = _schedule(groups)
    if len(schedule) != 1 or schedule[0][1] >= 1:
        raise DoesNotApply("the formula knows equal Poisson rounds only")
    return opacus.gdp_epsilon(*schedule[0], delta)


def _schedule(groups: Sequence[RoundGroup]) -> list[tuple[float, float, int]]:
    _only_gaussian(groups)
    _only_poisson(groups)
    schedule = [
        (p.noise_multiplier, p.rate, p.rounds) for p in coarsened(q for q in groups if q.is_sampled)
    ]
    if always := [p for p in groups if not p.is_sampled]:
        schedule.append((1 / _joint_mu(always), 1.0, 1))
    if not schedule:
        raise DoesNotApply("nothing was released")
    return schedule


def published_renyi(groups: Sequence[RoundGroup], delta: float) -> float:
    """The published Rényi bounds of discrete noise and of general amplification."""
    if any(group.most_reports for group in groups):
        raise DoesNotApply("assumes that no cohort is cut to a largest size")
    epsilon = renyi.epsilon(coarsened(groups) if len(groups) > 12 else groups, delta)
    if math.isinf(epsilon):
        raise DoesNotApply("there is no noise to account for")
    return epsilon


def gaussian_of_equal_variance(groups: Sequence[RoundGroup], delta: float) -> float:
    """What continuous Gaussian noise of the same variance would cost."""
    if all(group.mechanism == "gaussian" for group in groups):
        raise DoesNotApply("the noise is Gaussian; see the other rows")
    same = [replace(group, mechanism="gaussian") for group in groups]
    if all(not group.is_sampled for group in same):
        return closed_form(same, delta)
    return pld(same, delta)


def _only_gaussian(groups: Sequence[RoundGroup]) -> None:
    kinds = sorted({group.mechanism for group in groups} - {"gaussian"})
    if kinds:
        raise DoesNotApply(f"knows Gaussian noise only, not {', '.join(kinds)}")
    if any(group.noise_multiplier == 0 for group in groups):
        raise DoesNotApply("there is no noise to account for")


def _only_poisson(groups: Sequence[RoundGroup], may_cut: bool = False) -> None:
    for group in groups:
        if group.most_reports and not may_cut:
            raise DoesNotApply("assumes that no cohort is cut to a largest size")
        if group.sampling == "fixed" and group.is_sampled:
            raise DoesNotApply("assumes Poisson sampling; the cohorts have a fixed size")
        if group.is_sampled and group.neighboring == "replace_one":
            raise DoesNotApply("has no proof for Poisson sampling when one user replaces another")
