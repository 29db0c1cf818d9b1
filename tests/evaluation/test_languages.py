"""A person who writes one language of two: the mask, its probabilities, and what counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pfl_lm.evaluation.evaluate import ModelScorer, evaluate
from pfl_lm.evaluation.languages import ReadAs, without_left_out
from pfl_lm.evaluation.own_words import own_words_gain
from pfl_lm.evaluation.suggestions import chances_after, suggest
from pfl_lm.models import models
from pfl_lm.models.file import Model
from pfl_lm.models.spec import ModelSpec
from pfl_lm.text.normalisation import Normalisation
from pfl_lm.text.tokenizer import CONTROLS
from pfl_lm.text.tokenizer_assemble import assemble

WORDS = 60
ROWS = [(name, "control", 1) for name in CONTROLS]
ROWS += [(f"{'abc'[i % 3]}{chr(ord('d') + i % 20)}{i}", "word", 100 - i) for i in range(WORDS)]
ONLY_OF = [""] * 4 + [("en_US", "es_ES", "")[i % 3] for i in range(WORDS)]
BOTH = assemble(ROWS, Normalisation(numbers="keep"), {"shares": {"en_US": 0.5, "es_ES": 0.5}},
                only_of=ONLY_OF)  # fmt: skip
WRITER = BOTH.of_languages(["en_US"])


class People:
    """Three users who type any word, and how they typed it."""

    def users(self, split):
        return 3

    def tokens(self, split, user):
        body = np.random.default_rng(user).integers(4, 4 + WORDS, 60).astype(np.uint16)
        return np.concatenate([[2], body, [3]]).astype(np.uint16)

    def typed(self, split, user):
        return np.full(62, 5, np.uint8)


def model_of(bias: bool) -> Model:
    spec = ModelSpec("cifg_lstm", 4 + WORDS, embedding_dim=8, hidden_dim=8, output_bias=bias)
    drawn = models.initialise(spec, 0, BOTH.unigram)
    return Model(spec, drawn | {"embedding": 20 * drawn["embedding"]}, {})


@pytest.mark.parametrize("bias", [True, False])
def test_the_others_words_have_no_chance_and_the_rest_its_share_of_what_is_left(bias):
    model = model_of(bias)
    one = without_left_out(model, WRITER)
    text = " ".join(BOTH.words[id] for id in (4, 6, 7))  # of English alone, and of both
    whole = chances_after(model.spec, model.parameters, BOTH, text)
    left = chances_after(one.spec, one.parameters, WRITER, text)
    expected = np.where(np.isin(np.arange(len(whole)), WRITER.left_out), 0, whole)
    assert left == pytest.approx(expected / expected.sum(), abs=1e-7)
    assert 0 < expected.sum() < 0.95
    shown = {word for word, _ in suggest(one.spec, one.parameters, WRITER, text, 100)}
    assert shown == {word for word, only in zip(BOTH.words[4:], ONLY_OF[4:], strict=True)
                     if only != "es_ES"}  # fmt: skip
    assert without_left_out(model, BOTH) is model


def test_a_word_that_is_left_out_counts_as_unknown():
    people = ReadAs(People(), WRITER)
    one = without_left_out(model_of(True), WRITER)
    found = evaluate(ModelScorer(one.spec, one.parameters), people, "test", WRITER, 20)
    text = np.concatenate([People().tokens("test", user) for user in range(3)])
    words = text[text >= 4]
    assert found.words == len(words)
    assert found.oov_rate == pytest.approx(np.isin(words, WRITER.left_out).mean())
    assert found.top3_known > found.top3 > 0
    assert np.isfinite(found.perplexity)
    assert np.isfinite(found.keys_saved)
    # Every prediction again, one by one: no word of the other list takes part.
    nats = []
    for user in range(3):
        ids = people.tokens("test", user).astype(int)
        assert not np.isin(ids, WRITER.left_out).any()
        for start in range(0, len(ids) - 1, 20):
            cut = ids[start : start + 21]
            states = models.hidden_of(one.spec, one.parameters, cut[None, :-1])[0]
            logits = models.scores(model_of(True).spec, model_of(True).parameters, states).double()
            logits[:, WRITER.left_out] = -torch.inf
            logs = torch.log_softmax(logits, dim=1)
            nats += [-logs[i, target].item() for i, target in enumerate(cut[1:])]
    assert found.perplexity == pytest.approx(np.exp(np.mean(nats)), rel=1e-5)


def test_own_words_are_mixed_into_what_is_left():
    one = without_left_out(model_of(True), WRITER)
    people = ReadAs(People(), WRITER)
    gain = own_words_gain(one.spec, one.parameters, people, "test", WRITER, 20)
    assert np.isfinite(gain.personal.perplexity)
    assert gain.personal.oov_rate == gain.shared.oov_rate > 0
