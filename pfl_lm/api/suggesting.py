"""A run or an exported bundle as something that suggests words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from pfl_lm.evaluation.composing import MOST_PIECES, Reader, Speller
from pfl_lm.evaluation.languages import NEVER, without_left_out
from pfl_lm.evaluation.suggestions import (
    LONGEST,
    begins_with,
    chances_after,
    message_of,
    prompts_of,
    suggest,
    suggest_emoji,
    suggestible,
    with_composed,
)
from pfl_lm.export.bundle import BLOCKLIST, INDEX, TOKENIZER, Bundle
from pfl_lm.export.bundle import opened as opened_bundle
from pfl_lm.export.formats.registry import ExportedFile, Runner, open_file
from pfl_lm.export.graphs.predict import AWAY
from pfl_lm.export.signature import Arrays, Signature
from pfl_lm.export.vocabulary import blocked_letters
from pfl_lm.models.file import Model
from pfl_lm.run.nearby import open_tokenizer
from pfl_lm.run.trained import load_trained
from pfl_lm.text.tokenizer import Tokenizer

Suggestions = list[tuple[str, float]]


class Offer(NamedTuple):
    """What a keyboard shows after a text.

    Attributes:
        words: the best words and their scores, best first.
        emoji: for the fourth place; empty where there is none.
    """

    words: Suggestions
    emoji: str


class Suggester(Protocol):
    """Suggests words after a text."""

    @property
    def prompts(self) -> Sequence[str]:
        """A dozen texts to try."""

    def offer(self, text: str, count: int = 3, letters: str = "") -> Offer:
        """Read a text once; return so many words that begin with some letters, and an emoji."""


@contextmanager
def opened(
    source: Path, tokenizer: Path | None = None, languages: Sequence[str] = ()
) -> Iterator[Suggester]:
    """Open a run's folder, or a bundle's folder or zip.

    Args:
        languages: those of the vocabulary that the person writes; empty: all.

    Raises:
        ValueError: it is neither, its vocabulary is not found or has none of these languages, or a
            bundle has no graph that runs here; the message names the remedy.
    """
    source = Path(source)
    if source.is_file() or (source / INDEX).is_file():
        with opened_bundle(source) as bundle:
            yield _OfBundle.open(bundle, languages)
    else:
        yield _OfRun.open(source, tokenizer, languages)


@dataclass(frozen=True)
class _OfRun:
    """The trained model of a run, or its newest checkpoint."""

    model: Model
    tokenizer: Tokenizer

    @classmethod
    def open(cls, run: Path, tokenizer: Path | None, languages: Sequence[str]) -> _OfRun:
        model, manifest = load_trained(run)
        words = open_tokenizer(manifest, run, tokenizer)
        if languages:
            words = words.of_languages(languages)
        return cls(without_left_out(model, words), words)

    @property
    def prompts(self) -> Sequence[str]:
        return prompts_of(self.tokenizer)

    def offer(self, text: str, count: int = 3, letters: str = "") -> Offer:
        known = self.model.spec, self.model.parameters, self.tokenizer, text
        chances = chances_after(*known)
        emoji = suggest_emoji(self.tokenizer, chances)
        return Offer(suggest(*known, count, letters, chances=chances), emoji[0] if emoji else "")


@dataclass(frozen=True)
class _OfBundle:
    """The predict graph of a bundle, word by word, as a phone runs it."""

    runner: Runner
    entry: ExportedFile
    tokenizer: Tokenizer
    emoji_ids: tuple[int, ...] = ()
    speller: Speller | None = None

    @classmethod
    def open(cls, bundle: Bundle, languages: Sequence[str]) -> _OfBundle:
        entries = {entry["precision"]: entry for entry in bundle.graphs("predict", "onnx")}
        if not entries:
            raise ValueError("the bundle has no predict graph in ONNX; export with --formats onnx")
        entry = entries.get("fp32") or next(iter(entries.values()))
        file = ExportedFile.of_entry(entry)
        runner = open_file(bundle.path(entry["path"]).parent, file)
        emoji = tuple(bundle.index.vocabulary.get("emoji_ids", ()))
        tokenizer = Tokenizer.open(bundle.path(TOKENIZER))
        if languages:
            tokenizer = tokenizer.of_languages(languages)
        listed = bundle.path(BLOCKLIST).read_text(encoding="utf-8").splitlines()
        speller = Speller.of(tokenizer, blocked_letters(listed, tokenizer))
        return cls(runner, file, tokenizer, emoji, speller)

    @property
    def prompts(self) -> Sequence[str]:
        return prompts_of(self.tokenizer)

    def offer(self, text: str, count: int = 3, letters: str = "") -> Offer:
        allowed = suggestible(self.tokenizer) & begins_with(self.tokenizer, letters)
        tokens = self._tokens(text)
        outputs = self._read(tokens, allowed)
        words = self._words(tokens, outputs, count, letters)
        return Offer(words, self._emoji(outputs["logits"][0]) if self.emoji_ids else "")

    def _words(
        self, tokens: Sequence[int], outputs: Arrays, count: int, letters: str
    ) -> Suggestions:
        """Return the best words after a text that was read."""
        words, scores = outputs["words"].reshape(-1), outputs["scores"].reshape(-1)
        pairs = zip(words.tolist(), scores.tolist(), strict=True)
        kept = [(self.tokenizer.shown(word), score) for word, score in pairs if score > AWAY / 2]
        if self.speller is None:
            return kept[:count]
        total = _log_total(outputs["logits"][0])
        listed = [(word, math.exp(score - total)) for word, score in kept[:count]]
        read = self._reader(self.speller)
        best = with_composed(listed, self.speller, read, tokens, letters, count)
        return [(word, math.log(chance) + total) for word, chance in best]

    def _emoji(self, logits: np.ndarray) -> str:
        return self.tokenizer.words[self.emoji_ids[int(logits[list(self.emoji_ids)].argmax())]]

    def _tokens(self, text: str) -> list[int]:
        return message_of(self.tokenizer, text, _longest(self.entry.signature))

    def _read(self, tokens: Sequence[int], allowed: np.ndarray) -> Arrays:
        """Read a text word by word; return what the graph says after its last one."""
        mask = np.where(allowed, 0, AWAY).astype(np.float32)[None]
        outputs = None
        for token in tokens:
            outputs = self._step(token, mask, outputs)
        assert outputs is not None
        return outputs

    def _step(self, token: int, mask: np.ndarray, before: Arrays | None) -> Arrays:
        """Read one word after what the graph said of the word before it."""
        signature = self.entry.signature
        inputs = {spec.name: np.zeros(spec.shape, spec.dtype) for spec in signature.inputs}
        inputs |= {"token": np.array([token], np.int32), "mask": mask}
        if before is not None:
            inputs |= {into: before[out] for out, into in signature.state.items()}
        outputs = self.runner(**inputs)
        logits = outputs["logits"].copy()
        logits[:, self.tokenizer.left_out] = NEVER
        return {**outputs, "logits": logits}

    def _reader(self, speller: Speller) -> Reader:
        """Return what reads texts and keeps the graph's state after each of their beginnings."""
        longest = _longest(self.entry.signature)
        mask = np.zeros((1, self.tokenizer.vocabulary_size), np.float32)
        kept: dict[tuple[int, ...], Arrays] = {}

        def after(text: tuple[int, ...]) -> Arrays:
            if text not in kept:
                before = after(text[:-1]) if len(text) > 1 else None
                kept[text] = self._step(text[-1], mask, before)
            return kept[text]

        def read(texts: Sequence[tuple[int, ...]]) -> np.ndarray:
            logits = [after(text[-longest:])["logits"][0].astype(np.float64) for text in texts]
            return np.stack([row[speller.ids] - _log_total(row) for row in logits])

        return read


def _log_total(logits: np.ndarray) -> float:
    highest = float(logits.max())
    return highest + math.log(np.exp(logits.astype(np.float64) - highest).sum())


def _longest(signature: Signature) -> int:
    """Return how many ids a graph reads, the one that begins a message among them.

    A transformer's state holds its context, and no word more.
    """
    keys = [spec.shape for spec in signature.inputs if spec.name.startswith("keys")]
    return keys[0][-2] if keys else 1 + LONGEST + MOST_PIECES
