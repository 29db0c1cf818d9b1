"""How messages were typed: keys that a person can count, and the same for every vocabulary."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pfl_lm.text import wordfreq_list
from pfl_lm.text.as_typed import KEYS, SHOWN, AsTyped, keys
from pfl_lm.text.normalisation import Normalisation
from pfl_lm.text.tokenizer import CONTROLS
from pfl_lm.text.tokenizer_assemble import assemble
from pfl_lm.text.written_forms import table

WORDS = ["i'm", "in", "london", "hello", "no"]
FORMS = {"i'm": "I'm", "london": "London"}
RULES = {mode: Normalisation(punctuation=mode) for mode in ("keep", "drop")}


def vocabulary(mode, forms=FORMS):
    marks = [",", ".", "!", "?", "😂"] if mode == "keep" else []
    rows = [(name, "control", 1) for name in CONTROLS]
    rows += [("<number>", "placeholder", 1), *((mark, "mark", 1) for mark in marks)]
    rows += [(word, "word", 1) for word in WORDS]
    return assemble(rows, RULES[mode], {"locale": "en_US"}, forms=table(forms))


TYPED = {mode: AsTyped(vocabulary(mode)) for mode in RULES}


def codes(text, mode="keep"):
    found = TYPED[mode].codes(text)
    return [code & KEYS for code in found], [bool(code & SHOWN) for code in found[:-1]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hello", [6, 0]),
        ("Hello in London", [6, 3, 8, 0]),  # the first capital is the keyboard's
        ("in LONDON", [3, 9, 0]),  # the lock takes two
        ("LONDON", [9, 0]),
        ("hello, in.", [6, 1, 3, 1, 0]),
        ("no!!?", [3, 2, 1, 1, 0]),  # one page for a run of marks
        ("no 😂😂 in", [3, 2, 1, 3, 0]),
        ("in 2026", [3, 6, 0]),
        ("I'm", [5, 0]),  # the apostrophe is on the page of marks
        ("in <number>", [3, 0, 0]),
        ("in Xyzzy", [3, 7, 0]),  # a word that the vocabulary lacks
    ],
)
def test_keys(text, expected):
    assert codes(text)[0] == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I'm in London", [True, True, True]),
        ("i'm in london", [False, True, False]),
        ("Hello. Hello in Hello", [True, True, True, True, False]),
        ("hello", [False]),  # a keyboard begins with a capital
        ("Hello Xyzzy 7", [True, False, False]),
        ("no 😂!", [False, True, True]),
    ],
)
def test_what_is_shown_as_written(text, expected):
    assert codes(text)[1] == expected


def test_marks_without_an_id_are_counted_at_the_end():
    assert codes("hello, in London! 😂", "drop")[0] == [6, 3, 8, 1 + 2 + 2]


@given(st.text(max_size=40))
@example("İstanbul")
@example("ﬁne… ß ＡＢ")
@example("Σίσυφος ΣΊΣΥΦΟΣ")
def test_a_code_for_each_id_and_the_same_keys_for_every_vocabulary(text):
    totals = set()
    for mode, typed in TYPED.items():
        found = typed.codes(text)
        assert len(found) == len(vocabularies[mode].encode(text)) + 1
        assert all(0 <= code <= KEYS + SHOWN for code in found)
        totals.add(sum(code & KEYS for code in found))
    assert len(totals) == 1 or 0 in totals


vocabularies = {mode: vocabulary(mode) for mode in RULES}


def test_a_mask_is_no_word_of_its_letters():
    assert keys("<") == 2
    assert codes("<number>")[0] == [0, 0]


def test_a_message_with_a_capital_beside_an_elision_is_counted():
    rules = wordfreq_list.rules("fr", "keep", "placeholder", ("<number>",))
    rows = [(name, "control", 1) for name in CONTROLS]
    rows += [("<number>", "placeholder", 1), (".", "mark", 1)]
    rows += [(word, "word", 1) for word in ("c'", "est", "l'", "europe")]
    french = AsTyped(assemble(rows, rules, {"locale": "fr_FR"}, forms=table({"europe": "Europe"})))
    found = french.codes("C'est l'Europe.")
    assert [code & KEYS for code in found] == [4, 4, 4, 8, 1, 0]
    assert all(code & SHOWN for code in found[:4])
