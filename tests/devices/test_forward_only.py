"""Forward-only training: each layer moves as the paper has it, and the output rows as SGD does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pfl_lm.devices.local_training import LocalTraining
from pfl_lm.devices.task import Task
from pfl_lm.devices.training import train
from pfl_lm.models.models import LoraSpec, ModelSpec, initialise, roles
from pfl_lm.payload.choice import choose
from pfl_lm.payload.layout import gather
from pfl_lm.payload.plan import PayloadPlan
from pfl_lm.streams import stream

V = 40
UNIGRAM = np.arange(V, 0, -1) / (V * (V + 1) / 2)
LSTM = ModelSpec("cifg_lstm", V, 6, hidden_dim=8, tied=False)
TRANSFORMER = ModelSpec("transformer", V, 8, heads=2, feedforward_dim=12, context=10, tied=False)
ONE_STEP = LocalTraining(0.5, batch_size=64, method="forward_only", modulation=2.0)
LINEAR = replace(ONE_STEP, modulation=0.05)
FORGETFUL = ("embedding", "layer0.recurrent")  # small at first: an error is soon forgotten
WORDS = np.random.default_rng(0).integers(4, V, (5, 8))


def trained(
    spec: ModelSpec, plan: PayloadPlan, training: LocalTraining
) -> tuple[dict[str, np.ndarray], dict[str, torch.Tensor]]:
    parameters = initialise(spec, 1, UNIGRAM)
    payload = choose(plan, roles(spec), UNIGRAM, (0, 1, 2, 3), 5, 0)
    values = gather(parameters, payload)
    task = Task(spec, parameters, payload, values, training, UNIGRAM, 5, 0)
    updates, _ = train(task, [WORDS], [3])
    return payload.views(updates[0]), parameters


@pytest.mark.parametrize("spec", [LSTM, TRANSFORMER], ids=["lstm", "transformer"])
@pytest.mark.parametrize("loss", ["softmax", "sampled", "nce"])
def test_output_rows_move_as_by_gradient_descent(spec: ModelSpec, loss: str) -> None:
    training = replace(ONE_STEP, loss=loss, negatives=10)
    found, _ = trained(spec, PayloadPlan(), training)
    expected, _ = trained(spec, PayloadPlan(), replace(training, method="backpropagation"))
    for name in ("output", "output_bias"):
        assert np.allclose(found[name], expected[name], atol=1e-6)
    assert not found["embedding"].any()  # no layer before it: nothing to compare


def test_a_layer_moves_by_its_outputs_difference_times_its_input() -> None:
    """One word per window: the first layer's rule, written out."""
    words = WORDS[:, :2]
    parameters = initialise(LSTM, 1, UNIGRAM)
    payload = choose(PayloadPlan(), roles(LSTM), UNIGRAM, (0, 1, 2, 3), 5, 0)
    values = gather(parameters, payload)
    task = Task(LSTM, parameters, payload, values, ONE_STEP, UNIGRAM, 5, 0)
    updates, _ = train(task, [words], [3])
    x = parameters["embedding"][words[:, 0]]  # (B, D), the state before it is zero
    z = x @ parameters["layer0.input"].T + parameters["layer0.input_bias"]
    keep, cell, out = z.split(8, -1)
    m = torch.sigmoid(out) * torch.tanh((1 - torch.sigmoid(keep)) * torch.tanh(cell))
    r = m @ parameters["layer0.projection"].T
    scores = r @ parameters["output"].T + parameters["output_bias"]
    error = scores.softmax(-1)
    error[torch.arange(len(words)), words[:, 1]] -= 1
    shape = (6, 6)
    projection = torch.from_numpy(stream(5, "error projection").standard_normal(shape, np.float32))
    modulated = x + (error / len(words)) @ parameters["output"] @ projection * (2.0 / 6**0.5)
    z_modulated = modulated @ parameters["layer0.input"].T + parameters["layer0.input_bias"]
    expected = -0.5 * (z - z_modulated).T @ modulated
    found = payload.views(updates[0])["layer0.input"]
    assert np.allclose(found, expected.numpy(), atol=1e-6)
    assert np.abs(found).max() > 1e-5


@pytest.mark.parametrize("spec", [LSTM, TRANSFORMER], ids=["lstm", "transformer"])
def test_factors_move_with_their_layer(spec: ModelSpec) -> None:
    """B starts at zero, so the product of the factors moves by scale² · (its move) Aᵀ A."""
    lora = LoraSpec(2)
    plan = PayloadPlan(rows="none", dense="lora")
    found, parameters = trained(replace(spec, lora=lora), plan, ONE_STEP)
    whole, _ = trained(spec, PayloadPlan(rows="none"), ONE_STEP)
    moved = [name for name in found if name.endswith(".lora_b") and found[name].any()]
    assert len(moved) == sum(1 for name in found if name.endswith(".lora_b"))
    for name in moved:
        a = parameters[name.replace("lora_b", "lora_a")].numpy()
        expected = lora.scale * whole[name.removesuffix(".lora_b")] @ a.T
        assert np.allclose(found[name], expected, atol=1e-6)


def test_layers_that_do_not_travel_stay() -> None:
    found, _ = trained(LSTM, PayloadPlan(rows=20, dense="none"), ONE_STEP)
    assert set(found) == {"embedding", "output", "output_bias"}


def test_the_step_is_bounded() -> None:
    found, _ = trained(LSTM, PayloadPlan(), replace(ONE_STEP, gradient_clip=0.01))
    norm = np.sqrt(sum(float((part**2).sum()) for part in found.values()))
    assert norm == pytest.approx(0.5 * 0.01, rel=1e-4)


@pytest.mark.parametrize("spec", [LSTM, TRANSFORMER], ids=["lstm", "transformer"])
def test_padding_moves_nothing(spec: ModelSpec) -> None:
    """A short text beside a longer one is padded; it adds to a layer what it adds alone."""
    plan = PayloadPlan(rows="none")
    short = np.where(np.arange(8) < 4, WORDS[:1], 0)  # 3 targets
    pair = np.concatenate([short, WORDS[1:2]])  # 3 targets and 7

    def update(windows: np.ndarray) -> np.ndarray:
        parameters = initialise(spec, 1, UNIGRAM)
        for matrix in (value for name, value in parameters.items() if name in FORGETFUL):
            matrix.mul_(20)
        payload = choose(plan, roles(spec), UNIGRAM, (0, 1, 2, 3), 5, 0)
        task = Task(spec, parameters, payload, gather(parameters, payload), LINEAR, UNIGRAM, 5, 0)
        return train(task, [windows], [3])[0][0].astype(np.float64)

    # The error is shared by the tokens of a batch, and so small that moves are linear in it.
    apart = (3 * update(short) + 7 * update(WORDS[1:2])) / 10
    together = update(pair)
    assert np.linalg.norm(together - apart) < 0.02 * np.linalg.norm(apart)
