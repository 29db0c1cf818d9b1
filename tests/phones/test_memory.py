"""Predicted memory against measured, on settings that the prediction was not fitted on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pfl_lm import native
from pfl_lm.devices.local_training import LocalTraining
from pfl_lm.models.models import LoraSpec, ModelSpec, roles
from pfl_lm.models.quantised import bytes_of
from pfl_lm.native.bindings import TRAINING
from pfl_lm.payload.choice import choose
from pfl_lm.payload.plan import PayloadPlan
from pfl_lm.phones.memory import SPECIALS, Memory, measure_memory, predict_memory, unigram_of

LSTM = ModelSpec("cifg_lstm", 6000, 80, hidden_dim=320)
TRANSFORMER = ModelSpec("transformer", 6000, 96, layers=3, heads=4, feedforward_dim=384)
PARTIAL = PayloadPlan(rows=700, dense="lora")
LOCAL = LocalTraining(1.0, batch_size=12, window=16, loss="sampled", negatives=300)

SETTINGS = {
    "rows + lora": (LSTM, PARTIAL, LOCAL),
    "everything": (LSTM, PayloadPlan(), replace(LOCAL, loss="softmax")),
    "recomputed": (LSTM, PARTIAL, replace(LOCAL, activations="recomputed", segment_length=4)),
    "side branch": (
        replace(LSTM, side_branch=24),
        PayloadPlan(rows="none", dense="side_branch"),
        LOCAL,
    ),
    "truncated": (LSTM, PARTIAL, replace(LOCAL, activations="truncated", segment_length=4)),
    "biases": (LSTM, PayloadPlan(rows="none", dense="biases"), LOCAL),
    "zeroth order": (
        LSTM,
        replace(PARTIAL, directions=64),
        replace(LOCAL, method="zeroth_order"),
    ),
    "zeroth order, everything": (  # few rows against all words: one panel, whatever its width
        LSTM,
        PayloadPlan(directions=64),
        replace(LOCAL, method="zeroth_order", loss="softmax", batch_size=4),
    ),
    "forward only": (LSTM, PARTIAL, replace(LOCAL, method="forward_only")),
    "transformer": (TRANSFORMER, PARTIAL, replace(LOCAL, gradient_clip=1.0)),
    "transformer, everything": (TRANSFORMER, PayloadPlan(), replace(LOCAL, loss="softmax")),
    "transformer, side branch": (
        replace(TRANSFORMER, side_branch=24),
        PayloadPlan(rows="none", dense="side_branch"),
        LOCAL,
    ),
    "transformer, NCE": (TRANSFORMER, PayloadPlan(rows=700), replace(LOCAL, loss="nce")),
    "transformer, recomputed": (TRANSFORMER, PARTIAL, replace(LOCAL, activations="recomputed")),
    "transformer, zeroth order": (
        TRANSFORMER,
        replace(PARTIAL, directions=64),
        replace(LOCAL, method="zeroth_order"),
    ),
    "transformer, forward only": (TRANSFORMER, PARTIAL, replace(LOCAL, method="forward_only")),
}


def both(name: str, compiled: bool) -> tuple[Memory, Memory]:
    spec, plan, training = SETTINGS[name]
    if plan.dense == "lora":
        spec = replace(spec, lora=LoraSpec(6))
    payload = choose(plan, roles(spec), unigram_of(spec), SPECIALS, 0, 0)
    measured = measure_memory(spec, plan, training, 400, compiled)
    return predict_memory(spec, payload, training, compiled), measured


@pytest.mark.parametrize("compiled", [True, False], ids=["in C", "in torch"])
@pytest.mark.parametrize("name", SETTINGS)
def test_the_prediction_is_within_a_tenth(name: str, compiled: bool) -> None:
    if compiled and any(native.load(kernel) is None for kernel in TRAINING):
        pytest.skip("no C kernels: no compiler, or PFL_LM_NATIVE=0")
    predicted, measured = both(name, compiled)
    assert predicted.model_bytes == measured.model_bytes
    assert predicted.payload_bytes == measured.payload_bytes
    assert predicted.peak_bytes == pytest.approx(measured.peak_bytes, rel=0.1)


def predicted(spec: ModelSpec, plan: PayloadPlan, training: LocalTraining) -> Memory:
    payload = choose(plan, roles(spec), unigram_of(spec), SPECIALS, 0, 0)
    return predict_memory(spec, payload, training)


def test_each_way_spares_what_it_is_meant_to() -> None:
    factors = replace(LSTM, lora=LoraSpec(6))
    usual = predicted(factors, PARTIAL, LOCAL)
    assert predicted(factors, PARTIAL, replace(LOCAL, batch_size=6)).work_bytes < usual.work_bytes
    again = replace(LOCAL, activations="recomputed", segment_length=4)
    assert predicted(factors, PARTIAL, again).work_bytes < 0.6 * usual.work_bytes
    few = predicted(factors, PARTIAL, replace(LOCAL, weight_bits=4))
    assert few.model_bytes == bytes_of(roles(factors), 4) < 0.2 * usual.model_bytes
    assert few.work_bytes == usual.work_bytes
    directions = replace(PARTIAL, directions=64)
    zeroth = predicted(factors, directions, replace(LOCAL, method="zeroth_order"))
    assert zeroth.work_bytes < 0.2 * usual.work_bytes


@pytest.mark.parametrize("spec", [LSTM, TRANSFORMER], ids=["recurrent", "transformer"])
@pytest.mark.parametrize("method", ["zeroth_order", "forward_only"])
def test_without_a_backward_pass_half_of_the_activations_are_spared(
    spec: ModelSpec, method: Any
) -> None:
    """The papers' 50 to 94%, of what is measured, beside backpropagation that keeps all."""
    for plan, loss in ((PARTIAL, "sampled"), (PayloadPlan(), "softmax")):
        own = replace(spec, lora=LoraSpec(6) if plan.dense == "lora" else None)
        local: Any = replace(LOCAL, loss=loss)
        usual = measure_memory(own, plan, local, tokens=200).work_bytes
        travels = replace(plan, directions=64 if method == "zeroth_order" else None)
        found = measure_memory(own, travels, replace(local, method=method), tokens=200).work_bytes
        assert found < 0.5 * usual


def test_of_a_model_of_the_users_own_nothing_is_known() -> None:
    spec = ModelSpec("module", 6000, 80, module="mine")
    payload = choose(PARTIAL, roles(replace(LSTM, lora=LoraSpec(6))), unigram_of(LSTM), (), 0, 0)
    with pytest.raises(ValueError, match="not predicted"):
        predict_memory(spec, payload, LOCAL)
