"""AOSP dictionaries: words, pairs and shortcuts as Android's keyboards rank them, as text.

A probability is a whole number f: 255 stands for 1, and each step down divides by 1.15. A pair has
a line only where its f lies above that of its second word alone. What is no word has no entry.
A blocked word has f = 0, which the format takes for a word that is no typing error and is never
suggested; nothing leads to it. A form without its apostrophe (``dont``) that is no word itself
leads to the word (``don't``).

Source: AOSP, packages/inputmethods/LatinIME, dictionaries/sample.combined and
CombinedFormatUtils.java.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pfl_lm.export.ngram.backoff import BackoffModel
from pfl_lm.export.vocabulary import BlockList
from pfl_lm.text.tokenizer import Tokenizer

LONGEST = 47  # characters of a word
MOST_PAIRS = 200  # lines of pairs below one word; a keyboard reads them one by one
WHITELIST = 15  # f of a shortcut that replaces what was typed
_STEP, _HIGHEST = np.log(1.15), 255
_SPOILS = re.compile(r"[,=\n\r\t#]")


@dataclass(frozen=True)
class Entry:
    """A word of a dictionary.

    Attributes:
        f: 0 to 255; 0 is never suggested.
        pairs: the words that may follow, with their f, likeliest first.
        shortcuts: what replaces or is offered for the word, with 0 to 15; 15 replaces it.
        is_word: False for a typing error that has its line for its shortcuts' sake.
    """

    word: str
    f: int
    pairs: tuple[tuple[str, int], ...] = ()
    shortcuts: tuple[tuple[str, int], ...] = ()
    is_word: bool = True


@dataclass(frozen=True)
class Dictionary:
    """A dictionary's head and its entries, likeliest first."""

    head: dict[str, str]
    entries: tuple[Entry, ...] = field(repr=False)


def frequency_of(logs: np.ndarray) -> np.ndarray:
    """Return f of natural logarithms of probabilities, int64: 1 to 255."""
    return np.clip(np.round(_HIGHEST + logs / _STEP), 1, _HIGHEST).astype(np.int64)


def head_of(tokenizer: Tokenizer, description: str, version: int) -> dict[str, str]:
    """Return a head, in the order in which it is written; date 0: it holds no time of writing."""
    locale = str(tokenizer.manifest.get("locale", "")) or "zz"
    return {
        "dictionary": f"main:{locale.lower()}",
        "locale": locale,
        "description": _SPOILS.sub(" ", description),
        "date": "0",
        "version": str(version),
    }


def dictionary_of(
    model: BackoffModel, tokenizer: Tokenizer, blocked: BlockList, head: dict[str, str]
) -> Dictionary:
    """Return the dictionary of an n-gram model's single words and pairs, as they are written."""
    words, hidden = [tokenizer.shown(i) for i in range(len(tokenizer.words))], set(blocked.ids)
    fits = [
        kind == "word" and len(word) <= LONGEST and not _SPOILS.search(word)
        for word, kind in zip(words, tokenizer.kinds, strict=True)
    ]
    f = frequency_of(model.levels[0].logs)
    shown = np.array(fits) & ~np.isin(np.arange(len(words)), blocked.ids)
    pairs = _pairs(model, f, shown)
    entries = [
        Entry(word, int(f[i]) if shown[i] else 0,
              tuple((words[j], g) for j, g in pairs.get(i, ()) if shown[i]))
        for i, word in enumerate(words)
        if fits[i] and (shown[i] or i in hidden)
    ]  # fmt: skip
    entries += _without_apostrophe(entries)
    return Dictionary(head, tuple(sorted(entries, key=lambda entry: (-entry.f, entry.word))))


def _pairs(
    model: BackoffModel, f: np.ndarray, shown: np.ndarray
) -> dict[int, list[tuple[int, int]]]:
    """Return the words that follow each word with a higher f than their own, likeliest first."""
    if model.order < 2:
        return {}
    level = model.levels[1]
    words, logs = model.ngrams(2), level.logs
    g = frequency_of(logs)
    good = shown[words[:, 0]] & shown[words[:, 1]] & (g > f[words[:, 1]])
    found: dict[int, list[tuple[int, int]]] = {}
    order = np.flatnonzero(good)
    order = order[np.lexsort((words[order, 1], -logs[order], words[order, 0]))]
    for at in order.tolist():
        first, second = words[at].tolist()
        lines = found.setdefault(first, [])
        if len(lines) < MOST_PAIRS:
            lines.append((second, int(g[at])))
    return found


def _without_apostrophe(entries: Sequence[Entry]) -> list[Entry]:
    """Return the entries of forms that lack an inner apostrophe, and are no words themselves."""
    known = {entry.word.lower() for entry in entries}
    best: dict[str, Entry] = {}
    for entry in entries:
        bare = entry.word.replace("'", "")
        inner = "'" in entry.word[1:-1] and entry.f > 0
        if inner and len(bare) > 2 and bare.lower() not in known:
            best[bare] = max(best.get(bare, entry), entry, key=lambda one: (one.f, one.word))
    return [
        Entry(bare, entry.f, shortcuts=((entry.word, WHITELIST),), is_word=False)
        for bare, entry in best.items()
    ]


def write_combined(path: Path, dictionary: Dictionary) -> None:
    """Write the text form."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(",".join(f"{key}={value}" for key, value in dictionary.head.items()) + "\n")
        for entry in dictionary.entries:
            marks = "" if entry.is_word else ",not_a_word=true"
            marks += "" if entry.f else ",possibly_offensive=true"
            file.write(f" word={entry.word},f={entry.f}{marks}\n")
            for word, f in entry.shortcuts:
                file.write(f"  shortcut={word},f={'whitelist' if f == WHITELIST else f}\n")
            file.writelines(f"  bigram={word},f={f}\n" for word, f in entry.pairs)


def read_combined(path: Path) -> Dictionary:
    """Read the text form.

    Raises:
        ValueError: a line is none of the format's, or a word stands there twice.
    """
    entries: list[Entry] = []
    with path.open(encoding="utf-8", newline="\n") as file:
        head = _fields(file.readline(), f"{path.name}, line 1")
        for number, line in enumerate(file, start=2):
            fields = _fields(line, f"{path.name}, line {number}")
            kind = next(iter(fields))
            if kind == "word":
                is_word = fields.get("not_a_word") != "true"
                entries.append(Entry(fields["word"], int(fields["f"]), is_word=is_word))
                continue
            if kind not in ("bigram", "shortcut") or not entries or "f" not in fields:
                raise ValueError(f"{path.name}, line {number}: no line of a dictionary")
            f = WHITELIST if fields["f"] == "whitelist" else int(fields["f"])
            last, more = entries[-1], ((fields[kind], f),)
            pairs = last.pairs + (more if kind == "bigram" else ())
            shortcuts = last.shortcuts + (more if kind == "shortcut" else ())
            entries[-1] = Entry(last.word, last.f, pairs, shortcuts, last.is_word)
    if len({entry.word for entry in entries}) < len(entries):
        raise ValueError(f"{path.name} holds a word twice")
    return Dictionary(head, tuple(entries))


def _fields(line: str, where: str) -> dict[str, str]:
    parts = [part.split("=", 1) for part in line.strip().split(",")]
    if not line.endswith("\n") or any(len(part) != 2 for part in parts):
        raise ValueError(f"{where}: no line of a dictionary")
    return dict(parts)
