"""Words composed of pieces: every spelling against the search, and keystrokes letter by letter."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from pfl_lm.evaluation import composing
from pfl_lm.evaluation.composing import Speller, Wanted, reader_of
from pfl_lm.evaluation.evaluate import ModelScorer, evaluate
from pfl_lm.evaluation.suggestions import suggest
from pfl_lm.models import models
from pfl_lm.models.spec import ModelSpec
from pfl_lm.text.as_typed import SHOWN, AsTyped
from pfl_lm.text.letters import same_letters
from pfl_lm.text.normalisation import Normalisation
from pfl_lm.text.tokenizer import Tokenizer
from pfl_lm.text.tokenizer_assemble import assemble
from pfl_lm.text.tokenizer_build import choose_rows
from tests.text.syllables import GREEK, WORDS, spelled, spelling_greek, spelling_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return spelling_tokenizer()


@pytest.fixture(scope="module")
def speller(tokenizer):
    return Speller(tokenizer)


@pytest.fixture(scope="module")
def spec(tokenizer):
    return ModelSpec("cifg_lstm", tokenizer.vocabulary_size, embedding_dim=8, hidden_dim=8)


@pytest.fixture(scope="module")
def parameters(spec, tokenizer):
    """A model that tells words apart, and to which pieces are as likely as words."""
    drawn = models.initialise(spec, 0, tokenizer.unigram)
    bias = drawn["output_bias"].clone()
    bias[[kind == "subword" for kind in tokenizer.kinds]] = bias.max() - 3
    return drawn | {"embedding": 20 * drawn["embedding"], "output_bias": bias}


@pytest.fixture(scope="module")
def scorer(spec, parameters):
    return ModelScorer(spec, parameters)


def every_word(speller, read, tokenizer, text, letters, most):
    """Return the words of the list that pieces spell and that begin so, likeliest first."""
    words = [word for word in spelled(tokenizer, most) if word.startswith(letters)]
    chances = {
        word: speller.log_probability(read, text, tuple(tokenizer.encode(word))) for word in words
    }
    return sorted(words, key=lambda word: -chances[word]), chances


@pytest.mark.parametrize("letters", ["l", "mike", "terusvé"])
def test_a_wide_search_finds_the_likeliest_of_all_words(
    tokenizer, speller, scorer, monkeypatch, letters
):
    monkeypatch.setattr(composing, "BEAM", 400)
    monkeypatch.setattr(composing, "MOST_PIECES", 3)
    read = reader_of(scorer, speller)
    text = (2, *tokenizer.encode("ka lo mi"))
    found = speller.compose(read, [Wanted(text, letters)], 400)[0]
    expected, chances = every_word(speller, read, tokenizer, text, letters, 3)
    in_list = [one.word for one in found if one.word in chances]
    assert in_list == [word for word in expected if word in set(in_list)]
    assert in_list[:3] == expected[:3]
    for one in found:
        assert one.ids == tuple(tokenizer.encode(one.word))
        assert tokenizer.decode(one.ids) == one.word
        assert one.word.startswith(letters)
        if one.word in chances:
            assert one.log_probability == pytest.approx(chances[one.word], abs=1e-4)
    likely = models.scores(scorer._spec, scorer._parameters, scorer.states(np.array([text]))[:, -1])
    listed = torch.softmax(likely[0].double(), 0)[[kind == "word" for kind in tokenizer.kinds]]
    assert sum(np.exp(one.log_probability) for one in found) + listed.sum() <= 1 + 1e-6


def test_a_floor_changes_nothing_above_it(tokenizer, speller, scorer):
    read = reader_of(scorer, speller)
    asked = [Wanted((2, *tokenizer.encode(word)), word[:n]) for word in WORDS[:20] for n in (0, 2)]
    without = speller.compose(read, asked, 3)
    assert sum(map(len, without)) > 40
    for one, found in zip(asked, without, strict=True):
        floor = found[1].log_probability if len(found) > 1 else -50.0
        again = speller.compose(read, [Wanted(one.text, one.letters, floor)], 3)[0]
        assert again == [word for word in found if word.log_probability > floor]


def test_no_form_of_a_blocked_word_comes_back_through_pieces(tokenizer, speller, scorer):
    read = reader_of(scorer, speller)
    wanted = Wanted((2,), "mi")
    found = [one.word for one in speller.compose(read, [wanted], 3)[0]]
    accented = next(word for word in spelled(tokenizer) if "é" in word)
    blocked = {same_letters(found[0].upper()), same_letters(accented.replace("é", "e"))}
    careful = Speller(tokenizer, blocked)
    left = [one.word for one in careful.compose(read, [wanted], 3)[0]]
    assert found[0] not in left
    assert left[:2] == found[1:]
    assert not careful.may_show(accented, tuple(tokenizer.encode(accented)))
    assert speller.may_show(accented, tuple(tokenizer.encode(accented)))


def test_suggestions_rank_composed_words_among_listed_ones(tokenizer, speller, spec, parameters):
    text, letters = "lo lo ka", "miterd"
    listed = suggest(spec, parameters, tokenizer, text, 3, letters, compose=False)
    both = suggest(spec, parameters, tokenizer, text, 3, letters.upper())
    read = reader_of(ModelScorer(spec, parameters), speller)
    wanted = Wanted((2, *tokenizer.encode(text)), letters)
    composed = speller.compose(read, [wanted], 3)[0]
    pairs = [*listed, *((one.word, np.exp(one.log_probability)) for one in composed)]
    expected = sorted(pairs, key=lambda pair: -pair[1])[:3]
    assert [word for word, _ in both] == [word for word, _ in expected]
    assert [chance for _, chance in both] == pytest.approx([c for _, c in expected], rel=1e-4)
    assert {word for word, _ in both} - set(tokenizer.words)


class People:
    """Held-out users of invented words, a quarter of them spelled."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        draw = np.random.default_rng(3)
        rare, listed = spelled(tokenizer), tokenizer.words[5:100]
        self.streams = []
        for _ in range(2):
            words = [
                draw.choice(rare) if draw.random() < 0.25 else draw.choice(listed)
                for _ in range(30)
            ]
            self.streams.append(np.array([2, *tokenizer.encode(" ".join(words)), 3]))

    def users(self, split: str) -> int:
        return len(self.streams)

    def tokens(self, split: str, user: int) -> np.ndarray:
        return self.streams[user]


