"""Adaptive clipping: the clip norm follows a quantile of update norms, told by noisy indicators.

A device reports whether its update was short, ‖u‖ ≤ C, as one more coordinate of the same vector:

    v = (α · clip(u, C), ±κ · C),   κ² + α² = 1,   + for a short update

so v is itself an update of norm ≤ C, whatever u is: ‖v‖² ≤ α²C² + κ²C² = C². It is rotated,
clipped, rounded, noised, summed and paid for like any other update, of one coordinate more; its
sensitivity is C, and no mechanism, relation or sampling needs a proof of its own. The clip norm
of a round is a function of what earlier rounds released, and the noise is a multiple of it. Rounds
compose as at a fixed clip norm: every bound of the accountant holds for rounds chosen adaptively.

With noise of z clip norms on the sum, the sum of updates has z/α and the count of short updates
σ_b = z/2κ, which is the split of Andrew et al., (z/α)⁻² + (2σ_b)⁻² = z⁻². κ follows from the
noise that the policy allows on the released share, so nothing is tuned on private text.

All that is done with a released share is post-processing. The clip norm moves fast until it has
crossed the quantile a few times, so that one ten times off is found in a few rounds; and a round
whose clip norm was far too large moves no model, because its noise was made for longer updates.

Source: Andrew, Thakkar, McMahan, Ramaswamy 2021, "Differentially private learning with adaptive
clipping" (arXiv:1905.03871v5), Algorithm 1 and Theorem 1; Kesten 1958, "Accelerated stochastic
approximation" (Annals of Mathematical Statistics 29), for steps that shrink at a change of sign.

Legend: K devices, d coordinates of the payload.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pfl_lm.dp.encoding import Clipped, norms
from pfl_lm.dp.sampler.arrays import Updates
from pfl_lm.validate import below_one, positive, refuse, typed, within

_MOST_WEIGHT = 0.5  # of κ: beyond it indicators would cost updates more than 15% of noise
_FASTEST = 4.0  # of a rate: a round then moves the clip norm by a factor of e⁴ at most
_FAR = 0.8  # of the way from the quantile to 1: a share beyond it tells of no use for the mean
_DEVIATIONS = 3.0  # of the noise on a share, by which it must exceed the quantile too
_ROUNDING = 1e-9  # of a clip norm, between two machines' exponential functions


@dataclass(frozen=True)
class Clip:
    """The clip norm of a round, and how it moves; public.

    Attributes:
        norm: ℓ2 bound on the round's updates.
        rate: at which it moves after the round.
        side: of the quantile on which the last share was: 1 above, −1 below; 0: there was none.
    """

    norm: float
    rate: float = 0.0
    side: int = 0


@dataclass(frozen=True)
class Clipping:
    """The clip norm follows a quantile of update norms; scenarios state where it begins.

    Attributes:
        lowest: smallest clip norm of a round; devices refuse a smaller one.
        highest: largest clip norm of a round; devices refuse a larger one.
        quantile: share of the reports whose update the clip norm aims to leave whole.
        rate: each round multiplies the clip norm by exp(−rate·(share of short updates − quantile)).
        first_rate: takes the place of ``rate`` at first; it halves, down to ``rate``, whenever the
            share has come to the other side of the quantile.
        indicator_noise: standard deviation of the noise on the share that a round releases.
    """

    lowest: float
    highest: float
    quantile: float = 0.5
    rate: float = 0.2
    first_rate: float = 2.0
    indicator_noise: float = 0.05

    def __post_init__(self) -> None:
        typed(self)
        within(1e-20, 1e20, lowest=self.lowest, highest=self.highest)
        if self.lowest > self.highest:
            refuse(f"lowest = {self.lowest:g} exceeds highest = {self.highest:g}")
        positive(quantile=self.quantile)
        below_one(quantile=self.quantile)
        positive(rate=self.rate, first_rate=self.first_rate)
        within(0, _FASTEST, rate=self.rate, first_rate=self.first_rate)
        within(1e-6, 1, indicator_noise=self.indicator_noise)

    def weight(self, noise_multiplier: float, report_goal: int) -> float:
        """Return κ, the length of an indicator in clip norms.

        Args:
            noise_multiplier: planned, on the sum of a round, in clip norms.
            report_goal: what the share of short updates is divided by.

        Raises:
            ValueError: updates would lose too much of the clip norm to the indicators.
        """
        weight = noise_multiplier / (2 * report_goal * self.indicator_noise)
        if weight > _MOST_WEIGHT:
            least = noise_multiplier / (2 * report_goal * _MOST_WEIGHT)
            raise ValueError(
                f"clipping.indicator_noise = {self.indicator_noise:g} is too little beside noise "
                f"of {noise_multiplier:.4g} clip norms on {report_goal:,} reports: indicators "
                f"would crowd out updates; write {least:.2g} or more, or raise report_goal"
            )
        return weight

    def begin(self, clip_norm: float) -> Clip:
        """Return the clip of the first round."""
        return Clip(clip_norm, self.first_rate)

    def after(self, clip: Clip, share: float) -> Clip:
        """Return the clip of the next round.

        Args:
            share: of short updates, as it was released: with noise, so perhaps outside [0, 1].

        Source: Andrew et al. 2021, Equation 2 (the geometric update); Kesten 1958.
        """
        off = min(max(share, 0.0), 1.0) - self.quantile
        side = int(off > 0) - int(off < 0)
        rate = clip.rate if side * clip.side >= 0 else max(self.rate, clip.rate / 2)
        moved = clip.norm * math.exp(-rate * off)
        return Clip(min(max(moved, self.lowest), self.highest), rate, side or clip.side)

    def is_far_above(self, share: float) -> bool:
        """Whether a released share tells that the clip norm was far too large for the updates."""
        room = max(_FAR * (1 - self.quantile), _DEVIATIONS * self.indicator_noise)
        return share > self.quantile + room

    def reach(self, first: float, round: int) -> tuple[float, float]:
        """Return the least and the largest clip norm that ``round`` can have.

        Args:
            first: clip norm of round 0.
        """
        fastest = max(self.rate, self.first_rate)
        least = first * math.exp(max(-700.0, -fastest * (1 - self.quantile) * round))
        largest = first * math.exp(min(700.0, fastest * self.quantile * round))
        return (
            max(self.lowest, least) * (1 - _ROUNDING),
            min(self.highest, largest) * (1 + _ROUNDING),
        )


def update_weight(indicator_weight: float) -> float:
    """Return α = √(1 − κ²), what is left for the update of a clip norm of 1."""
    return math.sqrt(1 - indicator_weight * indicator_weight)


def with_indicators(
    updates: Updates, clip_norm: float, indicator_weight: float
) -> tuple[Updates, Clipped]:
    """Clip updates and put each device's indicator behind: float32[K, d] → float32[K, d + 1].

    Args:
        updates: (K, d), C-contiguous float32, in model units; left as they are.
        clip_norm: C of the round.
        indicator_weight: κ.

    Returns:
        The joint rows, and what clipping did.

    Guarantees:
        Every row has norm ≤ clip_norm up to float32's rounding; ``encoding.protect``, through which
        it goes next, makes that exact. A row that is not finite stays so: it becomes zeros there,
        indicator and all.
    """
    lengths = norms(updates)
    alpha = update_weight(indicator_weight)
    with np.errstate(invalid="ignore", divide="ignore"):
        short = lengths <= clip_norm
        factors = np.where(short, alpha, alpha * clip_norm / lengths)
    joint = np.empty((len(updates), updates.shape[1] + 1), np.float32)
    with np.errstate(invalid="ignore"):  # ∞·0 is nan, which protect erases
        np.multiply(updates, factors.astype(np.float32)[:, None], out=joint[:, :-1])
    joint[:, -1] = np.where(short, 1.0, -1.0) * indicator_weight * clip_norm
    reported = np.where(np.isfinite(lengths), lengths, np.nan)
    return joint, Clipped(reported, ~short)


def split(mean: Updates, clip_norm: float, indicator_weight: float) -> tuple[Updates, float]:
    """Return the mean update float32[d] and the share of short updates of a joint mean.

    Indicators are ±½ around ½, so a report that is missing counts as half a short update.

    Args:
        mean: float32[d + 1], the noisy sum ÷ the public number of reports.
    """
    update = (mean[:-1] / update_weight(indicator_weight)).astype(np.float32)
    return update, 0.5 + float(mean[-1]) / (2 * indicator_weight * clip_norm)


def clip_before(round: int, entries: Iterable[Mapping[str, Any]]) -> Clip | None:
    """Return the clip of a round, by what earlier rounds released; None: none released any.

    Args:
        entries: of the ledger.
    """
    moved = {
        entry["round"]: Clip(**entry["clipping"]["next"])
        for entry in entries
        if "clipping" in entry and entry["round"] < round
    }
    return moved[max(moved)] if moved else None
