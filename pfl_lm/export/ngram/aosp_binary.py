"""AOSP's binary dictionaries, version 202: the form that Android's keyboards load.

The words are a Patricia trie. Numbers are big-endian. Every address takes three bytes here, which
the format allows; AOSP's own tool picks the shortest, and its files are a little smaller.

    head    magic, version, options, size of the head; then key, value, key, value, …
    array   how many nodes (1 or 2 bytes), nodes
    node    flags, characters, [f], address of the array below, [shortcuts], [pairs]

Source: AOSP, packages/inputmethods/LatinIME, makedict/FormatSpec.java (layout),
makedict/BinaryDictEncoderUtils.java, getBigramFrequencyDiff (4 bits of a pair's f), and
native/jni/src/dictionary/utils/probability_utils.h (how a keyboard reads them).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

import numpy as np

from pfl_lm.export.ngram.aosp import Dictionary, Entry

MAGIC, VERSION = 0x9BC13AFE, 202
_END, _HIGHEST, _STEPS = 0x1F, 255, 15
_BELOW, _SEVERAL, _TERMINAL, _SHORTCUTS, _PAIRS, _NO_WORD, _OFFENSIVE = (
    0xC0, 0x20, 0x10, 0x08, 0x04, 0x02, 0x01
)  # fmt: skip
_MORE, _BACKWARDS, _THREE_BYTES = 0x80, 0x40, 0x30
_MOST_NODES, _MOST_BYTES = 0x7FFF, 1 << 24


@dataclass
class _Node:
    """A node of the trie, and where it lies once it was placed."""

    characters: str
    entry: Entry | None
    below: list[_Node] = field(default_factory=list)
    place: int = 0
    below_place: int = 0


def write_binary(path: Path, dictionary: Dictionary) -> None:
    """Write the binary form.

    Raises:
        ValueError: it would be larger than addresses of three bytes reach.
    """
    root = _trie(sorted(dictionary.entries, key=lambda entry: entry.word), 0)
    end = _place(root, 0)
    if end >= _MOST_BYTES or len(root) > _MOST_NODES:
        raise ValueError(f"the dictionary takes {end:,} bytes; an AOSP dictionary has below 2^24")
    nodes = {node.entry.word: node for node in _all(root) if node.entry}
    body = b"".join(_array(array, nodes) for array in _arrays(root))
    assert len(body) == end
    attributes = b"".join(_text(key) + _text(value) for key, value in dictionary.head.items())
    head = struct.pack(">IHHI", MAGIC, VERSION, 0, 12 + len(attributes)) + attributes
    path.write_bytes(head + body)


def _trie(entries: Sequence[Entry], depth: int) -> list[_Node]:
    """Return the nodes of sorted entries that share their first ``depth`` characters."""
    nodes, first = [], 0
    while first < len(entries):
        letter, last = entries[first].word[depth], first
        while last < len(entries) and entries[last].word[depth] == letter:
            last += 1
        shared = _shared(entries[first].word, entries[last - 1].word)
        ends = len(entries[first].word) == shared
        node = _Node(entries[first].word[depth:shared], entries[first] if ends else None)
        node.below = _trie(entries[first + ends : last], shared)
        nodes.append(node)
        first = last
    return nodes


def _shared(one: str, other: str) -> int:
    """Count the characters that two words begin with alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _arrays(root: list[_Node]) -> Iterator[list[_Node]]:
    """Yield an array and those below it, in the order in which they are written."""
    yield root
    for node in root:
        if node.below:
            yield from _arrays(node.below)


def _all(root: list[_Node]) -> Iterator[_Node]:
    for array in _arrays(root):
        yield from array


def _place(root: list[_Node], start: int) -> int:
    """Set where every array and node lies; return the end."""
    place = start + _count_bytes(root)
    for node in root:
        node.place = place
        place += _size(node)
    for node in root:
        if node.below:
            node.below_place = place
            place = _place(node.below, place)
    return place


def _count_bytes(array: list[_Node]) -> int:
    return 1 if len(array) <= 0x7F else 2


def _head_size(node: _Node) -> int:
    """Bytes before the address of what is below."""
    several = len(node.characters) > 1
    return 1 + len(_characters(node.characters)) + several + (node.entry is not None)


def _size(node: _Node) -> int:
    size = _head_size(node) + 3 * bool(node.below)
    if node.entry:
        size += len(_shortcuts(node.entry)) + 4 * len(node.entry.pairs)
    return size


def _array(array: list[_Node], nodes: dict[str, _Node]) -> bytes:
    count = len(array)
    head = bytes([count]) if count <= 0x7F else struct.pack(">H", count | 0x8000)
    return head + b"".join(_node(node, nodes) for node in array)


def _node(node: _Node, nodes: dict[str, _Node]) -> bytes:
    entry, several = node.entry, len(node.characters) > 1
    flags = _BELOW * bool(node.below) | _SEVERAL * several
    if entry:
        flags |= _TERMINAL | _SHORTCUTS * bool(entry.shortcuts) | _PAIRS * bool(entry.pairs)
        flags |= _NO_WORD * (not entry.is_word) | _OFFENSIVE * (entry.f == 0)
    parts = [bytes([flags]), _characters(node.characters), bytes([_END]) * several]
    if entry:
        parts.append(bytes([entry.f]))
    if node.below:
        parts.append((node.below_place - node.place - _head_size(node)).to_bytes(3, "big"))
    if entry:
        parts.append(_shortcuts(entry))
        place = node.place + _head_size(node) + 3 * bool(node.below) + len(parts[-1])
        parts.append(_pairs(entry, place, nodes))
    return b"".join(parts)


def _shortcuts(entry: Entry) -> bytes:
    if not entry.shortcuts:
        return b""
    found = b""
    for left, (word, f) in zip(
        range(len(entry.shortcuts) - 1, -1, -1), entry.shortcuts, strict=True
    ):
        found += bytes([_MORE * bool(left) | f]) + _text(word)
    return struct.pack(">H", 2 + len(found)) + found


def _pairs(entry: Entry, place: int, nodes: dict[str, _Node]) -> bytes:
    """Return the pairs of a word, whose list begins at ``place``."""
    found = b""
    for number, (word, f) in enumerate(entry.pairs):
        other = nodes[word]
        assert other.entry
        distance = other.place - (place + len(found) + 1)
        flags = _MORE * (number + 1 < len(entry.pairs)) | _BACKWARDS * (distance < 0)
        flags |= _THREE_BYTES | steps_above(other.entry.f, f)
        found += bytes([flags]) + abs(distance).to_bytes(3, "big")
    return found


def steps_above(alone: int, f: int) -> int:
    """Return in 4 bits how far a pair's f lies above that of its second word alone."""
    step = _step(alone)
    if not step:
        return 0
    above = (np.float32(f) - (np.float32(1 + alone) + step / np.float32(2))) / step
    return max(0, min(_STEPS, int(above)))


def f_of_steps(alone: int, steps: int) -> int:
    """Return the f that a keyboard reads from those 4 bits."""
    return alone + int(np.float32(steps + 1) * _step(alone))


def _step(alone: int) -> np.float32:
    """Return a step above a word's f, in single precision as AOSP computes it."""
    return np.float32(_HIGHEST - alone) / np.float32(_STEPS + 1.5)


def _characters(text: str) -> bytes:
    return b"".join(
        bytes([code]) if 0x20 <= code <= 0xFF else code.to_bytes(3, "big")
        for code in map(ord, text)
    )


def _text(text: str) -> bytes:
    return _characters(text) + bytes([_END])
