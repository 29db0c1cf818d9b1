"""What may travel, as a scenario states it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pfl_lm.validate import at_least, in_unit, one_of, refuse, typed

Dense = Literal["all", "lora", "ffa_lora", "biases", "side_branch", "biases_side_branch", "none"]
DenseKind = Literal["dense", "bias", "side_branch", "lora_a", "lora_b"]  # ``rows`` have their key

# Which kinds of dense parameter travel under each choice of `PayloadPlan.dense`.
DENSE_KINDS: dict[str, tuple[str, ...]] = {
    "all": ("dense", "bias", "side_branch"),
    "lora": ("lora_a", "lora_b"),
    "ffa_lora": ("lora_b",),
    "biases": ("bias",),
    "side_branch": ("side_branch",),
    "biases_side_branch": ("bias", "side_branch"),
    "none": (),
}


@dataclass(frozen=True)
class PayloadPlan:
    """What may travel, as a scenario states it.

    Args:
        rows: word rows of the embedding, the output table and the output bias that travel:
            ``"all"``, ``"none"``, or how many a round, specials included.
        draw: how rows are drawn when ``rows`` is a number: ``"uniform"``, or ``"unigram"``,
            without replacement with weights ``unigram ** temper``.
        temper: exponent of the unigram draw; 0 is uniform, 1 the unigram itself.
        dense: the other parameters: ``"all"``, ``"lora"`` (both factors), ``"ffa_lora"`` (only
            the second factor), ``"biases"``, ``"side_branch"`` (a narrow branch beside the model),
            ``"biases_side_branch"`` (both), ``"none"``.
        outside: a device's tokens that are not in the round's rows: ``"frozen"`` reads their
            rows from the model on the device and does not train them, ``"unk"`` replaces the
            tokens by ``<unk>``, ``"skip"`` leaves such targets out of the loss.
        layers: only so many of the dense layers travel each round, in turns on a public
            schedule; None: all.
        directions: what travels is a coefficient for each of so many public random directions of
            the coordinates above; for zeroth-order training. None: the coordinates themselves.

    Raises:
        ValueError: a choice that does not exist, or a plan under which nothing travels.
    """

    rows: int | Literal["all", "none"] = "all"
    draw: Literal["uniform", "unigram"] = "uniform"
    temper: float = 0.75
    dense: Dense = "all"
    outside: Literal["frozen", "unk", "skip"] = "frozen"
    layers: int | None = None
    directions: int | None = None

    def __post_init__(self) -> None:
        typed(self, own=("dense",))
        one_of(tuple(DENSE_KINDS), dense=self.dense)
        one_of(("uniform", "unigram"), draw=self.draw)
        one_of(("frozen", "unk", "skip"), outside=self.outside)
        if isinstance(self.rows, bool) or not isinstance(self.rows, int):
            one_of(("all", "none"), rows=self.rows)
        elif self.rows < 1:
            refuse(f'rows = {self.rows}: state a number of rows, "all" or "none"')
        in_unit(temper=self.temper)
        at_least(1, layers=self.layers, directions=self.directions)
        if self.rows == "none" and self.dense == "none":
            refuse('rows = "none" and dense = "none": nothing would travel')
        if self.rows == "none" and self.outside != "frozen":
            refuse(
                f'outside = "{self.outside}" with rows = "none": every word is outside; '
                'use outside = "frozen"'
            )
