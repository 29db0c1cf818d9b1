"""ARPA files: the text form of backoff models that decoders read.

Logarithms are to base 10, rounded so that a context's row still sums to one within 1e-4; ``<s>``
is never predicted and has −99. The words are the vocabulary's own, ``<unk>`` among them. Pieces
that spell a word are written as sentencepiece has them, ``▁ma`` where a word begins, and as
``##ma`` where it goes on, since ``ma`` may be a word or a mark.

Source: Doug Paul & Janet Baker 1992, "The design for the Wall Street Journal-based CSR corpus";
the form as SRILM's ngram-format(5) and KenLM have it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pfl_lm.export.ngram.backoff import BackoffModel, Level
from pfl_lm.export.ngram.tables import Table, numbers
from pfl_lm.text.tokenizer import Tokenizer

GOES_ON = "##"  # before a piece inside of a word
LOWEST = -99.0  # stands for a probability of zero
NUMBER_BYTES = 9  # of a logarithm, such as -12.34567
WEIGHT_BYTES = 1 + NUMBER_BYTES
_STANDS_OUT = re.compile("▁.|<0x")  # pieces that no word and no mark is written as
_HEAD = re.compile(r"ngram (\d)=(\d+)")


def names_of(tokenizer: Tokenizer) -> list[str]:
    """Return what a file calls each id; no two are called alike."""
    return [
        GOES_ON + word if kind == "subword" and not _STANDS_OUT.match(word) else word
        for word, kind in zip(tokenizer.words, tokenizer.kinds, strict=True)
    ]


def write_arpa(path: Path, model: BackoffModel, words: Sequence[str]) -> None:
    """Write a model; words that are never predicted and begin nothing have no line."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        lines = [_lines(model, length, words) for length in range(1, model.order + 1)]
        file.write("\n\\data\\\n")
        file.writelines(f"ngram {n}={len(part)}\n" for n, part in enumerate(lines, start=1))
        for length, part in enumerate(lines, start=1):
            file.write(f"\n\\{length}-grams:\n")
            file.writelines(part)
        file.write("\n\\end\\\n")


def _lines(model: BackoffModel, length: int, words: Sequence[str]) -> list[str]:
    level, longest = model.levels[length - 1], length == model.order
    logs = np.where(np.isfinite(level.logs), level.logs / np.log(10), LOWEST).tolist()
    weights = (level.weights / np.log(10)).tolist()
    lines = []
    for ngram, log, weight in zip(model.ngrams(length).tolist(), logs, weights, strict=True):
        if log == LOWEST and ngram != [Tokenizer.bos_id]:
            continue
        text = " ".join(words[word] for word in ngram)
        told = "" if longest or weight == 0 else f"\t{weight:.5f}"
        lines.append(f"{log:.5f}\t{text}{told}\n")
    return lines


def costs(model: BackoffModel, words: Sequence[str]) -> list[np.ndarray]:
    """Return the bytes that each n-gram takes at most, by level, less the weights of contexts.

    The weights of single words are among them; another context's takes ``WEIGHT_BYTES``.
    """
    letters = np.array([len(word.encode()) for word in words])
    return [
        letters[model.ngrams(length)].sum(axis=1)
        + (length + 1 + NUMBER_BYTES)
        + (WEIGHT_BYTES if length == 1 else 0)
        for length in range(1, model.order + 1)
    ]


