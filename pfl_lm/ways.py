"""The known ways of fitting a scenario's training into a phone, each as a scenario of its own.

Every way changes what training asks of a phone, and nothing else: the same people, policy, rounds
and cohort. ``pfl-lm device fit`` counts what each costs; ``benchmarks/ways.py`` trains by each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from pfl_lm.language.models import LoraSpec
from pfl_lm.scenario import Scenario

LORA_RANK = 8
RESIDUAL_WIDTH = 32
DIRECTIONS = 1024  # as few as the shipped policies cover
ZEROTH_STEPS = 24
ZEROTH_RATE = 50.0  # a slope along a unit vector is one part in √n of the gradient
FORWARD_RATE = 0.003
STRETCH = 5


@dataclass(frozen=True)
class Way:
    """One way to train.

    Attributes:
        name: for tables.
        about: what it does, and whose idea it is.
        apply: turns the scenario as it stands into one that trains this way.
    """

    name: str
    about: str
    apply: Callable[[Scenario], Scenario]


def _with(
    scenario: Scenario,
    payload: dict[str, Any],
    training: dict[str, Any] | None = None,
    lora: bool = False,
    residual: int = 0,
) -> Scenario:
    """Change payload, training and the parts of the model that a way needs."""
    factors = (scenario.model.lora or LoraSpec(LORA_RANK)) if lora else None
    return replace(
        scenario,
        model=replace(scenario.model, lora=factors, residual=residual),
        payload=replace(scenario.payload, directions=None, layers=None, **payload),
        training=replace(scenario.training, method="backpropagation", **(training or {})),
    )


def _rows(scenario: Scenario) -> int:
    """Return how many rows travel where only some do: the scenario's, or a fifteenth of all."""
    stated = scenario.payload.rows
    return stated if isinstance(stated, int) else max(64, scenario.model.vocabulary_size // 15)


def _partial(scenario: Scenario, **training: Any) -> Scenario:
    """Some rows and LoRA's factors: what most of the ways start from."""
    sampled = {"loss": "sampled"} | training
    return _with(scenario, {"rows": _rows(scenario), "dense": "lora"}, sampled, lora=True)


def _dense(dense: str) -> Callable[[Scenario], Scenario]:
    def apply(scenario: Scenario) -> Scenario:
        residual = RESIDUAL_WIDTH if "residual" in dense else 0
        payload = {"rows": _rows(scenario), "dense": dense}
        return _with(scenario, payload, {"loss": "sampled"}, dense == "ffa_lora", residual)

    return apply


def _only(dense: str) -> Callable[[Scenario], Scenario]:
    """No rows travel at all."""

    def apply(scenario: Scenario) -> Scenario:
        residual = RESIDUAL_WIDTH if "residual" in dense else 0
        payload = {"rows": "none", "dense": dense, "outside": "frozen"}
        return _with(scenario, payload, {"loss": "sampled"}, residual=residual)

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


WAYS = (
    Way(
        "everything",
        "all rows, all matrices, the exact softmax: plain federated averaging",
        lambda s: _with(s, {"rows": "all", "dense": "all"}, {"loss": "softmax"}),
    ),
    Way(
        "partial rows",
        "some rows a round, all matrices, sampled softmax (Xu et al. 2022)",
        lambda s: _with(s, {"rows": _rows(s), "dense": "all"}, {"loss": "sampled"}),
    ),
    Way("rows + LoRA", "some rows, low-rank factors (Hu et al. 2021), sampled softmax", _partial),
    Way(
        "rows + LoRA, NCE",
        "the same by noise-contrastive estimation (Gutmann and Hyvärinen 2012)",
        lambda s: _partial(s, loss="nce"),
    ),
    Way("rows + FFA-LoRA", "only the second factor travels (Sun et al. 2024)", _dense("ffa_lora")),
    Way("rows + biases", "some rows and biases", _dense("biases")),
    Way("biases", "biases only (Cai et al. 2020)", _only("biases")),
    Way("light path", "a narrow path past the frozen model (Cai et al. 2020)", _only("residual")),
    Way("rows + light path", "and some rows", _dense("residual")),
    Way("one layer a round", "some rows and one matrix, in turns on a public schedule", _one_layer),
    Way(
        "recomputed",
        "rows + LoRA, activations made again (Chen et al. 2016)",
        lambda s: _partial(s, activations="recomputed", stretch=STRETCH),
    ),
    Way(
        "truncated",
        f"rows + LoRA, gradients reach {STRETCH} words back",
        lambda s: _partial(s, activations="truncated", stretch=STRETCH),
    ),
    Way(
        "8-bit model",
        "rows + LoRA on weights in 8 bits (Dettmers et al. 2023)",
        lambda s: _partial(s, weight_bits=8),
    ),
    Way("4-bit model", "the same in 4 bits", lambda s: _partial(s, weight_bits=4)),
    Way(
        "1-bit model",
        "the same in signs and a scale (Rastegari et al. 2016)",
        lambda s: _partial(s, weight_bits=1),
    ),
    Way(
        "least of all",
        "4-bit model, recomputed activations",
        lambda s: _partial(s, weight_bits=4, activations="recomputed", stretch=STRETCH),
    ),
    Way("forward only", "rows + LoRA without a backward pass (Pau and Aymone 2024)", _forward_only),
    Way(
        "zeroth order",
        f"coefficients of {DIRECTIONS} public directions (Spall 1992; Qin et al. 2024)",
        _zeroth_order(True, "lora"),
    ),
    Way(
        "zeroth order, LoRA",
        "the same of the second factors alone, no rows",
        _zeroth_order(False, "ffa_lora"),
    ),
    Way("zeroth order, biases", "the same of the biases alone", _zeroth_order(False, "biases")),
)
WAYS_BY_NAME = {way.name: way for way in WAYS}
