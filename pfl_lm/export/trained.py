"""The trained model in the simulator's own code: what every graph of an export is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pfl_lm.evaluation.evaluate import ModelScorer
from pfl_lm.export.forward import AWAY
from pfl_lm.models.file import Model


@dataclass(frozen=True)
class TrainedModel:
    """A run's model as evaluation scores it, which shares no code with the graphs.

    Attributes:
        blocked: ids that are never suggested.
    """

    model: Model
    blocked: Sequence[int] = ()

    def logits(self, ids: np.ndarray) -> np.ndarray:
        """Return the scores of all words after each id of a text, int64[T] → float32[T, V]."""
        scorer = ModelScorer(self.model.spec, self.model.parameters)
        scores: np.ndarray = scorer.scores(scorer.states(ids[None])[0], slice(None)).numpy()
        return scores

    def best(
        self, logits: np.ndarray, count: int, mask: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the words to suggest and their scores, best first, as ``predict`` does.

        Args:
            mask: float32[V], added to the scores; None: nothing.
        """
        allowed = logits.copy() if mask is None else logits + mask
        allowed[list(self.blocked)] += AWAY
        scores, words = torch.topk(torch.from_numpy(allowed), count)
        return words.numpy(), scores.numpy()