def read_arpa(path: Path, words: Sequence[str]) -> BackoffModel:
    """Read a model over a vocabulary.

    Raises:
        ValueError: it is no ARPA file, is cut off, counts other n-grams than it states, holds an
            n-gram twice, a word outside the vocabulary, or an n-gram whose context is absent.
    """
    ids = {word: place for place, word in enumerate(words)}
    stated: dict[int, int] = {}
    held: dict[int, list[tuple[list[int], float, float]]] = {}
    length, ended = 0, False
    with path.open(encoding="utf-8", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            line = line.rstrip("\n")
            if found := _HEAD.fullmatch(line):
                stated[int(found[1])] = int(found[2])
            elif line.endswith("-grams:"):
                length = int(line[1 : -len("-grams:")])
                held[length] = []
            elif line == "\\end\\":
                ended = True
            elif line and line != "\\data\\":
                if not length:
                    raise ValueError(f"{path.name}, line {number}: no part of an ARPA file")
                held[length].append(_entry(line, length, ids, f"{path.name}, line {number}"))
    if not ended:
        raise ValueError(f"{path.name} is cut off: it has no \\end\\")
    if stated != {n: len(part) for n, part in held.items()} or not stated:
        raise ValueError(f"{path.name} holds other numbers of n-grams than its head states")
    return _assembled(held, len(words), path.name)


def _entry(
    line: str, length: int, ids: dict[str, int], where: str
) -> tuple[list[int], float, float]:
    fields = line.split("\t")
    words = fields[1].split(" ") if len(fields) > 1 else []
    if len(fields) not in (2, 3) or len(words) != length:
        raise ValueError(f"{where}: this is no line of an n-gram of {length} words")
    if unknown := [word for word in words if word not in ids]:
        raise ValueError(f"{where}: {unknown[0]!r} is no word of the vocabulary")
    log, weight = float(fields[0]), float(fields[2]) if len(fields) == 3 else 0.0
    if not (log <= 0 and math.isfinite(log) and math.isfinite(weight)):
        raise ValueError(f"{where}: {fields[0]} and {weight:g} are no logarithms of a model")
    return [ids[word] for word in words], log, weight


def _assembled(
    held: dict[int, list[tuple[list[int], float, float]]], size: int, name: str
) -> BackoffModel:
    """Put the read n-grams into levels, with the weights that the file states."""
    from pfl_lm.export.ngram.backoff import Level

    levels: list[Level] = []
    shorter = np.arange(size)  # numbers of the n-grams of the level below, in order
    for length in sorted(held):
        grams = np.array([entry[0] for entry in held[length]], np.int64).reshape(-1, length)
        logs, weights = np.array([entry[1:] for entry in held[length]]).reshape(-1, 2).T
        table = Table.of(numbers(grams, size), np.arange(len(grams)))
        order = table.chances.astype(np.int64)
        if (np.diff(table.ids) == 0).any():
            raise ValueError(f"{name} holds an n-gram twice")
        logs = np.where(logs <= LOWEST, -np.inf, logs * np.log(10))[order]
        weights = weights[order] * np.log(10)
        if length == 1:
            full = np.full(size, -np.inf), np.zeros(size)
            full[0][table.ids], full[1][table.ids] = logs, weights
            levels.append(Level(np.arange(size), *full))
            continue
        places, known = Table(shorter, shorter).find(table.ids // size)
        if not known.all():
            raise ValueError(f"{name} holds an n-gram whose context it does not hold")
        levels.append(Level(places * size + table.ids % size, logs, weights))
        shorter = table.ids
    return BackoffModel(tuple(levels))


def worst_sum(model: BackoffModel, contexts: np.ndarray) -> float:
    """Return how far the rows of contexts, int64[n, length], are from summing to one, at most."""
    sums = [np.exp(model.row(tuple(context))).sum() for context in contexts.tolist()]
    return float(max(abs(total - 1) for total in sums))


def contexts_to_test(model: BackoffModel, most: int = 200) -> list[np.ndarray]:
    """Return no context and listed ones of each length, spread evenly over the model."""
    found = [np.zeros((1, 0), np.int64)]
    for length in range(1, model.order):
        numbered = np.unique(model.levels[length].keys // model.words)
        chosen = numbered[:: max(1, len(numbered) // most)]
        found.append(model.ngrams(length)[chosen])
    return [contexts for contexts in found if len(contexts)]
