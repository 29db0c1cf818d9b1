"""How words are usually written: what is learnt from which messages, kept, and shown."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfl_lm.evaluation.suggestions import suggest
from pfl_lm.models import models
from pfl_lm.models.models import ModelSpec
from pfl_lm.text import wordfreq_list, written_forms
from pfl_lm.text.normalisation import Normalisation
from pfl_lm.text.tokenizer import Tokenizer
from pfl_lm.text.tokenizer_build import build_tokenizer
from pfl_lm.text.tokenizer_recipe import TokenizerRecipe, VocabularySource
from pfl_lm.text.written_forms import WrittenFormsSource

ENGLISH = Normalisation()
WORDS = ["i", "live", "in", "london", "my", "iphone", "the", "nasa", "is", "will", "go"]
CAREFUL = ["I live in London. My iPhone is in London", "The NASA will go in London", "My iPhone"]


def learnt(texts, rules=ENGLISH, words=WORDS):
    return written_forms.learn(texts, rules, words)


def test_a_form_is_learnt_inside_of_sentences():
    forms = learnt(CAREFUL * 5)
    assert forms == {"london": "London", "iphone": "iPhone", "nasa": "NASA"}
    assert "my" not in forms
    assert "the" not in forms


@pytest.mark.parametrize(
    "texts",
    [
        CAREFUL[:1] * 2,  # four sightings of London
        ["i live in London"] * 9,  # a writer without capitals
        ["I LIVE IN LONDON"] * 9,  # one who shouts
        ["The London Nasa Will Go"] * 9,  # a title
        ["I go. London is in"] * 9,  # a capital that any word would have there
        ["I live in London", "I live in london"] * 9,  # no more than half
        ["I live in Paris"] * 9,  # no word of the vocabulary
        ["", "…", "😀 London"] * 9,
    ],
)
def test_what_tells_nothing(texts):
    assert learnt(texts) == {}


def test_letters_that_a_list_lacks_come_back():
    rules = wordfreq_list.rules("de", "drop", "placeholder", ("<number>",))
    assert learnt(["Die Straße ist lang", "In der Straße"] * 3, rules, ["strasse", "der"]) == {
        "strasse": "Straße"
    }
    turkish = wordfreq_list.rules("tr", "drop", "placeholder", ("<number>",))
    texts = ["Biz bugün İzmir ve Iğdır için"] * 5
    assert learnt(texts, turkish, ["izmir", "ığdır"]) == {"izmir": "İzmir", "ığdır": "Iğdır"}


@pytest.mark.parametrize(
    ("locale", "text", "word", "form"),
    [
        ("fr", "Je parle de l'Europe avec toi.", "europe", "Europe"),
        ("fr", "Je sais qu’Élodie est là.", "élodie", "Élodie"),
        ("it", "Siamo nell'Umbria e l'Italia tutta.", "italia", "Italia"),
        ("ca", "Soc a l'Hospitalet avui.", "hospitalet", "Hospitalet"),
        ("en", "My friend O'Hara is here.", "hara", "Hara"),
    ],
)
def test_a_form_is_learnt_behind_an_elided_word(locale, text, word, form):
    rules = wordfreq_list.rules(locale, "drop", "placeholder", ("<number>",))
    assert learnt([text] * 5, rules, [word]) == {word: form}


def test_capitals_do_not_change_where_elided_words_are_cut():
    rules = wordfreq_list.rules("fr", "keep", "placeholder", ("<number>",))
    text = "Qu'Alice et D’Artagnan, L'ÉCOLE, AUJOURD'HUI, O'Hara, L'"
    message = written_forms.Cutter(rules).message(text)
    assert [word for _, word, _ in message] == rules.pieces(text)
    assert [written.lower() for written, _, _ in message] == rules.pieces(text)


def test_at_a_beginning_a_form_has_a_capital():
    assert written_forms.shown("hello", True, ENGLISH) == "Hello"
    assert written_forms.shown("hello", False, ENGLISH) == "hello"
    assert written_forms.shown("NASA", True, ENGLISH) == "NASA"
    assert written_forms.shown("'tis", True, ENGLISH) == "'tis"


def test_the_capital_of_a_dotted_i_has_a_dot():
    turkish = wordfreq_list.rules("tr", "drop", "placeholder", ("<number>",))
    assert written_forms.shown("iyi", True, turkish) == "İyi"
    assert written_forms.shown("ılık", True, turkish) == "Ilık"
    found = written_forms.measure(["İyi günler sana."], turkish, {})
    assert found == written_forms.CapitalsMeasured(words=3, right=3, plain=3)


@pytest.mark.parametrize(
    ("locale", "text", "ends"),
    [
        ("el_GR", "Τι κάνεις; Εγώ είμαι καλά.", True),
        ("en_US", "Τι κάνεις; Εγώ είμαι καλά.", False),
        ("ur_PK", "Ali۔ Εγώ ali.", True),
        ("hy_AM", "Ի՞նչ։ Εγώ ali.", True),
        ("am_ET", "Ali። Εγώ ali.", True),
    ],
)
def test_what_ends_a_sentence_is_the_language_s_own(locale, text, ends):
    message = written_forms.Cutter(ENGLISH, locale).message(text)
    assert next(begins for written, _, begins in message if written == "Εγώ") is ends
    forms = written_forms.learn([text] * 5, ENGLISH, ["εγώ"], locale)
    assert forms == ({} if ends else {"εγώ": "Εγώ"})


def test_measure_counts_words_as_written():
    found = written_forms.measure([*CAREFUL, "not counted"], ENGLISH, {"london": "London"})
    assert found == written_forms.CapitalsMeasured(words=17, right=14, plain=11)


@given(st.lists(st.text(max_size=40), max_size=8))
def test_any_text_is_read(texts):
    forms = learnt(texts * 5)
    assert written_forms.read_table(written_forms.table(forms)) == forms
    found = written_forms.measure(texts, ENGLISH, forms)
    assert 0 <= found.plain <= found.words
    assert 0 <= found.right <= found.words


@pytest.fixture
def recipe(tmp_path):
    text, words = tmp_path / "public.txt", tmp_path / "words.tsv"
    text.write_text("\n".join(CAREFUL * 5))
    listed = [*WORDS, *map("".join, itertools.product("abcdefghij", repeat=3))]
    words.write_text(
        "word\tcount\n" + "".join(f"{word}\t{9 if word in WORDS else 1}\n" for word in listed)
    )
    source = VocabularySource("word_list", "invented", "CC0-1.0", path=words)
    forms = WrittenFormsSource(text, "invented", "CC0-1.0")
    return TokenizerRecipe("en_US", 1_000, source, written_forms=forms)


def test_a_vocabulary_keeps_and_shows_forms(recipe, tmp_path):
    tokenizer = build_tokenizer(recipe, tmp_path / "with")
    again = Tokenizer.open(tmp_path / "with")
    assert again.forms == {"london": "London", "iphone": "iPhone", "nasa": "NASA"}
    assert again.digest == tokenizer.digest
    assert again.shown(again.encode("in LONDON")[1]) == "London"
    assert again.shown(again.encode("in")[0]) == "in"
    without = build_tokenizer(replace(recipe, written_forms=None), tmp_path / "without")
    assert without.words == again.words
    assert without.digest != again.digest
    assert not without.forms
    assert without.shown(without.encode("London")[0]) == "london"
    (tmp_path / "with" / "forms.tsv").write_text("word\tform\nlondon\tLondonistan\n")
    with pytest.raises(ValueError, match=r"forms.tsv is not the file"):
        Tokenizer.open(tmp_path / "with")


def test_suggestions_are_shown_as_written(recipe, tmp_path):
    tokenizer = build_tokenizer(recipe, tmp_path / "t")
    spec = ModelSpec("cifg_lstm", tokenizer.vocabulary_size, embedding_dim=4, hidden_dim=4)
    found = suggest(spec, models.initialise(spec, 1), tokenizer, "I live in", 3, letters="london")
    assert [word for word, _ in found] == ["London"]


def test_refusals(recipe, tmp_path):
    (tmp_path / "public.txt").write_text("no capitals here\n" * 9)
    with pytest.raises(ValueError, match=r"written_forms.path: .* does not tell how words"):
        build_tokenizer(recipe, tmp_path / "t")
    (tmp_path / "public.txt").unlink()
    with pytest.raises(ValueError, match=r"written_forms.path: .* does not exist"):
        build_tokenizer(recipe, tmp_path / "t")
    assert not (tmp_path / "t").exists()
    with pytest.raises(ValueError, match="licence is empty"):
        WrittenFormsSource(tmp_path / "x", "somebody", " ")
    text = VocabularySource("text", "x", "y", path=tmp_path / "x")
    with pytest.raises(ValueError, match="written_forms belongs to casing = 'lower'"):
        replace(recipe, source=text, casing="natural")


def test_counts_are_right_for_a_vocabulary_of_many_texts():
    """The rule on its own: majority and five sightings, against a plain count."""
    draw = np.random.default_rng(3)
    capital = draw.random(40) < 0.5
    texts = [f"I live in {'London' if one else 'london'}" for one in capital]
    expected = {"london": "London"} if 2 * capital.sum() > 40 else {}
    assert learnt(texts) == expected
