"""Is a bundle whole, of one piece, of this run, and does it still compute what it should?

What the index states of files is checked by their SHA-256; of the vocabulary and the block list by
the tokenizer and the list themselves; of the ledger by its chain; of the manifest by the ledger's
first entry. The graphs run the test vectors, and show that they suggest nothing blocked. That the
vectors and the weights are those of the run's model can be told with the run alone (``run_check``).
"""

from __future__ import annotations

import json
import math
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
    MISSHAPEN,
    PERSONAL,
    PRIVACY,
    SCHEMA,
    TOKENIZER,
    VECTORS,
    WEIGHTS,
    Bundle,
    BundleError,
    check_files,
    counts_are_secret,
    read_vectors,
)
from pfl_lm.export.formats.registry import ExportedFile, format_of, open_file
from pfl_lm.export.forward import AWAY
from pfl_lm.export.ngram.check import check_ngram
from pfl_lm.export.run_check import check_of_run
from pfl_lm.export.signature import Arrays, Runner
from pfl_lm.export.source import ending_problem
from pfl_lm.export.vocabulary import BlockList, describe_vocabulary
from pfl_lm.models.models import roles
from pfl_lm.models.own_words import OwnWordsRule
from pfl_lm.models.spec import ModelSpec
from pfl_lm.recipes import from_plain
from pfl_lm.run.folder import digest_of, read_json
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
        run: the run's folder, where there is one: its model is compared with weights and graphs.
    """
    problems = check_files(bundle)
    count = len(bundle.index.files)
    yield BundleCheck(
        "files", not problems, "; ".join(problems) or f"{count} files, SHA-256 as stated"
    )
    if problems:
        return
    tokenizer = Tokenizer.open(bundle.path(TOKENIZER))
    try:
        blocked = _block_list(bundle, tokenizer)
        piece = _of_one_piece(bundle, tokenizer, blocked)
    except ValueError as error:
        piece = BundleCheck("of one piece", False, str(error))
    except MISSHAPEN as error:
        piece = BundleCheck("of one piece", False, f"provenance or privacy.json lacks {error}")
    yield piece
    if not piece.holds:
        return
    if run is not None:
        for name, holds, says in check_of_run(bundle, run, blocked):
            yield BundleCheck(name, holds, says)
    vectors = read_vectors(bundle)
    try:
        yield from _by_vectors(bundle, tokenizer, blocked, vectors)
    except MISSHAPEN as error:
        yield BundleCheck("vectors", False, f"{VECTORS} is damaged: {error!r}")
        return
    for name, holds, says in check_ngram(bundle, tokenizer, vectors, run):
        yield BundleCheck(name, holds, says)


def _by_vectors(
    bundle: Bundle, tokenizer: Tokenizer, blocked: BlockList, vectors: dict[str, Any]
) -> Iterator[BundleCheck]:
    """Run the test vectors."""
    if vectors["schema"] != SCHEMA:
        yield BundleCheck("vectors", False, f"{VECTORS} has schema {vectors['schema']!r}")
        return
    yield _texts(tokenizer, vectors["tokenizer"])
    yield _own_words(bundle, vectors["own_words"])
    for entry in bundle.index.graphs:
        yield _graph(bundle, entry, tokenizer, blocked, vectors)


def _block_list(bundle: Bundle, tokenizer: Tokenizer) -> BlockList:
    path = bundle.path(BLOCKLIST)
    try:
        return BlockList.read(path if path.stat().st_size else None, tokenizer)
    except ValueError as error:
        raise BundleError(f"the block list is another: {error}") from error


def _of_one_piece(bundle: Bundle, tokenizer: Tokenizer, blocked: BlockList) -> BundleCheck:
    """Check that vocabulary, manifest, ledger, statements and index belong to one another."""
    index, name = bundle.index, "of one piece"
    manifest = read_json(bundle.path(MANIFEST))
    entries = None
    if not counts_are_secret(manifest):
        try:
            entries = verify(bundle.path(LEDGER), index.run["ledger_head"])
        except LedgerError as error:
            return BundleCheck(name, False, f"the ledger does not hold: {error}")
        if problem := ending_problem(entries, index.run["model_sha256"]):
            return BundleCheck(name, False, problem)
    privacy = read_json(bundle.path(PRIVACY))
    mixed = {
        "the ledger was begun for another manifest": entries is not None
        and entries[0].get("manifest_digest") != digest_of(manifest),
        "bundle.json names another run than the manifest": index.run["manifest_digest"]
        != digest_of(manifest),
        "the ledger has another number of entries": entries is not None
        and index.run["ledger_entries"] != len(entries),
        "privacy.json speaks of another run": any(
            privacy[name] != manifest.get(name) for name in ("statements", "policy", "guarantee")
        )
        or privacy["ledger"]["head"] != index.run["ledger_head"],
        "the vocabulary is not the one trained with": tokenizer.digest
        != manifest["tokenizer"]["digest"]
        or tokenizer.digest != index.vocabulary["digest"],
        "bundle.json has another name than the run": index.name != manifest["run"],
    }
    wrong = [line for line, differs in mixed.items() if differs]
    wrong += [*_misstated(bundle, tokenizer, blocked), *_wrong_sizes(bundle)]
    if wrong:
        return BundleCheck(name, False, f"parts of several bundles are mixed: {'; '.join(wrong)}")
    head = index.run["ledger_head"][:16]
    where = "" if entries is not None else " kept with the run (Poisson counts)"
    count = index.run["ledger_entries"]
    return BundleCheck(name, True, f"{count} ledger entries{where}, head {head}…, one vocabulary")


def _misstated(bundle: Bundle, tokenizer: Tokenizer, blocked: BlockList) -> Iterator[str]:
    """Say what the index states of the vocabulary and the block list that is not so.

    The rule of letters is left out: a Python of another Unicode version knows other letters.
    """
    stated = bundle.index.vocabulary
    facts = json.loads(json.dumps(describe_vocabulary(tokenizer, blocked)))  # as an index is read
    of_list = facts.pop("blocked")
    del of_list["same_letters"]
    if any(stated["blocked"][name] != value for name, value in of_list.items()):
        yield "the block list is another"
    if other := [name for name, value in facts.items() if stated[name] != value]:
        yield f"bundle.json states another vocabulary.{', vocabulary.'.join(other)}"
    if bundle.index.model["spec"]["vocabulary_size"] != tokenizer.vocabulary_size:
        yield "bundle.json states another model.spec.vocabulary_size"


def _wrong_sizes(bundle: Bundle) -> Iterator[str]:
    """Say which file of numbers does not have the size of the model that the index states."""
    model = bundle.index.model
    spec = from_plain(ModelSpec, model["spec"], f"{INDEX}: model.spec")
    if (places := model["weights"]) is not None:
        shapes = {name: list(role.shape) for name, role in roles(spec).items()}
        ends = {name: p["offset"] + 4 * math.prod(p["shape"]) for name, p in places.items()}
        starts = sorted(place["offset"] for place in places.values())
        whole = starts == [0, *sorted(ends.values())[:-1]]
        same = {name: place["shape"] for name, place in places.items()} == shapes
        if not (same and whole and max(ends.values()) == _bytes(bundle, WEIGHTS)):
            yield f"{WEIGHTS} does not hold the parameters of model.spec"
    if (personal := model.get("personal")) is not None:
        size = personal["rank"] * personal["width"]
        if personal["adapter"] != size or _bytes(bundle, PERSONAL) != 4 * size:
            yield f"{PERSONAL} does not hold model.personal's rank times width values"


def _bytes(bundle: Bundle, name: str) -> int:
    return bundle.path(name).stat().st_size


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
    bundle: Bundle,
    entry: dict[str, Any],
    tokenizer: Tokenizer,
    blocked: BlockList,
    vectors: dict[str, Any],
) -> BundleCheck:
    """Run one file's vectors, if its runtime is here."""
    name = entry["name"]
    try:
        exported = ExportedFile.of_entry(entry)
        if remedy := format_of(exported.format).runtime_missing():
            return BundleCheck(name, None, f"not run: {remedy}")
        run = open_file(bundle.path(entry["path"]).parent, exported)
        if exported.graph == "predict":
            wrong = _predicts(run, exported, tokenizer, vectors["predict"])
            wrong = wrong or _suggests_blocked(run, exported, blocked)
        elif exported.graph in vectors:
            wrong = _computes(run, bundle, exported, vectors[exported.graph])
        else:
            return BundleCheck(name, None, "not run: there are no test vectors for it")
    except (ValueError, RuntimeError, OSError, *MISSHAPEN) as error:
        return BundleCheck(name, False, f"does not run: {' '.join(str(error).split())}")
    how = "" if format_of(exported.format).runs else " (interpreted; the real runtime was not run)"
    return BundleCheck(name, not wrong, wrong or f"gives what the vectors state{how}")