def test_keystrokes_equal_a_keyboard_looked_at_after_each_letter(tokenizer, speller, scorer):
    people, window = People(tokenizer), 12
    found = evaluate(scorer, people, "test", tokenizer, window, compose=True)
    top3 = saved = keystrokes = rare = offered = words = 0
    for stream in people.streams:
        for start in range(0, len(stream) - 1, window):
            text = stream[start : start + window + 1].tolist()
            for at in range(1, len(text)):
                piece = tokenizer.words[text[at]]
                by_pieces = tokenizer.kinds[text[at]] == "subword"
                if (by_pieces and not piece.startswith("▁")) or text[at] == 3:
                    continue
                word = tokenizer.decode(stream[start + at :].tolist()).split()[0]
                typed = first_shown(scorer, speller, tokenizer, text[:at], word)
                words += 1
                top3 += typed == 0
                saved += len(word) - typed
                keystrokes += len(word) + 1
                rare += by_pieces
                offered += by_pieces and typed < len(word)
    assert found.words == words == 60
    assert found.top3 == pytest.approx(top3 / words)
    assert found.keystrokes_saved == pytest.approx(saved / keystrokes)
    assert rare > 5
    assert 0 < found.spelled_offered == pytest.approx(offered / rare)
    without = evaluate(scorer, people, "test", tokenizer, window)
    assert without.perplexity == found.perplexity
    assert np.isnan(without.spelled_offered)


def first_shown(scorer, speller, tokenizer, text, word):
    """Return the letters after which a word is among three suggestions after some ids."""
    states = scorer.states(np.array([text]))[:, -1]
    logs = torch.log_softmax(scorer.scores(states, slice(None)).double(), 1)[0].tolist()
    listed = [
        (-log, one)
        for log, one, kind in zip(logs, tokenizer.words, tokenizer.kinds, strict=True)
        if kind == "word"
    ]
    for letters in range(len(word)):
        wanted = [Wanted(tuple(text), word[:letters])]
        composed = speller.compose(reader_of(scorer, speller), wanted, 3)[0]
        fitting = [pair for pair in listed if pair[1].startswith(word[:letters])]
        shown = sorted(fitting + [(-one.log_probability, one.word) for one in composed])[:3]
        if word in [one for _, one in shown]:
            return letters
    return len(word)


def test_a_transformer_reads_no_more_than_its_context(tokenizer):
    spec = ModelSpec(
        "transformer", tokenizer.vocabulary_size, 8, heads=2, feedforward_dim=16, context=12
    )
    model = ModelScorer(spec, models.initialise(spec, 0, tokenizer.unigram))
    found = evaluate(model, People(tokenizer), "test", tokenizer, 12, compose=True)
    assert found.words == 60


def test_without_subwords_nothing_is_composed():
    rows, _ = choose_rows(Counter(WORDS), Normalisation(), 205)
    listed = assemble(rows, Normalisation(), {})
    assert Speller.of(listed) is None
    spec = ModelSpec("cifg_lstm", listed.vocabulary_size, 8, hidden_dim=8)
    model = ModelScorer(spec, models.initialise(spec, 0, listed.unigram))
    with pytest.raises(ValueError, match="no subwords to compose words of"):
        evaluate(model, People(spelling_tokenizer()), "test", listed, 12, compose=True)


@pytest.mark.parametrize("typed_as", [str.lower, str.upper, str.capitalize])
def test_capitals_and_a_final_sigma_keep_no_spelling_from_being_found(typed_as):
    greek = spelling_greek()
    speller, words = Speller(greek), spelled(greek, words=GREEK)
    assert any("σ" in word[1:] for word in words)
    for word in words:
        for length in range(len(word) + 1):
            typed, before = speller.typed(typed_as(word[:length])), ""
            for number, place in enumerate(np.searchsorted(speller.ids, greek.encode(word))):
                assert place in speller.fitting(number == 0, typed[len(before) :]), (word, typed)
                before += speller.letters(place)


def test_a_spelled_word_is_shown_as_its_letters(tokenizer):
    word = spelled(tokenizer)[0]
    codes = AsTyped(tokenizer).codes(f"ka {word} {word.title()}")
    firsts = [i for i, code in enumerate(codes) if code]
    assert [bool(codes[i] & SHOWN) for i in firsts[1:3]] == [True, False]
