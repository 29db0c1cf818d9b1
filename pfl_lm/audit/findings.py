"""What an audit says: findings in plain words, tables, plots; one shape for every output."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Finding:
    """One thing that was checked.

    Attributes:
        name: a few words, stable: tests and officers refer to it.
        holds: True, False, or None for a caution that a person must judge.
        text: what was found, in words for a reader who knows no Python.
    """

    name: str
    holds: bool | None
    text: str


@dataclass(frozen=True)
class TextTable:
    """Figures side by side; ``rows`` hold text, ready to print."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class Plot:
    """Values by name on one axis, or lines of points by name; the page draws them.

    Attributes:
        kind: ``axis`` (one value a name) | ``lines`` (points (x, y)).
    """

    title: str
    kind: Literal["axis", "lines"]
    series: Mapping[str, Sequence[Any]]
    x_label: str
    note: str = ""


@dataclass(frozen=True)
class Part:
    """One part of an audit.

    Attributes:
        name: ``accounting`` | ``ledger`` | ``mechanism`` | ``attack``.
        question: what the part answers, in one sentence.
        checked, not_checked: what was looked at, and what was not.
        headline: the part's one figure, in words that need no explanation.
        figures: the part's numbers for the JSON file.
    """

    name: str
    question: str
    checked: Sequence[str]
    findings: Sequence[Finding]
    not_checked: Sequence[str]
    tables: Sequence[TextTable] = ()
    plots: Sequence[Plot] = ()
    figures: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    headline: str = ""

    @property
    def holds(self) -> bool:
        """Whether nothing that was checked failed."""
        return all(finding.holds is not False for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        return {"holds": self.holds, **plain(asdict(self))}


def plain(value: Any) -> Any:
    """Turn a result into what strict JSON holds; infinity and nan become text."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return "infinite" if value > 0 else str(value)
    return value
