"""What is made of a text part by part, with a memory, is what is made of the whole text."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfl_lm.text import parts
from pfl_lm.text.as_typed import KEYS, SHOWN, AsTyped, keys, page_of
from pfl_lm.text.normalisation import is_word
from pfl_lm.text.parts import Remembered, by_parts
from pfl_lm.text.written_forms import Cutter, shown
from tests.text.test_cut_properties import NAMES, RULES, TOKENS, vocabulary

SPACES = [c for c in map(chr, range(sys.maxunicode + 1)) if c.isspace()]
GAPS = st.text(st.sampled_from(SPACES), min_size=1, max_size=2)
TEXTS = st.lists(st.one_of(TOKENS, GAPS, st.text(max_size=4)), max_size=8).map("".join)
KNOWN = ["a", "e", "i", "l", "s", "Straße", "l'eau", "İzmir", "क", "ﬁ", "👍🏽"]
TOKENIZERS = {name: vocabulary(rules, [" ".join(KNOWN)]) for name, rules in RULES.items()}
TYPED = {name: AsTyped(tokenizer) for name, tokenizer in TOKENIZERS.items()}


@given(NAMES, TEXTS)
def test_pieces_ids_and_unknown_words(name, text):
    rules, tokenizer = RULES[name], TOKENIZERS[name]
    pieces = rules.pieces(text)
    assert by_parts(rules.pieces)(text) == pieces
    assert tokenizer.encode(text) == [i for piece in pieces for i in tokenizer.ids_of(piece)]
    lacks = [p for p in pieces if tokenizer.word_id(p) in (None, tokenizer.unk_id)]
    assert tokenizer.unknown_words(text) == list(filter(is_word, lacks))


@pytest.mark.parametrize("name", sorted(RULES))
def test_no_white_space_of_unicode_ties_words_together(name):
    pieces = RULES[name].pieces
    for space in SPACES:  # a sigma's lower case depends on what stands beside it
        for before, after in (
            ("ΑΣ", "Α"),
            ("Σ", "\u0301a"),
            ("l'", "eau"),
            ("👍", "🏽"),
            ("8.", "4"),
        ):
            assert pieces(before + space + after) == pieces(before) + pieces(after), repr(space)


@given(NAMES, TEXTS)
def test_how_it_was_typed(name, text):
    assert TYPED[name].codes(text) == codes_of_the_whole(name, text)


def codes_of_the_whole(name, text):
    """Count the keys of a message as ``as_typed`` says, from its pieces as they were written."""
    rules, tokenizer = RULES[name], TOKENIZERS[name]
    masks = {*rules.placeholders, "<unk>"}
    message = Cutter(rules).message(text)
    has_id = [rules.punctuation == "keep" or is_word(p) or p in masks for p, _, _ in message]
    if [word for (_, word, _), has in zip(message, has_id, strict=True) if has] != rules.pieces(
        text
    ):
        return [0] * (len(tokenizer.encode(text)) + 1)
    codes, left_out, page = [], 0, ""
    for (written, word, begins), has in zip(message, has_id, strict=True):
        count = 0 if written in masks else keys(written, begins, page)
        page = page_of(written)
        if not has:
            left_out += count
            continue
        first, *more = tokenizer.ids_of(word)
        right = shown(tokenizer.shown(first), begins, rules) == written
        codes += [(SHOWN if right else 0) | min(count, KEYS), *[0] * len(more)]
    return [*codes, min(left_out, KEYS)]


def test_memory_has_a_bound(monkeypatch):
    monkeypatch.setattr(parts, "_MOST", 10)
    lengths = Remembered(len)
    for i in range(100):
        assert lengths[str(i % 13)] == len(str(i % 13))
        assert lengths["x" * (i + 1000)] == i + 1000
        assert len(lengths) <= 10
    assert max(map(len, lengths)) < 1000
