"""From raw text to the pieces that are looked up: the part that a phone has to repeat exactly."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal

from pfl_lm.text.pieces import KEYCAP, MOST_MARKS, Cut, ecmascript, pattern, stacked_marks

UNKNOWN = "<unk>"
NUMBER = "<number>"
ELLIPSIS = "..."
PUNCTUATION = (
    ". , ? ! ' " + '" : - ) ( ... ; / & * $ % @ # + = > < [ ] ~ _ { } | ^ ` \\'
).split()  # by falling frequency in English chat
# Marks beyond ASCII that a language's own keyboard has, by falling frequency; English has none.
# Source: CLDR 45, exemplar punctuation of each locale; quotes and the ellipsis are made ASCII here.
_DASHES, _GUILLEMETS = ("–", "—"), ("«", "»")
_OWN_MARKS = {
    "en": (),
    "es": ("¿", "¡", *_GUILLEMETS, "—"),
    "gl": ("¿", "¡", *_GUILLEMETS, "—"),
    "ca": (*_GUILLEMETS, *_DASHES, "¿", "¡"),
    "fr": (*_GUILLEMETS, *_DASHES),
    "it": (*_GUILLEMETS, "—"),
    "pt": (*_GUILLEMETS, *_DASHES),
    "ru": ("—", *_GUILLEMETS, "–"),
    "uk": ("—", *_GUILLEMETS, "–"),
    "be": ("—", *_GUILLEMETS, "–"),
    "el": ("·", *_GUILLEMETS, "–"),
    "ar": ("،", "؟", "؛", *_GUILLEMETS),
    "fa": ("،", "؟", "؛", *_GUILLEMETS),
    "ur": ("۔", "،", "؟", "؛"),
    "he": ("־", "–"),
    "hi": ("।", "॥", "–"),
    "bn": ("।", "॥", "–"),
    "mr": ("।", "॥", "–"),
    "hy": ("։", "՝", "՞", "՜", *_GUILLEMETS),
    "am": ("።", "፣", "፤", "፥"),
}

_ENDS = frozenset(".!?…؟।॥۔։።፧") | {ELLIPSIS}
# Quotes, and Hebrew's geresh and gershayim, which stand inside of its words.
_STRAIGHT = str.maketrans(
    {"‘": "'", "’": "'", "ʼ": "'", "‛": "'", "“": '"', "”": '"', "„": '"', "׳": "'", "״": '"'}
)
# Soft hyphen, marks of direction and the like, which nobody sees; joiners are not among them.
_INVISIBLE = re.compile("[\xad\u061c\u200e\u200f\u202a-\u202e\u2060-\u2069]")
_NO_SPACE = "\u200b"  # parts words and has no width
_PLACEHOLDER = re.compile(r"<[a-z_]+>")
_NUMBER = re.compile(r"\d[\d.,:]*")
_JOINERS = {"he": "'\"", "yi": "'\""}
_DOTLESS = (("I", "ı"), ("İ", "i"))
_DOTLESS_LANGUAGES = ("tr", "az", "kk", "crh", "tt")

# Languages whose words are not parted by spaces; Korean's and Vietnamese's are.
SPACELESS = frozenset({
    "zh", "cmn", "yue", "wuu", "nan", "hak", "gan", "hsn", "cdo", "lzh", "ja", "th", "lo", "km",
    "my", "bo", "dz", "shn", "nod", "tts",
})  # fmt: skip
NO_SEGMENTER = (
    "text is cut at spaces alone, so whole sentences would be unknown words. Chinese, Japanese, "
    "Thai and their like need a segmenter, which a keyboard here does not have"
)
_SPACELESS_SCRIPTS = re.compile(
    "[\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]"
)


@dataclass(frozen=True)
class Normalisation:
    """How text becomes pieces, for languages that put spaces between words.

    In this order: soft hyphens and marks of direction left out, a space without width made a space;
    marks in a row beyond 30 left out; Unicode NFKC; curly quotes, geresh and gershayim made
    straight; ``letters`` replaced; lower case, if so stated; then the matches of ``pattern`` from
    left to right. Text between matches is dropped. Time grows in proportion to the text.

    Args:
        casing: ``lower``, or ``natural``: words stay as typed, and a form that the vocabulary
            lacks is looked up in lower case, then in the commonest form of the same letters.
        punctuation: ``keep`` makes every mark a piece (two or more full stops make one
            ``...``, an emoji of several characters is one piece); ``drop`` leaves only words,
            numbers and placeholders.
        numbers: ``placeholder`` maps ``8``, ``8.04`` and ``10:30`` to ``<number>``; ``keep``
            treats them as words.
        placeholders: masks such as ``<url>`` that the text carries already.
        letters: pairs (character, what stands for it), replaced before lower case is made:
            Turkish ``I`` is ``ı``; a list that writes ``ss`` for ``ß`` needs text that does.
        joiners: characters that join letters into one word.
        elided: None, or the elided words that keep their apostrophe, as ``l'`` in French; other
            letters, one or two, before an apostrophe and a vowel are a word without it.
    """

    casing: Literal["lower", "natural"] = "lower"
    punctuation: Literal["keep", "drop"] = "drop"
    numbers: Literal["placeholder", "keep"] = "placeholder"
    placeholders: tuple[str, ...] = (NUMBER,)
    letters: tuple[tuple[str, str], ...] = ()
    joiners: str = "'"
    elided: tuple[str, ...] | None = None

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
        plain = text.isascii()
        if not plain:
            text = _INVISIBLE.sub("", text).replace(_NO_SPACE, " ")
            if len(text) > MOST_MARKS:
                text = _too_many_marks().sub(r"\1", text)
            text = unicodedata.normalize("NFKC", text).translate(_STRAIGHT)
        if self._table and not (plain and self._spares_ascii):
            text = text.translate(self._table)
        if self.casing == "lower":
            text = text.lower() if plain else unicodedata.normalize("NFC", text.lower())
        find = self._find_ascii if text.isascii() else self._find
        return list(find(text))

    def canonical(self, piece: str) -> str:
        """Return the piece that stands for ``piece``: ``<number>`` for 8.04, ``...`` for ``..``."""
        if piece[0] == "." and len(piece) > 1:
            return ELLIPSIS
        if self.numbers == "placeholder" and _NUMBER.fullmatch(piece):
            return NUMBER
        return piece

    def capital(self, letter: str) -> str:
        """Return a small letter as a capital: ``İ`` for i where ``I`` is the capital of ``ı``."""
        return "İ" if letter == "i" and _DOTLESS[0] in self.letters else letter.upper()

    @cached_property
    def cut(self) -> Cut:
        """How text is cut, as the patterns take it."""
        masks = (*self.placeholders, UNKNOWN)
        keeps_marks, capitals = self.punctuation == "keep", self.casing == "natural"
        return Cut(masks, keeps_marks, self.joiners, self.elided, capitals)

    @cached_property
    def _table(self) -> dict[int, str]:
        return {ord(old): new for old, new in self.letters}

    @cached_property
    def _spares_ascii(self) -> bool:
        return self._table.keys().isdisjoint(range(0x80))

    @cached_property
    def _find(self) -> Callable[[str], list[str]]:
        return re.compile(pattern(self.cut)).findall

    @cached_property
    def _find_ascii(self) -> Callable[[str], list[str]]:
        return re.compile(pattern(self.cut, ascii_only=True)).findall

    @property
    def pattern(self) -> str:
        """The regular expression (Unicode, Python syntax) whose matches are the pieces."""
        return pattern(self.cut)

    def describe(self) -> dict[str, Any]:
        """Return everything a phone needs to repeat this, as plain data."""
        return asdict(self) | {
            "unicode": "NFKC",
            "quotes": "straight",
            "most_marks": MOST_MARKS,
            "pattern": self.pattern,
        }

    def in_browser(self) -> dict[str, Any]:
        """Return what a browser needs: ``describe`` with patterns in its own syntax.

        The version of Unicode is the one that decides here what is a letter; a phone whose
        version is younger takes letters that it added for words, where they are marks here. The
        pattern cuts text in capitals too, so that a page can tell how a new word is written.
        """
        return self.describe() | {
            "pattern_ecmascript": ecmascript(self.cut._replace(capitals=True)),
            "stacked_marks_ecmascript": stacked_marks(in_browser=True),
            "unicode_version": unicodedata.unidata_version,
        }

    @classmethod
    def stated(cls, described: dict[str, Any]) -> Normalisation:
        """Return the rules that ``describe`` states; what is not stated has its default."""
        elided = described.get("elided")
        return cls(
            described["casing"],
            described["punctuation"],
            described["numbers"],
            tuple(described["placeholders"]),
            tuple((str(old), str(new)) for old, new in described.get("letters", ())),
            described.get("joiners", "'"),
            None if elided is None else tuple(elided),
        )


def marks_of(language: str) -> list[str]:
    """Return the marks of a language by falling frequency: its own after the four commonest."""
    own = _OWN_MARKS.get(language, _DASHES)
    return [*PUNCTUATION[:4], *own, *PUNCTUATION[4:]]


def sentence_ends(locale: str) -> frozenset[str]:
    """Return the marks after which a sentence begins; in Greek ``;`` asks."""
    return _ENDS | {";"} if language_of(locale) == "el" else _ENDS


def language_of(locale: str) -> str:
    """Return the language of a locale tag: ``fr`` of ``fr_CA``."""
    return locale.replace("-", "_").split("_")[0]


def joiners_of(language: str) -> str:
    """Return the characters that join letters into one word, where a language writes them there."""
    return _JOINERS.get(language, "'")


def letters_of(language: str) -> tuple[tuple[str, str], ...]:
    """Return the letters whose lower case is the language's own: the Turkish i's."""
    return _DOTLESS if language in _DOTLESS_LANGUAGES else ()


def beginnings(letters: str) -> tuple[str, ...]:
    """Return what a word that goes on from letters in lower case may begin with.

    Lower case makes a sigma that stands last a final one; in a longer word it is none.
    """
    return (letters, f"{letters[:-1]}σ") if letters.endswith("ς") else (letters,)


def is_word(piece: str) -> bool:
    """Say whether a piece is a word or number, not a mark, an emoji or a placeholder."""
    return piece[0].isalnum() and piece[-1] != KEYCAP


def spaceless_share(words: Counter[str]) -> float:
    """Return the share of running words in scripts that put no spaces between words."""
    spaceless = sum(n for word, n in words.items() if _SPACELESS_SCRIPTS.search(word))
    return spaceless / max(1, words.total())


@lru_cache(maxsize=1)
def _too_many_marks() -> re.Pattern[str]:
    return re.compile(stacked_marks())
