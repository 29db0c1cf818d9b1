"""The losses of local training, one object each: the words it scores, its draw, its arithmetic.

A further loss is one class here, its gradients in ``models/losses.py``, and its graph in
``export/graphs/train_step.py``.

Legend: A devices at work, N rows of a device, V words, C candidates, k words that may be drawn.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from pfl_lm.models import losses
from pfl_lm.models.losses import Candidates

Slopes = tuple[
    Tensor, Tensor, Tensor
]  # losses (A, N); by the targets' (A, N), all scores (A, N, C)


class LocalLoss:
    """The softmax over a target and candidates; the base of every other loss.

    Attributes:
        every_word: every word that may be scored is a candidate of every step.
        weighted: a candidate's score is divided by the probability that the payload and the draw
            include it, so that the sum estimates one over all V words (``devices/output``).
    """

    every_word: ClassVar[bool] = False
    weighted: ClassVar[bool] = True

    @property
    def plain(self) -> bool:
        """Whether ``slopes`` is the softmax's own, which kernels may compute in its place."""
        return type(self).slopes is LocalLoss.slopes

    def exact(self, some_rows: bool) -> bool:
        """Say whether a step takes the softmax over all V words, which draws no candidates."""
        return self.every_word and self.plain and not some_rows

    def scored(self, words: int, negatives: int) -> int:
        """Return how many candidates a step has at most, of ``words`` that may be drawn."""
        return words if self.every_word else min(negatives, words)

    def draw(
        self,
        negatives: int,
        words: np.ndarray,
        inclusion: np.ndarray | None,
        unigram: np.ndarray,
        draw: np.random.Generator,
    ) -> Candidates:
        """Draw a step's candidates; arguments are those of ``losses.draw_for_softmax``."""
        count = len(words) if self.every_word else negatives
        return losses.draw_for_softmax(count, words, inclusion, unigram, draw)

    def log_noise(self, words: np.ndarray, unigram: np.ndarray, negatives: int) -> Tensor | None:
        """Return float32 (V,), the log of each word's expected noise; None for a loss without."""
        return None

    def slopes(
        self,
        target: Tensor,
        targets: Tensor,
        scores: Tensor,
        candidates: Candidates,
        log_noise: Tensor | None,
    ) -> Slopes:
        """Return losses and their slopes by the scores.

        Args:
            target: (A, N), the targets' scores; targets: int64 (A, N).
            scores: (A, N, C), the candidates'; overwritten by their slopes.
        """
        log_weight = torch.from_numpy(candidates.log_weight).to(scores.device)
        words = torch.from_numpy(candidates.words).to(scores.device)
        place = torch.searchsorted(words, targets).clamp_max_(len(words) - 1)  # (A, N)
        rows = torch.arange(targets.numel(), device=targets.device).view_as(targets)
        hits = (rows * len(words) + place)[words[place] == targets]
        return losses.sampled_softmax(target, scores, log_weight, hits)


class SampledSoftmax(LocalLoss):
    """The softmax over the target and the step's candidates."""


class Softmax(LocalLoss):
    """The softmax over every word; over the round's rows where the payload holds only some."""

    every_word = True


class NoiseContrastive(LocalLoss):
    """One logistic regression a word: text against noise that is drawn from the round's rows."""

    weighted = False

    def draw(
        self,
        negatives: int,
        words: np.ndarray,
        inclusion: np.ndarray | None,
        unigram: np.ndarray,
        draw: np.random.Generator,
    ) -> Candidates:
        return losses.draw_for_nce(negatives, words, unigram, draw)

    def log_noise(self, words: np.ndarray, unigram: np.ndarray, negatives: int) -> Tensor:
        """Return log ν p(w) of each word, −inf outside ``words``."""
        log_noise = np.full(len(unigram), -np.inf, np.float32)
        noise = unigram[words] / unigram[words].sum()
        log_noise[words] = np.log(negatives * noise)
        return torch.from_numpy(log_noise)

    def slopes(
        self,
        target: Tensor,
        targets: Tensor,
        scores: Tensor,
        candidates: Candidates,
        log_noise: Tensor | None,
    ) -> Slopes:
        assert log_noise is not None
        log_weight = torch.from_numpy(candidates.log_weight).to(scores.device)
        counts = torch.from_numpy(candidates.counts).to(scores.device)
        noise = log_noise.to(scores.device)[targets]
        return losses.noise_contrastive(target, noise, scores, log_weight, counts)


LOSSES: dict[str, LocalLoss] = {
    "softmax": Softmax(),
    "sampled": SampledSoftmax(),
    "nce": NoiseContrastive(),
}
