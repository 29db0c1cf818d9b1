"""The export's own forward is the simulator's, whatever fields a spec combines."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from pfl_lm.devices.local_training import LocalTraining
from pfl_lm.export import forward
from pfl_lm.export.graphs import personal
from pfl_lm.export.graphs.predict import predict_graph
from pfl_lm.export.graphs.train_step import train_step
from pfl_lm.models.file import Model
from pfl_lm.models.models import LoraSpec, ModelSpec, hidden_of, initialise, roles, scores
from pfl_lm.models.spec import Role
from pfl_lm.payload.choice import choose
from pfl_lm.payload.plan import PayloadPlan

V, D, T = 24, 8, 5
CIFG = ModelSpec("cifg_lstm", V, D, hidden_dim=6)
BASES = {
    "cifg_lstm": [CIFG],
    "lstm": [replace(CIFG, kind="lstm")],
    "transformer": [
        ModelSpec(
            "transformer", V, D, heads=2, feedforward_dim=6, context=T,
            positions=positions, activation=activation,
        )
        for positions, activation in product(("learned", "rotary"), ("gelu", "relu"))
    ],
}  # fmt: skip
FIELDS = {
    "layers": (1, 2),
    "tied": (True, False),
    "output_bias": (True, False),
    "lora": (None, LoraSpec(2, 3.0)),
    "side_branch": (0, 3),
}


def models_of(kind: str) -> list[Model]:
    """Models of every combination of fields, all their parameters drawn at random."""
    draw, found = torch.Generator().manual_seed(5), []
    for base, values in product(BASES[kind], product(*FIELDS.values())):
        spec = replace(base, **dict(zip(FIELDS, values, strict=True)))
        start = initialise(spec, 1)
        drawn = {n: 0.4 * torch.randn(v.shape, generator=draw) for n, v in start.items()}
        found.append(Model(spec, drawn, {}))
    return found


@pytest.mark.parametrize("kind", BASES)
def test_every_combination_of_fields_computes_what_the_simulator_computes(kind):
    ids = np.random.default_rng(2).integers(0, V, (2, T))
    for model in models_of(kind):
        spec, parameters = model.spec, model.parameters
        expected = hidden_of(spec, parameters, ids)
        weights = parameters | forward.turns(spec)
        linear = forward.linear_of(weights, spec.lora)
        embedded = parameters["embedding"][torch.from_numpy(ids)]
        found = forward.over_windows(spec, linear, weights, embedded)
        assert torch.allclose(found, expected, atol=1e-5), spec
        logits = scores(spec, parameters, expected[0])
        graph, stepped = predict_graph(model), []
        given = graph.start
        for token in ids[0]:
            outputs = graph(**given | {"token": np.array([token], np.int32)})
            given = given | {name: outputs[output] for output, name in graph.state.items()}
            stepped.append(outputs["logits"][0])
        assert np.allclose(np.stack(stepped), logits.numpy(), atol=1e-5), spec


@pytest.mark.parametrize("kind", BASES)
def test_a_keyboard_s_own_training_reads_the_whole_model(kind):
    ids = np.random.default_rng(2).integers(4, V, (1, T + 1)).astype(np.int32)
    plan = personal.PersonalPlan(rank=2, window=T)
    for model in models_of(kind):
        if not model.spec.side_branch or model.spec.layers > 1 or model.spec.lora is None:
            continue
        plain = personal.plain(model)
        down = personal.whitening(plain, plan.rank)
        graph = personal.personal_step(plain, plan, down)
        loss = graph(**graph.start | {"windows": ids})["loss"][0]
        hidden = hidden_of(model.spec, model.parameters, ids[:, :-1])[0]
        logits = scores(model.spec, model.parameters, hidden)
        nats = torch.nn.functional.cross_entropy(logits, torch.from_numpy(ids[0, 1:]).long())
        assert abs(loss - float(nats)) < 1e-5, model.spec


@pytest.mark.parametrize("kind", BASES)
def test_a_parameter_that_no_graph_would_read_is_refused(kind, monkeypatch):
    model = models_of(kind)[0]

    def with_another(spec):
        return roles(spec) | {"side_road": Role("dense", (2, 2))}

    monkeypatch.setattr(forward, "roles", with_another)
    payload = choose(PayloadPlan(), roles(model.spec), np.full(V, 1 / V), (0, 1, 2, 3), 0, 0)
    training = LocalTraining(learning_rate=0.1, window=T)
    for build in (
        lambda: predict_graph(model),
        lambda: personal.personal_step(model, personal.PersonalPlan(), np.zeros((2, D))),
        lambda: train_step(model.spec, payload, training, 1),
    ):
        with pytest.raises(ValueError, match="'side_road': an exported graph would compute"):
            build()


def test_a_side_branch_is_widened_with_the_model():
    model = next(m for m in models_of("cifg_lstm") if m.spec.side_branch and m.spec.lora is None)
    wide, ids = forward.padded(model), np.arange(4, 4 + T)[None]
    shapes = {name: role.shape for name, role in roles(wide.spec).items()}
    assert {name: tuple(value.shape) for name, value in wide.parameters.items()} == shapes
    found = hidden_of(wide.spec, wide.parameters, ids)[..., :D]
    assert torch.allclose(found, hidden_of(model.spec, model.parameters, ids), atol=1e-5)
