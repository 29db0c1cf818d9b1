"""The n-gram is the mean of what the network says, and the same every time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pfl_lm.export.ngram import network as ngram
from pfl_lm.export.ngram.network import Histories, Network, fit_network, sample


@pytest.fixture(autouse=True)
def _hold_what_tells_little(monkeypatch):
    monkeypatch.setattr(ngram, "LEAST_TOLD", 1e-7)
    monkeypatch.setattr(ngram, "LEAST_CHANCE", 1e-5)


@pytest.fixture(scope="module")
def network(source) -> Network:
    return Network(source.model, hidden=(20,))


@pytest.fixture(scope="module")
def histories(network) -> Histories:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ngram, "TEXTS", 16)
        return sample(network, 300, 6)


def test_the_same_seed_gives_the_same_histories(network, histories):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ngram, "TEXTS", 16)
        again, other = sample(network, 300, 6), sample(network, 300, 6, seed=1)
    np.testing.assert_array_equal(histories.last, again.last)
    np.testing.assert_array_equal(histories.unigram, again.unigram)
    assert not np.array_equal(histories.last, other.last)


def test_blocked_words_are_unknown_ones(network, histories):
    assert histories.unigram[20] == 0
    assert 20 not in histories.last
    chances = network.chances(torch.from_numpy(histories.hidden[:5]))
    assert (chances[:, 20] == 0).all()
    assert chances.sum(1).numpy() == pytest.approx(1, abs=1e-5)


def test_there_is_a_history_of_every_word_and_none_after_a_message(network, histories):
    words = set(range(network.spec.vocabulary_size)) - {0, 3, 20}
    assert set(histories.last.tolist()) == words
    assert (np.diff(histories.last) >= 0).all()
    assert (histories.before[histories.last == 2] == -1).all()
    assert histories.unigram.sum() == pytest.approx(1)


def test_listed_probabilities_are_means_over_histories(network, histories):
    model = fit_network(network, histories, 3)
    chances = network.chances(torch.from_numpy(histories.hidden)).double().numpy()
    pairs, triples = model.ngrams(2), model.ngrams(3)
    assert len(pairs) > 50
    assert len(triples) > 5
    for first, word in pairs[:: len(pairs) // 20]:
        mean = chances[histories.last == first].mean(0)
        place = model.place((first, word))
        wanted = mean[word]
        assert np.exp(model.levels[1].logs[place]) == pytest.approx(wanted, rel=1e-4)
    for before, last, word in triples[:: max(1, len(triples) // 20)]:
        held = (histories.last == last) & (histories.before == before)
        row = chances[histories.last == last].mean(0)
        wanted = (chances[held].sum(0)[word] + row[word]) / (held.sum() + 1)
        place = model.place((before, last, word))
        assert np.exp(model.levels[2].logs[place]) == pytest.approx(wanted, rel=1e-4)
    for context in ((2,), (5,), (2, 5), tuple(triples[0, :2])):
        assert np.exp(model.row(context)).sum() == pytest.approx(1, abs=1e-6)


def test_how_histories_are_cut_into_blocks_changes_nothing(network, histories):
    whole = fit_network(network, histories, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ngram, "BLOCK", 3)
        pieces = fit_network(network, histories, 3)
    assert whole.sizes == pieces.sizes
    for one, other in zip(whole.levels, pieces.levels, strict=True):
        np.testing.assert_array_equal(one.keys, other.keys)
        np.testing.assert_allclose(one.logs, other.logs, atol=1e-5)


def test_few_n_grams_are_held_at_a_time(network, histories):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ngram, "CANDIDATES", 40)
        small = fit_network(network, histories, 3)
    assert small.sizes[2] <= 40
    assert small.sizes[1] <= 40 + len(np.unique(small.levels[2].keys // small.words))
