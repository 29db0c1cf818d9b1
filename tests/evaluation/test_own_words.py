"""A memory on the phone: measured against a plain reference, word by word."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pfl_lm.evaluation import evaluate as module
from pfl_lm.evaluation.evaluate import ModelScorer, evaluate
from pfl_lm.evaluation.own_words import own_words_gain
from pfl_lm.models.models import ModelSpec, initialise
from pfl_lm.models.own_words import OwnWords, OwnWordsRule
from pfl_lm.text.synthetic.population import SyntheticPopulation, synthetic_tokenizer

TOKENIZER = synthetic_tokenizer(300)
RULE = OwnWordsRule((50.0, 4.0, 2.0), (0.5, 0.7, 0.9))
SPEC = ModelSpec("cifg_lstm", 300, 8, hidden_dim=8)
PEOPLE = SyntheticPopulation({"test": 3}, 300, tokens_per_user=60)


def figures_of(spec, parameters, user):
    """Return nats and the three best words of each prediction, one word at a time."""
    text = PEOPLE.tokens("test", user)
    own = OwnWords(RULE, 300, TOKENIZER.bos_id)
    model = ModelScorer(spec, parameters)
    silent = np.zeros(300, dtype=bool)
    silent[list(TOKENIZER.specials)] = True
    for place in range(1, len(text)):
        word = int(text[place])
        if word in (TOKENIZER.pad_id, TOKENIZER.bos_id):
            continue
        hidden = model.states(text[None, :place].astype(np.int64))[0, -1:]
        scores = model.scores(hidden, slice(None)).double()
        factor, shares = own.mixture(text[:place])
        p = factor * torch.softmax(scores, 1)[0].numpy() + shares
        yield -math.log(p[word]), np.argsort(-np.where(silent, -1, p), kind="stable")[:3], word
        own.add(text[:place], word)


@pytest.mark.parametrize("quick", [True, False])
def test_the_figures_are_those_of_a_plain_reference(quick, monkeypatch):
    if not quick:
        monkeypatch.setattr(module.top_words, "supports", lambda *_: False)
    parameters = initialise(SPEC, 0, TOKENIZER.unigram)
    with torch.inference_mode():
        gain = own_words_gain(SPEC, parameters, PEOPLE, "test", TOKENIZER, 8, RULE)
        plain = [one for user in range(3) for one in figures_of(SPEC, parameters, user)]
    assert gain.personal.predictions == len(plain)
    wanted = math.exp(sum(nats for nats, _, _ in plain) / len(plain))
    assert gain.personal.perplexity == pytest.approx(wanted, rel=1e-5)
    hits = sum(word in best for _, best, word in plain)
    assert gain.personal.top3 * gain.personal.words == pytest.approx(hits)


def test_the_shared_model_is_measured_as_always():
    parameters = initialise(SPEC, 0, TOKENIZER.unigram)
    gain = own_words_gain(SPEC, parameters, PEOPLE, "test", TOKENIZER, 8)
    alone = evaluate(ModelScorer(SPEC, parameters), PEOPLE, "test", TOKENIZER, 8)
    assert gain.shared.perplexity == pytest.approx(alone.perplexity)
    assert gain.shared.top3 == alone.top3


def test_a_text_of_several_stretches_is_one_text(monkeypatch):
    parameters = initialise(SPEC, 0, TOKENIZER.unigram)
    whole = own_words_gain(SPEC, parameters, PEOPLE, "test", TOKENIZER, 8, RULE).personal
    monkeypatch.setattr("pfl_lm.evaluation.own_words._PLACES", 7)
    cut = own_words_gain(SPEC, parameters, PEOPLE, "test", TOKENIZER, 8, RULE).personal
    assert cut.perplexity == pytest.approx(whole.perplexity)
    assert cut.top3 == whole.top3
    assert cut.keystrokes_saved == whole.keystrokes_saved


def test_a_transformer_counts_too():
    spec = ModelSpec("transformer", 300, 8, heads=2, feedforward_dim=8, context=8)
    parameters = initialise(spec, 0, TOKENIZER.unigram)
    gain = own_words_gain(spec, parameters, PEOPLE, "test", TOKENIZER, 8)
    assert gain.personal.predictions == gain.shared.predictions
    assert gain.personal.perplexity < gain.shared.perplexity


def test_people_who_repeat_themselves_gain():
    class Echo:
        def users(self, split):
            return 2

        def tokens(self, split, user):
            return np.array([2, 20 + user, 60 + user, 3] * 20, dtype=np.int32)

    parameters = initialise(SPEC, 0, TOKENIZER.unigram)
    gain = own_words_gain(SPEC, parameters, Echo(), "test", TOKENIZER, 8)
    assert gain.hurt == 0
    assert gain.personal.top1 > 0.8
    assert gain.personal.keystrokes_saved > gain.shared.keystrokes_saved
