"""Clusters of public text, each with a small model that a phone can hold.

clusters.json   which stores, which vocabulary, what each cluster is like, digest of the models
ratios.bin      int8[K, V]: log p(word | cluster) ÷ p(word), in sixteenths of a nat
listed.bin      int64[W]: the commonest words of the first store, by id
means.bin       float64[W]: what a passage of it says of each (see ``text.listed_words``)

A text's score under a cluster is the sum of its tokens' ratios: an integer, the same on every
processor. It says how much likelier the text is under the cluster's smoothed unigram than under
that of all public text.

Legend: K clusters, V words, n passages, S stores.

Source: clusters by hard expectation maximisation of a mixture of unigrams; Nigam et al. 2000,
"Text classification from labeled and unlabeled documents using EM", section 3.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from pfl_lm.files import folder_atomically, sha256_of
from pfl_lm.streams import stream as random_stream
from pfl_lm.text.listed_words import ListedWords, listed_words
from pfl_lm.text.passages import PASSAGE_TOKENS, passages, public_stream, word_counts
from pfl_lm.text.population import PROFILE_FILE, PopulationStore
from pfl_lm.text.tokenizer import Tokenizer
from pfl_lm.validate import within

FORMAT = 1
INDEX_FILE, RATIOS_FILE = "clusters.json", "ratios.bin"
LISTED_FILE, MEANS_FILE = "listed.bin", "means.bin"
STEPS = 16  # of a ratio in a nat
MOST_CLUSTERS = 1024
_SMOOTHING = 1 / 64  # tokens of all public text that are mixed in, to those of a mean cluster
_ROUNDS = 15  # of the clustering, at most
_SETTLED = 0.005  # share of passages that still move when it ends
_FIRST = 8  # passages that a cluster begins with
_ROWS = 1 << 16  # passages that are scored at once
_SHOWN = 8  # words that describe a cluster
_DAMAGE = (OSError, KeyError, TypeError, AttributeError, RecursionError, ValueError)

Ratios = npt.NDArray[np.int8]  # (K, V)


@dataclass(frozen=True)
class Cluster:
    """What is known of a cluster.

    Attributes:
        label: a number and its most telling words; different for each cluster.
        store: which of the stores it divides.
        passages, tokens: how much of the store's text is in it.
    """

    label: str
    store: int
    passages: int
    tokens: int


@dataclass(frozen=True)
class Clusters:
    """The clusters of one store of public text, and of others that are scored beside it.

    Attributes:
        clusters: K of them; those of a store stand together, in the order of the stores.
        ratios: int8[K, V], in sixteenths of a nat.
        stores: of each store its name and the digest of its profile; the first is the one whose
            text pretraining draws.
        words: the commonest of the first store.
        tokenizer_digest: of the vocabulary.
        seed, passage_tokens: what the division was made with.
        digest: of ``clusters.json``, which states the digest of the models; "" before it is
            written.
    """

    clusters: tuple[Cluster, ...]
    ratios: Ratios
    stores: tuple[dict[str, str], ...]
    words: ListedWords
    tokenizer_digest: str
    seed: int
    passage_tokens: int = PASSAGE_TOKENS
    digest: str = ""

    def scores(self, counts: sparse.csr_array) -> npt.NDArray[np.int32]:
        """Return int32[n, K]: the score of each passage under each cluster."""
        return _scores(counts, self.ratios)

    def scores_of(self, tokens: np.ndarray) -> npt.NDArray[np.int64]:
        """Return int64[K]: the score of one text under each cluster."""
        words, times = np.unique(tokens, return_counts=True)
        scores: npt.NDArray[np.int64] = self.ratios[:, words].astype(np.int64) @ times
        return scores

    def public_shares(self) -> npt.NDArray[np.float64]:
        """Return float64[K]: each cluster's share of the tokens of its store."""
        tokens = np.array([cluster.tokens for cluster in self.clusters], dtype=np.float64)
        of = np.array([cluster.store for cluster in self.clusters])
        shares: npt.NDArray[np.float64] = tokens / np.bincount(of, weights=tokens)[of]
        return shares

    def save(self, path: Path) -> None:
        """Write the folder, whole or not at all; raises ValueError if it exists."""
        with folder_atomically(Path(path)) as folder:
            (folder / RATIOS_FILE).write_bytes(self.ratios.tobytes())
            (folder / LISTED_FILE).write_bytes(self.words.ids.astype("<i8").tobytes())
            (folder / MEANS_FILE).write_bytes(self.words.means.astype("<f8").tobytes())
            files = {path.name: sha256_of(path) for path in sorted(folder.iterdir())}
            index = {
                "format": FORMAT,
                "tokenizer_digest": self.tokenizer_digest,
                "vocabulary_size": self.ratios.shape[1],
                "seed": self.seed,
                "passage_tokens": self.passage_tokens,
                "stores": list(self.stores),
                "words": list(self.words.labels),
                "clusters": [asdict(cluster) for cluster in self.clusters],
                "files": files,
            }
            text = json.dumps(index, indent=1, ensure_ascii=False)
            (folder / INDEX_FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def open(cls, path: Path) -> Clusters:
        """Open the folder.

        Raises:
            ValueError: no clusters are there, or a file is not the one that was written.
        """
        path = Path(path)
        index = path / INDEX_FILE
        remedy = "`pfl-lm mixture cluster` writes it"
        if not index.is_file():
            raise ValueError(f"{path} holds no clusters of public text; {remedy}")
        try:
            return cls._read(index)
        except _DAMAGE as error:
            raise ValueError(f"{path} is damaged, or of another version; {remedy}") from error

    @classmethod
    def _read(cls, index: Path) -> Clusters:
        stated = json.loads(index.read_text(encoding="utf-8"))
        paths = [index.with_name(name) for name in (RATIOS_FILE, LISTED_FILE, MEANS_FILE)]
        found = {path.name: sha256_of(path) for path in paths}
        if stated["format"] != FORMAT or stated["files"] != found:
            raise ValueError("another format, or other models than were written")
        dtypes: tuple[str, ...] = ("<i1", "<i8", "<f8")
        table, listed, means = (
            np.frombuffer(path.read_bytes(), dtype=dtype)
            for path, dtype in zip(paths, dtypes, strict=True)
        )
        return cls(
            tuple(Cluster(**row) for row in stated["clusters"]),
            table.reshape(len(stated["clusters"]), stated["vocabulary_size"]),
            tuple(stated["stores"]),
            ListedWords(listed, means, tuple(stated["words"])),
            stated["tokenizer_digest"],
            stated["seed"],
            stated["passage_tokens"],
            sha256_of(index),
        )


def identity(store: PopulationStore) -> dict[str, str]:
    """Name a store: equal identities, equal text."""
    return {"name": store.name, "profile": sha256_of(store.folder / PROFILE_FILE)}


def cluster(
    stores: Sequence[PopulationStore],
    tokenizer: Tokenizer,
    clusters: int = 64,
    seed: int = 0,
    say: Any = lambda line: None,
) -> Clusters:
    """Divide public text into clusters of passages that are alike.

    Args:
        stores: of public text. The first is divided into ``clusters``; each other one, which is
            scored beside it, into as many by its size, at least one and at most ``clusters``.
        seed: gives the same clusters again.
        say: told what is going on.

    Raises:
        ValueError: a store is not public, of another vocabulary, or has too few passages.
    """
    within(2, MOST_CLUSTERS, clusters=clusters)
    tables = []
    for store in stores:
        store.require_vocabulary(tokenizer.digest, "the clusters")
        text = public_stream(store)
        tables.append(word_counts(text, passages(text), tokenizer.vocabulary_size))
    if tables[0].shape[0] < clusters:
        raise ValueError(
            f"clusters = {clusters}, but {stores[0].folder} has {tables[0].shape[0]} passages of "
            f"{PASSAGE_TOKENS} tokens; choose fewer, or bring more text"
        )
    background = _background(tables)
    found: list[Cluster] = []
    ratios = []
    for number, (store, counts) in enumerate(zip(stores, tables, strict=True)):
        part = max(1, min(clusters, clusters * counts.shape[0] // tables[0].shape[0]))
        say(f"{store.folder}: {counts.shape[0]:,} passages into {part} clusters")
        labels, of_store = _divide(
            counts, background, part, random_stream(seed, "clusters", number)
        )
        ratios.append(of_store)
        found += _described(counts, labels, of_store, number, len(found), tokenizer)
    return Clusters(
        tuple(found), np.concatenate(ratios), tuple(identity(store) for store in stores),
        listed_words(tables[0], tokenizer.words), tokenizer.digest, seed,
    )  # fmt: skip


def _background(tables: Sequence[sparse.csr_array]) -> npt.NDArray[np.float64]:
    """Return the unigram of all stores together, every word with one count more: float64[V]."""
    of_stores = [np.asarray(counts.sum(axis=0), dtype=np.float64).ravel() for counts in tables]
    total = 1.0 + np.sum(of_stores, axis=0)
    background: npt.NDArray[np.float64] = total / total.sum()
    return background


def _divide(
    counts: sparse.csr_array,
    background: npt.NDArray[np.float64],
    clusters: int,
    random: np.random.Generator,
) -> tuple[np.ndarray, Ratios]:
    """Return the cluster of each passage, int64[n], and the models, int8[K, V]."""
    passages_of = counts.shape[0]
    begun = random.integers(passages_of, size=(clusters, _FIRST))
    sums = np.stack([np.asarray(counts[rows].sum(axis=0)).ravel() for rows in begun])
    labels = np.full(passages_of, -1)
    for _ in range(_ROUNDS):
        ratios = _ratios(sums, background)
        nearest = _scores(counts, ratios).argmax(axis=1)
        moved = np.mean(nearest != labels)
        labels = nearest
        sums = _sums(counts, labels, clusters)
        for empty in np.flatnonzero(sums.sum(axis=1) == 0):  # it begins again, with one passage
            sums[empty] = counts[[random.integers(passages_of)]].toarray().ravel()
        if moved < _SETTLED:
            break
    return labels, _ratios(sums, background)


def _sums(counts: sparse.csr_array, labels: np.ndarray, clusters: int) -> np.ndarray:
    """Add up the passages of each cluster: int64[K, V]."""
    ones = np.ones(len(labels), dtype=np.int64)
    member = sparse.csr_array((ones, (labels, np.arange(len(labels)))), (clusters, len(labels)))
    total: np.ndarray = (member @ counts).toarray()
    return total


def _ratios(sums: np.ndarray, background: npt.NDArray[np.float64]) -> Ratios:
    """Return log p(word | cluster) ÷ p(word) in sixteenths of a nat, held to ±127: int8[K, V]."""
    plain = _SMOOTHING * sums.sum() / len(sums)
    mixed = (sums + plain * background) / (sums.sum(axis=1, keepdims=True) + plain)
    steps = np.rint(STEPS * np.log(mixed / background))
    ratios: Ratios = np.clip(steps, -127, 127).astype(np.int8)
    return ratios


def _scores(counts: sparse.csr_array, ratios: Ratios) -> npt.NDArray[np.int32]:
    table = np.ascontiguousarray(ratios.T, dtype=np.int32)  # (V, K)
    blocks = [counts[at : at + _ROWS] @ table for at in range(0, counts.shape[0], _ROWS)]
    scores: npt.NDArray[np.int32] = np.concatenate(blocks)
    return scores


def _described(
    counts: sparse.csr_array,
    labels: np.ndarray,
    ratios: Ratios,
    store: int,
    first: int,
    tokenizer: Tokenizer,
) -> list[Cluster]:
    """Describe the clusters of one store: size, and the words that tell them from other text."""
    sums = _sums(counts, labels, len(ratios))
    sizes = np.bincount(labels, minlength=len(ratios))
    words = np.array([kind == "word" for kind in tokenizer.kinds])
    found = []
    for place, (of_cluster, ratio) in enumerate(zip(sums, ratios, strict=True)):
        telling = np.where(words, of_cluster * np.maximum(ratio, 0.0) ** 2, 0.0)
        best = [int(word) for word in np.argsort(-telling, kind="stable")[:_SHOWN]]
        shown = " ".join(tokenizer.words[word] for word in best if telling[word] > 0)
        label = f"{first + place}: {shown}".rstrip(": ") if shown else f"{first + place}"
        found.append(Cluster(label, store, int(sizes[place]), int(of_cluster.sum())))
    return found
