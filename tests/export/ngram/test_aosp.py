"""AOSP dictionaries: both forms, read by a reader that shares nothing with the writer.

With ``PFL_LM_DICTTOOL`` naming AOSP's ``dicttool.jar``, its own encoder reads the text form, and
its file is compared with ours; with ``PFL_LM_DICTTOOL_LIBRARY`` naming the folder of its native
library too, AOSP's own reader lists the words of our file.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
from pathlib import Path

import numpy as np
import pytest

from pfl_lm.export.ngram import aosp
from pfl_lm.export.ngram.aosp import Dictionary, Entry, read_combined, write_combined
from pfl_lm.export.ngram.aosp_binary import f_of_steps, steps_above, write_binary
from pfl_lm.export.ngram.aosp_reader import read_binary
from pfl_lm.export.ngram.kneser_ney import fit_text
from pfl_lm.export.ngram.tables import tables_of
from pfl_lm.export.vocabulary import BlockList

HEAD = {
    "dictionary": "main:en_us", "locale": "en_US", "description": "a test", "date": "0",
    "version": "3",
}  # fmt: skip


def random_dictionary(count: int = 400) -> Dictionary:
    """Invent words of one to seven letters of one, two and four bytes, that share beginnings."""
    draw = random.Random(0)
    words = sorted({"".join(draw.choices("ab'éłю😀", k=draw.randint(1, 7))) for _ in range(count)})
    f = {word: draw.randint(1, 250) for word in words}
    blocked = set(words[::40])
    entries = []
    for word in words:
        if word in blocked:
            entries.append(Entry(word, 0))
            continue
        others = [o for o in draw.sample(words, draw.randint(0, 5)) if o not in blocked]
        pairs = [(other, draw.randint(f[other] + 1, 255)) for other in others]
        entries.append(Entry(word, f[word], tuple(sorted(pairs, key=lambda p: (-p[1], p[0])))))
    entries.append(Entry("dont", 77, (), ((words[1], 15), (words[2], 3)), is_word=False))
    return Dictionary(HEAD, tuple(sorted(entries, key=lambda e: (-e.f, e.word))))


class Trie:
    """A binary dictionary by FormatSpec.java, word by word."""

    def __init__(self, content: bytes) -> None:
        assert content[:8] == bytes.fromhex("9bc13afe00ca0000")
        self.c, size = content, int.from_bytes(content[8:12], "big")
        texts, at = [], 12
        while at < size:
            text, at = self.text(at)
            texts.append(text)
        self.head = dict(zip(texts[::2], texts[1::2], strict=True))
        self.at: dict[int, str] = {}
        self.words: dict[str, dict] = {}
        self.array(size, "")

    def letter(self, at: int) -> tuple[str, int]:
        if self.c[at] < 0x20:
            return chr(int.from_bytes(self.c[at : at + 3], "big")), at + 3
        return bytes([self.c[at]]).decode("latin-1"), at + 1

    def text(self, at: int) -> tuple[str, int]:
        found = ""
        while self.c[at] != 0x1F:
            letter, at = self.letter(at)
            found += letter
        return found, at + 1

    def array(self, at: int, before: str) -> None:
        count, at = self.c[at], at + 1
        if count > 127:
            count, at = ((count & 127) << 8) + self.c[at], at + 1
        for _ in range(count):
            start, flags = at, self.c[at]
            letters, at = self.text(at + 1) if flags & 32 else self.letter(at + 1)
            word = before + letters
            about = {"flags": flags & 3, "pairs": [], "shortcuts": []}
            if flags & 16:
                about["f"], at = self.c[at], at + 1
                self.at[start], self.words[word] = word, about
            width = flags >> 6
            below, at = at + int.from_bytes(self.c[at : at + width], "big"), at + width
            if flags & 8:
                end, at = at + int.from_bytes(self.c[at : at + 2], "big"), at + 2
                while at < end:
                    f = self.c[at] & 15
                    target, at = self.text(at + 1)
                    about["shortcuts"].append((target, f))
            more = flags & 4
            while more:
                mark, here = self.c[at], at + 1
                width = (mark >> 4) & 3
                way = int.from_bytes(self.c[here : here + width], "big")
                about["pairs"].append((here - way if mark & 64 else here + way, mark & 15))
                at, more = here + width, mark & 128
            if flags >> 6:
                self.array(below, word)


def check(trie: Trie, dictionary: Dictionary, shortcuts: bool = True) -> None:
    assert trie.head == dictionary.head
    assert list(trie.words) == sorted(trie.words)
    f = {entry.word: entry.f for entry in dictionary.entries}
    assert {word: about["f"] for word, about in trie.words.items()} == f
    for entry in dictionary.entries:
        about = trie.words[entry.word]
        assert about["flags"] == 2 * (not entry.is_word) + (entry.f == 0)
        if shortcuts:
            assert about["shortcuts"] == list(entry.shortcuts)
        found = {trie.at[place]: steps for place, steps in about["pairs"]}
        assert found == {word: steps_above(f[word], g) for word, g in entry.pairs}


def test_the_text_form_is_read_back(tmp_path):
    dictionary = random_dictionary()
    write_combined(tmp_path / "main.combined", dictionary)
    assert read_combined(tmp_path / "main.combined") == dictionary
    lines = (tmp_path / "main.combined").read_text(encoding="utf-8").split("\n")
    assert lines[0] == "dictionary=main:en_us,locale=en_US,description=a test,date=0,version=3"
    assert " word=dont,f=77,not_a_word=true" in lines
    assert sum(line.endswith(",f=0,possibly_offensive=true") for line in lines) > 3
    f = [int(line.split(",f=")[1].split(",")[0]) for line in lines if line.startswith(" word=")]
    assert f == sorted(f, reverse=True)


def test_the_binary_form_is_read_by_an_independent_reader(tmp_path):
    dictionary = random_dictionary()
    write_binary(tmp_path / "main.dict", dictionary)
    check(Trie((tmp_path / "main.dict").read_bytes()), dictionary)


def test_the_binary_form_is_read_back(tmp_path):
    dictionary = random_dictionary()
    write_binary(tmp_path / "main.dict", dictionary)
    again = read_binary(tmp_path / "main.dict")
    assert again.head == dictionary.head
    for one, other in zip(dictionary.entries, again.entries, strict=True):
        assert (one.word, one.f, one.is_word, one.shortcuts) == (
            other.word, other.f, other.is_word, other.shortcuts
        )  # fmt: skip
        assert [word for word, _ in one.pairs] == [word for word, _ in other.pairs]


def test_arrays_of_more_than_127_nodes_have_a_count_of_two_bytes(tmp_path):
    words = [chr(code) for code in range(0x400, 0x400 + 300)]
    dictionary = Dictionary(HEAD, tuple(Entry(word, 9) for word in words))
    write_binary(tmp_path / "main.dict", dictionary)
    check(Trie((tmp_path / "main.dict").read_bytes()), dictionary)


def test_four_bits_keep_a_pair_within_a_step():
    for alone in range(1, 255):
        step = (255 - alone) / 16.5
        for f in range(alone + 1, 256):
            read = f_of_steps(alone, steps_above(alone, f))
            assert alone <= read <= 255
            assert abs(read - f) <= step + 2  # each side cuts to whole numbers


@pytest.mark.parametrize("cut", [3, 40, 0.5, 0.99])
def test_a_binary_file_that_was_cut_is_refused(tmp_path, cut):
    path = tmp_path / "main.dict"
    write_binary(path, random_dictionary())
    content = path.read_bytes()
    path.write_bytes(content[: int(cut * len(content)) if cut < 1 else cut])
    with pytest.raises(ValueError, match=r"cut off|no AOSP|no word lies"):
        read_binary(path)


def test_a_binary_file_with_any_byte_changed_is_read_or_refused(tmp_path):
    """Whatever the bytes say: no endless reading, no other error than ValueError."""
    path, draw = tmp_path / "main.dict", random.Random(1)
    write_binary(path, random_dictionary(60))
    content = path.read_bytes()
    for _ in range(400):
        changed = bytearray(content)
        for _ in range(draw.randint(1, 3)):
            changed[draw.randrange(len(changed))] = draw.choice(
                [0, 0x1F, 0xFF, draw.randrange(256)]
            )
        path.write_bytes(bytes(changed))
        with contextlib.suppress(ValueError):
            read_binary(path)


def test_nodes_that_lead_to_one_another_are_refused(tmp_path):
    """An array that is its own child would be read for ever."""
    path = tmp_path / "main.dict"
    write_binary(path, Dictionary(HEAD, (Entry("a", 9), Entry("ab", 9))))
    content = bytearray(path.read_bytes())
    size = int.from_bytes(content[8:12], "big")
    assert content[size + 1 : size + 4] == bytes([0xD0, ord("a"), 9])
    body = bytes([1, 0xF0, 0x1F, 9, 0, 0, 3]) + bytes([1, 0xF0, 0x1F, 9, 0, 0, 0])
    path.write_bytes(bytes(content[:size]) + body)
    with pytest.raises(ValueError, match="no characters"):
        read_binary(path)
    twice = bytes([2, 0xD0, 97, 9, 0, 0, 9, 0xD0, 98, 9, 0, 0, 3]) + bytes([1, 0x10, 99, 9])
    path.write_bytes(bytes(content[:size]) + twice)
    with pytest.raises(ValueError, match="two nodes lead to byte"):
        read_binary(path)


@pytest.mark.parametrize("line", ["word", " bigram=a,f=", "  bigram=a", " word=a,f=1\n word=a,f=1"])
def test_a_text_file_that_is_damaged_is_refused(tmp_path, line):
    path = tmp_path / "main.combined"
    path.write_text(f"dictionary=main:en,locale=en\n{line}\n")
    with pytest.raises(ValueError, match=r"line|twice|int"):
        read_combined(path)


def test_a_dictionary_of_a_model(monkeypatch):
    from types import SimpleNamespace

    words = ["<pad>", "<unk>", "<s>", "</s>", "<number>", ".", "we", "don't", "know", "bad", "▁x",
             "wont", "won't", "'n'"]  # fmt: skip
    kinds = ["control"] * 4 + ["placeholder", "mark", *["word"] * 4, "subword", *["word"] * 3]
    tokenizer = SimpleNamespace(words=words, kinds=kinds, manifest={"locale": "en_US"})
    tokenizer.shown = lambda id: {"we": "We"}.get(words[id], words[id])
    ids = tuple(i for i, kind in enumerate(kinds) if kind != "word" or words[i] == "bad")
    blocked = BlockList(("bad",), ("bad",), ids)
    lines = [[6, 7, 8], [6, 9, 8], [6, 7, 8, 5], [11, 12, 13], [4, 10, 6]] * 5
    model = fit_text(np.concatenate([[2, *line, 3] for line in lines]), np.full(14, 1 / 14), 2)
    found = aosp.dictionary_of(model, tokenizer, blocked, aosp.head_of(tokenizer, "a=1,b", 7))
    entries = {entry.word: entry for entry in found.entries}
    assert found.head["description"] == "a 1 b"
    assert set(entries) == {"We", "don't", "know", "bad", "wont", "won't", "'n'", "dont"}
    assert entries["bad"] == Entry("bad", 0)
    assert entries["dont"] == Entry("dont", entries["don't"].f, (), (("don't", 15),), False)
    assert entries["wont"].is_word  # it is a word of the vocabulary, and stays one
    assert not entries["wont"].shortcuts
    assert [word for word, _ in entries["We"].pairs] == ["don't"]
    unigram = tables_of(model)[0]
    assert 1.15 ** (entries["We"].f - 255) == pytest.approx(unigram[6], rel=0.08)
    assert all(g > entries[word].f for entry in found.entries for word, g in entry.pairs)


def dicttool(*arguments: object) -> str:
    jar, library = os.environ.get("PFL_LM_DICTTOOL"), os.environ.get("PFL_LM_DICTTOOL_LIBRARY")
    if not jar:
        pytest.skip("PFL_LM_DICTTOOL does not name AOSP's dicttool.jar")
    where = [f"-Djava.library.path={library}"] if library else []
    command = ["java", *where, "-jar", jar, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_aosp_s_own_encoder_takes_the_text_form(tmp_path):
    dictionary = random_dictionary()
    write_combined(tmp_path / "main.combined", dictionary)
    dicttool("makedict", "-s", tmp_path / "main.combined", "-d", tmp_path / "theirs.dict")
    theirs = Path(tmp_path / "theirs.dict").read_bytes()
    # Some versions of the tool take shortcuts from the text, some leave them out.
    check(Trie(theirs), dictionary, shortcuts=False)


def test_aosp_s_own_reader_lists_the_binary_form(tmp_path):
    if not os.environ.get("PFL_LM_DICTTOOL_LIBRARY"):
        pytest.skip("PFL_LM_DICTTOOL_LIBRARY does not name the folder of AOSP's native library")
    dictionary = random_dictionary()
    write_binary(tmp_path / "main.dict", dictionary)
    dicttool("makedict", "-s", tmp_path / "main.dict", "-o", tmp_path / "back.combined")
    found: dict[str, dict] = {}
    for line in (tmp_path / "back.combined").read_text(encoding="utf-8").split("\n")[1:-1]:
        fields = dict(part.split("=", 1) for part in line.strip().split(","))
        if "word" in fields:
            about = found[fields["word"]] = {"f": int(fields["f"]), "pairs": {}, "shortcuts": []}
        elif "ngram" in fields:
            about["pairs"][fields["ngram"]] = int(fields["f"])
        elif "shortcut" in fields:
            about["shortcuts"].append((fields["shortcut"], int(fields["f"])))
    read = read_binary(tmp_path / "main.dict")
    assert found == {
        e.word: {"f": e.f, "pairs": dict(e.pairs), "shortcuts": list(e.shortcuts)}
        for e in read.entries
    }
