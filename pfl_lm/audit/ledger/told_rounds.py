"""Do the metrics tell each round once, and of clip norm, payload and noise what the ledger does?"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

from pfl_lm.audit.accounting.stated import StatedGuarantee
from pfl_lm.audit.artifacts import RunArtifacts
from pfl_lm.audit.chain import Chain
from pfl_lm.audit.findings import Finding
from pfl_lm.audit.ledger.replay import Entry, is_complete
from pfl_lm.numbers import is_number

_NAME = "metrics say of each round what the ledger does"
_CLOSE = 1e-4  # relative: means are single precision


def told_rounds(
    artifacts: RunArtifacts, guarantee: StatedGuarantee | None, chain: Chain
) -> list[Finding]:
    """Hold each round's line of the metrics against the ledger's record of it."""
    lines, whole = artifacts.rounds, artifacts.folder.all_metrics()
    counts = Counter((line["kind"], line["round"]) for line in whole)
    for (kind, number), times in counts.items():
        if times > 1:
            text = f"The metrics tell of {kind} {number} {times} times: which line is the run's?"
            return [Finding(_NAME, False, text)]
    # A round that was released twice is told as the second release.
    records = {e["round"]: e for e in chain.entries if e.get("kind") in ("round", "abandoned")}
    for line in lines:
        record = records.get(line["round"], {"kind": "abandoned"})
        if record["kind"] == "round" and (wrong := next(_wrong(guarantee, line, record), "")):
            return [Finding(_NAME, False, f"Round {line['round']}: the metrics' {wrong}.")]
    due = {("round", number) for number in records} | _evaluations_due(artifacts, len(lines))
    if missing := sorted(due - counts.keys()):
        kind, number = missing[0]
        text = f"The metrics lack {kind} {number}: right if the run was killed then."
        return [Finding(_NAME, None, text)]
    return [Finding(_NAME, True, f"{len(lines)} lines tell what was recorded, each round once.")]


def _evaluations_due(artifacts: RunArtifacts, rounds: int) -> set[tuple[str, int]]:
    """Return after which rounds the scenario asks for an evaluation, of those that were run."""
    every = artifacts.manifest["scenario"].get("evaluation", {}).get("every", 0)
    return {("evaluation", number) for number in range(0, rounds + 1, every)} if every else set()


def _wrong(guarantee: StatedGuarantee | None, line: Entry, record: Entry) -> Iterator[str]:
    """Yield how a line's figures differ from the record of an opened round."""
    for name, value in _recorded(guarantee, record).items():
        told: Any = line.get(name)
        right = math.isclose(told, value, rel_tol=_CLOSE) if _both(told, value) else told is value
        if not right:
            yield f"{name} is {told}, and by the ledger it is {value}"


def _both(told: Any, value: Any) -> bool:
    return is_number(told) and is_number(value)


def _recorded(guarantee: StatedGuarantee | None, record: Entry) -> Entry:
    """Return the figures of a round that its record gives; None for what was not released."""
    follows = guarantee is not None and guarantee.clipping is not None
    share = record.get("clipping", {}).get("share")
    dim = record.get("payload", {}).get("dim")
    figures = {"payload_dim": dim, "short_share": share}
    if record.get("released") is None or not is_complete(record):
        return figures
    clip = record.get("clip_norm", math.nan)
    figures["clip_norm"] = clip if follows else None
    weight = 1.0 if guarantee is None else 1 - guarantee.indicator_weight**2
    if guarantee is not None and guarantee.stream is None and guarantee.groups == 1 and weight > 0:
        deviation = record["sum_multiplier"] * clip / record["divisor"] / math.sqrt(weight)
        figures["noise_norm"] = deviation * math.sqrt(dim)
    return figures
