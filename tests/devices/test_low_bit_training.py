"""Training on a device that holds its model in few bits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pfl_lm.devices.local_training import LocalTraining, MethodName
from pfl_lm.devices.task import Task
from pfl_lm.devices.training import train
from pfl_lm.models.models import LoraSpec, ModelSpec, Parameters, initialise, roles
from pfl_lm.models.quantised import round_model
from pfl_lm.payload.choice import choose
from pfl_lm.payload.layout import gather
from pfl_lm.payload.plan import PayloadPlan

V = 40
UNIGRAM = np.arange(V, 0, -1) / (V * (V + 1) / 2)
LSTM = ModelSpec("cifg_lstm", V, 8, hidden_dim=10)
WORDS = [np.random.default_rng(k).integers(4, V, (5, 7)) for k in range(3)]
LOCAL = LocalTraining(0.5, batch_size=2)


def update(
    spec: ModelSpec, parameters: Parameters, plan: PayloadPlan, training: LocalTraining
) -> np.ndarray:
    payload = choose(plan, roles(spec), UNIGRAM, (0, 1, 2, 3), 5, 0)
    values = gather(parameters, payload)
    task = Task(spec, parameters, payload, values, training, UNIGRAM, 5, 0)
    return train(task, WORDS, [1, 2, 3])[0]


@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("method", ["backpropagation", "forward_only"])
def test_what_is_frozen_is_rounded_and_factors_are_not(bits: int, method: str) -> None:
    spec = replace(LSTM, lora=LoraSpec(2))
    parameters = initialise(spec, 1, UNIGRAM)
    plan = PayloadPlan(rows="none", dense="lora")
    training = replace(LOCAL, method=method)
    held = round_model(parameters, roles(spec), bits)
    expected = update(spec, held, plan, training)
    found = update(spec, parameters, plan, replace(training, weight_bits=bits))
    assert np.array_equal(found, expected)
    assert not np.array_equal(found, update(spec, parameters, plan, training))


@pytest.mark.parametrize("method", ["backpropagation", "forward_only"])
def test_a_binary_matrix_is_trained_straight_through(method: MethodName) -> None:
    """One step: the gradient is taken at the rounded weights and moves those behind them."""
    parameters = initialise(LSTM, 1, UNIGRAM)
    plan = PayloadPlan(rows="none", dense="all")
    one = replace(LOCAL, batch_size=64, method=method)
    expected = update(LSTM, round_model(parameters, roles(LSTM), 1), plan, one)
    found = update(LSTM, parameters, plan, replace(one, weight_bits=1))
    assert np.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("plan", [PayloadPlan(directions=3), PayloadPlan(15, directions=3)])
def test_what_moves_along_directions_is_held_in_float32(plan: PayloadPlan) -> None:
    """Rows and matrices that are moved are not rounded; a table of which nothing moves is."""
    parameters = initialise(LSTM, 1, UNIGRAM)
    training = replace(LOCAL, method="zeroth_order", perturbation=0.01)
    whole = update(LSTM, parameters, plan, training)
    in_few = update(LSTM, parameters, plan, replace(training, weight_bits=1))
    assert np.array_equal(in_few, whole) is (plan.rows == "all")
    frozen = {**parameters, "embedding": round_model(parameters, roles(LSTM), 1)["embedding"]}
    rows = choose(plan, roles(LSTM), UNIGRAM, (0, 1, 2, 3), 5, 0).rows
    moved = slice(None) if rows is None else rows
    frozen["embedding"][moved] = parameters["embedding"][moved]
    assert np.array_equal(in_few, update(LSTM, frozen, plan, training))


def test_eight_bits_are_nearly_all_of_it() -> None:
    parameters = initialise(LSTM, 1, UNIGRAM)
    plan = PayloadPlan(rows=20)
    exact = update(LSTM, parameters, plan, LOCAL)
    errors = [
        np.linalg.norm(update(LSTM, parameters, plan, replace(LOCAL, weight_bits=bits)) - exact)
        for bits in (8, 4, 1)
    ]
    assert errors[0] < 0.03 * np.linalg.norm(exact)
    assert errors[0] < errors[1] < errors[2]
