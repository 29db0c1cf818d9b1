"""The regular expressions that cut text into pieces, as Python and as a browser read them.

Both are built from the same parts. Classes of characters are spelled out where the two languages
disagree about them: spaces, marks, emoji.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

# Python's white space, and the byte order mark, which is one in a browser.
SPACES = "\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ufeff"
MOST_MARKS = 30  # in a row: Unicode's Stream-Safe Text Format (UAX 15, section 13)
VOWELS = "aehiouyáéíóúàèìòùâêîôûåïöœ"  # before which French and its kin elide a vowel
_JOINERS = "\u200c\u200d"  # zero width
KEYCAP = "\u20e3"  # the last character of an emoji such as 1️⃣
_FLAG, _TONE, _TAG = (0x1F1E6, 0x1F1FF), (0x1F3FB, 0x1F3FF), (0xE0020, 0xE007F)


class Cut(NamedTuple):
    """How text is cut into pieces.

    Args:
        masks: placeholders, each a piece.
        keep_marks: every other mark is a piece; else it is dropped.
        joiners: characters that join letters into one word.
        elided: None, or the elided words that keep their apostrophe (``l'``); any other one or
            two letters before an apostrophe and a vowel are a piece without it.
    """

    masks: tuple[str, ...]
    keep_marks: bool
    joiners: str = "'"
    elided: tuple[str, ...] | None = None
    capitals: bool = False


class _Dialect(NamedTuple):
    letter: str
    digit: str
    no_letter: str  # inside of a negated [class]: letters, digits, underscore
    whole: str  # after + and *: never give back what was matched
    code: Callable[[int], str]


def _python(code: int) -> str:
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


_PYTHON = _Dialect(r"[^\W_]", r"\d", r"\w", "+", _python)
_ECMASCRIPT = _Dialect(
    r"[\p{L}\p{N}]", r"\p{Nd}", r"\p{L}\p{N}_", "", lambda code: f"\\u{{{code:x}}}"
)


@lru_cache(maxsize=64)
def pattern(cut: Cut, ascii_only: bool = False) -> str:
    """Return the pattern in Python's syntax; on ASCII text both forms find the same pieces."""
    return _pattern(cut, _PYTHON, ascii_only)


@lru_cache(maxsize=64)
def ecmascript(cut: Cut) -> str:
    """Return the pattern as a browser reads it (flags ``gu``)."""
    return _pattern(cut, _ECMASCRIPT, False)


def _pattern(cut: Cut, dialect: _Dialect, ascii_only: bool) -> str:
    letter, digit, no_letter, whole, code = dialect
    marks = "" if ascii_only else _ranges(_word_marks(), code)
    letters = f"{letter}+" if ascii_only else f"(?:{letter}+{whole}[{marks}]*{whole})+{whole}"
    joiners = f"[{''.join(_ranges([(ord(c), ord(c))], code) for c in cut.joiners)}]"
    alternatives = ["|".join(re.sub(r"[^\w<>]", "", name) for name in cut.masks)]
    if cut.keep_marks and not ascii_only:
        alternatives.append(rf"[0-9#*]{code(0xFE0F)}?{code(0x20E3)}")  # a keycap
    alternatives.append(rf"{digit}+(?:[.,:]{digit}+)+")
    if cut.elided is not None:
        kept, vowels = "|".join(cut.elided), VOWELS
        if cut.capitals:
            kept, vowels = re.sub(r"\w", _either_case, kept), VOWELS + VOWELS.upper() + "İ"
        alternatives += [rf"(?:{kept})'(?:(?=[{vowels}])|(?!{letter}))"] if kept else []
        alternatives.append(rf"{letter}{{1,2}}(?='[{vowels}])")
    alternatives.append(f"{letters}(?:{joiners}{letters})*")
    if cut.keep_marks:
        alternatives += [r"\.\.+"] if ascii_only else [r"\.\.+", *_emoji(marks, dialect)]
        alternatives += [f"[^{no_letter}{_escaped(SPACES, code)}{marks}]", "_"]
    return "|".join(alternatives)


def _either_case(letter: re.Match[str]) -> str:
    return f"[{letter[0]}{letter[0].upper()}]"


def _emoji(marks: str, dialect: _Dialect) -> list[str]:
    """Return patterns of the emoji that are several characters: flags, tones, families."""
    code = dialect.code
    flag, tone, tag = (f"{code(low)}-{code(high)}" for low, high in (_FLAG, _TONE, _TAG))
    look = rf"(?:[{code(0xFE0E)}{code(0xFE0F)}{tone}{tag}{code(0x20E3)}]*)"
    symbol = f"[^{dialect.no_letter}{_escaped(SPACES, code)}{marks}{flag}\\x00-\\x7f]"
    return [f"[{flag}]{{2}}", f"{symbol}{look}(?:{code(0x200D)}{symbol}{look})*"]


def is_emoji(piece: str) -> bool:
    """Say whether a piece is one whole emoji: a pictograph, as Unicode classes it, flag or keycap.

    The signs ©, ® and ™ are pictographs to Unicode and letters' companions to a keyboard.
    """
    if piece.isascii() or piece[0] in "©®™" or is_half_an_emoji(piece):
        return False
    return _pictograph().match(piece) is not None


def without_look(emoji: str) -> str:
    """Return an emoji without its skin tones and selectors: what all its variants share."""
    looks = ((0xFE0E, 0xFE0F), _TONE)
    return "".join(c for c in emoji if not any(low <= ord(c) <= high for low, high in looks))


@lru_cache(maxsize=1)
def _pictograph() -> Any:
    import regex  # knows the classes of emoji, which Python's own module does not

    keycap = rf"[0-9#*]\ufe0f?{KEYCAP}"
    return regex.compile(rf"\p{{Extended_Pictographic}}|\p{{Regional_Indicator}}{{2}}|{keycap}")


def is_half_an_emoji(piece: str) -> bool:
    """Say whether a piece is a part of an emoji alone: a skin tone, half a flag, a selector."""
    first = ord(piece[0])
    halves = (_FLAG, _TONE, _TAG, (0xFE00, 0xFE0F), (0x20D0, 0x20FF), (0x200B, 0x200F))
    if len(piece) > 1 and _FLAG[0] <= first <= _FLAG[1]:
        return False
    return any(low <= first <= high for low, high in halves)


def stacked_marks(in_browser: bool = False) -> str:
    """Return the pattern of a run of marks that is too long; its group 1 is what stays.

    Sorting a run, as Unicode's normal forms do, takes time by the square of its length.
    """
    code = _ECMASCRIPT.code if in_browser else _PYTHON.code
    low = _ranges([span for span in _all_marks() if span[0] < 0x10000], code)
    high = _ranges([span for span in _all_marks() if span[0] >= 0x10000], code)
    # Python finds a character in a class without high ones by a table, else range by range.
    mark = f"(?:[{low}]|(?=[{code(0x10000)}-{code(0x10FFFF)}])[{high}])"
    return f"({mark}{{{MOST_MARKS}}}){mark}+"


@lru_cache(maxsize=1)
def _word_marks() -> tuple[tuple[int, int], ...]:
    """Return the marks that belong to the letter before them, as ranges.

    Python's ``\\w`` leaves them out, which would cut Hindi or Thai words into pieces.
    """
    codes = [c for c in range(0x300, 0x10000) if unicodedata.category(chr(c)) in ("Mn", "Mc")]
    return _spans(sorted([*codes, *map(ord, _JOINERS)]))


@lru_cache(maxsize=1)
def _all_marks() -> tuple[tuple[int, int], ...]:
    codes = (*range(0x300, 0x20000), *range(0xE0100, 0xE01F0))
    return _spans(c for c in codes if unicodedata.category(chr(c))[0] == "M")


def _spans(codes: Iterable[int]) -> tuple[tuple[int, int], ...]:
    spans: list[list[int]] = []
    for code in codes:
        if spans and code == spans[-1][1] + 1:
            spans[-1][1] = code
        else:
            spans.append([code, code])
    return tuple((low, high) for low, high in spans)


def _ranges(spans: Sequence[tuple[int, int]], code: Callable[[int], str]) -> str:
    """Return ranges as the inside of a [class]."""
    return "".join(code(low) if low == high else f"{code(low)}-{code(high)}" for low, high in spans)


def _escaped(characters: str, code: Callable[[int], str]) -> str:
    return "".join(c if c == "-" else code(ord(c)) for c in characters)
