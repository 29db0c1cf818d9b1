"""What a keyboard suggests: words alone, the likeliest first, after letters only those that fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pfl_lm.evaluation.suggestions import (
    LONGEST,
    PROMPTS,
    chances_after,
    message_of,
    prompts_of,
    suggest,
    suggest_emoji,
)
from pfl_lm.models import models
from pfl_lm.models.spec import ModelSpec
from pfl_lm.text.normalisation import Normalisation
from pfl_lm.text.synthetic.population import synthetic_tokenizer
from pfl_lm.text.tokenizer import CONTROLS
from pfl_lm.text.tokenizer_assemble import assemble

SPEC = ModelSpec("cifg_lstm", vocabulary_size=300, embedding_dim=8, hidden_dim=8)
TOKENIZER = synthetic_tokenizer(300)


@pytest.fixture(scope="module")
def parameters():
    drawn = models.initialise(SPEC, 0, TOKENIZER.unigram)
    return drawn | {"embedding": 5 * drawn["embedding"]}


def test_suggestions_are_the_likeliest_words(parameters):
    text = " ".join(TOKENIZER.words[10:13])
    found = suggest(SPEC, parameters, TOKENIZER, text, count=5)
    context = np.array([[2, *range(10, 13)]])
    hidden = models.hidden_of(SPEC, parameters, context)[0, -1:]
    chances = torch.softmax(models.scores(SPEC, parameters, hidden)[0].double(), 0)
    chances_of_words = chances.clone()
    chances_of_words[:4] = 0
    expected = torch.topk(chances_of_words, 5)
    assert [word for word, _ in found] == [TOKENIZER.words[i] for i in expected.indices]
    assert [chance for _, chance in found] == pytest.approx(expected.values.tolist())


def test_the_fourth_place_has_the_likeliest_emoji(parameters):
    assert suggest_emoji(TOKENIZER, chances_after(SPEC, parameters, TOKENIZER, "")) is None
    rows = [(name, "control", 1) for name in CONTROLS]
    marks = [(mark, "mark", 1) for mark in ("!", "😂", "🙏", "🏽")]
    rows += [*marks, *((f"word{i}", "word", 1) for i in range(292))]
    tokenizer = assemble(rows, Normalisation(punctuation="keep"), {})
    loud = parameters | {"output_bias": torch.zeros(300).index_fill(0, torch.tensor([4, 5]), 50.0)}
    found = suggest_emoji(tokenizer, chances_after(SPEC, loud, tokenizer, "word3 !"))
    assert found is not None
    assert found[0] == "😂"
    assert 0 < found[1] < 1


def test_controls_are_never_suggested(parameters):
    loud = parameters | {"output_bias": torch.zeros(300).index_fill(0, torch.arange(4), 50.0)}
    words = [word for word, _ in suggest(SPEC, loud, TOKENIZER, "", count=400)]
    assert sorted(words) == sorted(TOKENIZER.words[4:])


def test_letters_restrict_the_words(parameters):
    begin = TOKENIZER.words[50][:2]
    found = suggest(SPEC, parameters, TOKENIZER, "", count=300, letters=begin.upper())
    fitting = [word for word in TOKENIZER.words[4:] if word.startswith(begin)]
    assert sorted(word for word, _ in found) == sorted(fitting)
    assert suggest(SPEC, parameters, TOKENIZER, "", letters="xyz") == []


def test_a_text_longer_than_a_transformer_reads_is_cut_in_front():
    spec = ModelSpec("transformer", 300, 8, heads=2, feedforward_dim=16, context=8, tied=True)
    drawn = models.initialise(spec, 0, TOKENIZER.unigram)
    text = " ".join(TOKENIZER.words[10:40])
    assert suggest(spec, drawn, TOKENIZER, text) == suggest(
        spec, drawn, TOKENIZER, " ".join(TOKENIZER.words[33:40])
    )


def test_there_are_a_dozen_prompts_in_any_language():
    assert len(PROMPTS) == len(set(PROMPTS)) == 12
    assert prompts_of(synthetic_tokenizer(1000, "english")) == PROMPTS
    other = prompts_of(TOKENIZER)
    assert len(other) == 12
    assert set(other) <= set(TOKENIZER.words[4:])


@given(longest=st.integers(1, 80), words=st.integers(0, 90))
def test_a_text_is_cut_to_the_ids_that_the_model_reads(longest, words):
    """At one id nothing of the text is left: the sign that begins a message takes the place."""
    text = " ".join(TOKENIZER.words[4 + number] for number in range(words))
    found = message_of(TOKENIZER, text, longest)
    kept = min(words, LONGEST, longest - 1)
    assert found == [TOKENIZER.bos_id, *range(4 + words - kept, 4 + words)]


@pytest.mark.parametrize("context", [1, 2, 3, 64])
def test_a_transformer_of_any_context_suggests_after_a_longer_text(context):
    spec = ModelSpec("transformer", 300, 8, heads=2, feedforward_dim=8, context=context)
    parameters = models.initialise(spec, 0, TOKENIZER.unigram)
    text = " ".join(TOKENIZER.words[10:16])
    read = [TOKENIZER.bos_id, *range(10, 16)[max(0, 7 - context) :]]
    hidden = models.hidden_of(spec, parameters, np.array([read]))[0, -1:]
    expected = torch.softmax(models.scores(spec, parameters, hidden)[0].double(), 0)
    found = chances_after(spec, parameters, TOKENIZER, text)
    assert found == pytest.approx(expected.numpy())
    assert len(suggest(spec, parameters, TOKENIZER, text, count=3)) == 3
