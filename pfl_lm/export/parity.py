"""Is a file still the model? Both read the same held-out text.

How often do they suggest the same first word, and the same three words, and what does the file
lose in perplexity and keystrokes saved? The file reads word by word, as a keyboard does. The model
is the trained one in the simulator's own code, as evaluation uses it: what a graph leaves out of
the model shows in the figures.

Legend: n windows, T tokens of a window, V words, N positions read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from pfl_lm.evaluation.evaluate import evaluate
from pfl_lm.evaluation.interfaces import HeldOut, TokenizerLike
from pfl_lm.evaluation.keystrokes import SUGGESTIONS
from pfl_lm.evaluation.measures import Evaluation
from pfl_lm.export.signature import Arrays, Runner, Signature
from pfl_lm.export.trained import TrainedModel

BYTES = 400 << 20  # of the scores kept for one evaluation


@dataclass(frozen=True)
class HeldOutText:
    """Held-out users and how much of their text to read.

    Attributes:
        name: how the figures call it.
        positions: about how many words are read in all.
    """

    name: str
    population: HeldOut
    tokenizer: TokenizerLike
    split: str
    window: int
    positions: int = 3000
    tokens_per_user: int = 60
    seed: int = 0

    def fitting(self) -> HeldOutText:
        """Return this with as many positions as memory allows for the vocabulary."""
        most = BYTES // (4 * len(self.tokenizer.words))
        return replace(self, positions=max(200, min(self.positions, most)))


@dataclass(frozen=True)
class Parity:
    """A file beside the trained model in torch, on the same positions.

    Attributes:
        positions: words read.
        top1_agreement, top3_agreement: share of positions with the same first suggestion, and
            with the same set of three.
        perplexity, reference_perplexity: of the file and of the trained model.
        keystrokes_saved, reference_keystrokes_saved: likewise.
        most_difference: largest difference of any word's score, anywhere.
    """

    positions: int
    top1_agreement: float
    top3_agreement: float
    perplexity: float
    reference_perplexity: float
    keystrokes_saved: float
    reference_keystrokes_saved: float
    most_difference: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class _KeptScores:
    """A ``Scorer`` that keeps what it reads.

    Scores are kept as they are read, one row of V for each position; states are row numbers.
    """

    def __init__(self, words: int, positions: int) -> None:
        self.scores_read = np.zeros((positions + 1, words), np.float32)  # (N, V)
        self.suggested = np.full((positions + 1, SUGGESTIONS), -1, np.int64)
        self.read = 0

    def states(self, inputs: np.ndarray) -> torch.Tensor:
        """Read windows, int64[n, T] → row numbers, int64[n, T, 1]; padding has row 0."""
        rows = np.zeros((*inputs.shape, 1), np.int64)
        for number, window in enumerate(inputs):
            ids = window[: int(np.flatnonzero(window).max(initial=-1)) + 1]
            for place, (logits, words) in enumerate(self._read(ids)):
                rows[number, place] = self._keep(logits, words)
        return torch.from_numpy(rows)

    def _read(self, ids: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the logits (V,) and the suggestions after each id of a window, int64[T]."""
        raise NotImplementedError

    def scores(self, states: torch.Tensor, words: slice | torch.Tensor) -> torch.Tensor:
        """Return the scores of some words, (m, k)."""
        columns = words if isinstance(words, slice) else words.numpy()
        return torch.from_numpy(self.scores_read[states[:, 0].numpy()][:, columns])

    def _keep(self, logits: np.ndarray, words: np.ndarray) -> int:
        self.read += 1
        if self.read == len(self.scores_read):
            self.scores_read = np.resize(self.scores_read, (2 * self.read, logits.size))
            self.suggested = np.resize(self.suggested, (2 * self.read, SUGGESTIONS))
        self.scores_read[self.read] = logits
        self.suggested[self.read] = words[:SUGGESTIONS]
        return self.read


class StepScorer(_KeptScores):
    """A ``predict`` graph, in torch or in a runtime, as the evaluation's ``Scorer``."""

    def __init__(self, run: Runner, signature: Signature, start: Arrays, positions: int) -> None:
        self._run, self._signature, self._start = run, signature, start
        words = next(tensor.shape[-1] for tensor in signature.outputs if tensor.name == "logits")
        super().__init__(words, positions)

    def _read(self, ids: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        given = dict(self._start)
        for token in ids:
            outputs = self._run(**given | {"token": np.array([token], np.int32)})
            given |= {i: outputs[o] for o, i in self._signature.state.items()}
            yield outputs["logits"][0], outputs["words"][0]


class TrainedScorer(_KeptScores):
    """The trained model in the simulator's own code, with what is never suggested left out."""

    def __init__(self, trained: TrainedModel, positions: int) -> None:
        self._trained = trained
        super().__init__(trained.model.spec.vocabulary_size, positions)

    def _read(self, ids: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for logits in self._trained.logits(ids):
            yield logits, self._trained.best(logits, SUGGESTIONS)[0]


@dataclass(frozen=True)
class Reading:
    """What one scorer made of the held-out text."""

    scores: np.ndarray  # float32 (N, V)
    suggested: np.ndarray  # int64 (N, 3)
    evaluation: Evaluation


def read(run: Runner, signature: Signature, start: Arrays, text: HeldOutText) -> Reading:
    """Read held-out text with a graph, in torch or in a runtime."""
    return _reading(StepScorer(run, signature, start, text.positions), text)


def read_trained(trained: TrainedModel, text: HeldOutText) -> Reading:
    """Read held-out text with the trained model in the simulator's own code."""
    return _reading(TrainedScorer(trained, text.positions), text)


def _reading(scorer: _KeptScores, text: HeldOutText) -> Reading:
    users = max(1, text.positions // text.tokens_per_user)
    evaluation = evaluate(
        scorer,
        text.population,
        text.split,
        text.tokenizer,
        text.window,
        max_users=min(users, text.population.users(text.split)),
        max_tokens_per_user=text.tokens_per_user,
        seed=text.seed,
    )
    rows = slice(1, scorer.read + 1)
    return Reading(scorer.scores_read[rows], scorer.suggested[rows], evaluation)


def compare(reading: Reading, reference: Reading) -> Parity:
    """Set a file's reading beside the trained model's."""
    same = reading.suggested == reference.suggested
    alike = np.sort(reading.suggested, 1) == np.sort(reference.suggested, 1)
    difference = max(
        float(np.abs(a - b).max()) for a, b in zip(reading.scores, reference.scores, strict=True)
    )
    return Parity(
        positions=len(same),
        top1_agreement=float(same[:, 0].mean()),
        top3_agreement=float(alike.all(1).mean()),
        perplexity=reading.evaluation.perplexity,
        reference_perplexity=reference.evaluation.perplexity,
        keystrokes_saved=reading.evaluation.keystrokes_saved,
        reference_keystrokes_saved=reference.evaluation.keystrokes_saved,
        most_difference=difference,
    )
