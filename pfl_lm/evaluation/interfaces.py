"""What evaluation asks of a model, a tokenizer and a population."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch


class Scorer(Protocol):
    """Whatever predicts the next word: a trained model, a table of counts."""

    def states(self, inputs: np.ndarray) -> torch.Tensor:
        """Read windows (int64[n, T]); return what is known after each token, (n, T, ...)."""
        ...

    def scores(self, states: torch.Tensor, words: slice | torch.Tensor) -> torch.Tensor:
        """Score the words with the given ids after states (m, ...): float32 (m, k).

        Log-probabilities up to a constant per row. The caller may overwrite them.
        """
        ...


@runtime_checkable
class QuickScorer(Scorer, Protocol):
    """A scorer that finds the best words without giving all scores away."""

    def ranked(
        self, states: torch.Tensor, targets: torch.Tensor, silent: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return −log p(target), float64[m], and the three best words that are not silent.

        None: not on this machine. A loss is NaN where only a sum with its maximum taken off can
        tell it.
        """
        ...


class TokenizerLike(Protocol):
    """The part of a tokenizer that evaluation needs."""

    @property
    def words(self) -> Sequence[str]: ...

    @property
    def specials(self) -> Sequence[int]: ...

    @property
    def unigram(self) -> np.ndarray: ...

    @property
    def pad_id(self) -> int: ...

    @property
    def unk_id(self) -> int: ...

    @property
    def bos_id(self) -> int: ...


class HeldOut(Protocol):
    """The part of a population that evaluation needs."""

    def users(self, split: str) -> int: ...

    def tokens(self, split: str, user: int) -> np.ndarray: ...


@runtime_checkable
class HeldOutAsTyped(HeldOut, Protocol):
    """A population that knows how its users typed."""

    def typed(self, split: str, user: int) -> np.ndarray | None:
        """Return a code of ``text.as_typed`` for each token, unsigned[n]; None: not known."""
        ...
