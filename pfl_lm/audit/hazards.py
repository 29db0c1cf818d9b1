"""The ways in which guarantees are known to break, and what this audit found of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pfl_lm.audit.findings import Finding, Part

# Each hazard in a reader's words, and the findings that would tell.
_HAZARDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "Users were drawn otherwise than the arithmetic assumes",
        (
            "sampling matches the accountant",
            "sampling as declared",
            "separation",
            "nobody is asked too often",
        ),
    ),
    (
        "Users come back sooner, or more often, than the arithmetic assumes",
        ("users keep their separation", "nobody moves the stream further than stated"),
    ),
    (
        "Noise that is correlated between rounds began again, or served two sums",
        ("one stream of noise", "noise correlates as stated"),
    ),
    ("A user counts double in truth and once in the arithmetic", ("adjacency",)),
    (
        "Means divide by how many came, which tells how many came",
        ("divisor is a public constant", "division by a public constant"),
    ),
    (
        "A user who types more weighs more",
        ("each report counts once", "each answer counts once"),
    ),
    ("δ allows one whole person to be published", ("δ against the population",)),
    ("More devices are trusted with noise than are honest", ("honest devices",)),
    (
        "Noise is missing when devices drop out",
        (
            "noise planned for dropout",
            "every round as promised",
            "noise after dropout",
            "noise when devices vanish",
        ),
    ),
    ("Trainings that were tried and thrown away were not counted", ("hyperparameter tuning",)),
    (
        "Words or weights were learnt from private text before",
        ("what training started from", "where the words come from"),
    ),
    ("Figures beside the model were published without noise", ("metrics without noise",)),
)


@dataclass(frozen=True)
class Hazard:
    """One hazard, and whether it was looked for and found.

    Attributes:
        state: ``averted`` | ``present`` | ``to judge`` | ``not looked for``.
        by: names of the findings that tell.
    """

    text: str
    state: str
    by: tuple[str, ...]


def hazards(parts: Sequence[Part]) -> list[Hazard]:
    """Say of each hazard what the parts that were run found."""
    known = {finding.name: finding for part in parts for finding in part.findings}
    states = []
    for text, names in _HAZARDS:
        checked = tuple(name for name in names if name in known)
        states.append(Hazard(text, _state([known[name] for name in checked]), checked or names))
    return states


def _state(findings: Sequence[Finding]) -> str:
    marks = [finding.holds for finding in findings]
    if not marks:
        return "not looked for"
    return "present" if False in marks else "to judge" if None in marks else "averted"
