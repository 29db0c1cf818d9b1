from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pfl_lm.devices.local_losses import LOSSES, NoiseContrastive
from pfl_lm.devices.local_training import LocalTraining
from pfl_lm.devices.task import Task
from pfl_lm.devices.training import train
from pfl_lm.export.graphs.on_device import OnDevice
from pfl_lm.export.graphs.train_step import train_step
from pfl_lm.models import models
from pfl_lm.models.models import LoraSpec, ModelSpec
from pfl_lm.payload.choice import choose
from pfl_lm.payload.layout import gather
from pfl_lm.payload.plan import PayloadPlan

V, T = 50, 3
UNIGRAM = 0.9 * np.random.default_rng(0).dirichlet(np.ones(V)) + 0.1 / V
SAMPLED = LocalTraining(
    learning_rate=0.5, batch_size=2, window=T, loss="sampled", negatives=9, gradient_clip=0.05,
    decay=0.9,
)  # fmt: skip
CIFG = ModelSpec("cifg_lstm", V, 8, hidden_dim=10)
FACTORS = replace(CIFG, lora=LoraSpec(2))
SOME = PayloadPlan(rows=20, dense="lora")

CASES = {
    "rows and factors": (FACTORS, SOME, SAMPLED),
    "rows, outside skipped": (FACTORS, replace(SOME, outside="skip"), SAMPLED),
    "rows, outside unknown": (FACTORS, replace(SOME, outside="unk"), SAMPLED),
    "rows, all candidates": (FACTORS, SOME, replace(SAMPLED, loss="softmax")),
    "rows, weighted": (FACTORS, SOME, replace(SAMPLED, full_weight_tokens=20)),
    "rows, nce": (FACTORS, SOME, replace(SAMPLED, loss="nce")),
    "everything": (CIFG, PayloadPlan(), replace(SAMPLED, loss="softmax", gradient_clip=None)),
    "biases": (CIFG, PayloadPlan(rows="none", dense="biases"), replace(SAMPLED, loss="softmax")),
    "side branch": (
        replace(CIFG, side_branch=3),
        PayloadPlan(rows="none", dense="side_branch"),
        replace(SAMPLED, learning_rate=5.0),
    ),
    "rows, side branch": (
        replace(FACTORS, side_branch=3, layers=2), PayloadPlan(rows=20, dense="biases_side_branch"),
        SAMPLED,
    ),
    "untied": (replace(CIFG, tied=False, kind="lstm"), PayloadPlan(rows=20), SAMPLED),
    "transformer": (
        ModelSpec(
            "transformer", V, 8, layers=1, heads=2, feedforward_dim=12, context=T, side_branch=3,
        ),
        PayloadPlan(rows=20),
        SAMPLED,
    ),
    "rotary": (
        ModelSpec(
            "transformer", V, 8, layers=1, heads=2, feedforward_dim=12, context=T,
            positions="rotary",
        ),
        PayloadPlan(rows=20),
        SAMPLED,
    ),
}  # fmt: skip


def text() -> np.ndarray:
    """Five windows: three batches, the last one short, the last window ending in padding."""
    windows = np.random.default_rng(1).integers(4, V, (5, T + 1))
    windows[-1, 2:] = 0
    return windows


def setting(spec: ModelSpec, plan: PayloadPlan):
    parameters = models.initialise(spec, 0, UNIGRAM)
    draw = torch.Generator().manual_seed(0)
    for name, value in parameters.items():
        if name.endswith(("lora_b", "side_branch.up")):
            value.add_(0.3 * torch.randn(value.shape, generator=draw))
    payload = choose(plan, models.roles(spec), UNIGRAM, (0, 1, 2, 3), seed=7, round=3)
    return parameters, payload, gather(parameters, payload)


LOOKUPS = [(case, "index") for case in CASES] + [("rows and factors", "one_hot")]


@pytest.mark.parametrize(("case", "lookup"), LOOKUPS)
def test_a_device_that_trains_by_the_graph_sends_what_the_simulators_device_sends(case, lookup):
    spec, plan, training = CASES[case]
    parameters, payload, values = setting(spec, plan)
    task = Task(spec, parameters, payload, values, training, UNIGRAM, 5, 3)
    simulated, traces = train(task, [text()], [11])
    graph = train_step(spec, payload, training, training.batch_size, lookup=lookup)
    update, trace = OnDevice(graph, graph.signature, task).train(text(), 11)
    assert np.abs(simulated).max() > 1e-3
    assert np.abs(update - simulated[0]).max() < 1e-6
    assert (trace.steps, trace.tokens) == (traces[0].steps, traces[0].tokens)


def test_the_graph_serves_another_rounds_rows():
    """The layout is the plan's: the words of the round come in as an input."""
    spec, plan, training = CASES["rows and factors"]
    parameters, payload, _ = setting(spec, plan)
    graph = train_step(spec, payload, training, training.batch_size)
    later = choose(plan, models.roles(spec), UNIGRAM, (0, 1, 2, 3), seed=7, round=4)
    assert not np.array_equal(later.rows, payload.rows)
    values = gather(parameters, later)
    task = Task(spec, parameters, later, values, training, UNIGRAM, 5, 4)
    simulated, _ = train(task, [text()], [11])
    update, _ = OnDevice(graph, graph.signature, task).train(text(), 11)
    assert np.abs(update - simulated[0]).max() < 1e-6


def test_a_loss_without_a_graph_is_refused(monkeypatch):
    monkeypatch.setitem(LOSSES, "own", NoiseContrastive())
    payload = choose(SOME, models.roles(FACTORS), UNIGRAM, range(4), 0, 0)
    with pytest.raises(ValueError, match="loss = 'own' has no graph of local training"):
        train_step(FACTORS, payload, replace(SAMPLED, loss="own"), 1)
