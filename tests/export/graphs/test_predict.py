from __future__ import annotations

import numpy as np
import pytest
import torch

from pfl_lm.export import forward
from pfl_lm.export.graphs import predict as graphs
from pfl_lm.models.file import Model
from pfl_lm.models.models import LoraSpec, ModelSpec, hidden_of, initialise, merge, scores

V = 120
SPECS = {
    "cifg": ModelSpec("cifg_lstm", V, 20, layers=2, hidden_dim=33, lora=LoraSpec(2)),
    "lstm": ModelSpec("lstm", V, 20, layers=2, hidden_dim=33, projection_dim=24, tied=False),
    "learned": ModelSpec("transformer", V, 32, layers=2, heads=4, feedforward_dim=40, context=12),
    "rotary": ModelSpec(
        "transformer", V, 32, layers=2, heads=4, feedforward_dim=40, context=12,
        positions="rotary", activation="relu", output_bias=False,
    ),
}  # fmt: skip


def model_of(name: str) -> Model:
    spec = SPECS[name]
    draw = torch.Generator().manual_seed(3)
    values = initialise(spec, 1)
    return Model(
        spec, {n: 0.2 * torch.randn(v.shape, generator=draw) for n, v in values.items()}, {}
    )


def words_of(count: int = 10) -> np.ndarray:
    return np.random.default_rng(0).integers(4, V, count).astype(np.int32)


def reference(model: Model, words: np.ndarray) -> np.ndarray:
    """Logits after each word by the simulator's own code, (T, V)."""
    spec, parameters = merge(model.spec, model.parameters)
    return scores(spec, parameters, hidden_of(spec, parameters, words[None])[0]).numpy()


def after(graph, words: np.ndarray, **more) -> list[dict]:
    given, found = graph.start | more, []
    for word in words:
        found.append(graph(**given | {"token": np.array([word], np.int32)}))
        given |= {name: found[-1][output] for output, name in graph.state.items()}
    return found


@pytest.mark.parametrize("name", SPECS)
def test_stepping_is_the_model(name):
    model, words = model_of(name), words_of()
    found = after(graphs.predict_graph(model, best=4), words)
    logits = np.stack([step["logits"][0] for step in found])
    expected = reference(model, words)
    assert np.allclose(logits, expected, atol=1e-4)
    best = np.argsort(-expected, kind="stable")[:, :4]
    assert np.array_equal(np.stack([step["words"][0] for step in found]), best)
    assert np.allclose(found[-1]["scores"][0], expected[-1][best[-1]], atol=1e-4)


def test_a_mask_completes_a_word_and_the_state_stays_the_callers():
    graph = graphs.predict_graph(model_of("cifg"), best=3, blocked=[7])
    mask = np.full((1, V), graphs.AWAY, np.float32)
    mask[0, [5, 7, 9]] = 0
    plain, masked = graph(**graph.start), graph(**graph.start | {"mask": mask})
    assert set(masked["words"][0][:2]) == {5, 9}
    assert masked["scores"][0][2] <= graphs.AWAY / 2  # fewer than k are allowed
    for output in ("logits", *graph.state):
        assert np.array_equal(plain[output], masked[output])


def test_blocked_words_are_never_suggested():
    model = model_of("cifg")
    best = int(graphs.predict_graph(model)(**graphs.predict_graph(model).start)["words"][0][0])
    graph = graphs.predict_graph(model, blocked=[best])
    invited = np.zeros((1, V), np.float32)
    invited[0, best] = 50
    assert best not in graph(**graph.start | {"mask": invited})["words"][0]


def test_an_adapter_adds_its_product_to_the_hidden_vector():
    model = model_of("cifg")
    graph = graphs.predict_graph(model, adapter_rank=2)
    draw = np.random.default_rng(1)
    down = draw.normal(size=graph.start["down"].shape).astype(np.float32)
    up = draw.normal(size=graph.start["up"].shape).astype(np.float32)
    plain, adapted = graph(**graph.start), graph(**graph.start | {"down": down, "up": up})
    assert np.array_equal(plain["hidden"], adapted["hidden"])
    table = forward.padded(model).parameters["embedding"].numpy()
    moved = (adapted["hidden"] @ down.T @ up.T) @ table.T
    assert np.allclose(adapted["logits"] - plain["logits"], moved, atol=1e-4)


def test_widths_become_multiples_of_32_and_the_model_that_came_in_is_untouched():
    model = model_of("lstm")
    before = {name: value.clone() for name, value in model.parameters.items()}
    wide = forward.padded(model)
    assert (wide.spec.embedding_dim, wide.spec.hidden_dim, wide.spec.output_dim) == (32, 64, 32)
    graphs.predict_graph(model)
    assert all(torch.equal(before[name], value) for name, value in model.parameters.items())


def test_inputs_of_another_shape_are_refused():
    graph = graphs.predict_graph(model_of("cifg"))
    with pytest.raises(ValueError, match="mask has shape"):
        graph(**graph.start | {"mask": np.zeros((1, 3), np.float32)})
    with pytest.raises(ValueError, match="missing inputs: token"):
        graph(mask=graph.start["mask"])
