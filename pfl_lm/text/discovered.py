"""Words that users were asked for: what a vocabulary needs to know of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pfl_lm.numbers import format_epsilon


@dataclass(frozen=True)
class DiscoveredWords:
    """The outcome of a discovery whose cost is in a ledger.

    ``pfl_lm.queries.found.open_discovered`` makes it, and refuses words that nobody paid for.

    Attributes:
        sums: noisy sum of each word; a device adds at most 1 in ℓ2 over all words.
        reports: devices that answered.
        entries: the most words that one device named.
        statement: what was promised to those who were asked.
        ledger_sha256: of the ledger's bytes.
        asked: who was asked, and what it cost each of them: population, unit, epsilon, delta.
    """

    sums: Mapping[str, float]
    reports: int
    entries: int
    statement: str
    ledger_sha256: str
    asked: Mapping[str, Any]

    def shares(self) -> dict[str, float]:
        """Estimate each word's share of the words outside the vocabulary, from below.

        A device's weights sum to at most √entries, so the weights of all devices sum to at most
        reports·√entries. Together the shares are held to at most one half: the rest of the unknown
        words stays unknown.
        """
        whole = self.reports * math.sqrt(self.entries)
        plain = {word: max(0.0, total) / whole for word, total in self.sums.items()}
        held = min(1.0, 0.5 / max(1e-12, sum(plain.values())))
        return {word: share * held for word, share in plain.items()}


def cost_of_words(source: Mapping[str, Any]) -> str:
    """Say what the discovered words of a vocabulary cost, to be added to a statement; "" for none.

    Args:
        source: of a tokenizer's manifest; its ``asked`` lists all questions that found words.
    """
    return "".join(
        f" Words of its vocabulary come from a question to {each['population']}: "
        f"ε = {format_epsilon(each['epsilon'])}, δ = {each['delta']:g} per {each['unit']} who was "
        "asked, on top of this."
        for each in source.get("asked", ())
    )
