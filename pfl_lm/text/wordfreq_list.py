"""The word lists of the wordfreq package, and the rules that cut text as those lists were cut.

A list is of use only to text that is cut into the same words. wordfreq folds letters (German ß is
ss, Romanian ş is ș, Serbian is Latin) and parts elided words (l' école); the rules here do the
same to text. For languages that put no spaces between words it needs a segmenter, which a phone
does not have: those are refused.

Source: Speer 2022, wordfreq 3, ``preprocess.py`` and ``tokens.py``.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, Literal

from pfl_lm.text.normalisation import (
    NO_SEGMENTER,
    SPACELESS,
    Normalisation,
    joiners_of,
    language_of,
)

TOTAL = 10**9  # words of running text that a list's counts are out of
# Elided words that are written with their apostrophe; elsewhere one letter stands for itself.
_ELIDED = {
    "fr": ("c", "d", "j", "l", "m", "n", "s", "t", "qu"),
    "ca": ("d", "l", "m", "n", "s", "t"),
    "it": ("c", "d", "l", "m", "n", "s", "t", "v"),
}
# Characters that Unicode's word boundaries keep inside words, where a language writes them there.
_JOINERS = {"ca": "'·", "fi": "':", "sv": "':"}
_LAST_FOLDED = 0x2000  # no letter beyond is folded in a way of its own
_LAST_MARK = 0x0900  # of scripts whose marks are left out
_RARE = 1e-3  # of a list's running words: letters of fewer may be read as another language does


def check(locale: str) -> None:
    """Raise ValueError unless there is a list for the locale that text can be cut for."""
    from wordfreq import available_languages
    from wordfreq.language_info import get_language_info

    language = language_of(locale)
    known = [
        name
        for name in sorted(available_languages("best"))
        if get_language_info(name)["tokenizer"] == "regex"
    ]
    if language in known:
        return
    if get_language_info(language)["tokenizer"] != "regex":
        if language in SPACELESS:
            why = NO_SEGMENTER
        else:
            why = (
                "its list holds pieces of what people write between two spaces. Build the "
                'vocabulary from a word list or public text (source.kind = "word_list" or "text"; '
                "docs/own_text.md, step by step)"
            )
        raise ValueError(f"locale: wordfreq cuts {language!r} into words with a segmenter; {why}")
    raise ValueError(f"locale: wordfreq has no list for {language!r}, only {' '.join(known)}")


def rules(
    locale: str,
    punctuation: Literal["keep", "drop"],
    numbers: Literal["placeholder", "keep"],
    placeholders: tuple[str, ...],
) -> Normalisation:
    """Return the normalisation that cuts text as the list of a locale was cut."""
    language = language_of(locale)
    return Normalisation(
        "lower",
        punctuation,
        numbers,
        placeholders,
        letters=_letters(language),
        joiners=_JOINERS.get(language, joiners_of(language)),
        elided=_ELIDED.get(language, ()),
    )


def of_both(one: Normalisation, other: Normalisation, locales: tuple[str, str]) -> Normalisation:
    """Return the rules that cut text in either of two languages as the list of each was cut.

    Args:
        one, other: what ``rules`` returns for each of ``locales``.

    Raises:
        ValueError: one language's rule for a letter would change the other's words.
    """
    first, second = dict(one.letters), dict(other.letters)
    changed = _changed(first, second, locales[1]) + _changed(second, first, locales[0])
    if changed:
        raise ValueError(
            f"second_locale: the lists of {locales[0]} and {locales[1]} read {changed[0]!r} "
            "differently, so one rule cannot cut text of both"
        )
    return replace(
        one,
        letters=tuple(sorted((second | first).items())),
        joiners="".join(dict.fromkeys(one.joiners + other.joiners)),
        elided=tuple(dict.fromkeys((one.elided or ()) + (other.elided or ()))),
    )


def _changed(rules: dict[str, str], own: dict[str, str], locale: str) -> list[str]:
    """Return the letters of a locale's words that another language's rules would change."""
    shares = _shares(language_of(locale))
    alien = (letter for letter in rules if letter not in own)
    return [letter for letter in alien if shares.get(letter.lower(), 0) > _RARE]


def entries(locale: str) -> Iterator[tuple[str, int]]:
    """Yield the words of a list as text has them, with counts out of ``TOTAL``.

    What is lost by the list's folding and can be told from the word alone is put back: a sigma at
    the end of a Greek word, the apostrophe of an elided word.
    """
    from wordfreq import get_frequency_dict

    language = language_of(locale)
    elided = frozenset(_ELIDED.get(language, ()))
    for word, share in get_frequency_dict(language, wordlist="best").items():
        count = round(share * TOTAL)
        if word in elided:
            yield f"{word}'", count
        elif language == "el":
            yield unicodedata.normalize("NFKC", word).upper().lower(), count  # knows final sigma
        else:
            yield word, count


def mixed(shares: Mapping[str, float]) -> Iterator[tuple[str, int]]:
    """Yield the words of several locales' lists, with counts weighed by their shares.

    A word of two lists comes twice.
    """
    for locale, share in shares.items():
        for word, count in entries(locale):
            yield word, round(share * count)


def notes(locale: str) -> list[str]:
    """Return what a list's folding means for the text that a keyboard suggests."""
    if language_of(locale) == "de":
        return ["the list writes ss for ß, so text is read, and words are suggested, that way"]
    return []


@lru_cache(maxsize=8)
def _shares(language: str) -> Mapping[str, float]:
    """Return for each letter the share of a list's running words that have it."""
    from wordfreq import get_frequency_dict

    shares: defaultdict[str, float] = defaultdict(float)
    for word, share in get_frequency_dict(language, wordlist="best").items():
        for letter in set(word):
            shares[letter] += share
    return shares


@lru_cache(maxsize=8)
def _letters(language: str) -> tuple[tuple[str, str], ...]:
    """Return the letters that wordfreq folds and lower case alone does not, with what they become.

    Found by asking wordfreq about each letter. Greek's final sigma is left as it is: text has it.
    """
    import langcodes
    from wordfreq.preprocess import preprocess_text

    tag: Any = langcodes.get(language)
    fold: Callable[[str], str] = lambda letter: preprocess_text(letter, tag)  # noqa: E731
    letters: list[tuple[str, str]] = []
    for code in (*range(0x41, 0x5B), *range(0x80, _LAST_FOLDED)):
        letter = chr(code)
        category = unicodedata.category(letter)
        if (category[0] == "M" and code >= _LAST_MARK) or category[0] not in "LM" or letter == "ς":
            continue
        if unicodedata.normalize("NFKC", letter) != letter:
            continue  # text is normalised before letters are replaced
        folded = unicodedata.normalize("NFKC", fold(letter))
        if folded != unicodedata.normalize("NFC", letter.lower()):
            letters.append((letter, folded))
    return tuple(letters)
