"""A check of an opened sum: is it longer than honest reports can make it?"""

from __future__ import annotations

import math

import numpy as np

from pfl_lm.dp.grid import Grid
from pfl_lm.run.privacy import RunPrivacy
from pfl_lm.secagg.config import RoundConfig
from pfl_lm.secagg.errors import SumLost
from pfl_lm.secagg.ideal import OpenedSum
from pfl_lm.secagg.rounds import NoisyMean
from pfl_lm.server.state import Broadcast

_T = 40.0  # an honest Gaussian sum trips a check with probability e^-40


def check_sum(
    privacy: RunPrivacy, opened: OpenedSum, config: RoundConfig, broadcast: Broadcast
) -> None:
    """Refuse a sum that honest reports cannot add up to: a device sent more than its bound.

    A masked vector shows nothing, so a device that skips its clip is seen in the sum at the
    earliest, and only if it exceeds what all reports together may be. What a device can do within
    that bound is no business of this check.

    ===============================  ===========================================================
    of r honest reports              at most
    ===============================  ===========================================================
    norm of the sum                  r · norm_bound + √2 · σ · √(d + 2√(dt) + 2t), t = 40
    largest coordinate               r · norm_bound + √2 · σ · √(2(ln 2d + t))
    ===============================  ===========================================================

    σ is the deviation of the noise in a coordinate of the sum, in grid steps, 0 where the server
    adds it later. Without the factor √2 a Gaussian exceeds a bound with probability at most e^-t
    (Laurent and Massart 2000, Lemma 1); the factor makes room for the wider tails of Skellam noise.
    A false alarm costs a round and no privacy.

    Raises:
        SumLost: naming the bound and the number of reports, which are public. The figure itself has
            no noise yet where the server adds it, and the ledger keeps the message.
    """
    if isinstance(opened, NoisyMean):
        return
    privacy = privacy.at_clip(broadcast.clip_norm)
    grid, reports = privacy.grid(broadcast.payload.dim), opened.reports
    deviation = _noise_deviation(privacy, grid, reports, config.cohort)
    room, dim = reports * grid.norm_bound, grid.dim
    values = opened.vector.astype(np.float64)
    for what, value, bound in (
        ("norm", float(np.linalg.norm(values)), math.sqrt(dim + 2 * math.sqrt(dim * _T) + 2 * _T)),
        ("largest coordinate", float(np.abs(values).max(initial=0.0)),
         math.sqrt(2 * (math.log(2 * dim) + _T))),
    ):  # fmt: skip
        limit = room + math.sqrt(2) * deviation * bound
        if not value <= limit:
            raise SumLost(
                reports,
                f"the {what} of the sum is above the {limit:.4g} grid steps that {reports} honest "
                "reports reach: a device sent more than its bound",
            )


def _noise_deviation(privacy: RunPrivacy, grid: Grid, reports: int, cohort: int) -> float:
    """Return the most that the devices' noise deviates in a coordinate of the sum, in grid steps.

    Removable components count as if all of them were still there: together with the share they
    are what one device of the fewest reports adds.
    """
    share, plan = privacy.device_share(grid, cohort), privacy.noise_plan(grid, cohort)
    if share is None:
        return 0.0
    own = share.variance if plan is None else plan.variance / (cohort - plan.levels * plan.step)
    return math.sqrt(reports * own)
