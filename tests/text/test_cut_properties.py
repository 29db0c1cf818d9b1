"""Text and vocabulary are cut by one rule, in every language, whatever stands beside a word."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pfl_lm.text import wordfreq_list
from pfl_lm.text.normalisation import Normalisation
from pfl_lm.text.tokenizer import CONTROLS, Tokenizer
from pfl_lm.text.tokenizer_assemble import assemble
from pfl_lm.text.tokenizer_build import choose_rows
from pfl_lm.text.word_counts import unknown_share

STATED = ("keep", "placeholder", ("<number>", "<url>"))
RULES = {
    name: wordfreq_list.rules(name, *STATED)
    for name in ("en", "fr", "it", "ca", "tr", "el", "de", "ro", "ar", "fi", "sh")
} | {
    "drop": Normalisation(),
    "natural": Normalisation("natural", "keep", placeholders=("<number>", "<url>")),
}
LETTERS = st.sampled_from(
    [*"aeilstqzIİıßẞςσΣéÉœğşșŞёЁб", "e\u0301", "ﬁ", "ｆ", "ь", "क", "ي", "\u064e"]
)
MARKS = st.sampled_from([*"'’.,:!?-_·\"“«»1280½№", "...", "\u0301", "👍🏽", "🇩🇪", "1️⃣", "<url>"])
WORDS = st.lists(LETTERS, min_size=1, max_size=6).map("".join)
TOKENS = st.lists(st.one_of(WORDS, MARKS), min_size=1, max_size=4).map("".join)
SPACES = st.sampled_from([" ", "  ", "\t", "\n", "\xa0", "\u2003"])
TEXTS = st.lists(TOKENS, max_size=5).map(" ".join)
NAMES = st.sampled_from(sorted(RULES))


@given(NAMES, TEXTS, SPACES, TEXTS)
def test_a_word_is_the_same_whatever_stands_beyond_the_space(name, before, space, after):
    pieces = RULES[name].pieces
    assert pieces(before + space + after) == pieces(before) + pieces(after)


@given(NAMES, TEXTS)
def test_what_was_cut_is_not_cut_further(name, text):
    assume(name != "ar" or "İ" not in text)  # its list lacks marks, but not those of lower case
    rules = RULES[name]
    pieces = rules.pieces(text)
    assert [p for piece in pieces for p in rules.pieces(piece)] == pieces
    assert rules.pieces(" ".join(pieces)) == pieces


def vocabulary(rules: Normalisation, texts: list[str]) -> Tokenizer:
    """Build from texts as a source of kind ``text`` is, with room for every word of theirs."""
    counts = Counter({"</s>": len(texts)})
    for text in texts:
        counts.update(map(rules.canonical, rules.pieces(text)))
    for size in range(len(counts) + 50, 0, -1):
        try:
            rows, _ = choose_rows(counts, rules, size)
        except ValueError:  # more room than words
            continue
        return assemble(rows, rules, {"locale": "x"})
    raise AssertionError("no room for controls")


@settings(deadline=None, max_examples=25)
@given(NAMES, st.lists(TEXTS, min_size=1, max_size=4))
def test_a_vocabulary_knows_every_word_of_the_text_it_was_built_from(name, texts):
    rules = RULES[name]
    tokenizer = vocabulary(rules, texts)
    for text in texts:
        assert tokenizer.unknown_words(text) == []
    assert unknown_share(tokenizer, texts)[1] == 0
    again = vocabulary(rules, texts)
    assert again.digest == tokenizer.digest


@settings(deadline=None, max_examples=50)
@given(NAMES, TEXTS, st.lists(st.sampled_from([*"()[]¿¡«»،؟।॥۔·.,!?:;'", "a", "8"]), max_size=6))
def test_what_is_shown_is_read_as_it_was(name, text, marks):
    assume(name != "ar" or "İ" not in text)
    text = f"{text} {''.join(marks)} {' '.join(marks)}"
    tokenizer = vocabulary(RULES[name], [text])
    ids = tokenizer.encode(text)
    assert tokenizer.encode(tokenizer.decode(ids)) == ids


@pytest.mark.parametrize(
    ("locale", "text"),
    [
        ("es_ES", "¡hola! ¿qué tal? «bien» (sí)..."),
        ("hi_IN", "यह कैसा है। अच्छा॥"),
        ("ar_EG", "كيف الحال؟ نعم، جيد؛ «نعم»"),
        ("ur_PK", "کیا حال ہے؟ ٹھیک۔"),
        ("el_GR", "τι κάνεις; καλά· «ναι»"),
        ("fr_FR", "c'est l'été: « oui »?"),
        ("en_US", "don't (well). . x"),
    ],
)
def test_marks_of_every_language_stand_beside_their_words(locale, text):
    rules = wordfreq_list.rules(locale, *STATED)
    rows = [*((name, "control", 1) for name in CONTROLS)]
    rows += [(piece, "word", 1) for piece in dict.fromkeys(rules.pieces(text))]
    tokenizer = assemble(rows, rules, {"locale": locale})
    assert tokenizer.decode(tokenizer.encode(text)) == text


UNITS = st.lists(
    st.one_of(
        LETTERS, MARKS, st.sampled_from([" ", "\u200d", "\ufe0f", "\U0001d165", "l'", "8.", "<"])
    ),
    min_size=1,
    max_size=3,
).map("".join)


@settings(deadline=None, max_examples=20)
@given(NAMES, UNITS, st.sampled_from(["", "a", " ", "'"]))
def test_time_grows_with_the_text_alone(name, unit, end):
    """Of what takes time by the square of a text, the hundred thousandth letter takes hours."""
    text = unit * (100_000 // len(unit)) + end
    pieces = RULES[name].pieces(text)
    assert sum(map(len, pieces)) <= 4 * len(text)


@pytest.mark.parametrize("name", sorted(RULES))
def test_the_rules_travel_as_plain_data(name):
    assert Normalisation.stated(RULES[name].describe()) == RULES[name]
