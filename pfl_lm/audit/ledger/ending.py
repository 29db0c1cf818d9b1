"""How a run ended, and what its abandoned rounds left: ledger, metrics, checkpoints and model."""

from __future__ import annotations

from typing import Any

from pfl_lm.audit.accounting.stated import StatedGuarantee
from pfl_lm.audit.artifacts import RunArtifacts
from pfl_lm.audit.chain import Chain
from pfl_lm.audit.findings import Finding
from pfl_lm.audit.ledger.replay import Entry, fewest_reports, invited_to
from pfl_lm.files import sha256_of
from pfl_lm.secagg.config import LEAST_COHORT
from pfl_lm.version import code_digest

_OVER = ("round", "abandoned")


def ending(artifacts: RunArtifacts, chain: Chain) -> Finding:
    """Check that the ledger's closing entry stands at its end and names the run's own model.

    A run that wrote its model has written that entry; without it, or with another model, the end
    was cut off or the model replaced.
    """
    name, folder = "how the run ended", artifacts.folder
    ends = [place for place, entry in enumerate(chain.entries) if entry.get("kind") == "end"]
    if not ends:
        if folder.model_path.is_file() or folder.evaluation_path.is_file():
            text = "The run wrote its results, but its ledger has no closing entry: it was cut off."
            return Finding(name, False, text)
        text = "The run has not ended: no closing entry vouches that the last rounds are there."
        return Finding(name, None, text)
    end, after = chain.entries[ends[-1]], chain.entries[ends[-1] + 1 :]
    rounds, planned = end.get("rounds"), artifacts.manifest["scenario"]["rounds"]
    known = {entry["round"] for entry in chain.entries if entry.get("kind") in _OVER}
    if any(entry.get("kind") in _OVER for entry in after):
        return Finding(name, False, "The ledger records a round after its closing entry.")
    if rounds != planned or known != set(range(planned)):
        text = (
            f"The scenario asks for {planned} rounds, the closing entry states {rounds}, and "
            f"{len(known)} are on record: rounds were cut off or added."
        )
        return Finding(name, False, text)
    if not folder.model_path.is_file():
        text = "The model that the closing entry names is not here; it could not be compared."
        return Finding(name, None, text)
    if sha256_of(folder.model_path) != end.get("model"):
        text = "model.pt is not the model that the closing entry names: it was replaced."
        return Finding(name, False, text)
    return Finding(name, True, f"{planned} rounds were closed, with the model that is here.")


def checkpoints(artifacts: RunArtifacts, chain: Chain) -> Finding:
    """Check that the ledger still holds all that was spent when each checkpoint was written."""
    name = "checkpoints of this ledger"
    numbers = {path.name: number for number, path in artifacts.folder.checkpoints().items()}
    for file, head in artifacts.ledger_heads.items():
        if head not in chain.hashes:
            return Finding(name, False, f"Checkpoint {file} remembers an entry that is gone.")
        earlier = chain.entries[: chain.hashes.index(head) + 1]
        known = {entry["round"] for entry in earlier if entry.get("kind") in _OVER}
        if missing := set(range(numbers[file])) - known:
            text = f"Checkpoint {file} holds round {min(missing)}, which was not recorded by then."
            return Finding(name, False, text)
    if not artifacts.ledger_heads:
        text = (
            "No checkpoint is here, or none can be read: whether entries were taken out or changed "
            "since could not be told by them."
        )
        return Finding(name, None, text)
    text = f"{len(artifacts.ledger_heads)} checkpoints name entries that are here."
    return Finding(name, True, text)


def installed_code(artifacts: RunArtifacts, chain: Chain) -> Finding:
    """Say whether the code that is installed here is the code that began and ended the run."""
    name, here = "code of the run", code_digest()
    began = artifacts.manifest.get("versions", {}).get("code")
    ended = [entry.get("code") for entry in chain.entries if entry.get("kind") == "end"]
    if began is None:
        return Finding(name, None, "The manifest does not say which code ran.")
    if any(digest != here for digest in (began, *ended)):
        text = (
            f"The run was made by code {began[:12]}; installed here, and tested by the mechanism "
            f"part, is {here[:12]}. Audit the run with the version that made it."
        )
        return Finding(name, None, text)
    text = f"The run says that it was made by the code that is installed here ({here[:12]})."
    return Finding(name, True, text)


def abandoned(
    artifacts: RunArtifacts, guarantee: StatedGuarantee | None, chain: Chain
) -> list[Finding]:
    """Check that rounds that released nothing, by the ledger, released nothing by the metrics."""
    name = "abandoned rounds released nothing"
    lines = {line["round"]: line for line in artifacts.rounds}
    silent = [entry for entry in chain.entries if _released_nothing(entry)]
    for entry in silent:
        line = lines.get(entry["round"], {})
        wrong = _moved(line) or _miscounted(entry, line)
        if wrong or (wrong := _could_open(artifacts, guarantee, entry)):
            return [Finding(name, False, f"Round {entry['round']} was opened: {wrong}.")]
    if not silent:
        return []
    return [Finding(name, True, f"{len(silent)} rounds moved nothing, by the metrics too.")]


def _released_nothing(entry: Entry) -> bool:
    """Tell whether a round was abandoned, or paid for although its sum was lost."""
    if entry.get("kind") == "abandoned":
        return True
    return entry.get("kind") == "round" and "released" in entry and entry["released"] is None


def _moved(line: dict[str, Any]) -> str:
    figures = [figure for figure in ("mean_norm", "noise_norm") if line.get(figure) is not None]
    return f"the metrics have its {figures[0]}" if figures else ""


def _miscounted(entry: Entry, line: dict[str, Any]) -> str:
    counted = line.get("reports", entry["reports"])
    if entry["kind"] == "round" or counted in (0, entry["reports"]):  # a server counts none
        return ""
    return f"the metrics tell of {line['reports']} reports, the ledger of {entry['reports']}"


def _could_open(artifacts: RunArtifacts, guarantee: StatedGuarantee | None, entry: Entry) -> str:
    """Return why an ideal sum of these reports was opened: nothing but their number forbids it."""
    scenario = artifacts.manifest["scenario"]
    if entry["kind"] == "round" or scenario.get("secure_aggregation") != "ideal":
        return ""
    invited = invited_to(artifacts, entry)
    if not invited:  # the run was killed before it wrote how many
        return ""
    least = LEAST_COHORT
    if guarantee is not None:
        least = max(least, fewest_reports(guarantee, scenario["cohort"], invited))
    if entry["reports"] < least:
        return ""
    return f"{least} reports open a round, and {entry['reports']} came"
