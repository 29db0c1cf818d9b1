"""The cache of a user's own words: probabilities, contexts, and the formula written plainly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfl_lm.models.own_words import OwnWords, OwnWordsRule

BEGIN, V = 2, 12
RULE = OwnWordsRule((50.0, 4.0, 2.0), (0.5, 0.7, 0.9))
texts = st.lists(st.integers(3, V - 1) | st.just(BEGIN), max_size=40)


def counted(text):
    own = OwnWords(RULE, V, BEGIN)
    for place in range(1, len(text)):
        own.add(np.array(text[:place]), text[place])
    return own


def plainly(text, word, prior):
    """Return p(word) after a text by the recursion of the module's first lines."""
    begin = len(text) - text[::-1].index(BEGIN) - 1 if BEGIN in text else 0
    p = prior
    for length, strength, discount in zip(range(3), RULE.strengths, RULE.discounts, strict=True):
        if length > len(text) - begin:
            break
        context = text[len(text) - length :]
        after = []
        for place in range(1, len(text)):
            before = text[max(0, place - length) : place]
            message = BEGIN in text[place - length + 1 : place] if length == 2 else False
            if before == context and not message:
                after.append(text[place])
        kinds, total = len(set(after)), len(after)
        if after:
            own = max(after.count(word) - discount, 0)
            p = (own + (strength + discount * kinds) * p) / (total + strength)
    return p


@given(texts)
def test_probabilities_add_up_to_one(text):
    factor, shares = counted(text).mixture(np.array(text, dtype=np.int64))
    assert factor + shares.sum() == pytest.approx(1)
    assert 0 < factor <= 1
    assert (shares >= 0).all()


@given(texts.filter(bool))
def test_the_mixture_is_the_formula(text):
    factor, shares = counted(text).mixture(np.array(text))
    prior = np.arange(1, V + 1) / sum(range(V + 1))
    for word in range(V):
        wanted = plainly(text, word, prior[word])
        assert factor * prior[word] + shares[word] == pytest.approx(wanted)


def test_nothing_counted_changes_nothing():
    factor, shares = OwnWords(RULE, V, BEGIN).mixture(np.array([BEGIN]))
    assert factor == 1
    assert not shares.any()


def test_no_context_reaches_behind_the_begin_of_a_message():
    own = counted([BEGIN, 5, 6, BEGIN, 7])
    assert own.mixture(np.array([6, BEGIN]))[1] == pytest.approx(own.mixture(np.array([BEGIN]))[1])


def test_a_word_typed_twice_after_another_is_expected_there():
    own = counted([BEGIN, 5, 9, BEGIN, 5, 9])
    factor, shares = own.mixture(np.array([BEGIN, 5]))
    assert shares.argmax() == 9
    assert shares[9] > 0.25
    assert shares[9] > 4 * own.mixture(np.array([BEGIN, 11]))[1][9]
    assert factor < 0.9


@pytest.mark.parametrize(
    ("strengths", "discounts", "named"),
    [
        ((1.0, 1.0), (0.5, 0.5, 0.5), "three"),
        ((1.0, 0.0, 1.0), (0.5, 0.5, 0.5), "strengths"),
        ((1.0, 1.0, 1.0), (0.5, 1.0, 0.5), "discounts"),
        ((1.0, float("nan"), 1.0), (0.5, 0.5, 0.5), "strengths"),
    ],
)
def test_rules_out_of_range_are_refused(strengths, discounts, named):
    with pytest.raises(ValueError, match=named):
        OwnWordsRule(strengths, discounts)
