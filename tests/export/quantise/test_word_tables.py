from __future__ import annotations

import numpy as np
import pytest
import torch

from pfl_lm.export.graphs import predict as graphs
from pfl_lm.export.quantise.grids import GRIDS, INT8, quantise
from pfl_lm.export.quantise.word_tables import Layers, layers_of, tables_of
from pfl_lm.models.file import Model
from pfl_lm.models.models import ModelSpec, initialise

V, P, F = 300, 64, 100


def model(**changes) -> Model:
    spec = ModelSpec("cifg_lstm", V, P, hidden_dim=32, **changes)
    return Model(spec, {name: 8 * value for name, value in initialise(spec, 0).items()}, {})


@pytest.mark.parametrize("grid", GRIDS.values())
def test_two_layers_are_nearer_to_the_table_for_frequent_words(grid):
    table = np.random.default_rng(0).normal(size=(V, P)).astype(np.float32)
    first, second = Layers(grid, F).split(table)
    assert second.shape == (F + 1, P)
    assert not second[F].any()
    both = first + second[np.minimum(np.arange(V), F)]
    assert np.abs(both - table)[:F].max() < np.abs(first - table).max() / 100
    assert np.array_equal(both[F:], first[F:])


@pytest.mark.parametrize("grid", GRIDS.values())
def test_both_layers_lie_on_grids_so_every_quantiser_stores_them_as_they_are(grid):
    table = np.random.default_rng(1).normal(size=(V, P)).astype(np.float32)
    for values, own in zip(Layers(grid, F).split(table), (grid, INT8), strict=True):
        assert np.allclose(quantise(values, own).values(), values, rtol=1e-6, atol=0)


def test_a_layer_with_as_many_rows_as_there_are_words_is_no_word_table():
    """An LSTM's four gates of 64 cells, and 256 words: both matrices have 256 rows."""
    spec = ModelSpec("lstm", 256, 64, hidden_dim=64)
    one = Model(spec, initialise(spec, 0), {})
    graph = graphs.predict_graph(one, best=3, layers=layers_of("int4"))
    words, module = tables_of(graph, "int4"), graph.module
    recurrent = module.linears["layer0_recurrent"].weight.detach().numpy()
    assert recurrent.shape == (256, 64) == tuple(module.rows.first.weight.shape)
    assert words.grid(recurrent) is None
    assert words.grid(module.rows.first.weight.numpy().copy()) == GRIDS["int4"]
    assert words.grid(module.output.weight.detach().numpy().astype(np.float16)) == GRIDS["int4"]
    assert words.grid(module.rows.second.weight.numpy()) == INT8


def test_a_small_vocabulary_has_fewer_frequent_words():
    first, second = Layers(INT8, 5_000).split(np.ones((10, P), np.float32))
    assert (len(first), len(second)) == (10, 6)


def test_precisions_without_integers_have_none():
    assert layers_of("fp32") is None
    assert layers_of("int8") == Layers(INT8)


@torch.no_grad()
def test_suggestions_are_the_best_of_the_shortlist_by_both_layers():
    table = Layers(INT8, F, shortlist=20)
    graph, exact = (
        graphs.predict_graph(model(), best=4, layers=layers) for layers in (table, None)
    )
    mask = np.full((1, V), graphs.AWAY, np.float32)
    mask[0, 90:200] = np.linspace(0, 1, 110)  # a personal bias
    for given in (graph.start, graph.start | {"mask": mask}):
        found, wanted = graph(**given), exact(**given)
        assert np.array_equal(found["words"], wanted["words"])
        assert np.allclose(found["scores"], wanted["scores"], atol=2e-2)
        apart = np.abs(found["logits"] - wanted["logits"])[0]
        assert apart[:F].max() < apart[F:].max() / 20


def test_untied_tables_are_read_from_two_layers_and_scored_by_one():
    graph = graphs.predict_graph(model(tied=False), layers=Layers(INT8, F))
    assert graph.module.rows.second is not None
    assert graph.module.shortlist == 0
    assert graph(**graph.start)["words"].shape == (1, 3)
