"""The types of what ``bundle.json`` states of run, model and vocabulary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import StrictInt, StrictStr

from pfl_lm.models.own_words import OwnWordsRule
from pfl_lm.models.spec import ModelSpec
from pfl_lm.recipes.plain import from_plain


@dataclass(frozen=True)
class _Run:
    manifest_digest: StrictStr
    ledger_head: StrictStr
    ledger_entries: StrictInt
    model_sha256: StrictStr


@dataclass(frozen=True)
class _Letters:
    unicode: StrictStr
    accents: list[tuple[StrictInt, StrictInt]]
    letters: dict[StrictStr, StrictStr]
    digits: dict[StrictStr, StrictStr]


@dataclass(frozen=True)
class _Blocked:
    words: StrictInt
    listed: StrictInt
    phrases: StrictInt
    same_letters: _Letters
    sha256: StrictStr


@dataclass(frozen=True)
class _Vocabulary:
    size: StrictInt
    locale: StrictStr
    digest: StrictStr
    provenance: Any
    licence: Any
    special_ids: dict[StrictStr, StrictInt]
    normalisation: dict[StrictStr, Any]
    written_forms: StrictInt
    emoji_ids: list[StrictInt]
    blocked: _Blocked


@dataclass(frozen=True)
class _Place:
    offset: StrictInt
    shape: list[StrictInt]


@dataclass(frozen=True)
class _Personal:
    rank: StrictInt
    window: StrictInt
    steps: StrictInt
    adapter_rate: float
    bias_rate: float
    clip: float
    most_bias: float
    messages: StrictInt
    width: StrictInt
    adapter: StrictInt


@dataclass(frozen=True)
class _Model:
    spec: ModelSpec
    suggestions: StrictInt
    initial_state: StrictStr
    own_words: OwnWordsRule
    weights: dict[StrictStr, _Place] | None
    personal: _Personal | None = None
    ngram: dict[StrictStr, Any] | None = None


_PARTS: dict[str, Any] = {"run": _Run, "model": _Model, "vocabulary": _Vocabulary}


def check_types(content: dict[str, Any]) -> None:
    """Check the parts of an index that are tables.

    Raises:
        ValueError: naming the first field that is missing, unknown or of another type.
    """
    for name, kind in _PARTS.items():
        from_plain(kind, content[name], f"{name!r}")
