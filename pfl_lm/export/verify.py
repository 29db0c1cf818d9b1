"""Is a bundle whole, of one piece, of this run, and does it still compute what it should?

Nothing here trusts the index beyond what another part confirms: files by their SHA-256, the
vocabulary by the tokenizer's own digest, the ledger by its chain, the manifest by the ledger's
first entry, and the graphs by running the test vectors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pfl_lm.dp.ledger import LedgerError, verify
from pfl_lm.export import vectors
from pfl_lm.export.bundle import (
    BLOCKLIST,
    LEDGER,
    MANIFEST,
    PRIVACY,
    SCHEMA,
    TOKENIZER,
    WEIGHTS,
    Bundle,
    BundleError,
    check_files,
    read_vectors,
)
from pfl_lm.export.formats import ExportedFile, format_of, open_file
from pfl_lm.export.ports import Arrays
from pfl_lm.export.source import identity
from pfl_lm.files import sha256_of
from pfl_lm.language.tokenizer import Tokenizer
from pfl_lm.runs import RunFolder, digest_of, read_json


@dataclass(frozen=True)
class Finding:
    """One check: ``holds`` is None where it could not be made here."""

    name: str
    holds: bool | None
    says: str


def verify_bundle(bundle: Bundle, run: Path | None = None) -> Iterator[Finding]:
    """Check an opened bundle, part by part; stops after damaged files, which nothing can explain.

    Args:
        run: the run's folder, where there is one: tells a bundle of an older model from a new one.
    """
    problems = check_files(bundle)
    count = len(bundle.index.files)
    yield Finding("files", not problems, "; ".join(problems) or f"{count} files, SHA-256 as stated")
    if problems:
        return
    yield _of_one_piece(bundle)
    if run is not None:
        yield _of_run(bundle, run)
    tokenizer = Tokenizer.open(bundle.path(TOKENIZER))
    told = read_vectors(bundle)
    if told.get("schema") != SCHEMA:
        yield Finding("vectors", False, f"testvectors.json has schema {told.get('schema')!r}")
        return
    yield _texts(tokenizer, told["tokenizer"])
    for entry in bundle.index.graphs:
        yield _graph(bundle, entry, tokenizer, told)


def _of_one_piece(bundle: Bundle) -> Finding:
    """Check that vocabulary, manifest, ledger and statements belong to one another."""
    index, name = bundle.index, "of one piece"
    manifest = read_json(bundle.path(MANIFEST))
    try:
        entries = verify(bundle.path(LEDGER), index.run["ledger_head"])
    except LedgerError as error:
        return Finding(name, False, f"the ledger does not hold: {error}")
    privacy = read_json(bundle.path(PRIVACY))
    tokenizer = Tokenizer.open(bundle.path(TOKENIZER))
    listed = sha256_of(bundle.path(BLOCKLIST))
    mixed = {
        "the ledger was begun for another manifest": entries[0].get("manifest_digest")
        != digest_of(manifest),
        "bundle.json names another run than the manifest": index.run["manifest_digest"]
        != digest_of(manifest),
        "the ledger has another number of entries": index.run["ledger_entries"] != len(entries),
        "privacy.json speaks of another run": privacy["statements"] != manifest["statements"]
        or privacy["ledger"]["head"] != index.run["ledger_head"],
        "the vocabulary is not the one trained with": tokenizer.digest
        != manifest["tokenizer"]["digest"]
        or tokenizer.digest != index.words["digest"],
        "the block list is another": listed != index.words["blocked"]["sha256"],
    }
    wrong = [line for line, found in mixed.items() if found]
    if wrong:
        return Finding(name, False, f"parts of several bundles are mixed: {'; '.join(wrong)}")
    head = index.run["ledger_head"][:16]
    return Finding(name, True, f"{len(entries)} ledger entries, head {head}…, one vocabulary")


def _of_run(bundle: Bundle, run: Path) -> Finding:
    """Compare with the run as it lies there now."""
    now, then = identity(RunFolder.open(run)), bundle.index.run
    if now == then:
        return Finding("of the run", True, f"{run} holds this very model")
    if now["manifest_digest"] != then["manifest_digest"]:
        return Finding("of the run", False, f"{run} is another run")
    later = now["ledger_entries"] - then["ledger_entries"]
    if later > 0:
        return Finding(
            "of the run", False, f"outdated: the run has spent {later} more rounds; export it again"
        )
    return Finding("of the run", False, "outdated: the run's model has changed; export it again")


def _texts(tokenizer: Tokenizer, told: list[dict[str, Any]]) -> Finding:
    wrong = [one["text"] for one in told if tokenizer.encode(one["text"]) != one["ids"]]
    says = f"{wrong[0]!r} has other ids" if wrong else f"{len(told)} texts, ids as stated"
    return Finding("tokenizer", not wrong, says)


def _graph(
    bundle: Bundle, entry: dict[str, Any], tokenizer: Tokenizer, told: dict[str, Any]
) -> Finding:
    """Run one file's vectors, if its runtime is here."""
    name = entry["name"]
    exported = ExportedFile.from_dict(
        {key: entry[key] for key in ExportedFile.__dataclass_fields__}
    )
    try:
        if remedy := format_of(exported.format).runtime_missing():
            return Finding(name, None, f"not run: {remedy}")
        run = open_file(bundle.path(entry["path"]).parent, exported)
        if exported.graph == "predict":
            wrong = _predicts(run, exported, tokenizer, told["predict"])
        elif exported.graph in told:
            wrong = _computes(run, bundle, exported, told[exported.graph])
        else:
            return Finding(name, None, "not run: there are no test vectors for it")
    except (ValueError, RuntimeError) as error:
        return Finding(name, False, f"does not run: {' '.join(str(error).split())}")
    how = "" if format_of(exported.format).runs else " (interpreted; the real runtime was not run)"
    return Finding(name, not wrong, wrong or f"gives what the vectors state{how}")


