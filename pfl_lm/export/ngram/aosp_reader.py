"""AOSP's binary dictionaries, version 202, read again: any widths of addresses, as AOSP writes."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path

from pfl_lm.export.ngram.aosp import LONGEST, Dictionary, Entry
from pfl_lm.export.ngram.aosp_binary import MAGIC, VERSION, f_of_steps

_END = 0x1F


@dataclass
class _Word:
    """A word as it lies in the file; its pairs name places."""

    word: str
    f: int
    is_word: bool
    shortcuts: tuple[tuple[str, int], ...] = ()
    pairs: list[tuple[int, int]] = field(default_factory=list)  # place, steps above


class _Bytes:
    """A file's bytes, and where they are read."""

    def __init__(self, content: bytes, place: int) -> None:
        self.content, self.place = content, place

    def number(self, width: int) -> int:
        part = self.content[self.place : self.place + width]
        if len(part) < width:
            raise ValueError("it is cut off")
        self.place += width
        return int.from_bytes(part, "big")

    def character(self) -> str | None:
        """Read a character; None: the sign that ends a text."""
        first = self.number(1)
        if first >= 0x20:
            return chr(first)
        return None if first == _END else chr(first << 16 | self.number(2))

    def text(self) -> str:
        letters = []
        while (letter := self.character()) is not None:
            letters.append(letter)
        return "".join(letters)


def read_binary(path: Path) -> Dictionary:
    """Read a dictionary, likeliest words first.

    Raises:
        ValueError: it is none of this version, is cut off, or leads to places where nothing lies.
    """
    content = path.read_bytes()
    if len(content) < 12:
        raise ValueError(f"{path.name} is cut off")
    magic, version, _, size = struct.unpack(">IHHI", content[:12])
    if (magic, version) != (MAGIC, VERSION):
        raise ValueError(f"{path.name} is no AOSP dictionary of version {VERSION}")
    given, head = _Bytes(content, 12), {}
    while given.place < size:
        key = given.text()
        head[key] = given.text()
    words: dict[int, _Word] = {}
    _array(_Bytes(content, size), "", words, set())
    entries = [
        Entry(
            word.word,
            word.f,
            tuple((_at(words, place).word, f_of_steps(_at(words, place).f, steps))
                  for place, steps in word.pairs),
            word.shortcuts,
            word.is_word,
        )
        for word in words.values()
    ]  # fmt: skip
    return Dictionary(head, tuple(sorted(entries, key=lambda entry: (-entry.f, entry.word))))


def _at(words: dict[int, _Word], place: int) -> _Word:
    if place not in words:
        raise ValueError(f"a pair leads to byte {place}, where no word lies")
    return words[place]


def _array(given: _Bytes, before: str, words: dict[int, _Word], seen: set[int]) -> None:
    """Read an array of nodes, and those below it; no array lies below two nodes."""
    if given.place in seen:
        raise ValueError(f"two nodes lead to byte {given.place}")
    seen.add(given.place)
    if len(before) > LONGEST:
        raise ValueError(f"a word has more than {LONGEST} characters")
    count = given.number(1)
    if count & 0x80:
        count = (count & 0x7F) << 8 | given.number(1)
    below: list[tuple[int, str]] = []
    for _ in range(count):
        place, flags = given.place, given.number(1)
        text = before + (given.text() if flags & 0x20 else given.character() or "")
        if text == before:
            raise ValueError(f"the node at byte {place} has no characters")
        word = _Word(text, given.number(1), not flags & 0x02) if flags & 0x10 else None
        here, width = given.place, flags >> 6
        if width:
            below.append((here + given.number(width), text))
        if word:
            words[place] = word
            word.shortcuts = _shortcuts(given) if flags & 0x08 else ()
            word.pairs = _pairs(given) if flags & 0x04 else []
    for place, text in below:
        _array(_Bytes(given.content, place), text, words, seen)


def _shortcuts(given: _Bytes) -> tuple[tuple[str, int], ...]:
    found, more = [], True
    given.number(2)
    while more:
        flags = given.number(1)
        found.append((given.text(), flags & 0x0F))
        more = bool(flags & 0x80)
    return tuple(found)


def _pairs(given: _Bytes) -> list[tuple[int, int]]:
    found, more = [], True
    while more:
        flags, here = given.number(1), given.place
        distance = given.number(flags >> 4 & 0x03)
        found.append((here + (-distance if flags & 0x40 else distance), flags & 0x0F))
        more = bool(flags & 0x80)
    return found
