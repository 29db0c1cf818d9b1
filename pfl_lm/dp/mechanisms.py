"""The kinds of noise, one object each, and the registry that policies and ledgers name them by.

A new kind is a subclass of :class:`Mechanism` in ``MECHANISMS``, and its divergence in the
accountant: policies, statements, rounds, checkpoints and resumption take the rest from here.

    kind                added                  state between rounds
    skellam             by devices, in shares  none
    discrete_gaussian   by devices, in shares  none
    gaussian            by the server          none
    blt                 by the server          past sums in 1 to 4 buffers a coordinate
    banded              by the server          the last sums, up to min_separation − 1
    banded_inverse_root by the server          the last products
    tree                by the server          a partial sum for each level
    none                not at all             none

Legend: d coordinates of the payload.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np

from pfl_lm.dp.accounting.lattice import check_coordinates
from pfl_lm.dp.correlated.mechanism import Banded, BandedInverseRoot, Blt, Tree
from pfl_lm.dp.events import RoundEvent
from pfl_lm.dp.mechanism import Mechanism, Opened, Place
from pfl_lm.dp.noise import NoiseShare, add_central_gaussian
from pfl_lm.dp.sampler.arrays import Updates
from pfl_lm.dp.sampler.pmf import Kind, parameter_of

__all__ = ["MECHANISMS", "Mechanism", "Opened", "Place", "kinds_at"]


class _AtDevice(Mechanism):
    place: ClassVar[Place] = "device"

    def event(self, event: RoundEvent, dim: int, grid_steps: float, shares: int) -> RoundEvent:
        return replace(event, dim=dim, grid_steps=grid_steps)

    def drawn(self, separately: bool) -> str:
        if self.closed_under_sums and not separately:
            return "once per cohort, as the sum of all shares"
        return "by every device, its own share"


class Skellam(_AtDevice):
    """Differences of Poisson counts: integers, closed under sums.

    Source: Agarwal, Kairouz, Liu 2021 (arXiv:2110.04995).
    """

    name = "skellam"
    label = "Skellam"
    assumption = (
        "the noise on the sum is Skellam with at least the stated variance from honest devices; "
        "updates are rounded to the grid conditionally on their norm (beta = exp(-1/2))"
    )
    distribution: ClassVar[Kind | None] = "skellam"
    closed_under_sums = True


class DiscreteGaussian(_AtDevice):
    """Discrete Gaussian shares, whose sum is close to a discrete Gaussian where they are wide.

    Source: Kairouz, Liu, Steinke 2021 (arXiv:2102.06387).
    """

    name = "discrete_gaussian"
    label = "discrete Gaussian"
    assumption = (
        "the noise on the sum is at least the stated number of honest, independent discrete "
        "Gaussian shares; updates are rounded to the grid conditionally on their norm "
        "(beta = exp(-1/2))"
    )
    distribution: ClassVar[Kind | None] = "discrete_gaussian"

    def event(self, event: RoundEvent, dim: int, grid_steps: float, shares: int) -> RoundEvent:
        return replace(super().event(event, dim, grid_steps, shares), reports=max(1, shares))

    def share(self, variance: float) -> NoiseShare | None:
        return NoiseShare("discrete_gaussian", parameter_of("discrete_gaussian", variance))

    def check_share(self, deviation: float) -> None:
        if deviation < 1:
            raise ValueError(
                f"noise: a discrete Gaussian share has a standard deviation of {deviation:.2g} "
                "grid steps and needs 1; raise grid_steps or min_dim, or use skellam, which has "
                "no such limit"
            )


class Gaussian(Mechanism):
    """Gaussian noise that a trusted server adds to the sum, on a fine lattice."""

    name = "gaussian"
    place: ClassVar[Place] = "server"
    label = "Gaussian"
    assumption = (
        "the noise on the sum is Gaussian, independent of the data and drawn on a fine lattice, "
        "whose distance from the continuous Gaussian is counted in delta"
    )

    def event(self, event: RoundEvent, dim: int, grid_steps: float, shares: int) -> RoundEvent:
        check_coordinates(dim)
        return event

    def mean(self, opened: Opened, state: bytes) -> tuple[Updates, bytes]:
        noisy = add_central_gaussian(
            opened.in_model_units, opened.sensitivity, opened.noise_multiplier, opened.bits
        )
        return (noisy / opened.divisor).astype(np.float32), state


class NoNoise(Mechanism):
    """Nothing is added: no privacy, ε = ∞."""

    name = "none"
    place: ClassVar[Place] = "none"


MECHANISMS: dict[str, Mechanism] = {
    mechanism.name: mechanism
    for mechanism in (
        Skellam(),
        DiscreteGaussian(),
        Gaussian(),
        Blt(),
        Banded(),
        BandedInverseRoot(),
        Tree(),
        NoNoise(),
    )
}


def kinds_at(place: Place) -> list[str]:
    """Return the names of the kinds of noise that are added there."""
    return [name for name, mechanism in MECHANISMS.items() if mechanism.place == place]
