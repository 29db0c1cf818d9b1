"""What may travel, as a scenario states it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Dense = Literal["all", "lora", "ffa_lora", "biases", "residual", "biases_residual", "none"]

# Which kinds of dense parameter travel under each choice of `PayloadPlan.dense`.
DENSE_KINDS: dict[str, tuple[str, ...]] = {
    "all": ("dense", "bias", "residual"),
    "lora": ("lora_a", "lora_b"),
    "ffa_lora": ("lora_b",),
    "biases": ("bias",),
    "residual": ("residual",),
    "biases_residual": ("bias", "residual"),
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
            the second factor), ``"biases"``, ``"residual"`` (the light path past the model),
            ``"biases_residual"`` (both), ``"none"``.
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
        _one_of("dense", self.dense, tuple(DENSE_KINDS))
        _one_of("draw", self.draw, ("uniform", "unigram"))
        _one_of("outside", self.outside, ("frozen", "unk", "skip"))
        if isinstance(self.rows, bool) or not isinstance(self.rows, int):
            _one_of("rows", self.rows, ("all", "none"))
        elif self.rows < 1:
            raise ValueError(f'rows = {self.rows}: state a number of rows, "all" or "none"')
        if not 0.0 <= self.temper <= 1.0:
            raise ValueError(f"temper = {self.temper}: must lie between 0 and 1")
        for field in ("layers", "directions"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ValueError(f"{field} = {value}: must be at least 1, or left out")
        if self.rows == "none" and self.dense == "none":
            raise ValueError('rows = "none" and dense = "none": nothing would travel')
        if self.rows == "none" and self.outside != "frozen":
            raise ValueError(
                f'outside = "{self.outside}" with rows = "none": every word is outside; '
                'use outside = "frozen"'
            )


def _one_of(field: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{field} = {value!r}: must be one of {', '.join(choices)}")
