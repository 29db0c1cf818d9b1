"""ARPA files: read back by ourselves, by a reader written here, and by libraries, if installed."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from pfl_lm.export.ngram.arpa import (
    WEIGHT_BYTES,
    contexts_to_test,
    costs,
    names_of,
    read_arpa,
    worst_sum,
    write_arpa,
)
from pfl_lm.export.ngram.files import ngram_nats
from pfl_lm.export.ngram.kneser_ney import fit_text
from pfl_lm.export.ngram.tables import pruned
from pfl_lm.text.normalisation import Normalisation
from pfl_lm.text.tokenizer import CONTROLS
from pfl_lm.text.tokenizer_assemble import assemble
from tests.text.syllables import spelling_greek, spelling_tokenizer

WORDS = ["<pad>", "<unk>", "<s>", "</s>", "a", "é", "don't", "ю", "▁b", "<number>", "😀", "z"]
SENTENCES = ["a é don't", "don't ю ▁b", "<number> 😀 z a", "é", "a a a", "z z é a ю"]


@pytest.fixture(scope="module")
def model():
    ids = [[2, *(WORDS.index(w) for w in line.split()), 3] for line in SENTENCES * 3]
    return fit_text(np.concatenate(ids), np.full(len(WORDS), 1 / len(WORDS)), 3)


@pytest.fixture
def path(model, tmp_path):
    write_arpa(tmp_path / "model.arpa", model, WORDS)
    return tmp_path / "model.arpa"


class Reader:
    """ARPA by its definition, in a dict."""

    def __init__(self, path):
        self.grams = {}
        for line in path.read_text(encoding="utf-8").split("\n"):
            fields = line.split("\t")
            if len(fields) > 1:
                self.grams[tuple(fields[1].split(" "))] = [*map(float, fields[::2]), 0.0][:2]

    def log10(self, gram):
        if gram in self.grams:
            return self.grams[gram][0]
        return self.grams.get(gram[:-1], [0, 0.0])[1] + self.log10(gram[1:])


def test_what_is_read_is_what_was_written(model, path):
    again = read_arpa(path, WORDS)
    for one, other in zip(model.levels, again.levels, strict=True):
        np.testing.assert_array_equal(one.keys, other.keys)
        np.testing.assert_allclose(one.logs, other.logs, atol=2e-5)
        np.testing.assert_allclose(one.weights, other.weights, atol=2e-5)
    assert all(worst_sum(again, tested) < 1e-3 for tested in contexts_to_test(again))


def test_single_words_alone_are_written_and_read(model, tmp_path):
    each = costs(model, WORDS)
    small = pruned(model, each, int(each[0].sum()), WEIGHT_BYTES)
    assert small.sizes == (len(WORDS), 0, 0)
    write_arpa(tmp_path / "small.arpa", small, WORDS)
    again = read_arpa(tmp_path / "small.arpa", WORDS)
    assert again.sizes == small.sizes
    np.testing.assert_allclose(again.levels[0].logs, small.levels[0].logs, atol=2e-5)
    every = np.array([(a, b) for a in range(len(WORDS)) for b in range(len(WORDS))])
    assert worst_sum(again, every) < 1e-3
    assert all(worst_sum(again, tested) < 1e-3 for tested in contexts_to_test(again))
    texts = [np.array([2, *(WORDS.index(word) for word in line.split()), 3]) for line in SENTENCES]
    assert ngram_nats(again, texts) == pytest.approx(ngram_nats(small, texts), abs=1e-4)


def test_an_independent_reader_finds_the_same_probabilities_that_sum_to_one(model, path):
    reader = Reader(path)
    for context in [("<s>",), ("a",), ("<s>", "a"), ("a", "a"), ("z", "é"), ("ю", "ю")]:
        row = model.row(tuple(WORDS.index(word) for word in context))
        total = 0.0
        for word in WORDS[1:2] + WORDS[3:]:
            found = reader.log10((*context, word))
            assert found == pytest.approx(row[WORDS.index(word)] / math.log(10), abs=5e-5)
            total += 10**found
        assert total == pytest.approx(1, abs=1e-3)


def test_its_form(path, model):
    lines = path.read_text(encoding="utf-8").split("\n")
    heads = [f"ngram {n}={size - (n == 1)}" for n, size in enumerate(model.sizes, start=1)]
    assert lines[1:5] == ["\\data\\", *heads]
    assert lines[-2] == "\\end\\"
    start = next(line for line in lines if line.split("\t")[1:2] == ["<s>"])
    assert start.startswith("-99.00000\t<s>\t")
    assert not any("<pad>" in line for line in lines)


def test_it_takes_no_more_bytes_than_estimated(path, model):
    contexts = len(np.unique(model.levels[2].keys // len(WORDS)))
    most = sum(int(part.sum()) for part in costs(model, WORDS)) + WEIGHT_BYTES * contexts
    assert most // 2 <= path.stat().st_size <= most + 200


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda text: text.replace("\\end\\\n", ""), "cut off"),
        (lambda text: text.replace("ngram 2=", "ngram 2=9"), "other numbers"),
        (lambda text: text.replace("\tz ", "\tzz "), "'zz' is no word"),
        (lambda text: text.replace("\\2-grams:\n-", "\\2-grams:\nnan\t"), "no line of an n-gram"),
        (lambda text: re.sub(r"-[0-9.]+\tz a", "nan\tz a", text), r"nan and .* are no logarithms"),
        (lambda text: re.sub(r"-[0-9.]+\tz a", "0.3\tz a", text), r"0\.3 and .* are no logarithms"),
        (lambda text: "a\n" + text, "line 1: no part of an ARPA file"),
        (lambda text: text.replace("\ta a a", "\ta a"), "no line of an n-gram of 3 words"),
        (lambda text: text.replace("\ta é don't", "\ta a a"), "twice"),
        (lambda text: text.replace("\ta é don't", "\té é don't"), "context"),
    ],
)
def test_a_damaged_file_is_refused(path, change, says):
    text = path.read_text(encoding="utf-8")
    assert change(text) != text
    path.write_text(change(text), encoding="utf-8")
    with pytest.raises(ValueError, match=says):
        read_arpa(path, WORDS)


def test_kenlm_reads_it(path, model):
    kenlm = pytest.importorskip("kenlm", reason="kenlm is not installed; it compiles from source")
    read = kenlm.LanguageModel(str(path))
    for line in SENTENCES:
        ids = [2, *(WORDS.index(word) for word in line.split()), 3]
        wanted = sum(
            model.row(tuple(ids[max(0, n - 2) : n]))[ids[n]] for n in range(1, len(ids))
        ) / math.log(10)
        assert read.score(line) == pytest.approx(wanted, abs=1e-3)


def test_the_arpa_package_reads_it(path, model):
    arpa = pytest.importorskip("arpa", reason="the arpa package is not installed")
    read = arpa.loadf(str(path))[0]
    for line in SENTENCES:
        ids = [2, *(WORDS.index(word) for word in line.split()), 3]
        wanted = sum(
            model.row(tuple(ids[max(0, n - 2) : n]))[ids[n]] for n in range(1, len(ids))
        ) / math.log(10)
        assert read.log_s(line) == pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize("spelling", [spelling_tokenizer, spelling_greek])
def test_pieces_that_are_spelled_as_words_are_told_apart(spelling, tmp_path):
    tokenizer = spelling()
    size, words = tokenizer.vocabulary_size, names_of(tokenizer)
    assert len(set(tokenizer.words)) < size, "a piece is a word as well"
    assert len(set(words)) == size
    ids = np.random.default_rng(3).integers(3, size, 4_000)
    model = fit_text(np.concatenate([[2], ids, [3]]), np.full(size, 1 / size), 3)
    write_arpa(tmp_path / "model.arpa", model, words)
    again = read_arpa(tmp_path / "model.arpa", words)
    np.testing.assert_array_equal(model.levels[2].keys, again.levels[2].keys)


def test_a_mark_is_no_piece():
    rows = [*((name, "control", 1) for name in CONTROLS), ("▁", "mark", 1), ("a", "word", 1)]
    rows += [(piece, "subword", 1) for piece in ("▁", "▁a", "a", "<0x61>")]
    assert names_of(assemble(rows, Normalisation(), {}))[4:] == [
        "▁", "a", "##▁", "▁a", "##a", "<0x61>",
    ]  # fmt: skip
