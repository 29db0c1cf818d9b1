"""What every model family implements: what runs between the word tables, and how it is taken apart.

The built-in families (``recurrent``, ``transformer``) and models of the user's own
(``user_models``) implement the same class; ``models.body_of`` finds it by a spec.

Legend: K devices, B windows, T tokens of a window, D width of an embedding row, P width of the
hidden vectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from torch import Tensor

from pfl_lm.models.spec import ModelSpec, Parameters, Role


class Body:
    """A model family. A subclass gives at least ``roles`` and ``hidden``.

    Attributes:
        family: its rows in the table of measured memory; empty where nothing was measured.
        steps_words: the model can be advanced word by word from a state (recurrent models).
        in_blocks: the model is a chain of blocks over whole windows (transformers).
    """

    family: ClassVar[str] = ""
    steps_words: ClassVar[bool] = False
    in_blocks: ClassVar[bool] = False

    def roles(self, spec: ModelSpec) -> dict[str, Role]:
        """Name the parameters between embedding and output, in order, with their shapes."""
        raise NotImplementedError

    def hidden(self, spec: ModelSpec, weights: Mapping[str, Tensor], embedded: Tensor) -> Tensor:
        """As :func:`pfl_lm.models.models.hidden`: (K, B, T, D) → (K, B, T, P)."""
        raise NotImplementedError

    def start(self, spec: ModelSpec) -> Parameters | None:
        """Return every parameter's first value, float32, the tables among them; None: drawn."""
        return None

    def start_bias(self, spec: ModelSpec, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Return the first value of a bias between the tables."""
        return np.zeros(shape)

    def longest_window(self, spec: ModelSpec) -> int | None:
        """Return the most tokens that a window may have; None: any number."""
        return None

    def inner_dim(self, spec: ModelSpec) -> int:
        """Values inside a layer for each word: its gates, or its feed-forward part's inner row."""
        return 0

    def kept_dim(self, spec: ModelSpec) -> int:
        """Values that a layer keeps of each word until its backward pass, beyond 4·D."""
        return 0

    def heads(self, spec: ModelSpec) -> int:
        """Attention heads of a layer: each compares every word with every word before it."""
        return 0