def _predicts(
    run: Runner, exported: ExportedFile, tokenizer: Tokenizer, vectors: dict[str, Any]
) -> str:
    """Say where a ``predict`` file differs from what it gave at the export, or nothing."""
    expected = vectors["files"].get(exported.name, vectors["reference"])
    mask = test_vectors.PrefixMask(tokenizer)
    for number, text in enumerate(test_vectors.texts_of(vectors["texts"])):
        answers = test_vectors.type_text(run, exported.signature, exported.zeros(), text, mask)
        tolerance = test_vectors.TOLERANCE[exported.precision]
        if wrong := test_vectors.differences(answers, expected[number], tolerance):
            return f"text {number}, {wrong}"
    return ""


def _suggests_blocked(run: Runner, exported: ExportedFile, blocked: BlockList) -> str:
    """Say that a file suggests a blocked id where only those are asked for, or nothing."""
    given = exported.zeros() | {"token": np.array([Tokenizer.bos_id], np.int32)}
    given["mask"][:] = AWAY
    given["mask"][0, list(blocked.ids)] = 0.0
    outputs = run(**given)
    suggested = outputs["words"][outputs["scores"] > AWAY / 2]
    return f"suggests the blocked id {suggested[0]}" if len(suggested) else ""


def _computes(run: Runner, bundle: Bundle, exported: ExportedFile, vectors: dict[str, Any]) -> str:
    """Say how a training graph's outputs differ from torch's, or nothing."""
    given = _inputs(bundle, exported, vectors)
    outputs = run(**given)
    for tensor in exported.signature.outputs:
        path = bundle.path(vectors["outputs"][tensor.name])
        wanted = test_vectors.read_values(path, tensor.dtype, tensor.shape)
        if wrong := test_vectors.distance(tensor.name, outputs[tensor.name], wanted):
            return wrong
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
