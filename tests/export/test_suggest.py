"""What a bundle suggests is what its model suggests: by one graph, word after word."""

from __future__ import annotations

import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pfl_lm.api import suggesting
from pfl_lm.evaluation.composing import Speller
from pfl_lm.evaluation.suggestions import LONGEST, suggest
from pfl_lm.export.bundle import write_zip
from pfl_lm.export.graphs.predict import predict_graph
from pfl_lm.export.vocabulary import blocked_letters
from pfl_lm.models.file import Model
from pfl_lm.models.models import ModelSpec, initialise
from pfl_lm.text.synthetic.population import synthetic_tokenizer
from tests.cli.conftest import pfl_lm
from tests.text.syllables import spelled, spelling_tokenizer

__all__ = ["pfl_lm"]
V = 300


@pytest.fixture
def words(source):
    return source.tokenizer.words


def test_a_bundle_suggests_what_its_model_does(bundle_folder, source):
    spec, parameters, tokenizer = source.model.spec, source.model.parameters, source.tokenizer
    typed = tokenizer.words[20:26]
    with suggesting.opened(bundle_folder) as suggester:
        for text in ("", typed[0], " ".join(typed), f"{typed[1]} nosuchword {typed[2]}"):
            for letters in ("", typed[3][:1]):
                expected = suggest(spec, parameters, tokenizer, text, 3, letters)
                found = suggester.offer(text, 3, letters).words
                assert [word for word, _ in found] == [word for word, _ in expected]
        assert suggester.offer("", letters="qqqq").words == []
        assert len(suggester.offer("", count=1).words) == 1
        assert len(suggester.prompts) == 12
        assert suggester.offer("").emoji == ""  # this vocabulary has none; say that some words are
        emoji = tuple(range(30, 40))
        chances = dict(suggest(spec, parameters, tokenizer, text, V))
        likeliest = max((tokenizer.words[id] for id in emoji), key=chances.__getitem__)
        assert replace(suggester, emoji_ids=emoji).offer(text).emoji == likeliest


def test_the_verb_reads_a_bundles_folder_and_its_zip(bundle_folder, pfl_lm, tmp_path, words):
    write_zip(bundle_folder, tmp_path / "bundle.zip")
    shown = [
        pfl_lm("suggest", path, words[20]) for path in (bundle_folder, tmp_path / "bundle.zip")
    ]
    assert shown[0] == shown[1]
    status, out, err = shown[0]
    assert (status, err) == (0, "")
    assert len(out.split()) == 5  # the text, …, three words


def test_letters_that_no_word_begins_with_are_said(bundle_folder, pfl_lm, words):
    _, out, _ = pfl_lm("suggest", bundle_folder, words[20], "--letters", "qqqq")
    assert "no word begins so" in out


def test_markup_in_a_text_is_text(bundle_folder, pfl_lm):
    status, out, _ = pfl_lm("suggest", bundle_folder, "[/bold] hi")
    assert status == 0
    assert out.startswith("[/bold] hi …")


def test_what_is_no_bundle_is_one_line(bundle_folder, pfl_lm, tmp_path):
    (tmp_path / "cat.zip").write_text("meow")
    broken = shutil.copytree(bundle_folder, tmp_path / "broken")
    next(broken.rglob("predict.*")).unlink()
    for path, told in (
        (tmp_path / "cat.zip", "cat.zip"),
        (tmp_path, "is not a run folder"),
        (broken, "predict"),
    ):
        status, out, err = pfl_lm("suggest", path, "how are")
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert told in err


def test_a_bundle_without_an_onnx_graph_names_the_format(bundle_folder, monkeypatch):
    from pfl_lm.export.bundle import Bundle

    monkeypatch.setattr(Bundle, "graphs", lambda self, *about: [])
    with (
        pytest.raises(ValueError, match="export with --formats onnx"),
        suggesting.opened(bundle_folder),
    ):
        pass


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_a_text_longer_than_a_transformers_context_keeps_its_last_words(positions):
    """The graph's state holds so many words: the caller begins with the last of them."""
    spec = ModelSpec(
        "transformer", V, 32, layers=2, heads=4, feedforward_dim=40, context=12,
        positions=positions,
    )  # fmt: skip
    draw = torch.Generator().manual_seed(3)
    values = {
        name: 0.2 * torch.randn(value.shape, generator=draw)
        for name, value in initialise(spec, 1).items()
    }
    tokenizer, graph = synthetic_tokenizer(V, "invented"), predict_graph(Model(spec, values, {}))
    bundle = suggesting._OfBundle(graph, SimpleNamespace(signature=graph.signature), tokenizer)
    text = " ".join(np.random.default_rng(0).choice(tokenizer.words[10:200], 40).tolist())
    expected = [word for word, _ in suggest(spec, values, tokenizer, text)]
    assert [word for word, _ in bundle.offer(text).words] == expected


def test_a_recurrent_bundle_reads_as_many_words_as_a_run(source):
    graph = predict_graph(source.model)
    bundle = suggesting._OfBundle(
        graph, SimpleNamespace(signature=graph.signature), source.tokenizer
    )
    text = " ".join(np.random.default_rng(0).choice(source.tokenizer.words[10:], 90).tolist())
    called = []
    monitored = suggesting._OfBundle(
        lambda **given: (called.append(1), graph(**given))[1],
        bundle.entry,
        bundle.tokenizer,
        (20, 21),
    )
    expected = suggest(source.model.spec, source.model.parameters, source.tokenizer, text)
    assert [word for word, _ in monitored.offer(text).words] == [word for word, _ in expected]
    assert len(called) == LONGEST + 1  # a text is read once, for its words and its emoji


def test_a_bundle_composes_words_of_pieces_but_none_that_its_list_blocks():
    tokenizer = spelling_tokenizer()
    spec = ModelSpec("cifg_lstm", tokenizer.vocabulary_size, embedding_dim=8, hidden_dim=8)
    values = initialise(spec, 0, tokenizer.unigram)
    bias = values["output_bias"].clone()
    bias[[kind == "subword" for kind in tokenizer.kinds]] = bias.max() - 3
    values |= {"embedding": 20 * values["embedding"], "output_bias": bias}
    graph = predict_graph(Model(spec, values, {}))
    entry = SimpleNamespace(signature=graph.signature)

    def bundle(*blocked):
        letters = blocked_letters(blocked, tokenizer)
        return suggesting._OfBundle(graph, entry, tokenizer, (), Speller.of(tokenizer, letters))

    text, begin = "lo lo ka", spelled(tokenizer)[9][:5]
    expected = [word for word, _ in suggest(spec, values, tokenizer, text, 3, begin)]
    assert set(expected) - set(tokenizer.words)
    assert [word for word, _ in bundle().offer(text, 3, begin).words] == expected
    composed = next(word for word in expected if word not in tokenizer.words)
    for form in (composed.upper(), composed.replace("o", "ο").replace("a", "á")):
        assert composed not in [word for word, _ in bundle(form).offer(text, 9, begin).words]
