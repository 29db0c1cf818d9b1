"""Forms of the same letters: words that differ in case, accents, width, or letters that look alike.

What must not be suggested is told by letters, not by spelling: who lists ``darn`` means ``Darn``,
``DARN``, ``dárn``, ``ｄａｒｎ`` and ``dаrn`` with a Cyrillic а too. The rule blocks too much rather
than too little: ``ano`` on a list blocks ``año``. But the vowel signs of Hindi or Tamil are no
accents, though Unicode calls both marks: without them most common words are one another.

Source of the look-alikes: Unicode UTS 39, confusables, for the letters of keyboards; and for Latin
letters with a stroke, a hook or the like, which have no decomposition, their names in Unicode.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from functools import lru_cache
from typing import Any

# Read in lower case and without accents. Digits count only beside letters: 7 alone is a number. No
# two letters of an alphabet are read as one, unless they are the same but for what is added to it.
_LIKE = (
    "а:a в:b с:c е:e һ:h і:i ј:j к:k м:m н:h о:o р:p ѕ:s т:t у:y х:x ԁ:d ԛ:q ԝ:w г:r п:n "
    "α:a β:b ε:e η:n ι:i κ:k ν:v ο:o ρ:p σ:s ς:s τ:t υ:u χ:x ω:w γ:y ζ:z "
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


@lru_cache(maxsize=1 << 14)
def _is_accent(mark: str) -> bool:
    """Whether a character is a mark added to a letter, and no letter's equal as vowel signs are.

    Unicode's combining class says so: 200 and above are accents, 10 to 36 the points of Hebrew,
    Arabic and Syriac, 1 strokes. A dot that is called nukta makes a letter another one's sound.
    Vowel signs, viramas and the tones of Thai, Lao and Burmese have other classes.
    """
    if unicodedata.category(mark)[0] != "M":
        return False
    kind, name = unicodedata.combining(mark), unicodedata.name(mark, "")
    invisible = "VARIATION SELECTOR" in name or mark == "\u034f"
    enclosing = unicodedata.category(mark) == "Me"
    return kind >= 200 or 10 <= kind <= 36 or kind == 1 or "NUKTA" in name or invisible or enclosing


@lru_cache(maxsize=1)
def _accents() -> list[list[int]]:
    """Return the code points of all accents as ranges, [first, last] each."""
    found: list[list[int]] = []
    for code in (code for code in range(sys.maxunicode + 1) if _is_accent(chr(code))):
        if found and found[-1][1] == code - 1:
            found[-1][1] = code
        else:
            found.append([code, code])
    return found


@lru_cache(maxsize=1 << 17)
def same_letters(word: str) -> str:
    """Return what all forms of the same letters share; never suggested where a list holds it."""
    folded = unicodedata.normalize("NFD", unicodedata.normalize("NFKC", word).lower())
    kept = (c for c in folded if unicodedata.category(c)[0] != "C" and not _is_accent(c))
    plain = "".join(LOOK_ALIKES.get(letter, letter) for letter in kept)
    if any(letter.isalpha() for letter in plain):
        plain = "".join(DIGITS.get(letter, letter) for letter in plain)
    return plain


def describe() -> dict[str, Any]:
    """Return the rule as plain data, for a phone; ``accents`` are ranges of code points."""
    return {
        "unicode": "NFKC, lower case, NFD without accents and controls",
        "accents": _accents(),
        "letters": LOOK_ALIKES,
        "digits": DIGITS,
    }
