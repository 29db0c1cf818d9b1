"""The known methods of training on a phone, each as a scenario of its own.

A method changes what training asks of a phone, and nothing else: the same people, policy, rounds
and cohort. ``pfl-lm device cost`` counts what each costs; ``benchmarks/training_methods.py`` trains
by each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from pfl_lm.models.models import LoraSpec
from pfl_lm.run.scenario import Scenario

LORA_RANK = 8
SIDE_BRANCH_WIDTH = 32
DIRECTIONS = 1024  # as few as the shipped policies cover
ZEROTH_STEPS = 24
ZEROTH_RATE = 50.0  # a slope along a unit vector is one part in √n of the gradient
FORWARD_RATE = 0.003
SEGMENT_LENGTH = 5


@dataclass(frozen=True)
class TrainingMethod:
    """One method of training.

    Attributes:
        name: for tables.
        about: what it does, and whose idea it is.
        apply: turns the scenario as it stands into one that trains by this method.
    """

    name: str
    about: str
    apply: Callable[[Scenario], Scenario]


def _with(
    scenario: Scenario,
    payload: dict[str, Any],
    training: dict[str, Any] | None = None,
    lora: bool = False,
    side_branch: int = 0,
) -> Scenario:
    """Change payload, training and the parts of the model that a method needs."""
    factors = (scenario.model.lora or LoraSpec(LORA_RANK)) if lora else None
    return replace(
        scenario,
        model=replace(scenario.model, lora=factors, side_branch=side_branch),
        payload=replace(scenario.payload, directions=None, layers=None, **payload),
        training=replace(scenario.training, method="backpropagation", **(training or {})),
    )


def _rows(scenario: Scenario) -> int:
    """Return how many rows travel where only some do: the scenario's, or a fifteenth of all."""
    stated = scenario.payload.rows
    return stated if isinstance(stated, int) else max(64, scenario.model.vocabulary_size // 15)


def _partial(scenario: Scenario, **training: Any) -> Scenario:
    """Some rows and LoRA's factors: what most of the methods start from."""
    sampled = {"loss": "sampled"} | training
    return _with(scenario, {"rows": _rows(scenario), "dense": "lora"}, sampled, lora=True)


def _dense(dense: str) -> Callable[[Scenario], Scenario]:
    def apply(scenario: Scenario) -> Scenario:
        side_branch = SIDE_BRANCH_WIDTH if "side_branch" in dense else 0
        payload = {"rows": _rows(scenario), "dense": dense}
        return _with(scenario, payload, {"loss": "sampled"}, dense == "ffa_lora", side_branch)

    return apply


def _only(dense: str) -> Callable[[Scenario], Scenario]:
    """No rows travel at all."""

    def apply(scenario: Scenario) -> Scenario:
        side_branch = SIDE_BRANCH_WIDTH if "side_branch" in dense else 0
        payload = {"rows": "none", "dense": dense, "outside": "frozen"}
        return _with(scenario, payload, {"loss": "sampled"}, side_branch=side_branch)

    return apply


def _zeroth_order(rows: bool, dense: str) -> Callable[[Scenario], Scenario]:
    """Directions of some rows and matrices, or of matrices alone: the fewer, the more it learns."""

    def apply(scenario: Scenario) -> Scenario:
        travels: dict[str, Any] = {"rows": _rows(scenario), "dense": dense}
        if not rows:
            travels |= {"rows": "none", "outside": "frozen"}
        changed = _with(scenario, travels, {"loss": "sampled"}, lora=dense != "biases")
        return replace(
            changed,
            payload=replace(changed.payload, directions=DIRECTIONS),
            training=replace(
                changed.training,
                method="zeroth_order",
                gradient_clip=None,
                learning_rate=ZEROTH_RATE,
                epochs=None,
                steps=ZEROTH_STEPS,
            ),
        )

    return apply


def _forward_only(scenario: Scenario) -> Scenario:
    partial = _partial(scenario)
    training = replace(partial.training, method="forward_only", learning_rate=FORWARD_RATE)
    return replace(partial, training=training)


def _one_layer(scenario: Scenario) -> Scenario:
    partial = _with(scenario, {"rows": _rows(scenario), "dense": "all"}, {"loss": "sampled"})
    return replace(partial, payload=replace(partial.payload, layers=1))


TRAINING_METHODS = (
    TrainingMethod(
        "everything",
        "all rows, all matrices, the exact softmax: plain federated averaging",
        lambda s: _with(s, {"rows": "all", "dense": "all"}, {"loss": "softmax"}),
    ),
    TrainingMethod(
        "partial rows",
        "some rows a round, all matrices, sampled softmax (Xu et al. 2022)",
        lambda s: _with(s, {"rows": _rows(s), "dense": "all"}, {"loss": "sampled"}),
    ),
    TrainingMethod(
        "rows + LoRA", "some rows, low-rank factors (Hu et al. 2021), sampled softmax", _partial
    ),
    TrainingMethod(
        "rows + LoRA, NCE",
        "the same by noise-contrastive estimation (Gutmann and Hyvärinen 2012)",
        lambda s: _partial(s, loss="nce"),
    ),
    TrainingMethod(
        "rows + FFA-LoRA", "only the second factor travels (Sun et al. 2024)", _dense("ffa_lora")
    ),
    TrainingMethod("rows + biases", "some rows and biases", _dense("biases")),
    TrainingMethod("biases", "biases only (Cai et al. 2020)", _only("biases")),
    TrainingMethod(
        "side branch",
        "a narrow branch beside the frozen model (Cai et al. 2020)",
        _only("side_branch"),
    ),
    TrainingMethod("rows + side branch", "and some rows", _dense("side_branch")),
    TrainingMethod(
        "one layer a round", "some rows and one matrix, in turns on a public schedule", _one_layer
    ),
    TrainingMethod(
        "recomputed",
        "rows + LoRA, activations made again (Chen et al. 2016)",
        lambda s: _partial(s, activations="recomputed", segment_length=SEGMENT_LENGTH),
    ),
    TrainingMethod(
        "truncated",
        f"rows + LoRA, gradients reach {SEGMENT_LENGTH} words back",
        lambda s: _partial(s, activations="truncated", segment_length=SEGMENT_LENGTH),
    ),
    TrainingMethod(
        "8-bit model",
        "rows + LoRA on weights in 8 bits (Dettmers et al. 2023)",
        lambda s: _partial(s, weight_bits=8),
    ),
    TrainingMethod("4-bit model", "the same in 4 bits", lambda s: _partial(s, weight_bits=4)),
    TrainingMethod(
        "1-bit model",
        "the same in signs and a scale (Rastegari et al. 2016)",
        lambda s: _partial(s, weight_bits=1),
    ),
    TrainingMethod(
        "least of all",
        "4-bit model, recomputed activations",
        lambda s: _partial(
            s, weight_bits=4, activations="recomputed", segment_length=SEGMENT_LENGTH
        ),
    ),
    TrainingMethod(
        "forward only", "rows + LoRA without a backward pass (Pau and Aymone 2024)", _forward_only
    ),
    TrainingMethod(
        "zeroth order",
        f"coefficients of {DIRECTIONS} public directions (Spall 1992; Qin et al. 2024)",
        _zeroth_order(True, "lora"),
    ),
    TrainingMethod(
        "zeroth order, LoRA",
        "the same of the second factors alone, no rows",
        _zeroth_order(False, "ffa_lora"),
    ),
    TrainingMethod(
        "zeroth order, biases", "the same of the biases alone", _zeroth_order(False, "biases")
    ),
)
METHODS_BY_NAME = {method.name: method for method in TRAINING_METHODS}
