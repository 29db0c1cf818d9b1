"""A run or an exported bundle as something that suggests words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from pfl_lm.evaluation.suggestions import (
    LONGEST,
    begins_with,
    prompts_of,
    suggest,
    suggest_emoji,
    suggestible,
)
from pfl_lm.export.bundle import INDEX, TOKENIZER, Bundle
from pfl_lm.export.bundle import opened as opened_bundle
from pfl_lm.export.formats.registry import ExportedFile, Runner, open_file
from pfl_lm.export.graphs.predict import AWAY
from pfl_lm.export.signature import Arrays, Signature
from pfl_lm.models.file import Model
from pfl_lm.run.nearby import open_tokenizer
from pfl_lm.run.trained import load_trained
from pfl_lm.text.tokenizer import Tokenizer

Suggestions = list[tuple[str, float]]


class Suggester(Protocol):
    """Suggests words after a text."""

    @property
    def prompts(self) -> Sequence[str]:
        """A dozen texts to try."""

    def suggest(self, text: str, count: int = 3, letters: str = "") -> Suggestions:
        """Return the best words and their scores, best first."""

    def emoji(self, text: str) -> str:
        """Return the emoji for a keyboard's fourth place; empty where there are none."""


@contextmanager
def opened(source: Path, tokenizer: Path | None = None) -> Iterator[Suggester]:
    """Open a run's folder, or a bundle's folder or zip.

    Raises:
        ValueError: it is neither, its vocabulary is not found, or a bundle has no graph that runs
            here; the message names the remedy.
    """
    source = Path(source)
    if source.is_file() or (source / INDEX).is_file():
        with opened_bundle(source) as bundle:
            yield _OfBundle.open(bundle)
    else:
        yield _OfRun.open(source, tokenizer)


@dataclass(frozen=True)
class _OfRun:
    """The trained model of a run, or its newest checkpoint."""

    model: Model
    tokenizer: Tokenizer

    @classmethod
    def open(cls, run: Path, tokenizer: Path | None) -> _OfRun:
        model, manifest = load_trained(run)
        return cls(model, open_tokenizer(manifest, run, tokenizer))

    @property
    def prompts(self) -> Sequence[str]:
        return prompts_of(self.tokenizer)

    def suggest(self, text: str, count: int = 3, letters: str = "") -> Suggestions:
        spec, parameters = self.model.spec, self.model.parameters
        return suggest(spec, parameters, self.tokenizer, text, count, letters)

    def emoji(self, text: str) -> str:
        found = suggest_emoji(self.model.spec, self.model.parameters, self.tokenizer, text)
        return found[0] if found else ""


@dataclass(frozen=True)
class _OfBundle:
    """The predict graph of a bundle, word by word, as a phone runs it."""

    runner: Runner
    entry: ExportedFile
    tokenizer: Tokenizer
    emoji_ids: tuple[int, ...] = ()

    @classmethod
    def open(cls, bundle: Bundle) -> _OfBundle:
        entries = {entry["precision"]: entry for entry in bundle.graphs("predict", "onnx")}
        if not entries:
            raise ValueError("the bundle has no predict graph in ONNX; export with --formats onnx")
        entry = entries.get("fp32") or next(iter(entries.values()))
        fields = {name: entry[name] for name in ExportedFile.__dataclass_fields__}
        file = ExportedFile.from_dict(fields)
        runner = open_file(bundle.path(entry["path"]).parent, file)
        emoji = tuple(bundle.index.vocabulary.get("emoji_ids", ()))
        return cls(runner, file, Tokenizer.open(bundle.path(TOKENIZER)), emoji)

    @property
    def prompts(self) -> Sequence[str]:
        return prompts_of(self.tokenizer)

    def suggest(self, text: str, count: int = 3, letters: str = "") -> Suggestions:
        allowed = suggestible(self.tokenizer) & begins_with(self.tokenizer, letters)
        outputs = self._read(text, allowed)
        words, scores = outputs["words"].reshape(-1), outputs["scores"].reshape(-1)
        pairs = zip(words.tolist(), scores.tolist(), strict=True)
        kept = [(self.tokenizer.shown(word), score) for word, score in pairs if score > AWAY / 2]
        return kept[:count]

    def emoji(self, text: str) -> str:
        if not self.emoji_ids:
            return ""
        logits = self._read(text, suggestible(self.tokenizer))["logits"][0]
        return self.tokenizer.words[self.emoji_ids[int(logits[list(self.emoji_ids)].argmax())]]

    def _read(self, text: str, allowed: np.ndarray) -> Arrays:
        """Read a text word by word; return what the graph says after its last one."""
        signature = self.entry.signature
        inputs = {spec.name: np.zeros(spec.shape, spec.dtype) for spec in signature.inputs}
        tokens = [self.tokenizer.bos_id, *self.tokenizer.encode(text)[-_room(signature) :]]
        for token in tokens:
            inputs["token"] = np.array([token], np.int32)
            inputs["mask"] = np.where(allowed, 0, AWAY).astype(np.float32)[None]
            outputs = self.runner(**inputs)
            inputs |= {into: outputs[out] for out, into in signature.state.items()}
        return outputs


def _room(signature: Signature) -> int:
    """Return how many words a graph reads after the one that begins a message.

    A transformer's state holds its context, and no word more.
    """
    keys = [spec.shape for spec in signature.inputs if spec.name.startswith("keys")]
    return min(LONGEST, keys[0][-2] - 1) if keys else LONGEST
