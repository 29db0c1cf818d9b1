"""Forms of the same letters: words that differ in case, accents, width, or letters that look alike.

What must not be suggested is told by letters, not by spelling: who lists ``darn`` means ``Darn``,
``DARN``, ``dárn``, ``ｄａｒｎ`` and ``dаrn`` with a Cyrillic а too. The rule blocks too much rather
than too little: ``ano`` on a list blocks ``año``.

Source of the look-alikes: Unicode UTS 39, confusables, for the letters of keyboards; and for Latin
letters with a stroke, a hook or the like, which have no decomposition, their names in Unicode.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import Any

# Read in lower case and without marks. Digits count only beside letters: 7 alone is a number.
_LIKE = (
    "а:a в:b с:c е:e һ:h і:i ј:j к:k м:m н:h о:o р:p ѕ:s т:t у:y х:x ԁ:d ԛ:q ԝ:w г:r п:n ь:b з:3 "
    "α:a β:b ε:e η:n ι:i κ:k ν:v ο:o ρ:p σ:o ς:s τ:t υ:u χ:x ω:w γ:y μ:u ζ:z "
    "օ:o ս:u һ:h ց:g հ:h ո:n "
    "ѵ:v ѡ:w ӏ:l ӕ:ae ө:o ү:y ұ:y ғ:f қ:k ҝ:k "
    "ɩ:i ß:ss ſ:s æ:ae œ:oe ɑ:a ð:d þ:th ə:e "
    "ʼ:' ’:' ‘:'"
)
_LATIN = (
    *range(0x80, 0x2B0),
    *range(0x1D00, 0x1DC0),
    *range(0x2C60, 0x2C80),
    *range(0xA720, 0xA7C0),
)
_NAMED = re.compile(
    r"LATIN (?:SMALL LETTER (?:DOTLESS |SCRIPT |OPEN )?|LETTER SMALL CAPITAL )([A-Z])(?: WITH .*)?"
)


def _latin() -> dict[str, str]:
    """Return the Latin letters that Unicode names as one of the alphabet with something to it."""
    found = {}
    for letter in map(chr, _LATIN):
        named = _NAMED.fullmatch(unicodedata.name(letter, ""))
        if named and unicodedata.normalize("NFKD", letter) == letter:
            found[letter] = named[1].lower()
    return found


LOOK_ALIKES = _latin() | dict(pair.split(":") for pair in _LIKE.split())
DIGITS = {"0": "o", "1": "i", "3": "e", "4": "a", "5": "s", "7": "t", "8": "b"}


@lru_cache(maxsize=1 << 17)
def same_letters(word: str) -> str:
    """Return what all forms of the same letters share; never suggested where a list holds it."""
    folded = unicodedata.normalize("NFD", unicodedata.normalize("NFKC", word).lower())
    kept = (c for c in folded if unicodedata.category(c)[0] not in "MC")
    plain = "".join(LOOK_ALIKES.get(letter, letter) for letter in kept)
    if any(letter.isalpha() for letter in plain):
        plain = "".join(DIGITS.get(letter, letter) for letter in plain)
    return plain


def describe() -> dict[str, Any]:
    """Return the rule as plain data, for a phone."""
    return {
        "unicode": "NFKC, lower case, NFD without marks",
        "letters": LOOK_ALIKES,
        "digits": DIGITS,
    }
