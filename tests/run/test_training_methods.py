"""The training methods, side by side: each trains what it says, each has plain SGD as a limit.

Their own tests lie with their modules: payloads in tests/devices/test_training.py, activations in
test_stretches.py, bits in test_low_bit_training.py, losses in tests/language/test_losses.py,
rounding to a grid in tests/dp/test_mechanisms.py. Here are the limits that span modules, and that
methods go together.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pfl_lm.devices.local_training import LocalTraining
from pfl_lm.devices.task import Task
from pfl_lm.devices.training import train
from pfl_lm.dp.encoding import decode, protect
from pfl_lm.dp.grid import Grid
from pfl_lm.dp.ledger import verify
from pfl_lm.dp.sampler.random_bits import reproducible_bits
from pfl_lm.models.models import LoraSpec, ModelSpec, Parameters, initialise, roles
from pfl_lm.payload.choice import choose
from pfl_lm.payload.layout import Payload, expand, gather
from pfl_lm.payload.plan import PayloadPlan
from pfl_lm.run.scenario import PopulationConfig, Scenario
from pfl_lm.run.setup import open_run
from pfl_lm.run.simulate import simulate
from pfl_lm.run.training_methods import TRAINING_METHODS, TrainingMethod

V = 60
UNIGRAM = np.arange(V, 0, -1) / (V * (V + 1) / 2)
LSTM = ModelSpec("cifg_lstm", V, 8, hidden_dim=10)
TRANSFORMER = ModelSpec("transformer", V, 8, heads=2, feedforward_dim=12, context=20)
WORDS = np.random.default_rng(0).integers(4, V, (6, 9))
ONE_STEP = LocalTraining(0.5, batch_size=64)


def step(
    spec: ModelSpec,
    plan: PayloadPlan,
    training: LocalTraining = ONE_STEP,
    parameters: Parameters | None = None,
    round: int = 0,
) -> tuple[Payload, np.ndarray]:
    parameters = parameters or initialise(spec, 1, UNIGRAM)
    payload = choose(plan, roles(spec), UNIGRAM, (0, 1, 2, 3), 5, round)
    values = gather(parameters, payload)
    task = Task(spec, parameters, payload, values, training, UNIGRAM, 5, round)
    updates, _ = train(task, [WORDS], [3])
    return payload, updates[0]


@pytest.mark.parametrize("method", TRAINING_METHODS, ids=lambda method: method.name)
def test_every_method_trains(method: TrainingMethod) -> None:
    scenario = Scenario(
        population=PopulationConfig("synthetic"),
        model=replace(LSTM, vocabulary_size=200),
        training=replace(ONE_STEP, negatives=20),
        rounds=2,
        cohort=3,
        clip_norm=1.0,
    )
    chosen = method.apply(scenario)
    spec, unigram = chosen.model, np.arange(200, 0, -1) / (200 * 201 / 2)
    parameters = initialise(spec, 1, unigram)
    payload = choose(chosen.payload, roles(spec), unigram, (0, 1, 2, 3), 5, 0)
    values = gather(parameters, payload)
    task = Task(spec, parameters, payload, values, chosen.training, unigram, 5, 0)
    updates, traces = train(task, [WORDS], [3])
    assert updates.shape == (1, payload.dim)
    assert np.isfinite(updates).all()
    assert updates.any()
    assert traces[0].tokens > 0


PAYLOADS = (
    PayloadPlan(rows=20, dense="all"),
    PayloadPlan(rows=20, dense="lora"),
    PayloadPlan(rows="none", dense="biases_side_branch"),
    PayloadPlan(rows=20, dense="all", layers=1),
)


@pytest.mark.parametrize("spec", [LSTM, TRANSFORMER], ids=["lstm", "transformer"])
@pytest.mark.parametrize("bits", [None, 1, 4])
@pytest.mark.parametrize("loss", ["softmax", "sampled", "nce"])
def test_ways_go_together(spec: ModelSpec, bits: Any, loss: str) -> None:
    """Whatever travels, in however few bits, by each loss: every way of stepping moves it."""
    methods = (
        {"activations": "recomputed", "segment_length": 3},
        {"method": "forward_only"},
        {"method": "zeroth_order"},
    )
    for plan, method in itertools.product(PAYLOADS, methods):
        own = replace(
            spec,
            lora=LoraSpec(2) if plan.dense == "lora" else None,
            side_branch=3 if "side_branch" in plan.dense else 0,
        )
        if method.get("method") == "zeroth_order":
            plan = replace(plan, directions=7)
        chosen: Any = {"loss": loss, "negatives": 12, "weight_bits": bits} | method
        _, found = step(own, plan, replace(ONE_STEP, batch_size=3, **chosen))
        assert np.isfinite(found).all()
        assert found.any(), (plan, method)


@pytest.mark.parametrize("dense", ["lora", "ffa_lora"])
def test_factors_of_full_rank_take_the_step_of_sgd(dense: Any) -> None:
    """A = 1 and B = 0: the first step of the product B A is the matrix's own."""
    bare, far = initialise(LSTM, 1, UNIGRAM), replace(ONE_STEP, learning_rate=1e3)
    for width, target in ((8, "input"), (8, "recurrent"), (10, "projection")):
        factors = replace(LSTM, lora=LoraSpec(width, alpha=width, targets=(target,)))
        parameters = initialise(factors, 1, UNIGRAM) | bare
        parameters[f"layer0.{target}.lora_a"] = torch.eye(width)
        payload, found = step(factors, PayloadPlan(rows="none", dense=dense), far, parameters)
        whole, expected = step(LSTM, PayloadPlan(rows="none", dense="all"), far, bare)
        ours = payload.views(found)[f"layer0.{target}.lora_b"]
        theirs = whole.views(expected)[f"layer0.{target}"]
        np.testing.assert_allclose(ours, theirs, atol=2e-3 * np.abs(theirs).max())


