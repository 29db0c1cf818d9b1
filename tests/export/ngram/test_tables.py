"""Backoff models: rows that sum to one, exact means, and pruning by relative entropy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pfl_lm.export.ngram import tables
from pfl_lm.export.ngram.backoff import BackoffModel, NgramScorer
from pfl_lm.export.ngram.kneser_ney import fit_text
from pfl_lm.export.ngram.tables import Table, mixed, model_of, pruned

V, BOS, EOS = 12, 2, 3


def messages(count: int, seed: int = 0) -> np.ndarray:
    """Draw messages in which some words follow others more often than not."""
    draw = np.random.default_rng(seed)
    tokens = []
    for _ in range(count):
        tokens.append(BOS)
        for _ in range(draw.integers(1, 7)):
            last = tokens[-1]
            tokens.append(last + 1 if last > 3 and last < 11 and draw.random() < 0.6
                          else int(draw.integers(4, V)))  # fmt: skip
        tokens.append(EOS)
    return np.array(tokens)


@pytest.fixture(scope="module", params=[2, 3])
def model(request) -> BackoffModel:
    return fit_text(messages(80), np.full(V, 1 / V), request.param)


def contexts(model: BackoffModel) -> list[tuple[int, ...]]:
    seen = [(word,) for word in range(V)]
    if model.order > 2:
        seen += [(a, b) for a in range(V) for b in range(V)]
    return seen


def brute(model: BackoffModel, context: tuple[int, ...], word: int) -> float:
    """The recursion of the definition, over the listed n-grams."""
    place = model.place((*context, word))
    if place >= 0:
        return float(model.levels[len(context)].logs[place])
    at = model.place(context)
    weight = float(model.levels[len(context) - 1].weights[at]) if at >= 0 else 0.0
    return weight + brute(model, context[1:], word)


def test_every_row_sums_to_one_and_never_predicts_pad_or_the_beginning(model):
    for context in contexts(model):
        row = np.exp(model.row(context))
        assert row.sum() == pytest.approx(1, abs=1e-9), context
        assert row[0] == row[BOS] == 0


def test_rows_follow_the_definition(model):
    for context in contexts(model)[::7]:
        row = model.row(context)
        for word in (1, 3, 5, 11):
            assert row[word] == pytest.approx(brute(model, context, word), abs=1e-12)


def test_the_scorer_scores_rows_in_any_order_of_words(model):
    windows = np.array([[BOS, 5, 6, 7, EOS, BOS, 9], [4, 5, 9, 9, 1, 3, 0]])
    scorer = NgramScorer(model)
    states = scorer.states(windows)
    some = torch.tensor([7, 4, 11, 5])
    for n, window in enumerate(windows):
        for place in range(7):
            first = max([0, *np.flatnonzero(window[: place + 1] == BOS)])
            row = model.row(tuple(window[first : place + 1]))
            state = states[n, place][None]
            np.testing.assert_allclose(
                scorer.scores(state, slice(3, 9))[0], row[3:9].astype(np.float32), rtol=1e-6
            )
            np.testing.assert_allclose(
                scorer.scores(state, some)[0], row[some.numpy()].astype(np.float32), rtol=1e-6
            )


def test_hidden_words_share_a_little_of_the_unknown_word(model):
    unigram, parts = tables.tables_of(model)
    unigram[1] += unigram[5]
    unigram[5] = 0
    without = model_of(unigram, [Table(np.zeros(0, np.int64), np.zeros(0)) for _ in parts])
    scorer = NgramScorer(without, [5])
    chances = scorer.scores(scorer.states(np.array([[BOS]]))[0], slice(0, V)).double().exp()
    assert float(chances.sum()) == pytest.approx(1, abs=1e-6)
    assert float(chances[0, 5]) == pytest.approx(unigram[1] / 1000, rel=1e-4)


def test_a_model_is_its_tables(model):
    again = model_of(*tables.tables_of(model))
    for one, other in zip(model.levels, again.levels, strict=True):
        np.testing.assert_array_equal(one.keys, other.keys)
        np.testing.assert_allclose(one.logs, other.logs, atol=1e-9)
        np.testing.assert_allclose(one.weights, other.weights, atol=1e-6)


def test_a_mixture_is_the_mean_where_a_side_lists_and_sums_to_one(model):
    other = fit_text(messages(30, seed=1), np.full(V, 1 / V), model.order)
    both = mixed(model, other, 0.25)
    for context in contexts(model):
        row = np.exp(both.row(context))
        assert row.sum() == pytest.approx(1, abs=1e-9)
        mean = 0.75 * np.exp(model.row(context)) + 0.25 * np.exp(other.row(context))
        for word in range(V):
            if both.place((*context, word)) >= 0:
                assert row[word] == pytest.approx(mean[word], abs=1e-12)


def test_a_context_that_is_not_listed_is_added_with_its_own_probability():
    unigram = np.array([0, 0.2, 0, 0.2, 0.3, 0.3])
    pair = Table(np.array([4 * 6 + 4]), np.array([0.6]))
    triple = Table(np.array([(4 * 6 + 5) * 6 + 3]), np.array([0.9]))
    model = model_of(unigram, [pair, triple])
    assert model.sizes == (6, 2, 1)
    plain = model_of(unigram, [pair])
    assert np.exp(model.row((4,)))[5] == pytest.approx(np.exp(plain.row((4,)))[5])
    assert np.exp(model.row((4, 5)))[3] == pytest.approx(0.9)
    assert np.exp(model.row((4, 5))).sum() == pytest.approx(1)


def test_a_loss_is_the_relative_entropy_of_leaving_one_out(model):
    length = model.order
    found = tables.losses(model, length)
    words = model.ngrams(length)
    unigram, parts = tables.tables_of(model)
    frequency = tables._frequency(model, words[:, :-1])
    for at in range(0, len(words), max(1, len(words) // 12)):
        keep = np.arange(len(words)) != at
        less = model_of(unigram, [*parts[:-1], Table(parts[-1].ids[keep], parts[-1].chances[keep])])
        with np.errstate(invalid="ignore"):
            p, q = model.row(tuple(words[at, :-1])), less.row(tuple(words[at, :-1]))
            divergence = np.nansum(np.exp(p) * (p - q))
        assert found[at] == pytest.approx(frequency[at] * divergence, abs=1e-9)


def test_pruning_fits_the_budget_keeps_what_tells_most_and_sums_to_one(model):
    costs = [np.full(size, 10) for size in model.sizes]
    budget = 10 * (V + 15)
    small = pruned(model, costs, budget)
    assert V + 13 <= sum(small.sizes) <= V + 15
    assert sum(pruned(model, costs, budget, weight_cost=40).sizes) <= sum(small.sizes)
    assert small.order == model.order
    for context in contexts(model):
        assert np.exp(small.row(context)).sum() == pytest.approx(1, abs=1e-9)
    if model.order == 2:
        told = tables.losses(model, 2)
        kept = np.isin(model.levels[1].keys, small.levels[1].keys)
        assert told[kept].min() >= told[~kept].max()


def test_nothing_but_words_fits(model):
    small = pruned(model, [np.full(s, 10) for s in model.sizes], 10 * V)
    assert small.sizes == (V, *[0] * (model.order - 1))
    words = np.array([(BOS, a, b)[-model.order :] for a in range(V) for b in (EOS, 5)])
    np.testing.assert_array_equal(
        tables.log_chances(small, words), small.levels[0].logs[words[:, -1]]
    )
    assert mixed(small, small, 0.5).sizes == small.sizes


def test_text_that_is_too_short_to_count_is_refused():
    with pytest.raises(ValueError, match="3 words in a row"):
        fit_text(np.array([BOS, EOS]), np.full(V, 1 / V), 3)


def test_kneser_ney_counts_the_words_before_a_word():
    """A word that follows one word alone, however often, is unlikely elsewhere."""
    text = np.array(
        [
            *[BOS, 4, 5, EOS] * 20,
            *[w for v in (6, 7, 8, 9, 4) for w in (BOS, v, 10, EOS)],
        ]
    )
    single = np.exp(fit_text(text, np.full(V, 1 / V), 2).levels[0].logs)
    assert single[10] > 3 * single[5]
