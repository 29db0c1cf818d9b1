"""The sentence that a run publishes, number by number against what follows from its policy."""

from __future__ import annotations

import re

from pfl_lm.audit.accounting.stated import StatedGuarantee
from pfl_lm.numbers import format_epsilon

_NUMBER = re.compile(r"\d[\d,.]*(?:e[+-]?\d+)?")


def sentence_deviation(sentence: str, guarantee: StatedGuarantee, unamplified: float | None) -> str:
    """Return how a sentence differs from the figures that it should bear, or "".

    Every expected phrase must be there, and no number may be left over beside them.

    Args:
        unamplified: ε against one who knows who took part, as it is stated; None is ∞.
    """
    left = sentence
    for phrase in _phrases(guarantee, unamplified):
        if phrase not in left:
            return f"The policy's statement does not bear the figures that were derived: {phrase} …"
        left = left.replace(phrase, "", 1)
    if extra := _NUMBER.search(left):
        return f"The policy's statement bears a number that was not derived: {extra[0]}."
    return ""


def _phrases(guarantee: StatedGuarantee, unamplified: float | None) -> list[str]:
    unit = guarantee.unit
    epsilon = format_epsilon(guarantee.stated_epsilon)
    phrases = [
        f"({epsilon}, {guarantee.delta:g})-differentially private per {unit}",
        "over one round" if guarantee.rounds == 1 else f"over {guarantee.rounds:,} rounds",
        f"({guarantee.neighboring})",
        _joins(guarantee),
        f"noise of {guarantee.noise_multiplier:.4g} clip norms",
    ]
    if guarantee.groups > 1:
        phrases.append(f"{guarantee.groups} public groups")
    if guarantee.amplified:
        phrases.append(f"ε is {format_epsilon(unamplified)} for a {unit} who joins every round")
    if (rule := guarantee.clipping) is not None:
        phrases += [
            f"the {rule['quantile']:g} quantile",
            f"between {rule['lowest']:g} and {rule['highest']:g}",
            f"tells with noise of {rule['indicator_noise']:g}",
        ]
    return phrases


def _joins(guarantee: StatedGuarantee) -> str:
    """Say how a user takes part, as the sentence does."""
    users = f"{guarantee.population:,} {guarantee.unit}s"
    if guarantee.participation == "poisson":
        return f"each of {users} joins a round with probability {guarantee.rate:g}"
    if guarantee.participation == "fixed":
        return f"each round draws {guarantee.report_goal:,} of {users} uniformly"
    times = "once" if guarantee.participations == 1 else f"{guarantee.participations} times"
    return f"each of {users} takes part at most {times}"
