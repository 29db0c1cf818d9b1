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
from pfl_lm.export import test_vectors
from pfl_lm.export.bundle import (
    BLOCKLIST,
    INDEX,
    LEDGER,
    MANIFEST,
    PRIVACY,
    SCHEMA,
    TOKENIZER,
    WEIGHTS,
    Bundle,
    BundleError,
    check_files,
    counts_are_secret,
    read_vectors,
)
from pfl_lm.export.formats.registry import ExportedFile, format_of, open_file
from pfl_lm.export.ngram.check import check_ngram
from pfl_lm.export.signature import Arrays
from pfl_lm.export.source import identity
from pfl_lm.files import sha256_of
from pfl_lm.models.own_words import OwnWordsRule
from pfl_lm.recipes import from_plain
from pfl_lm.run.folder import RunFolder, digest_of, read_json
from pfl_lm.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class BundleCheck:
    """One check: ``holds`` is None where it could not be made here."""

    name: str
    holds: bool | None
    says: str


def verify_bundle(bundle: Bundle, run: Path | None = None) -> Iterator[BundleCheck]:
    """Check an opened bundle, part by part; stops after damaged files, which nothing can explain.

    Args:
        run: the run's folder, where there is one: tells a bundle of an older model from a new one.
    """
    problems = check_files(bundle)
    count = len(bundle.index.files)
    yield BundleCheck(
        "files", not problems, "; ".join(problems) or f"{count} files, SHA-256 as stated"
    )
    if problems:
        return
    try:
        yield _of_one_piece(bundle)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        yield BundleCheck("of one piece", False, f"provenance or privacy.json lacks {error}")
        return
    if run is not None:
        yield _of_run(bundle, run)
    tokenizer = Tokenizer.open(bundle.path(TOKENIZER))
    vectors = read_vectors(bundle)
    if vectors.get("schema") != SCHEMA:
        yield BundleCheck(
            "vectors", False, f"testvectors.json has schema {vectors.get('schema')!r}"
        )
        return
    yield _texts(tokenizer, vectors["tokenizer"])
    if "own_words" in vectors:
        yield _own_words(bundle, vectors["own_words"])
    for entry in bundle.index.graphs:
        yield _graph(bundle, entry, tokenizer, vectors)
    for name, holds, says in check_ngram(bundle, tokenizer, vectors, run):
        yield BundleCheck(name, holds, says)


def _of_one_piece(bundle: Bundle) -> BundleCheck:
    """Check that vocabulary, manifest, ledger and statements belong to one another."""
    index, name = bundle.index, "of one piece"
    manifest = read_json(bundle.path(MANIFEST))
    entries = None
    if not counts_are_secret(manifest):
        try:
            entries = verify(bundle.path(LEDGER), index.run["ledger_head"])
        except LedgerError as error:
            return BundleCheck(name, False, f"the ledger does not hold: {error}")
    privacy = read_json(bundle.path(PRIVACY))
    tokenizer = Tokenizer.open(bundle.path(TOKENIZER))
    listed = sha256_of(bundle.path(BLOCKLIST))
    mixed = {
        "the ledger was begun for another manifest": entries is not None
        and entries[0].get("manifest_digest") != digest_of(manifest),
        "bundle.json names another run than the manifest": index.run["manifest_digest"]
        != digest_of(manifest),
        "the ledger has another number of entries": entries is not None
        and index.run["ledger_entries"] != len(entries),
        "privacy.json speaks of another run": privacy["statements"] != manifest["statements"]
        or privacy["ledger"]["head"] != index.run["ledger_head"],
        "the vocabulary is not the one trained with": tokenizer.digest
        != manifest["tokenizer"]["digest"]
        or tokenizer.digest != index.vocabulary["digest"],
        "the block list is another": listed != index.vocabulary["blocked"]["sha256"],
    }
    wrong = [line for line, differs in mixed.items() if differs]
    if wrong:
        return BundleCheck(name, False, f"parts of several bundles are mixed: {'; '.join(wrong)}")
    head = index.run["ledger_head"][:16]
    where = "" if entries is not None else " kept with the run (Poisson counts)"
    count = index.run["ledger_entries"]
    return BundleCheck(name, True, f"{count} ledger entries{where}, head {head}…, one vocabulary")


def _of_run(bundle: Bundle, run: Path) -> BundleCheck:
    """Compare with the run as it lies there now."""
    now, then = identity(RunFolder.open(run)), bundle.index.run
    if now == then:
        return BundleCheck("of the run", True, f"{run} holds this very model")
    if now["manifest_digest"] != then["manifest_digest"]:
        return BundleCheck("of the run", False, f"{run} is another run")
    later = now["ledger_entries"] - then["ledger_entries"]
    if later > 0:
        return BundleCheck(
            "of the run", False, f"outdated: the run has spent {later} more rounds; export it again"
        )
    return BundleCheck(
        "of the run", False, "outdated: the run's model has changed; export it again"
    )


