"""Zeroth-order training: its slopes are those of the gradient, its coefficients are its update."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pfl_lm.devices.local_training import LocalTraining
from pfl_lm.devices.task import Task
from pfl_lm.devices.training import train
from pfl_lm.models.models import LoraSpec, ModelSpec, initialise, roles
from pfl_lm.payload.choice import choose
from pfl_lm.payload.layout import Payload, expand, gather
from pfl_lm.payload.plan import PayloadPlan
from pfl_lm.recipes import RecipeError, load
from pfl_lm.run.scenario import Scenario

V = 50
UNIGRAM = np.arange(V, 0, -1) / (V * (V + 1) / 2)
LSTM = ModelSpec("cifg_lstm", V, 6, hidden_dim=8, lora=LoraSpec(2))
TRANSFORMER = ModelSpec("transformer", V, 8, heads=2, feedforward_dim=12, context=10)
ONE_STEP = LocalTraining(0.3, batch_size=64, method="zeroth_order", perturbation=1e-3)


def setting(
    spec: ModelSpec, plan: PayloadPlan, training: LocalTraining, windows: int = 6
) -> tuple[Payload, tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
    """Train two devices; return the payload, their coefficients and SGD's updates."""
    parameters = initialise(spec, 1, UNIGRAM)
    payload = choose(plan, roles(spec), UNIGRAM, (0, 1, 2, 3), 5, 0)
    draw = np.random.default_rng(0)
    own = [draw.integers(4, V, (windows, 8)) for _ in range(2)]
    values = gather(parameters, payload)
    task = Task(spec, parameters, payload, values, training, UNIGRAM, 5, 0)
    found, _ = train(task, own, [3, 4])
    first_order, whole = replace(training, method="backpropagation"), payload.whole
    values = gather(parameters, whole)
    task = replace(task, payload=whole, values=values, training=first_order)
    expected, _ = train(task, own, [3, 4])
    return payload, found, expected


@pytest.mark.parametrize(
    ("spec", "plan"),
    [
        (LSTM, PayloadPlan(rows=20, dense="lora", directions=3)),
        (replace(LSTM, lora=None), PayloadPlan(directions=3)),
        (replace(LSTM, side_branch=3), PayloadPlan(rows="none", dense="side_branch", directions=3)),
        (TRANSFORMER, PayloadPlan(directions=3)),
        (TRANSFORMER, PayloadPlan(rows="none", dense="biases", directions=3)),
    ],
)
@pytest.mark.parametrize("loss", ["softmax", "sampled", "nce"])
def test_one_step_is_the_gradients_shadow_on_its_direction(
    spec: ModelSpec, plan: PayloadPlan, loss: str
) -> None:
    training = replace(ONE_STEP, loss=loss, negatives=10)
    payload, found, expected = setting(spec, plan, training)
    for coefficients, update in zip(found, expected, strict=True):
        (number,) = np.flatnonzero(coefficients)
        one = np.zeros(3, np.float32)
        one[number] = 1
        assert coefficients[number] == pytest.approx(expand(payload, one) @ update, abs=2e-4)


def test_steps_add_up_to_the_coefficients() -> None:
    """Training goes on from where the coefficients say that it is."""
    training = replace(ONE_STEP, batch_size=2, epochs=3, learning_rate=1.0)
    plan = PayloadPlan(directions=4)
    payload, found, _ = setting(replace(LSTM, lora=None), plan, training)
    assert payload.dim == 4
    assert all(np.count_nonzero(coefficients) == 4 for coefficients in found)


def test_it_learns() -> None:
    spec = replace(LSTM, lora=None)
    parameters = initialise(spec, 1, UNIGRAM)
    payload = choose(PayloadPlan(directions=64), roles(spec), UNIGRAM, (0, 1, 2, 3), 5, 0)
    always = np.tile(np.asarray([5, 9, 5, 9, 5, 9]), (4, 1))
    training = replace(ONE_STEP, epochs=None, steps=400, learning_rate=2.0)
    values = gather(parameters, payload)
    task = Task(spec, parameters, payload, values, training, UNIGRAM, 5, 0)
    found, traces = train(task, [always], [1])
    values = torch.from_numpy(gather(parameters, payload.whole) + expand(payload, found[0]))
    after = payload.whole.views(values)
    moved = {name: after[name] for name in parameters}
    once = replace(ONE_STEP, epochs=None, steps=1)
    _, later = train(replace(task, parameters=moved, training=once), [always], [1])
    assert later[0].loss < 0.75 * np.log(V)
    assert later[0].loss < traces[0].loss


@pytest.mark.parametrize("spec", [LSTM, TRANSFORMER], ids=["lstm", "transformer"])
def test_devices_side_by_side_walk_as_if_alone(spec: ModelSpec) -> None:
    """Each its own directions, its own text and its own number of steps."""
    training = replace(ONE_STEP, batch_size=2, epochs=2, loss="sampled", negatives=9)
    plan = PayloadPlan(directions=5)
    spec = replace(spec, lora=None)
    parameters = initialise(spec, 1, UNIGRAM)
    payload = choose(plan, roles(spec), UNIGRAM, (0, 1, 2, 3), 5, 0)
    draw = np.random.default_rng(0)
    own = [draw.integers(4, V, (count, 8)) for count in (1, 5, 0, 3)]
    values = gather(parameters, payload)
    task = Task(spec, parameters, payload, values, training, UNIGRAM, 5, 0)
    together, traces = train(task, own, [1, 2, 3, 4])
    for k, windows in enumerate(own):
        alone, one = train(task, [windows], [k + 1])
        np.testing.assert_allclose(together[k], alone[0], atol=2e-5)
        assert (one[0].tokens, one[0].steps) == (traces[k].tokens, traces[k].steps)
        assert one[0].loss == pytest.approx(traces[k].loss, abs=1e-5)


def test_a_bounded_slope_bounds_the_step() -> None:
    training = replace(ONE_STEP, gradient_clip=1e-4)
    _, found, _ = setting(LSTM, PayloadPlan(rows=20, dense="lora", directions=3), training)
    assert max(np.abs(c).max() for c in found) == pytest.approx(0.3e-4, rel=1e-3)


def test_without_text_nothing_moves() -> None:
    payload = choose(PayloadPlan(directions=2), roles(TRANSFORMER), UNIGRAM, (0,), 5, 0)
    parameters = initialise(TRANSFORMER, 1, UNIGRAM)
    empty = np.zeros((0, 8), np.int64)
    values = np.zeros(2, np.float32)
    task = Task(TRANSFORMER, parameters, payload, values, ONE_STEP, UNIGRAM, 5, 0)
    found, traces = train(task, [empty], [1])
    assert not found.any()
    assert traces[0].steps == 0


def test_directions_and_method_go_together(tmp_path: Path) -> None:
    recipe = tmp_path / "scenario.toml"
    text = """
        rounds = 1
        cohort = 3
        clip_norm = 1.0
        population = { kind = "synthetic" }
        model = { kind = "cifg_lstm", vocabulary_size = 100, embedding_dim = 4, hidden_dim = 4 }
    """
    recipe.write_text(text + 'training = { learning_rate = 1.0, method = "zeroth_order" }')
    with pytest.raises(RecipeError, match="go together"):
        load(Scenario, recipe)
    recipe.write_text(text + "training = { learning_rate = 1.0 }\npayload = { directions = 3 }")
    with pytest.raises(RecipeError, match="go together"):
        load(Scenario, recipe)
