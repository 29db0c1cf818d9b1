"""Counts of the words in a vocabulary's source, and the words that a vocabulary lacks of a text."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from pfl_lm.text import wordfreq_list
from pfl_lm.text.compressed import open_text
from pfl_lm.text.normalisation import (
    NO_SEGMENTER,
    UNKNOWN,
    Normalisation,
    is_word,
    spaceless_share,
)
from pfl_lm.text.parts import Remembered
from pfl_lm.text.pieces import is_emoji
from pfl_lm.text.readers import read_texts
from pfl_lm.text.tokenizer import Tokenizer
from pfl_lm.text.tokenizer_recipe import TokenizerRecipe, VocabularySource

_MOST_WORDS = 1 << 20  # that are counted of text at once: about 250 MB
_MOST_PARTS = 1 << 18  # different ones, that wait to be cut into pieces: about 30 MB
_MOST_WAITING = 1 << 26  # characters of text whose parts wait, however long these are
_MOST_SPACELESS = 0.05  # of the counted words, in scripts that put no spaces between words


def count_words(recipe: TokenizerRecipe, normalisation: Normalisation) -> Counter[str]:
    """Count canonical pieces in the source: a list's entries are cut by the rule for text."""
    source = recipe.source
    if source.kind in ("text", "private_text"):
        counts = count_texts(read_texts(_existing(source), source.text_field), normalisation)
    else:
        listed = source.kind == "wordfreq"
        entries = wordfreq_list.mixed(recipe.shares) if listed else _word_list(source)
        counts = _count_list(entries, normalisation)
        if listed:  # a list ends where words are rare; running text does not
            words = sum(count for _, count in wordfreq_list.mixed(recipe.shares))
            counts[UNKNOWN] += max(0, wordfreq_list.TOTAL - words)
    _refuse_spaceless(counts)
    return counts


def _count_list(entries: Iterable[tuple[str, int]], normalisation: Normalisation) -> Counter[str]:
    """Count the words of a list, and its emoji where marks are kept; its other marks are noise."""
    counts: Counter[str] = Counter()
    for word, count in entries:
        for piece in map(normalisation.canonical, normalisation.pieces(word)):
            if is_word(piece) or is_emoji(piece):
                counts[piece] += count
    return counts


def unknown_share(tokenizer: Tokenizer, texts: Iterable[str]) -> tuple[int, int]:
    """Return how many words some text has, and how many of them the vocabulary lacks.

    A word that is spelled with subwords is one that the vocabulary lacks.
    """
    words = unknown = 0
    for text in texts:
        for piece in tokenizer.normalisation.pieces(text):
            if is_word(piece):
                words += 1
                unknown += tokenizer.word_id(piece) in (None, tokenizer.unk_id)
    return words, unknown


def _refuse_spaceless(counts: Counter[str]) -> None:
    """Refuse a source in a script that puts no spaces between words, whatever its locale says."""
    share = spaceless_share(Counter({p: count for p, count in counts.items() if is_word(p)}))
    if share > _MOST_SPACELESS:
        raise ValueError(
            f"source: {share:.0%} of its words are in a script that puts no spaces between words; "
            f"{NO_SEGMENTER}"
        )


def count_texts(texts: Iterable[str], normalisation: Normalisation) -> Counter[str]:
    """Count the canonical pieces of texts, in memory that the texts do not fill.

    Parts between white space are counted first, and cut into pieces when many are counted. Real
    text never runs out of new words. Where more than a million are counted, those that were seen
    least are counted as ``<unk>`` until half are left: the sum stays exact, and a word's count is
    too low by what it had then. ``</s>`` counts the texts that have a piece.
    """
    counts: Counter[str] = Counter()
    parts: Counter[str] = Counter()
    pieces_of = Remembered(
        lambda part: tuple(map(normalisation.canonical, normalisation.pieces(part)))
    )
    messages = waiting = 0
    for text in texts:
        own = text.split()
        parts.update(own)
        messages += any(map(pieces_of.__getitem__, own))
        waiting += len(text)
        if len(parts) > _MOST_PARTS or waiting > _MOST_WAITING:
            _count_pieces(parts, pieces_of, counts)
            waiting = 0
    _count_pieces(parts, pieces_of, counts)
    counts["</s>"] = messages
    return counts


def _count_pieces(
    parts: Counter[str], pieces_of: Remembered[tuple[str, ...]], counts: Counter[str]
) -> None:
    """Move what was counted by parts to the counts of pieces."""
    for part, times in parts.items():
        for piece in pieces_of[part]:
            counts[piece] += times
    parts.clear()
    if len(counts) > _MOST_WORDS:
        _forget_rare(counts)


def _forget_rare(counts: Counter[str]) -> None:
    """Count the words that were seen least as unknown, so many times that half of them go."""
    sizes = sorted(counts.values())
    least = sizes[len(sizes) // 2]
    rare = [piece for piece, count in counts.items() if count <= least and piece != UNKNOWN]
    counts[UNKNOWN] += sum(map(counts.pop, rare))


def _word_list(source: VocabularySource) -> Iterator[tuple[str, int]]:
    path = _existing(source)
    delimiter = "," if ".csv" in path.suffixes else "\t"
    with open_text(path) as file:
        table = csv.reader(file, delimiter=delimiter, quoting=csv.QUOTE_NONE)
        try:
            header = next(table, [])
            for column in (source.word_column, source.count_column):
                if header.count(column) != 1:
                    raise ValueError(
                        f"{path}: {header.count(column) or 'no'} column {column!r}; its columns "
                        f"are {', '.join(header) or 'none'}"
                    )
            word_at, count_at = map(header.index, (source.word_column, source.count_column))
            for row in filter(None, table):
                if len(row) != len(header):
                    raise ValueError(f"{path}:{table.line_num}: expected {len(header)} columns")
                if not row[count_at].strip().isdecimal():
                    raise ValueError(
                        f"{path}:{table.line_num}: count {row[count_at]!r} is no whole number"
                    )
                yield row[word_at], int(row[count_at])
        except csv.Error as error:
            raise ValueError(f"{path}:{table.line_num}: {error}") from error


def _existing(source: VocabularySource) -> Path:
    if source.path is None or not source.path.exists():
        raise ValueError(f"source.path: {source.path} does not exist")
    return source.path
