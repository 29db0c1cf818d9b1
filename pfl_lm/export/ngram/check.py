"""Do the n-gram's files of a bundle hold: read again, summed, compared with what is stated?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pfl_lm.export.bundle import BLOCKLIST, Bundle
from pfl_lm.export.ngram.aosp import Dictionary, read_combined
from pfl_lm.export.ngram.aosp_reader import read_binary
from pfl_lm.export.ngram.arpa import contexts_to_test, names_of, read_arpa, worst_sum
from pfl_lm.export.ngram.files import network_nats, ngram_nats
from pfl_lm.export.ngram.network import Network
from pfl_lm.models.file import load_model
from pfl_lm.run.folder import RunFolder
from pfl_lm.text.letters import same_letters
from pfl_lm.text.tokenizer import Tokenizer

ROUNDING = 1e-3  # of a row's sum: five decimals of each logarithm
TOLERANCE = 2e-3  # nats per word, of the stated figures
_DAMAGE = (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError)
Finding = tuple[str, bool | None, str]  # what, whether it holds, why


def check_ngram(
    bundle: Bundle, tokenizer: Tokenizer, vectors: dict[str, Any], run: Path | None
) -> Iterator[Finding]:
    """Check every file of the n-gram, if the bundle has one.

    Args:
        run: the run's folder, where there is one: its network then reads the texts again.
    """
    if "ngram" not in bundle.index.model:
        return
    try:
        yield from _findings(bundle, tokenizer, vectors["ngram"], run)
    except _DAMAGE as error:
        yield "n-gram", False, f"the index or the vectors say something else of it: {error!r}"


def _findings(
    bundle: Bundle, tokenizer: Tokenizer, vectors: dict[str, Any], run: Path | None
) -> Iterator[Finding]:
    stated, read = bundle.index.model["ngram"], {}
    for entry in stated["files"]:
        path, name = bundle.path(entry["path"]), Path(entry["path"]).name
        try:
            if entry["format"] == "arpa":
                yield name, *_arpa(path, entry, tokenizer, stated, vectors)
            else:
                combined = entry["format"] == "aosp combined"
                read[name] = read_combined(path) if combined else read_binary(path)
                yield name, *_dictionary(read[name], entry, _blocked_letters(bundle))
        except (*_DAMAGE, OSError) as error:
            yield name, False, f"cannot be read: {error}"
    if len(read) == 2:
        yield "aosp", *_alike(*read.values())
    if run is not None:
        yield "n-gram of the run", *_of_run(stated, vectors, run)


def _arpa(
    path: Path,
    entry: dict[str, Any],
    tokenizer: Tokenizer,
    stated: dict[str, Any],
    vectors: dict[str, Any],
) -> tuple[bool, str]:
    model = read_arpa(path, names_of(tokenizer))
    if model.order != stated["order"]:
        return False, f"has order {model.order}, not {stated['order']}"
    listed = np.isfinite(model.levels[0].logs)
    blocked = [tokenizer.words[i] for i in stated["blocked"] if listed[i]]
    if blocked:
        return False, f"lists the blocked word {blocked[0]!r}"
    tested = contexts_to_test(model)
    off = max(worst_sum(model, contexts) for contexts in tested)
    if not off <= ROUNDING:
        return False, f"probabilities after a context sum to 1 ± {off:.3g}"
    nats = ngram_nats(model, [np.array(text) for text in vectors["texts"]])
    if not abs(nats - vectors["ngram_nats"]) <= TOLERANCE:
        return False, f"has {nats:.4f} nats per word of the texts, not {vectors['ngram_nats']:.4f}"
    counts = ", ".join(f"{size:,}" for size in entry["ngrams"])
    count = sum(map(len, tested))
    return True, f"{counts} n-grams; after {count} contexts probabilities sum to one"


def _blocked_letters(bundle: Bundle) -> set[str]:
    lines = bundle.path(BLOCKLIST).read_text(encoding="utf-8").splitlines()
    return {same_letters(line) for line in lines}


def _dictionary(
    dictionary: Dictionary, entry: dict[str, Any], blocked: set[str]
) -> tuple[bool, str]:
    suggested = {item.word for item in dictionary.entries if item.f > 0}
    targets = {word for item in dictionary.entries for word, _ in item.pairs + item.shortcuts}
    if lost := targets - suggested:
        return False, f"leads to {min(lost)!r}, which it may not suggest"
    if wrong := sorted(word for word in suggested if same_letters(word) in blocked):
        return False, f"suggests the blocked word {wrong[0]!r}"
    words = sum(item.is_word and item.f > 0 for item in dictionary.entries)
    pairs = sum(len(item.pairs) for item in dictionary.entries)
    if (words, pairs) != (entry["words"], entry["pairs"]):
        return False, f"has {words:,} words and {pairs:,} pairs, not those that are stated"
    return True, f"{words:,} words, {pairs:,} pairs"


def _alike(one: Dictionary, other: Dictionary) -> tuple[bool, str]:
    """Compare the text and the binary form; the binary one keeps a pair's f in 4 bits."""
    facts: list[Any] = [
        {e.word: (e.f, e.is_word, e.shortcuts, sorted(w for w, _ in e.pairs)) for e in d.entries}
        for d in (one, other)
    ]
    if one.head != other.head or facts[0] != facts[1]:
        return False, "the two forms of the dictionary differ"
    return True, "both forms of the dictionary hold the same"


def _of_run(stated: dict[str, Any], vectors: dict[str, Any], run: Path) -> tuple[bool, str]:
    """Let the run's network read the texts, and set it beside what is stated of the n-gram."""
    network = Network(load_model(RunFolder.open(run).model_path), tuple(stated["blocked"]))
    nats = network_nats(network, [np.array(text) for text in vectors["texts"]])
    if not abs(nats - vectors["network_nats"]) <= TOLERANCE:
        return False, f"the run's model has {nats:.4f} nats per word of the texts, not as stated"
    lost = np.exp(vectors["ngram_nats"] - nats)
    return True, f"its perplexity is {lost:.2f} times the network's on text that the network wrote"
