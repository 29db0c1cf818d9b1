"""Fewer activations: recomputed ones give the same gradient, truncated ones a shorter memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pfl_lm.devices.local_training import LocalTraining
from pfl_lm.devices.task import Task
from pfl_lm.devices.training import train
from pfl_lm.models.models import LoraSpec, ModelSpec, initialise, roles
from pfl_lm.payload.choice import choose
from pfl_lm.payload.layout import gather
from pfl_lm.payload.plan import PayloadPlan

V = 40
UNIGRAM = np.arange(V, 0, -1) / (V * (V + 1) / 2)
LOCAL = LocalTraining(0.5, batch_size=2, window=7, segment_length=3)
MODELS = {
    "cifg": ModelSpec("cifg_lstm", V, 8, hidden_dim=10, layers=2),
    "lstm": ModelSpec("lstm", V, 8, hidden_dim=10),
    "side branch": ModelSpec("cifg_lstm", V, 8, hidden_dim=10, side_branch=3),
    "transformer": ModelSpec(
        "transformer", V, 8, heads=2, feedforward_dim=12, layers=2, side_branch=3
    ),
}
PLANS = {
    "everything": PayloadPlan(),
    "rows + lora": PayloadPlan(rows=15, dense="lora"),
    "biases": PayloadPlan(rows="none", dense="biases"),
}


def updates(spec: ModelSpec, plan: PayloadPlan, training: LocalTraining) -> np.ndarray:
    if plan.dense == "lora":
        spec = replace(spec, lora=LoraSpec(2))
    parameters = initialise(spec, 1, UNIGRAM)
    payload = choose(plan, roles(spec), UNIGRAM, (0, 1, 2, 3), 5, 0)
    words = [np.random.default_rng(k).integers(4, V, (3 + k, 8)) for k in range(2)]
    words[0][-1, 5:] = 0
    values = gather(parameters, payload)
    task = Task(spec, parameters, payload, values, training, UNIGRAM, 5, 0)
    return train(task, words, [1, 2])[0]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("bound", [None, 0.3])
def test_recomputed_activations_give_the_same_update(model, plan, bound) -> None:
    training = replace(LOCAL, gradient_clip=bound, loss="sampled", negatives=9)
    expected = updates(MODELS[model], PLANS[plan], training)
    found = updates(MODELS[model], PLANS[plan], replace(training, activations="recomputed"))
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize("model", ["cifg", "lstm", "side branch"])
def test_a_stretch_as_long_as_the_window_truncates_nothing(model) -> None:
    training = replace(LOCAL, activations="truncated", segment_length=7)
    expected = updates(MODELS[model], PLANS["everything"], LOCAL)
    found = updates(MODELS[model], PLANS["everything"], training)
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_truncation_forgets_but_keeps_the_state() -> None:
    """Word by word, the recurrent weights still see the past, and no gradient goes through it."""
    whole = updates(MODELS["cifg"], PLANS["everything"], LOCAL)
    short = updates(
        MODELS["cifg"],
        PLANS["everything"],
        replace(LOCAL, activations="truncated", segment_length=1),
    )
    cosine = (whole * short).sum() / np.linalg.norm(whole) / np.linalg.norm(short)
    assert 0.9 < cosine < 0.99999
    spec = MODELS["cifg"]
    payload = choose(PayloadPlan(), roles(spec), UNIGRAM, (0, 1, 2, 3), 5, 0)
    assert payload.views(short)["layer0.recurrent"].any()


def test_a_transformer_has_no_state_to_truncate() -> None:
    with pytest.raises(ValueError, match="does not go with model kind"):
        updates(MODELS["transformer"], PLANS["biases"], replace(LOCAL, activations="truncated"))