def _texts(tokenizer: Tokenizer, texts: list[dict[str, Any]]) -> BundleCheck:
    wrong = [text["text"] for text in texts if tokenizer.encode(text["text"]) != text["ids"]]
    says = f"{wrong[0]!r} has other ids" if wrong else f"{len(texts)} texts, ids as stated"
    return BundleCheck("tokenizer", not wrong, says)


def _own_words(bundle: Bundle, stated: dict[str, Any]) -> BundleCheck:
    """Count the messages of the vectors again, by the rule that the index states."""
    where = f"{INDEX}: model.own_words"
    rule = from_plain(OwnWordsRule, bundle.index.model["own_words"], where)
    found = test_vectors.mixtures_of(rule, bundle.index.vocabulary["size"], stated["messages"])
    wrong = [
        one["after"]
        for one, again in zip(stated["mixtures"], found, strict=True)
        if not test_vectors.same_mixture(one, again)
    ]
    count = len(stated["mixtures"])
    says = f"after {wrong[0]} they mix otherwise" if wrong else f"{count} mixtures as stated"
    return BundleCheck("own words", not wrong, says)


def _graph(
    bundle: Bundle, entry: dict[str, Any], tokenizer: Tokenizer, vectors: dict[str, Any]
) -> BundleCheck:
    """Run one file's vectors, if its runtime is here."""
    name = entry["name"]
    exported = ExportedFile.from_dict(
        {key: entry[key] for key in ExportedFile.__dataclass_fields__}
    )
    try:
        if remedy := format_of(exported.format).runtime_missing():
            return BundleCheck(name, None, f"not run: {remedy}")
        run = open_file(bundle.path(entry["path"]).parent, exported)
        if exported.graph == "predict":
            wrong = _predicts(run, exported, tokenizer, vectors["predict"])
        elif exported.graph in vectors:
            wrong = _computes(run, bundle, exported, vectors[exported.graph])
        else:
            return BundleCheck(name, None, "not run: there are no test vectors for it")
    except (ValueError, RuntimeError) as error:
        return BundleCheck(name, False, f"does not run: {' '.join(str(error).split())}")
    how = "" if format_of(exported.format).runs else " (interpreted; the real runtime was not run)"
    return BundleCheck(name, not wrong, wrong or f"gives what the vectors state{how}")


def _predicts(
    run: Any, exported: ExportedFile, tokenizer: Tokenizer, vectors: dict[str, Any]
) -> str:
    """Say where a ``predict`` file differs from what it gave at the export, or nothing."""
    expected = vectors["files"].get(exported.name, vectors["reference"])
    start = {
        tensor.name: np.zeros(tensor.shape, tensor.dtype) for tensor in exported.signature.inputs
    }
    mask = test_vectors.PrefixMask(tokenizer)
    for number, text in enumerate(test_vectors.texts_of(vectors["texts"])):
        answers = test_vectors.type_text(run, exported.signature, start, text, mask)
        tolerance = vectors["tolerance"][exported.precision]
        if wrong := test_vectors.differences(answers, expected[number], tolerance):
            return f"text {number}, {wrong}"
    return ""


def _computes(run: Any, bundle: Bundle, exported: ExportedFile, vectors: dict[str, Any]) -> str:
    """Say how a training graph's outputs differ from torch's, or nothing."""
    given = _inputs(bundle, exported, vectors)
    outputs = run(**given)
    for tensor in exported.signature.outputs:
        path = bundle.path(vectors["outputs"][tensor.name])
        wanted = test_vectors.read_values(path, tensor.dtype, tensor.shape)
        distance = float(np.abs(outputs[tensor.name] - wanted).max())
        allowed = vectors["tolerance"] * max(1.0, float(np.abs(wanted).max()))
        if not distance <= allowed:
            return f"{tensor.name} is {distance:.3g} away from torch's, {allowed:.3g} is allowed"
    return ""


def _inputs(bundle: Bundle, exported: ExportedFile, vectors: dict[str, Any]) -> Arrays:
    """Read a graph's inputs: from files of their own, or from the model's weights."""
    given: Arrays = {}
    places = bundle.index.model.get("weights") or {}
    by_input = {f"frozen_{name.replace('.', '_')}": place for name, place in places.items()}
    weights: np.ndarray | None = None
    for tensor in exported.signature.inputs:
        if tensor.name in vectors["inputs"]:
            path = bundle.path(vectors["inputs"][tensor.name])
            given[tensor.name] = test_vectors.read_values(path, tensor.dtype, tensor.shape)
        elif tensor.name in by_input:
            if weights is None:
                weights = np.fromfile(bundle.path(WEIGHTS), "<f4")
            first = by_input[tensor.name]["offset"] // 4
            values = weights[first : first + tensor.size]
            given[tensor.name] = values.reshape(tensor.shape).astype(np.float32)
        else:
            raise BundleError(f"the vectors hold no input {tensor.name!r} for {exported.name}")
    return given
