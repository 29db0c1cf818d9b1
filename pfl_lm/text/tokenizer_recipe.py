"""What a vocabulary's recipe states: whose words, by what right, and how text is read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pfl_lm.text import wordfreq_list
from pfl_lm.text.normalisation import (
    NO_SEGMENTER,
    SPACELESS,
    Normalisation,
    joiners_of,
    language_of,
    letters_of,
)
from pfl_lm.text.written_forms import WrittenFormsSource

CONFESSION = "I understand that a vocabulary learnt from private text breaks the guarantee."


@dataclass(frozen=True)
class VocabularySource:
    """Where the words come from, and by what right.

    Args:
        kind: ``word_list`` (a table of words and counts, .tsv or .csv, plain or compressed),
            ``wordfreq`` (the package's list for the locale's language, which is in lower case:
            German ß is ss there, and so it is in text), ``text`` (public text, .txt or .jsonl,
            plain or compressed), ``discovered`` (the words of ``base`` and those that
            `pfl-lm words discover` found, refused without their ledger) or ``private_text``
            (refused, unless ``breaks_guarantee`` says what that costs).
        provenance: who collected it, from what, and when.
        licence: SPDX identifier, or the terms in words.
        path: the list, the text, or the folder of the discovery, relative to the recipe.
        base: the vocabulary that takes in discovered words, a tokenizer's folder.
        word_column, count_column: columns of a word list, named in its header.
        text_field: field of a .jsonl file.
        breaks_guarantee: for ``private_text`` alone: the sentence that says what it costs.
    """

    kind: Literal["word_list", "wordfreq", "text", "discovered", "private_text"]
    provenance: str
    licence: str
    path: Path | None = None
    word_column: str = "word"
    count_column: str = "count"
    text_field: str = "text"
    breaks_guarantee: str = ""
    base: Path | None = None

    def __post_init__(self) -> None:
        for name in ("provenance", "licence"):
            if not getattr(self, name).strip():
                raise ValueError(f"{name} is empty; say where the words come from, by what right")
        if (self.kind == "wordfreq") is not (self.path is None):
            raise ValueError("path is needed for every kind but 'wordfreq', which takes none")
        if (self.kind == "discovered") is (self.base is None):
            raise ValueError(
                "base belongs to kind = 'discovered', which needs it: the folder of the tokenizer "
                "that takes in the words"
            )
        if self.kind == "private_text" and self.breaks_guarantee != CONFESSION:
            raise ValueError(
                "kind = 'private_text': a vocabulary learnt from private text tells everybody "
                "which words people typed, outside any guarantee; use a public source, or write "
                f'breaks_guarantee = "{CONFESSION}"'
            )
        if self.kind != "private_text" and self.breaks_guarantee:
            raise ValueError("breaks_guarantee belongs to kind = 'private_text' alone")


@dataclass(frozen=True)
class Subwords:
    """Pieces for words outside the vocabulary: a sentencepiece unigram model, byte fallback.

    Args:
        size: how many ids they take, the 256 bytes included.
        kind: the model that spells the words: a unigram model.
    """

    size: int
    kind: Literal["unigram"] = "unigram"

    def __post_init__(self) -> None:
        if not 512 <= self.size <= 32_000:
            raise ValueError(f"size = {self.size} subwords; 512 to 32,000 make sense")


@dataclass(frozen=True)
class TokenizerRecipe:
    """What ``tokenizers/*.toml`` states.

    Args:
        locale: such as ``en_US``; its language picks the list of ``wordfreq``, and what lower
            case is. Languages that put no spaces between words are refused.
        size: how many ids there are in all: specials, marks, words and subwords; with discovered
            words, the most that there may be.
        source: where the words come from, and by what right.
        casing: ``lower`` reads text in lower case; ``natural`` keeps the capitals of the source.
        punctuation: ``keep`` makes marks words of their own; ``drop`` leaves them out.
        numbers: ``placeholder`` reads every number as ``<number>``; ``keep`` reads it as a word.
        placeholders: words in angle brackets that stand for something that is not shown.
        subwords: pieces that spell words outside the vocabulary; absent: they are ``<unk>``.
        second_locale: for people who mix two languages: the locale of a second ``wordfreq`` list.
        second_share: its share of the running words, which the two lists' counts are weighed by.
        written_forms: public text that tells how words in lower case are usually written (London,
            iPhone), for what a person is shown; absent: they are shown in lower case.
    """

    locale: str
    size: int
    source: VocabularySource
    casing: Literal["lower", "natural"] = "lower"
    punctuation: Literal["keep", "drop"] = "drop"
    numbers: Literal["placeholder", "keep"] = "placeholder"
    placeholders: tuple[str, ...] = ("<number>",)
    subwords: Subwords | None = None
    second_locale: str | None = None
    second_share: float = 0.5
    written_forms: WrittenFormsSource | None = None

    def __post_init__(self) -> None:
        if not 1_000 <= self.size <= 200_000:
            raise ValueError(f"size = {self.size}; a vocabulary has 1,000 to 200,000 ids")
        _check_locale("locale", self.locale)
        if self.second_locale is not None:
            self._check_second(self.second_locale)
        if self.source.kind == "wordfreq" and self.casing == "natural":
            raise ValueError(
                "casing = 'natural' needs a source that has capitals, and wordfreq's lists are "
                "in lower case: 'Haus' would be 'haus' for ever; use casing = 'lower', or a "
                "word list or text"
            )
        if self.subwords and self.subwords.size > self.size // 2:
            raise ValueError("subwords.size leaves less than half of the ids to words")
        if self.written_forms and self.casing == "natural":
            raise ValueError(
                "written_forms belongs to casing = 'lower'; with 'natural' the vocabulary's own "
                "words have capitals: leave the table out"
            )
        Normalisation(self.casing, self.punctuation, self.numbers, self.placeholders)

    def _check_second(self, locale: str) -> None:
        _check_locale("second_locale", locale)
        if self.source.kind != "wordfreq":
            raise ValueError("second_locale belongs to kind = 'wordfreq', which has a list for it")
        if language_of(locale) == language_of(self.locale):
            raise ValueError(f"second_locale = {locale!r} is of the same language as locale")
        if not 0 < self.second_share < 1:
            raise ValueError(f"second_share = {self.second_share:g}; a share is between 0 and 1")

    @property
    def shares(self) -> dict[str, float]:
        """The locales whose lists the vocabulary takes, and their shares of running words."""
        if self.second_locale is None:
            return {self.locale: 1.0}
        return {self.locale: 1 - self.second_share, self.second_locale: self.second_share}

    def normalisation(self) -> Normalisation:
        """Return the rules that cut text, and the words of the source alike.

        Raises:
            ValueError: wordfreq has no list for a locale, or one rule cannot cut both languages.
        """
        stated = (self.punctuation, self.numbers, self.placeholders)
        if self.source.kind == "wordfreq":
            wordfreq_list.check(self.locale)
            first = wordfreq_list.rules(self.locale, *stated)
            if self.second_locale is None:
                return first
            wordfreq_list.check(self.second_locale)
            second = wordfreq_list.rules(self.second_locale, *stated)
            return wordfreq_list.of_both(first, second, (self.locale, self.second_locale))
        language = language_of(self.locale)
        letters, joiners = letters_of(language), joiners_of(language)
        return Normalisation(self.casing, *stated, letters, joiners)


def _check_locale(name: str, locale: str) -> None:
    """Refuse a locale that is no tag, or whose words are not parted by spaces."""
    if not re.fullmatch(r"[a-z]{2,3}([_-][A-Za-z0-9]+)*", locale):
        raise ValueError(f"{name} = {locale!r}; expected a tag such as 'en_US'")
    refuse_spaceless(name, locale)


def refuse_spaceless(name: str, locale: str) -> None:
    """Raise ValueError for a locale whose words are not parted by spaces."""
    if language_of(locale) in SPACELESS:
        raise ValueError(
            f"{name} = {locale!r}: spaces do not part the words of this language; {NO_SEGMENTER}"
        )
