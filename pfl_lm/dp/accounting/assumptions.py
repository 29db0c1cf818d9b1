"""What must be true outside the arithmetic for a reported ε to hold, in a reader's words."""

from __future__ import annotations

from collections.abc import Iterable

from pfl_lm.dp.events import RoundEvent
from pfl_lm.dp.mechanisms import MECHANISMS

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
    "who joined and how many reported stay hidden; given the count, a cohort is a uniform subset, "
    "so for a person who learns either the amplified figure does not hold: the unamplified one "
    "does",
    "fixed": "amplified figure: each cohort is a fresh uniform subset of fixed size, and who is "
    "in it stays hidden; a user drawn displaces another one, so amplification is counted at two "
    "clip norms",
}

_COUNT = (
    "amplified figure: the noise is that of the least number of honest shares in any draw; "
    "further shares only add noise, but that its size hints at how many reported is outside the "
    "theorem used"
)

_BOUNDARY = (
    "amplified figure: delta includes the stated chance that one report decides whether a round "
    "is opened, and no attendance makes it larger"
)

_LEDGER = "every opened round is counted; a round that was never opened released nothing"


def assumptions_of(events: Iterable[RoundEvent]) -> tuple[str, ...]:
    """Return the distinct assumptions behind these rounds, the general ones first."""
    sentences: dict[str, None] = {}
    for event in events:
        sentences[_NEIGHBORING[event.neighboring]] = None
        sentences[MECHANISMS[event.mechanism].assumption] = None
        amplified = event.sampling != "rotation" and event.rate < 1
        everybody = event.sampling != "rotation" and not amplified
        sentences[_SAMPLING["none" if everybody else event.sampling]] = None
        if (
            amplified
            and event.sampling == "poisson"
            and MECHANISMS[event.mechanism].place == "device"
        ):
            sentences[_COUNT] = None
        if event.pivotal_probability > 0:
            sentences[_BOUNDARY] = None
    return (*sentences, _LEDGER)