def _predicts(run: Any, exported: ExportedFile, tokenizer: Tokenizer, told: dict[str, Any]) -> str:
    """Say where a ``predict`` file differs from what it gave at the export, or nothing."""
    expected = told["files"].get(exported.name, told["reference"])
    start = {port.name: np.zeros(port.shape, port.dtype) for port in exported.interface.inputs}
    mask = vectors.PrefixMask(tokenizer)
    for number, text in enumerate(vectors.texts_of(told["texts"])):
        found = vectors.type_text(run, exported.interface, start, text, mask)
        tolerance = told["tolerance"][exported.precision]
        if wrong := vectors.differences(found, expected[number], tolerance):
            return f"text {number}, {wrong}"
    return ""


def _computes(run: Any, bundle: Bundle, exported: ExportedFile, told: dict[str, Any]) -> str:
    """Say how a training graph's outputs differ from torch's, or nothing."""
    given = _inputs(bundle, exported, told)
    found = run(**given)
    for port in exported.interface.outputs:
        path = bundle.path(told["outputs"][port.name])
        wanted = vectors.read_values(path, port.dtype, port.shape)
        apart = float(np.abs(found[port.name] - wanted).max())
        allowed = told["tolerance"] * max(1.0, float(np.abs(wanted).max()))
        if not apart <= allowed:
            return f"{port.name} is {apart:.3g} away from torch's, {allowed:.3g} is allowed"
    return ""


def _inputs(bundle: Bundle, exported: ExportedFile, told: dict[str, Any]) -> Arrays:
    """Read a graph's inputs: from files of their own, or from the model's weights."""
    given: Arrays = {}
    lies = bundle.index.model.get("weights") or {}
    by_port = {f"frozen_{name.replace('.', '_')}": place for name, place in lies.items()}
    weights: np.ndarray | None = None
    for port in exported.interface.inputs:
        if port.name in told["inputs"]:
            path = bundle.path(told["inputs"][port.name])
            given[port.name] = vectors.read_values(path, port.dtype, port.shape)
        elif port.name in by_port:
            if weights is None:
                weights = np.fromfile(bundle.path(WEIGHTS), "<f4")
            first = by_port[port.name]["offset"] // 4
            values = weights[first : first + port.size]
            given[port.name] = values.reshape(port.shape).astype(np.float32)
        else:
            raise BundleError(f"the vectors hold no input {port.name!r} for {exported.name}")
    return given
