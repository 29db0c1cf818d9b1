"""Was correlated noise one stream? Each round took up the secret state that the one before left.

A state that is reset, skipped or used twice lets a reader of two releases subtract their noise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from pfl_lm.audit.accounting.stated import StatedGuarantee
from pfl_lm.audit.findings import Finding
from pfl_lm.audit.ledger.replay import Entry

_NAME = "one stream of noise"
_NOTHING = hashlib.sha256(b"").hexdigest()


def noise_states(guarantee: StatedGuarantee, rounds: Sequence[Entry]) -> list[Finding]:
    """Follow the digests of the noise's state from round to round; [] for independent noise."""
    if guarantee.stream is None:
        return []
    left, numbers = _NOTHING, set[int]()
    released = [entry for entry in rounds if entry.get("released") is not None]
    for entry in released:
        if wrong := _wrong(entry, left, numbers):
            return [Finding(_NAME, False, f"Round {entry['round']} {wrong}.")]
        left = entry["noise_state"]
        numbers.add(entry["round"])
    text = f"Each of {len(released)} rounds took up the state that the one before left."
    return [Finding(_NAME, True, text)]


def _wrong(entry: Entry, left: str, earlier: set[int]) -> str:
    """Return what breaks the stream at a round, or ""."""
    taken_up, after = entry.get("noise_taken_up"), entry.get("noise_state")
    if taken_up is None or after is None:
        return "does not say which state of the noise it took up and left"
    if entry["round"] in earlier:
        return "was released twice: the two releases differ by noise that one of them tells"
    if earlier and entry["round"] < max(earlier):
        return "came after a later round: a stream goes forward alone"
    if taken_up == left:
        return "left the state that it took up" if after == taken_up else ""
    if taken_up == _NOTHING:
        return "began the noise again: what was accounted for as one stream is two"
    return "took up another state of the noise than the round before it left"
