"""Baselines: the papers' formula by hand, another library's figures, and sums to one."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from pfl_lm.evaluation.baselines import KneserNeyBigram, UnigramScorer, count_pairs

BOS, EOS = 0, 1


def probabilities(scorer, contexts, words):
    states = scorer.states(np.array(contexts)[:, None])[:, 0]
    return scorer.scores(states, words).exp().double().numpy()


def toy_texts(seed=0, vocabulary=12, sentences=60):
    random = np.random.default_rng(seed)
    weights = 1 / np.arange(1, vocabulary - 1)
    return [
        np.array([BOS, *(2 + random.choice(vocabulary - 2, 6, p=weights / weights.sum())), EOS])
        for _ in range(sentences)
    ]


def test_unigram():
    scorer = UnigramScorer(np.array([0.5, 0.3, 0.2]))
    assert probabilities(scorer, [0, 1], slice(0, 3)) == pytest.approx(
        np.array([[0.5, 0.3, 0.2]] * 2)
    )
    assert probabilities(scorer, [0], torch.tensor([2, 0])) == pytest.approx(np.array([[0.2, 0.5]]))
    with pytest.raises(ValueError, match="positive"):
        UnigramScorer(np.array([1.0, 0.0]))


def test_kneser_ney_by_hand():
    # a b a b a c, with a, b, c = 0, 1, 2: pairs ab ×2, ba ×2, ac ×1.
    counts = count_pairs([np.array([0, 1, 0, 1, 0, 2])], 4)
    base = np.full(4, 0.25)
    scorer = KneserNeyBigram(counts, base, discount=0.5, unigram_discount=0.2)
    # Each of a, b, c follows one kind of word: (1 − 0.2) / 3, and 3 × 0.2 / 3 is spread by base.
    lower = np.array([0.8 / 3] * 3 + [0]) + 0.2 * base
    after_a = np.array([0, 1.5, 0.5, 0]) / 3 + 0.5 * 2 / 3 * lower
    after_b = np.array([1.5, 0, 0, 0]) / 2 + 0.5 * 1 / 2 * lower
    expected = np.array([after_a, after_b, lower, lower])  # c and d were followed by nothing
    assert probabilities(scorer, [0, 1, 2, 3], slice(0, 4)) == pytest.approx(expected, rel=1e-6)


def test_probabilities_sum_to_one_and_parts_agree_with_the_whole():
    scorer = KneserNeyBigram.fit(toy_texts(), np.full(15, 1 / 15), never_predicted=(BOS,))
    whole = probabilities(scorer, range(15), slice(0, 15))
    assert whole.sum(axis=1) == pytest.approx(np.ones(15), rel=1e-6)
    assert (whole > 0).all()
    some = torch.tensor([9, 2, 14])
    assert probabilities(scorer, [5, 5, 7], some) == pytest.approx(
        whole[[5, 5, 7]][:, some.numpy()]
    )


def test_agrees_with_nltk():
    nltk = pytest.importorskip("nltk.lm", reason="needs nltk, an independent implementation")
    from nltk.util import bigrams

    texts = toy_texts()
    model = nltk.KneserNeyInterpolated(2, discount=0.4)
    sentences = [[str(token) for token in text] for text in texts]
    grams = [[*bigrams(sentence), *((word,) for word in sentence)] for sentence in sentences]
    model.fit(grams, vocabulary_text=[str(i) for i in range(12)])
    scorer = KneserNeyBigram(
        count_pairs(texts, 12), np.full(12, 1 / 12), discount=0.4, unigram_discount=0.0
    )
    ours = probabilities(scorer, range(12), slice(0, 12))
    for before in range(12):
        for word in range(1, 12):  # nothing is followed by <s>: no mass there without base
            theirs = model.score(str(word), [str(before)])
            assert ours[before, word] == pytest.approx(theirs, rel=1e-5), (before, word)


def test_pairs_do_not_span_texts_nor_blocks(monkeypatch):
    texts = [np.array([0, 1, 2]), np.array([2, 1]), np.array([], dtype=np.int64), np.array([3])]
    expected = np.zeros((4, 4))
    expected[[0, 1, 2], [1, 2, 1]] = 1
    assert (count_pairs(texts, 4).toarray() == expected).all()
    monkeypatch.setattr("pfl_lm.evaluation.baselines._BLOCK", 2)
    assert (count_pairs(texts, 4).toarray() == expected).all()
    expected[:, 1] = 0
    assert (count_pairs(texts, 4, never_predicted=(1,)).toarray() == expected).all()


def test_a_bigram_beats_a_unigram_where_words_depend_on_the_last_one():
    random = np.random.default_rng(1)
    successor = random.permutation(50)
    text = [0]
    for _ in range(20_000):
        text.append(int(successor[text[-1]]) if random.random() < 0.5 else int(random.integers(50)))
    bigram = KneserNeyBigram.fit([np.array(text)], np.full(50, 0.02))
    p = probabilities(bigram, range(50), slice(0, 50))
    assert p[np.arange(50), successor].mean() == pytest.approx(0.51, abs=0.02)


def test_no_pair_and_impossible_discounts_are_refused():
    with pytest.raises(ValueError, match="no pair of words"):
        KneserNeyBigram.fit([np.array([3])], np.full(4, 0.25))
    with pytest.raises(ValueError, match="discount"):
        KneserNeyBigram(count_pairs([np.array([0, 1])], 2), np.full(2, 0.5), discount=1.5)


def test_a_million_tokens_take_seconds():
    random = np.random.default_rng(0)
    tokens = (random.zipf(1.3, 1_000_000) % 30_000).astype(np.int64)
    start = time.process_time()
    KneserNeyBigram.fit(np.array_split(tokens, 10_000), np.full(30_000, 1 / 30_000))
    assert time.process_time() - start < 10
