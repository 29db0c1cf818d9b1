"""The ways in which guarantees are known to break, and what this audit found of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pfl_lm.audit.findings import Finding, Part

# Each danger in a reader's words, and the findings that would tell.
_DANGERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "Users were drawn otherwise than the arithmetic assumes",
        ("sampling matches the accountant", "sampling as declared", "separation"),
    ),
    ("A user counts double in truth and once in the arithmetic", ("adjacency",)),
    (
        "Means divide by how many came, which tells how many came",
        ("divisor is a public constant", "division by a public constant"),
    ),
    ("Whoever types more weighs more", ("each report counts once",)),
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
class Danger:
    """One danger, and whether it was looked for and found.

    Attributes:
        state: ``averted`` | ``present`` | ``to judge`` | ``not looked for``.
        by: names of the findings that tell.
    """

    text: str
    state: str
    by: tuple[str, ...]


def dangers(parts: Sequence[Part]) -> list[Danger]:
    """Say of each danger what the parts that were run found."""
    known = {finding.name: finding for part in parts for finding in part.findings}
    found = []
    for text, names in _DANGERS:
        asked = tuple(name for name in names if name in known)
        found.append(Danger(text, _state([known[name] for name in asked]), asked or names))
    return found


def _state(findings: Sequence[Finding]) -> str:
    marks = [finding.holds for finding in findings]
    if not marks:
        return "not looked for"
    return "present" if False in marks else "to judge" if None in marks else "averted"
