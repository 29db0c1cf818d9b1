"""The n-gram's files in a bundle: fitted, measured, written, and what the index says of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pfl_lm.evaluation.evaluate import ModelScorer, Scorer, evaluate
from pfl_lm.evaluation.interfaces import HeldOut
from pfl_lm.export.config import NgramConfig
from pfl_lm.export.ngram.aosp import dictionary_of, head_of, write_combined
from pfl_lm.export.ngram.aosp_binary import write_binary
from pfl_lm.export.ngram.arpa import WEIGHT_BYTES, costs, names_of, write_arpa
from pfl_lm.export.ngram.backoff import NEVER_PREDICTED, BackoffModel, NgramScorer
from pfl_lm.export.ngram.kneser_ney import fit_text
from pfl_lm.export.ngram.network import Network, Progress, fit_network, sample
from pfl_lm.export.ngram.tables import log_chances, mixed, pruned
from pfl_lm.export.parity import HeldOutText
from pfl_lm.export.quantise.calibration_text import calibration_windows
from pfl_lm.export.source import Source
from pfl_lm.export.vocabulary import BlockList
from pfl_lm.run.progress import ProgressListener
from pfl_lm.text.overlap import refuse_users_text
from pfl_lm.text.population import PopulationStore
from pfl_lm.text.tokenizer import Tokenizer

FOLDER, ARPA = "ngram", "ngram/model.arpa"
PUBLIC_SHARE = 0.4  # of the probabilities, where public text is counted too
MOST_PUBLIC = 20_000_000  # words of it that are counted, the first ones
GENERATED = 64  # texts that the network writes, to be read again by `export verify`
_FIGURES = ("perplexity", "top1", "top3", "keystrokes_saved")
_MODEL_ALONE = (
    "Computed from the trained model's parameters and nothing else: post-processing, which costs "
    "no further ε."
)
_WITH_PUBLIC = (
    "Computed from the trained model's parameters and public text, and nothing else: "
    "post-processing, which costs no further ε."
)


@dataclass(frozen=True)
class _Public:
    """Public text as tokens of the vocabulary."""

    name: str
    digest: str
    tokens: np.ndarray


def write_ngram(
    folder: Path,
    source: Source,
    formats: Sequence[str],
    config: NgramConfig,
    blocked: BlockList,
    text: HeldOutText,
    listener: ProgressListener,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fit the n-gram and write its files; return what the index and the test vectors say.

    Raises:
        ValueError: the public text holds users' text, those of the run among them, or is of
            another vocabulary; the words alone take more than the stated size.
    """
    hidden = tuple(i for i in blocked.ids if source.tokenizer.kinds[i] == "word")
    public = _public_text(config, source.tokenizer, text.population)
    window = source.window
    network = Network(source.model, hidden)
    model = _fitted(network, source, config, window, public, listener)
    (folder / FOLDER).mkdir()
    files = []
    if "arpa" in formats:
        write_arpa(folder / ARPA, model, names_of(source.tokenizer))
        files.append(_about(folder, ARPA, "arpa", ngrams=list(model.sizes)))
    if "aosp" in formats:
        files += _write_aosp(folder, source, model, blocked)
    listener.say("n-gram: reading held-out text")
    scorers: dict[str, Scorer] = {
        "network": ModelScorer(network.spec, network.parameters),
        "ngram": NgramScorer(model, hidden),
    }
    quality = {name: _measured(scorer, text) for name, scorer in scorers.items()}
    if not all(math.isfinite(figures["perplexity"]) for figures in quality.values()):
        raise ValueError("nothing was kept; the model's perplexity on held-out text is not finite")
    stated = {
        "order": config.order,
        "words_sampled": config.words,
        "window": window,
        "statement": _WITH_PUBLIC if public else _MODEL_ALONE,
        "made_of": {
            "model_sha256": source.identity["model_sha256"],
            "public_text": public and {"name": public.name, "digest": public.digest},
        },
        "blocked": sorted(hidden),
        "files": files,
        "quality": {"text": text.name, **quality},
    }
    return stated, _vectors(source, network, model, hidden, window)


def _fitted(
    network: Network,
    source: Source,
    config: NgramConfig,
    window: int,
    public: _Public | None,
    listener: ProgressListener,
) -> BackoffModel:
    """Fit the n-gram to the network, add public counts if stated, and prune it."""
    words = names_of(source.tokenizer)
    histories = sample(
        network, config.words, window, progress=_saying(listener, "n-gram: sampling the model")
    )
    model = fit_network(
        network, histories, config.order, _saying(listener, "n-gram: averaging what it says")
    )
    if public:
        listener.say(f"n-gram: counting {public.name}")
        base = source.tokenizer.unigram.copy()
        base[Tokenizer.unk_id] += base[network.hidden].sum()
        base[network.hidden] = 0.0
        tokens = np.where(np.isin(public.tokens, network.hidden), Tokenizer.unk_id, public.tokens)
        model = mixed(model, fit_text(tokens, base, config.order), PUBLIC_SHARE)
    listener.say(f"n-gram: pruning {sum(model.sizes):,} n-grams")
    budget = int(config.megabytes * 1e6) - 200  # the head
    each = costs(model, words)
    if each[0].sum() > budget:
        raise ValueError(
            f"--ngram-mb {config.megabytes:g}: the {len(words):,} words alone take "
            f"{each[0].sum() / 1e6:.1f} MB"
        )
    return pruned(model, each, budget, WEIGHT_BYTES)