@pytest.mark.parametrize("spec", [LSTM, TRANSFORMER], ids=["lstm", "transformer"])
def test_layers_in_turns_take_their_part_of_the_whole_step(spec: ModelSpec) -> None:
    whole, expected = step(spec, PayloadPlan(rows="none", dense="all"))
    seen: set[str] = set()
    for round in range(3):
        payload, found = step(spec, PayloadPlan(rows="none", dense="all", layers=1), round=round)
        for name, part in payload.views(found).items():
            np.testing.assert_allclose(part, whole.views(expected)[name], atol=1e-6)
            seen.add(name)
    assert len(seen) >= 3


def test_over_many_directions_zeroth_order_is_gradient_descent() -> None:
    """Σ (u·g) u over many directions is g, but for a part of √(n / directions)."""
    plan = PayloadPlan(rows="none", dense="biases")
    _, expected = step(LSTM, plan)
    count, small = 200, 1e-3  # so small steps that the walk stays where it is
    many = replace(ONE_STEP, epochs=None, steps=count, learning_rate=small, method="zeroth_order")
    payload, coefficients = step(LSTM, replace(plan, directions=count), many)
    found = expand(payload, coefficients)
    cosine = found @ expected / np.linalg.norm(found) / np.linalg.norm(expected)
    assert cosine > 0.9  # √(200 / (200 + 30)) of 30 biases
    scale = ONE_STEP.learning_rate / small * payload.whole_dim / count
    assert np.linalg.norm(found) * scale == pytest.approx(np.linalg.norm(expected), rel=0.3)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_an_update_of_few_bits_is_right_on_average(bits: int) -> None:
    """Rounding at random adds noise of half a grid step at most, and nothing to the mean."""
    _, update = step(LSTM, PayloadPlan(rows=20))
    clip = float(np.linalg.norm(update)) * 1.01
    reports = 200
    grid = Grid.choose(len(update), clip, reports_max=reports, grid_steps=2**bits / 8)
    bits_of = [reproducible_bits(bytes([place] * 32)) for place in range(reports)]
    rounded, _ = protect(np.tile(update, (reports, 1)), grid, None, bits_of)
    if bits <= 4:
        assert np.abs(rounded).max() <= 2 * 2**bits  # a few grid steps
    error = decode(rounded.sum(0), grid, reports) - update
    worst = 0.5 / grid.scale * np.sqrt(len(update) / reports)
    assert np.linalg.norm(error) < 1.2 * worst + 0.02 * clip


@pytest.mark.parametrize("loss", ["sampled", "nce"])
@pytest.mark.parametrize("method", ["backpropagation", "forward_only", "zeroth_order"])
def test_no_score_of_the_whole_vocabulary_is_ever_made(loss: Any, method: Any) -> None:
    """The output is never larger than rows × hidden: no tensor of a step grows with V · hidden."""

    class Largest(TorchDispatchMode):
        found = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float32:
                    held = tensor.untyped_storage().nbytes() // 4
                    if held not in tables:
                        self.found = max(self.found, held)
            return out

    vocabulary = 3000
    spec = replace(LSTM, vocabulary_size=vocabulary)
    unigram = np.full(vocabulary, 1 / vocabulary)
    parameters = initialise(spec, 1, unigram)
    tables = {value.numel() for value in parameters.values()}
    plan = PayloadPlan(rows=50, dense="none", directions=3 if method == "zeroth_order" else None)
    payload = choose(plan, roles(spec), unigram, (0, 1, 2, 3), 5, 0)
    training = replace(ONE_STEP, loss=loss, negatives=30, method=method)
    values = gather(parameters, payload)
    task = Task(spec, parameters, payload, values, training, unigram, 5, 0)
    with Largest() as seen:
        train(task, [WORDS], [3])
    rows = WORDS.size
    assert 0 < seen.found <= max(rows * 30, rows * 30 * 2, 50 * 9) < vocabulary * 8


def test_coefficients_are_what_is_clipped_noised_and_accounted_for(
    tiny_scenario, policy_file, new_watcher, tmp_path
) -> None:
    """Private zeroth order: d coefficients at the clip's sensitivity, and nothing else leaves."""
    chosen = tiny_scenario(
        policy=policy_file(),
        rounds=2,
        clip_norm=1e-3,
        payload=PayloadPlan(rows="none", dense="biases", directions=1024),
        training=LocalTraining(
            5.0, batch_size=4, window=8, max_tokens=64, method="zeroth_order", steps=6, epochs=None
        ),
    )
    run = simulate(chosen, tmp_path / "run", new_watcher())
    context = open_run(chosen)
    grid = context.privacy.grid(1024)
    entries = [entry for entry in verify(run.ledger_path) if entry["kind"] == "round"]
    assert len(entries) == 2
    for entry in entries:
        assert entry["event"]["dim"] == entry["payload"]["dim"] == 1024
        assert entry["grid"]["norm_bound"] == grid.norm_bound
        assert (
            entry["event"]["noise_multiplier"] >= 0.99 * context.privacy.guarantee.noise_multiplier
        )
    rounds = [entry for entry in run.metrics() if entry["kind"] == "round"]
    assert all(entry["clipped_share"] > 0 for entry in rounds)
    assert all(entry["payload_dim"] == 1024 for entry in rounds)
