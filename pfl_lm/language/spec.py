"""What a model is: a frozen description. Its parameters are a plain dict of tensors by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

Parameters = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Role:
    """What a parameter is to the payload.

    ``rows``: its first axis is the word (a table (V, D) or the output bias (V,)). ``dense``: a
    matrix, a gain or a table of positions. ``bias``. ``lora_a``, ``lora_b``: a factor of LoRA.
    ``residual``: a matrix of the light path past the model.
    """

    kind: Literal["rows", "dense", "bias", "lora_a", "lora_b", "residual"]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class LoraSpec:
    """Low-rank factors beside dense layers: W x + (alpha / rank) · B A x.

    Args:
        rank: inner width of the factors.
        alpha: the factors' product is scaled by alpha / rank.
        targets: which layers get factors, by the last part of their names (``"recurrent"``,
            ``"attention"``, …); empty: every dense layer.
    """

    rank: int
    alpha: float = 16.0
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"lora rank = {self.rank}: must be at least 1")
        if not self.alpha > 0:
            raise ValueError(f"lora alpha = {self.alpha}: must be positive")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


@dataclass(frozen=True)
class ModelSpec:
    """A next-word model.

    Args:
        kind: ``"cifg_lstm"`` (coupled input and forget gate, recurrence through a projection),
            ``"lstm"`` (four gates, recurrence on the cells' output, projected once at the end),
            ``"transformer"`` (causal, pre-norm), ``"module"`` (one of the user's own).
        vocabulary_size: V.
        embedding_dim: D, width of a word's row.
        layers: recurrent layers, or transformer blocks.
        hidden_dim: cells of a recurrent layer.
        projection_dim: width P of a recurrent layer's output; 0: embedding_dim.
        heads, feedforward_dim: of a transformer block, whose width is embedding_dim.
        activation: of a transformer's feed-forward part; ``"gelu"`` is the exact one.
        positions: ``"learned"`` table of ``context`` positions, or ``"rotary"``.
        context: longest window of tokens that the transformer takes.
        tied: output rows are the embedding's; the model's output must be embedding_dim wide.
        output_bias: a bias for each word's score.
        lora: low-rank factors, or none.
        residual: inner width of a light path past the model (``language/residual``); 0: none.
        module: name of a model of the user's own, see ``modules``.

    Raises:
        ValueError: naming the field and what would be right.
    """

    kind: Literal["cifg_lstm", "lstm", "transformer", "module"]
    vocabulary_size: int
    embedding_dim: int
    layers: int = 1
    hidden_dim: int = 0
    projection_dim: int = 0
    heads: int = 0
    feedforward_dim: int = 0
    activation: Literal["gelu", "relu"] = "gelu"
    positions: Literal["learned", "rotary"] = "learned"
    context: int = 64
    tied: bool = True
    output_bias: bool = True
    lora: LoraSpec | None = None
    residual: int = 0
    module: str = ""

    def __post_init__(self) -> None:
        if self.kind not in ("cifg_lstm", "lstm", "transformer", "module"):
            raise ValueError(
                f'model kind = {self.kind!r}: must be "cifg_lstm", "lstm", "transformer" or '
                '"module"'
            )
        for field in ("vocabulary_size", "embedding_dim", "layers", "context"):
            _positive(self, field)
        if self.kind == "transformer":
            self._check_transformer()
        elif self.kind != "module":
            _positive(self, "hidden_dim")
        if (self.kind == "module") is not bool(self.module):
            raise ValueError(f'model module = {self.module!r}: name one where kind = "module"')
        if self.kind == "module" and self.lora is not None:
            raise ValueError('model lora: a model of kind = "module" brings its own factors')
        if self.residual < 0:
            raise ValueError(f"model residual = {self.residual}: must be a width, or 0 for none")
        if self.tied and self.output_dim != self.embedding_dim:
            raise ValueError(
                f"tied embeddings need projection_dim = embedding_dim; they are "
                f"{self.output_dim} and {self.embedding_dim}"
            )

    def _check_transformer(self) -> None:
        _positive(self, "heads")
        _positive(self, "feedforward_dim")
        if self.embedding_dim % self.heads:
            raise ValueError(
                f"embedding_dim = {self.embedding_dim} must be a multiple of heads = {self.heads}"
            )
        if self.positions == "rotary" and self.embedding_dim // self.heads % 2:
            raise ValueError("rotary positions need an even embedding_dim / heads")
        if self.activation not in ("gelu", "relu"):
            raise ValueError(f'activation = {self.activation!r}: must be "gelu" or "relu"')
        if self.positions not in ("learned", "rotary"):
            raise ValueError(f'positions = {self.positions!r}: must be "learned" or "rotary"')

    @property
    def output_dim(self) -> int:
        """Width of the hidden vectors that meet the output rows."""
        if self.kind == "transformer":
            return self.embedding_dim
        return self.projection_dim or self.embedding_dim

    @property
    def output_table(self) -> str:
        """Name of the table whose rows score the words."""
        return "embedding" if self.tied else "output"


def _positive(spec: ModelSpec, field: str) -> None:
    if getattr(spec, field) < 1:
        raise ValueError(f"model {field} = {getattr(spec, field)}: must be at least 1")
