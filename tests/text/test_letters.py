"""Forms of the same letters are one, and words of other letters are not."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfl_lm.text.letters import DIGITS, LOOK_ALIKES, same_letters

WORDS = st.text(st.characters(categories=["Ll", "Lu"]), min_size=1, max_size=8)


@pytest.mark.parametrize(
    "form",
    [
        "darn",
        "Darn",
        "DARN",
        "dárn",
        "da\u0308rn",
        "ｄａｒｎ",
        "dаrn",
        "d4rn",
        "dɑrn",
        "da\u200drn",
        "da\u034frn",
        "ᴅᴀʀɴ",
        "đarn",
        "ɗaɍɲ",
        "ⓓⓐⓡⓝ",
        "𝒅𝒂𝒓𝒏",
    ],
)
def test_forms_of_a_word(form: str) -> None:
    assert same_letters(form) == "darn"


@pytest.mark.parametrize("other", ["darned", "barn", "dam", "dar", "nard", ""])
def test_other_words(other: str) -> None:
    assert same_letters(other) != "darn"


@given(WORDS)
def test_case_accents_and_width_never_matter(word: str) -> None:
    assert same_letters(word.lower()) == same_letters(word)
    assert same_letters("".join(c + "\u0301" for c in word)) == same_letters(word)
    wide = "".join(chr(ord(c) + 0xFEE0) if "a" <= c <= "z" else c for c in word)
    assert same_letters(wide) == same_letters(word)


_LIKE = {
    letter: [x for x, y in LOOK_ALIKES.items() if y == letter] for letter in "abcdefghijklmnop"
}
_LIKE |= {to: [*_LIKE.get(to, []), digit] for digit, to in DIGITS.items()}
DISGUISES = [
    str.upper,
    lambda c: c + "\u0301",
    lambda c: c + "\u200b",
    lambda c: chr(ord(c) + 0xFEE0),
    lambda c: chr(ord(c) - ord("a") + 0x1D41A),  # mathematical bold
]


@given(st.data(), st.text("abdefghijkmnop", min_size=2, max_size=8))
def test_no_disguise_of_single_letters_is_another_word(data: st.DataObject, word: str) -> None:
    """Each letter by itself in capitals, accented, full width, bold, or as one that looks alike."""
    disguised = "".join(
        data.draw(
            st.sampled_from([letter, *_LIKE.get(letter, []), *(d(letter) for d in DISGUISES)])
        )
        for letter in word
    )
    if any(letter.isalpha() for letter in disguised):  # 08 is a number
        assert same_letters(disguised) == word


@given(WORDS)
def test_it_is_its_own_form(word: str) -> None:
    assert same_letters(same_letters(word)) == same_letters(word)


def test_a_number_stays_a_number() -> None:
    assert same_letters("70") == "70"


def test_the_table_is_in_the_form_that_it_is_asked_in() -> None:
    for letter in LOOK_ALIKES:
        folded = unicodedata.normalize("NFD", unicodedata.normalize("NFKC", letter).lower())
        assert folded == letter or letter in "ſς"
    assert all(digit.isdecimal() and len(to) == 1 for digit, to in DIGITS.items())
