"""From raw text to the pieces that are looked up: the part that a phone has to repeat exactly."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal

UNKNOWN = "<unk>"
NUMBER = "<number>"
ELLIPSIS = "..."
PUNCTUATION = (
    ". , ? ! ' " + '" : - ) ( ... ; / & * $ % @ # + = > < [ ] ~ _ { } | ^ ` \\'
).split()  # by falling frequency in English chat

_STRAIGHT = str.maketrans({"‘": "'", "’": "'", "ʼ": "'", "‛": "'", "“": '"', "”": '"', "„": '"'})
_PLACEHOLDER = re.compile(r"<[a-z_]+>")
_NUMBER = re.compile(r"\d[\d.,:]*")
_ZERO_WIDTH_JOINERS = "\u200c\u200d"


@dataclass(frozen=True)
class Normalisation:
    """How text becomes pieces, for languages that put spaces between words.

    In this order: Unicode NFKC; curly quotes made straight; lower case, if so stated; then the
    matches of ``pattern`` from left to right. Text between matches is dropped.

    Args:
        casing: ``lower``, or ``natural``: words stay as typed, and a form that the vocabulary
            lacks is looked up in lower case, then in the commonest form of the same letters.
        punctuation: ``keep`` makes every mark a piece (two or more full stops make one
            ``...``); ``drop`` leaves only words, numbers and placeholders.
        numbers: ``placeholder`` maps ``8``, ``8.04`` and ``10:30`` to ``<number>``; ``keep``
            treats them as words.
        placeholders: masks such as ``<url>`` that the text carries already.
    """

    casing: Literal["lower", "natural"] = "lower"
    punctuation: Literal["keep", "drop"] = "drop"
    numbers: Literal["placeholder", "keep"] = "placeholder"
    placeholders: tuple[str, ...] = (NUMBER,)

    def __post_init__(self) -> None:
        for name in self.placeholders:
            if not _PLACEHOLDER.fullmatch(name) or name in ("<pad>", UNKNOWN, "<s>"):
                raise ValueError(
                    f"placeholders: {name!r} is not a mask such as '<url>' in lower-case letters, "
                    "or it is taken by the tokenizer itself"
                )
        if len(set(self.placeholders)) < len(self.placeholders):
            raise ValueError("placeholders: the same mask is listed twice")
        if self.numbers == "placeholder" and NUMBER not in self.placeholders:
            raise ValueError(f"numbers = 'placeholder' needs {NUMBER!r} among the placeholders")

    def pieces(self, text: str) -> list[str]:
        """Return the pieces of ``text`` as written; ``canonical`` gives the form looked up."""
        if text.isascii():
            if self.casing == "lower":
                text = text.lower()
            return _finder(self.placeholders, self.punctuation, True)(text)
        text = unicodedata.normalize("NFKC", text).translate(_STRAIGHT)
        if self.casing == "lower":
            text = unicodedata.normalize("NFC", text.lower())
        return _finder(self.placeholders, self.punctuation, False)(text)

    def canonical(self, piece: str) -> str:
        """Return the piece that stands for ``piece``: ``<number>`` for 8.04, ``...`` for ``..``."""
        if piece[0] == "." and len(piece) > 1:
            return ELLIPSIS
        if self.numbers == "placeholder" and _NUMBER.fullmatch(piece):
            return NUMBER
        return piece

    @property
    def pattern(self) -> str:
        """The regular expression (Unicode, Python syntax) whose matches are the pieces."""
        return _pattern(self.placeholders, self.punctuation, False)

    def describe(self) -> dict[str, Any]:
        """Return everything a phone needs to repeat this, as plain data."""
        return asdict(self) | {"unicode": "NFKC", "quotes": "straight", "pattern": self.pattern}


def is_word(piece: str) -> bool:
    """Say whether a piece is a word or number, not a mark or a placeholder."""
    return piece[0].isalnum()


@lru_cache(maxsize=64)
def _finder(placeholders: tuple[str, ...], punctuation: str, ascii_only: bool) -> Any:
    return re.compile(_pattern(placeholders, punctuation, ascii_only)).findall


@lru_cache(maxsize=64)
def _pattern(placeholders: tuple[str, ...], punctuation: str, ascii_only: bool) -> str:
    """Join the alternatives; on ASCII text both forms find the same pieces, one of them faster."""
    marks = "" if ascii_only else combining_marks()
    letters = r"[^\W_]+" if ascii_only else rf"(?:[^\W_]++[{marks}]*+)++"
    masks = "|".join(re.escape(name) for name in (*placeholders, UNKNOWN))
    alternatives = [masks, r"\d+(?:[.,:]\d+)+", rf"{letters}(?:'{letters})*"]
    if punctuation == "keep":
        alternatives += [r"\.\.+", rf"[^\w\s{marks}]", "_"]
    return "|".join(alternatives)


@lru_cache(maxsize=1)
def combining_marks() -> str:
    """Return the marks that belong to the letter before them, as the inside of a [class].

    Python's ``\\w`` leaves them out, which would cut Hindi or Thai words into pieces.
    """
    codes = [c for c in range(0x300, 0x10000) if unicodedata.category(chr(c)) in ("Mn", "Mc")]
    codes += [ord(c) for c in _ZERO_WIDTH_JOINERS]
    spans: list[list[int]] = []
    for code in sorted(codes):
        if spans and code == spans[-1][1] + 1:
            spans[-1][1] = code
        else:
            spans.append([code, code])
    return "".join(f"\\u{low:04x}-\\u{high:04x}" for low, high in spans)
