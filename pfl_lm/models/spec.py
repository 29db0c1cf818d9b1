"""What a model is: a frozen description, which loads no torch. Its parameters are a plain dict of
tensors by name.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal

from pfl_lm.validate import at_least, one_of, positive, typed

if TYPE_CHECKING:
    import torch

Parameters = dict[str, "torch.Tensor"]


@dataclass(frozen=True)
class Role:
    """What a parameter is to the payload.

    ``rows``: its first axis is the word (a table (V, D) or the output bias (V,)). ``dense``: a
    matrix, a gain or a table of positions. ``bias``. ``lora_a``, ``lora_b``: a factor of LoRA.
    ``side_branch``: a matrix of the side branch.
    """

    kind: Literal["rows", "dense", "bias", "lora_a", "lora_b", "side_branch"]
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
        typed(self)
        at_least(1, rank=self.rank)
        positive(alpha=self.alpha)

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


# Sizes that each kind of model must state, beside those that all have.
_NEEDS: dict[str, tuple[str, ...]] = {
    "cifg_lstm": ("hidden_dim",),
    "lstm": ("hidden_dim",),
    "transformer": ("heads", "feedforward_dim"),
    "module": (),
}


@dataclass(frozen=True)
class ModelSpec:
    """A next-word model.

    Args:
        kind: ``"cifg_lstm"`` (coupled input and forget gate, recurrence through a projection),
            ``"lstm"`` (four gates, recurrence on the cells' output, projected once at the end),
            ``"transformer"`` (causal, pre-norm), ``"module"`` (one of the user's own).
        vocabulary_size: V, the words that the model knows: the size of the tokenizer.
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
        side_branch: inner width of a branch beside the model (``models/side_branch``); 0: none.
        module: name of a model of the user's own, see ``models/user_models``.

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
    side_branch: int = 0
    module: str = ""

    def __post_init__(self) -> None:
        typed(self)
        one_of(tuple(_NEEDS), kind=self.kind)
        needed = _NEEDS[self.kind]
        for field in ("vocabulary_size", "embedding_dim", "layers", "context", *needed):
            at_least(1, **{field: getattr(self, field)})
        if "heads" in needed:
            self._check_attention()
        if (self.kind == "module") is not bool(self.module):
            raise ValueError(f'model module = {self.module!r}: name one where kind = "module"')
        if self.kind == "module" and self.lora is not None:
            raise ValueError('model lora: a model of kind = "module" brings its own factors')
        at_least(0, side_branch=self.side_branch)
        if self.tied and self.output_dim != self.embedding_dim:
            raise ValueError(
                f"tied embeddings need projection_dim = embedding_dim; they are "
                f"{self.output_dim} and {self.embedding_dim}"
            )

    def _check_attention(self) -> None:
        if self.embedding_dim % self.heads:
            raise ValueError(
                f"embedding_dim = {self.embedding_dim} must be a multiple of heads = {self.heads}"
            )
        if self.positions == "rotary" and self.embedding_dim // self.heads % 2:
            raise ValueError("rotary positions need an even embedding_dim / heads")
        one_of(("gelu", "relu"), activation=self.activation)
        one_of(("learned", "rotary"), positions=self.positions)

    @property
    def output_dim(self) -> int:
        """Width of the hidden vectors that meet the output rows."""
        if "heads" in _NEEDS[self.kind]:
            return self.embedding_dim
        return self.projection_dim or self.embedding_dim

    @property
    def output_table(self) -> str:
        """Name of the table whose rows score the words."""
        return "embedding" if self.tied else "output"


def differences(filed: ModelSpec, described: ModelSpec) -> str:
    """Name the fields in which the model of a file is not the one that a recipe describes."""
    pairs = {
        field.name: (getattr(filed, field.name), getattr(described, field.name))
        for field in fields(ModelSpec)
    }
    return ", ".join(
        f"{name} is {own} in the file and {stated} in [model]"
        for name, (own, stated) in pairs.items()
        if own != stated
    )
