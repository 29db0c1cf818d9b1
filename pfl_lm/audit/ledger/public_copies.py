"""Do metrics, TensorBoard and ledger for everybody say what the auditor's own say?"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

from pfl_lm.audit.accounting.stated import StatedGuarantee
from pfl_lm.audit.artifacts import RunArtifacts
from pfl_lm.audit.chain import Chain
from pfl_lm.audit.findings import Finding
from pfl_lm.audit.ledger.published import OF_NO_COUNT, counts_are_secret, events_of
from pfl_lm.run.folder import read_json

_METRICS, _LEDGER = "public figures are the run's own", "public ledger is the run's own"
_BOARD = "TensorBoard shows the metrics"
_CLOSE = 1e-6  # relative: TensorBoard keeps single precision

Line = dict[str, Any]


def public_copies(
    artifacts: RunArtifacts, guarantee: StatedGuarantee | None, chain: Chain
) -> list[Finding]:
    """Hold what everybody may read against what is kept for the auditor."""
    secret = counts_are_secret(guarantee)
    return [
        *_public_metrics(artifacts, chain, secret),
        _board(artifacts),
        *_public_ledger(artifacts, chain, secret),
    ]


def _public_metrics(artifacts: RunArtifacts, chain: Chain, secret: bool) -> list[Finding]:
    """Check that the public metrics are the auditor's, less what tells of counts."""
    folder = artifacts.folder
    path, private = folder.metrics_path.name, folder.private_metrics_path.name
    if not folder.private_metrics_path.is_file():
        text = f"{private} is not here: {path} could not be held against it."
        return [Finding(_METRICS, None, text)] if secret else []
    if not secret:
        text = f"{private} is here, and no count of this run is secret: whose figures are they?"
        return [Finding(_METRICS, False, text)]
    public = folder.metrics()
    expected = [_without_counts(line) for line in folder.all_metrics()]
    if not _ended(chain) and len(public) == len(expected) - 1:
        expected.pop()  # a run may have been killed between the two
    for told, line in zip(public, expected, strict=False):
        if name := _first_unequal(told, line):
            text = f"{path} has another {name} of {line['kind']} {line['round']} than {private}."
            return [Finding(_METRICS, False, text)]
    if len(public) != len(expected):
        text = f"{path} has {len(public)} lines where {private} has {len(expected)}."
        return [Finding(_METRICS, False, text)]
    text = f"{len(public)} lines are the auditor's, less what tells how many reported."
    return [Finding(_METRICS, True, text)]


def _without_counts(line: Line) -> Line:
    """Leave out of a round's line what its readers must not know."""
    if line["kind"] != "round":
        return line
    return {name: value for name, value in line.items() if name in {"kind", *OF_NO_COUNT}}


def _first_unequal(one: Line, other: Line) -> str:
    """Return the first key with different values, or ""; what is no number equals itself."""
    names = sorted(one.keys() | other.keys())
    unequal = (n for n in names if json.dumps(one.get(n, "")) != json.dumps(other.get(n, "")))
    return next(unequal, "")


def _ended(chain: Chain) -> bool:
    return bool(chain.entries) and chain.entries[-1].get("kind") == "end"


def _board(artifacts: RunArtifacts) -> Finding:
    """Check that every figure in TensorBoard is that of the metrics, but for seconds.

    A round that a resumed run repeats takes another time; all else of it is the same.
    """
    lines = {(line["kind"], line["round"]): line for line in artifacts.folder.metrics()}
    shown = 0
    for kind, name, round, value in _shown(artifacts):
        line = lines.get((kind, round))
        if line is None or name == "seconds":  # a run was killed before it wrote the line again
            continue
        told = line.get(name)
        if not isinstance(told, int | float) or not _same(value, told):
            text = f"TensorBoard shows {name} = {value:.6g} of {kind} {round}, the metrics {told}."
            return Finding(_BOARD, False, text)
        shown += 1
    return Finding(_BOARD, True, f"{shown:,} figures are those of the metrics.")


def _shown(artifacts: RunArtifacts) -> Iterator[tuple[str, str, int, float]]:
    """Yield (kind, name, round, value) of each figure in TensorBoard."""
    for path in sorted(artifacts.folder.tensorboard_path.glob("events.out.tfevents.*")):
        for event in events_of(path):
            for value in event.summary.value:
                kind, _, name = value.tag.partition("/")
                if value.WhichOneof("value") == "simple_value":
                    yield kind, name, event.step, value.simple_value


def _same(shown: float, told: float) -> bool:
    if math.isnan(told):
        return math.isnan(shown)
    return math.isclose(shown, told, rel_tol=_CLOSE)


def _public_ledger(artifacts: RunArtifacts, chain: Chain, secret: bool) -> list[Finding]:
    """Check that the public ledger says what the ledger held at the entry that it names."""
    path = artifacts.folder.public_ledger_path
    if not path.is_file():
        text = f"{path.name} is not here: nobody but the auditor learns the ledger's last hash."
        return [Finding(_LEDGER, None, text)] if secret and _ended(chain) else []
    told = read_json(path)
    head = told.get("head")
    if head not in chain.hashes:
        return [Finding(_LEDGER, False, f"{path.name} names a head that is not in the ledger.")]
    held = chain.entries[: chain.hashes.index(head) + 1]
    expected = {
        **{name: held[0].get(name) for name in ("run", "policy_digest", "statements")},
        "rounds": sum(entry.get("kind") == "round" for entry in held),
        "head": head,
    }
    if name := _first_unequal(told, expected):
        return [Finding(_LEDGER, False, f"{path.name} has another {name} than the ledger.")]
    if head != chain.hashes[-1]:
        text = f"{path.name} tells of the ledger as it was {len(held):,} entries long."
        return [Finding(_LEDGER, None, text)]
    return [Finding(_LEDGER, True, "Run, policy, statements, rounds and head are the ledger's.")]
