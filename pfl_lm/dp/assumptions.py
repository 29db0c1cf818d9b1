"""What must be true outside the arithmetic for a reported ε to hold, in a reader's words."""

from __future__ import annotations

from collections.abc import Iterable

from pfl_lm.dp.events import RoundEvent

_NEIGHBORING = {
    "zero_out": "two data sets are neighbours if one user's update is zero in one of them; the "
    "sum then moves by at most one clip norm",
    "add_remove": "two data sets are neighbours if one of them lacks one user, who leaves "
    "nothing behind: no noise, and no trace in the number of reports",
    "replace_one": "two data sets are neighbours if one user's data is replaced by any other; "
    "the sum then moves by up to two clip norms",
}

_SAMPLING = {
    "none": "every user may be in every round that is counted",
    "rotation": "no device takes part twice within min_separation rounds, and it counts them "
    "itself",
    "poisson": "amplified figure: every device joins each round by its own independent coin, and "
    "who joined stays hidden; whoever learns it is covered by the unamplified figure alone",
    "fixed": "amplified figure: each cohort is a fresh uniform subset of fixed size, and who is "
    "in it stays hidden; a user drawn displaces another one, so amplification is counted at two "
    "clip norms",
}

_MECHANISM = {
    "gaussian": "the noise on the sum is Gaussian and independent of the data",
    "skellam": "the noise on the sum is Skellam with at least the stated variance from honest "
    "devices; updates are rounded to the grid conditionally on their norm (beta = exp(-1/2))",
    "discrete_gaussian": "the noise on the sum is at least the stated number of honest, "
    "independent discrete Gaussian shares; updates are rounded to the grid conditionally on "
    "their norm (beta = exp(-1/2))",
}

_COUNT = (
    "amplified figure: the noise is that of the least number of honest shares, whoever was drawn; "
    "further shares only add noise, but that its size hints at how many reported is outside the "
    "theorem used"
)

_BOUNDARY = (
    "amplified figure: delta includes the chance, at full attendance, that one report decides "
    "whether a round is opened; devices drop out independently of their data"
)

_LEDGER = "every opened round is counted; a round that was never opened released nothing"


def assumptions_of(events: Iterable[RoundEvent]) -> tuple[str, ...]:
    """Return the distinct assumptions behind these rounds, the general ones first."""
    found: dict[str, None] = {}
    for event in events:
        found[_NEIGHBORING[event.neighboring]] = None
        found[_MECHANISM[event.mechanism]] = None
        found[_SAMPLING[event.sampling]] = None
        if event.sampling == "poisson" and event.mechanism != "gaussian":
            found[_COUNT] = None
        if event.boundary_probability > 0:
            found[_BOUNDARY] = None
    return (*found, _LEDGER)