def _saying(listener: ProgressListener, what: str) -> Progress:
    """Return a progress function that says each quarter."""
    said = [0]

    def progress(done: int, total: int) -> None:
        quarter = 4 * done // max(1, total)
        if quarter > said[0]:
            said[0] = quarter
            listener.say(f"{what}: {25 * quarter}%")

    return progress


def _public_text(config: NgramConfig, tokenizer: Tokenizer, people: HeldOut) -> _Public | None:
    """Open the public text, and refuse the text of the run's users under that name."""
    if config.public_text is None:
        return None
    store = PopulationStore.open(config.public_text)
    store.require_public()
    store.require_vocabulary(tokenizer.digest, "the bundle")
    if isinstance(people, PopulationStore):
        refuse_users_text(store, people)
    return _Public(store.name, store.digest, np.array(store.stream("train")[:MOST_PUBLIC]))


def _write_aosp(
    folder: Path, source: Source, model: BackoffModel, blocked: BlockList
) -> list[dict[str, Any]]:
    """Write the dictionary as text and in its binary form."""
    head = head_of(source.tokenizer, source.name, source.identity["ledger_entries"])
    dictionary = dictionary_of(model, source.tokenizer, blocked, head)
    name = f"{FOLDER}/main_{head['locale'].lower()}"
    write_combined(folder / f"{name}.combined", dictionary)
    write_binary(folder / f"{name}.dict", dictionary)
    counts = {
        "words": sum(entry.is_word and entry.f > 0 for entry in dictionary.entries),
        "pairs": sum(len(entry.pairs) for entry in dictionary.entries),
        "shortcuts": sum(len(entry.shortcuts) for entry in dictionary.entries),
        "blocked": sum(entry.f == 0 for entry in dictionary.entries),
    }
    return [
        _about(folder, f"{name}.combined", "aosp combined", **counts),
        _about(folder, f"{name}.dict", "aosp binary 202", **counts),
    ]


def _about(folder: Path, path: str, format: str, **counts: Any) -> dict[str, Any]:
    return {"path": path, "format": format, "bytes": (folder / path).stat().st_size, **counts}


def _measured(scorer: Scorer, text: HeldOutText) -> dict[str, float]:
    """Return a scorer's figures on the text on which the graphs are compared too."""
    users = max(1, text.positions // text.tokens_per_user)
    found = evaluate(
        scorer, text.population, text.split, text.tokenizer, text.window,
        max_users=min(users, text.population.users(text.split)),
        max_tokens_per_user=text.tokens_per_user, seed=text.seed,
    )  # fmt: skip
    return {name: float(getattr(found, name)) for name in _FIGURES}


def _vectors(
    source: Source, network: Network, model: BackoffModel, hidden: tuple[int, ...], window: int
) -> dict[str, Any]:
    """Return texts that the network writes, and nats per word of network and n-gram on them."""
    windows = calibration_windows(source.model, GENERATED, window)
    texts = readable(np.where(np.isin(windows, hidden), Tokenizer.unk_id, windows))
    return {
        "texts": [text.tolist() for text in texts],
        "network_nats": network_nats(network, texts),
        "ngram_nats": ngram_nats(model, texts),
    }


def readable(texts: np.ndarray) -> list[np.ndarray]:
    """Cut texts, int64[n, T], after their first ``</s>``; leave out what no text may hold."""
    found = []
    for text in texts:
        odd = np.isin(text[1:], NEVER_PREDICTED) | (text[:-1] == Tokenizer.eos_id)
        length = 1 + (int(odd.argmax()) if odd.any() else len(odd))
        if length > 1:
            found.append(text[:length])
    return found


def network_nats(network: Network, texts: Sequence[np.ndarray]) -> float:
    """Return the network's −log p of each word of texts but ``<s>``, on average."""
    total, words = 0.0, 0
    for text in texts:
        vectors = network.read_all(text[None, :-1])
        chances = network.chances(vectors).double().numpy()
        total -= float(np.log(chances[np.arange(len(text) - 1), text[1:]]).sum())
        words += len(text) - 1
    return total / max(1, words)


def ngram_nats(model: BackoffModel, texts: Sequence[np.ndarray]) -> float:
    """Return the n-gram model's −log p of each word of texts but ``<s>``, on average."""
    total, words = 0.0, 0
    for text in texts:
        for place in range(1, len(text)):
            gram = text[max(0, place + 1 - model.order) : place + 1]
            total -= float(log_chances(model, gram[None])[0])
        words += len(text) - 1
    return total / max(1, words)
