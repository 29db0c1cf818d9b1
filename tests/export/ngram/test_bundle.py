"""`export --formats arpa,aosp`: what is in the bundle, and what verifying it finds."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pfl_lm.cli import app
from pfl_lm.export import build, test_vectors
from pfl_lm.export import bundle as names
from pfl_lm.export.bundle import opened, write_index
from pfl_lm.export.config import NgramConfig
from pfl_lm.export.ngram import network
from pfl_lm.export.ngram.aosp import read_combined
from pfl_lm.export.ngram.arpa import read_arpa
from pfl_lm.export.verify import verify_bundle
from pfl_lm.files import sha256_of
from pfl_lm.text.tokenizer import Tokenizer


@pytest.fixture(scope="module", autouse=True)
def _few_texts():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network, "TEXTS", 16)
        patch.setattr(network, "LEAST_TOLD", 1e-7)
        yield


@pytest.fixture(scope="module")
def favourite(source) -> str:
    """The word that the model suggests first: one that a block list must keep away."""
    specials = [i for i, k in enumerate(source.tokenizer.kinds) if k != "word"]
    first = build.predict_graph(source.model, best=1, blocked=specials)
    return str(source.tokenizer.words[int(first(**first.start)["words"][0, 0])])


def config(block_list: Path | None = None, **fields) -> build.ExportConfig:
    ngram = NgramConfig(words=400, **fields)
    return build.ExportConfig(("arpa", "aosp"), block_list=block_list, ngram=ngram)


@pytest.fixture(scope="module")
def ngram_bundle(source, text, favourite, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ngram")
    (folder / "blocked.txt").write_text(favourite)
    build.export(source, folder / "bundle", config(folder / "blocked.txt"), text)
    return folder / "bundle"


@pytest.fixture
def copy(ngram_bundle, tmp_path) -> Path:
    return Path(shutil.copytree(ngram_bundle, tmp_path / "copy"))


def stated(folder: Path) -> dict:
    return json.loads((folder / names.INDEX).read_text())["model"]["ngram"]


def findings(folder: Path, run: Path | None = None) -> dict[str, tuple[bool | None, str]]:
    with opened(folder) as bundle:
        return {f.name: (f.holds, f.says) for f in verify_bundle(bundle, run)}


def index_again(folder: Path) -> None:
    """Do as a forger would: write the index anew over what lies there."""
    content = json.loads((folder / names.INDEX).read_text())
    for name in ("schema", "files", "digest"):
        content.pop(name)
    write_index(folder, content)


def test_it_holds_the_files_and_no_graphs(ngram_bundle):
    files = {path.name for path in (ngram_bundle / "ngram").iterdir()}
    locale = stated(ngram_bundle)["files"][1]["path"].rsplit("/", 1)[1].removesuffix(".combined")
    assert files == {"model.arpa", f"{locale}.combined", f"{locale}.dict"}
    assert not (ngram_bundle / "weights.f32").exists()
    assert json.loads((ngram_bundle / names.INDEX).read_text())["graphs"] == []


def test_it_says_what_it_was_made_of_and_what_that_costs(ngram_bundle, source):
    about = stated(ngram_bundle)
    assert about["made_of"] == {
        "model_sha256": source.identity["model_sha256"], "public_text": None,
    }  # fmt: skip
    assert "no further ε" in about["statement"]
    page = (ngram_bundle / "MODEL_CARD.md").read_text()
    assert "## As an n-gram" in page
    assert about["statement"] in page
    assert "| the n-gram, order 3 |" in page
    assert "`ngram/model.arpa`" in page
    assert "What each file gives of it" not in page


def test_it_holds_when_verified_and_beside_its_run(ngram_bundle, run_folder, source, text):
    found = findings(ngram_bundle)
    assert all(holds for holds, _ in found.values()), found
    assert {"model.arpa", "aosp"} <= set(found)
    beside = findings(ngram_bundle, run_folder)
    assert beside["n-gram of the run"][0]
    assert all(holds for holds, _ in beside.values()), beside


def test_blocked_words_are_unknown_to_decoders_and_never_suggested(ngram_bundle, favourite, source):
    words = source.tokenizer.words
    model = read_arpa(ngram_bundle / "ngram" / "model.arpa", words)
    assert model.levels[0].logs[words.index(favourite)] == -float("inf")
    combined = next((ngram_bundle / "ngram").glob("*.combined"))
    entries = {entry.word: entry for entry in read_combined(combined).entries}
    assert entries[favourite].f == 0
    assert not entries[favourite].pairs
    assert all(favourite not in [w for w, _ in e.pairs] for e in entries.values())
    assert set(entries) <= {w for w, k in zip(words, source.tokenizer.kinds, strict=True)
                            if k == "word"}  # fmt: skip


def test_two_exports_have_the_same_bytes(ngram_bundle, source, text, tmp_path, favourite):
    (tmp_path / "blocked.txt").write_text(favourite)
    build.export(source, tmp_path / "again", config(tmp_path / "blocked.txt"), text)
    for path in (ngram_bundle / "ngram").iterdir():
        assert sha256_of(path) == sha256_of(tmp_path / "again" / "ngram" / path.name), path.name


def test_a_smaller_size_and_order_are_kept_to(source, text, tmp_path):
    build.export(source, tmp_path / "b", config(order=2, megabytes=0.1), text)
    assert all(file["bytes"] <= 100_000 for file in stated(tmp_path / "b")["files"])
    model = read_arpa(tmp_path / "b" / "ngram" / "model.arpa", source.tokenizer.words)
    assert model.order == 2


def test_a_model_whose_pairs_tell_nothing_gives_single_words_that_hold(
    source, text, tmp_path, monkeypatch
):
    monkeypatch.setattr(network, "LEAST_TOLD", float("inf"))
    build.export(source, tmp_path / "b", config(), text)
    model = read_arpa(tmp_path / "b" / "ngram" / "model.arpa", source.tokenizer.words)
    assert model.sizes[1:] == (0, 0)
    found = findings(tmp_path / "b")
    assert all(holds for holds, _ in found.values()), found


def test_a_changed_probability_is_found(copy):
    path = copy / "ngram" / "model.arpa"
    lines = path.read_text(encoding="utf-8").split("\n")
    at = lines.index("\\2-grams:") + 1
    for line in range(at, at + 20):
        log, rest = lines[line].split("\t", 1)
        lines[line] = f"{float(log) - 1:.5f}\t{rest}"
    path.write_text("\n".join(lines), encoding="utf-8")
    index_again(copy)
    holds, says = findings(copy)["model.arpa"]
    assert holds is False
    assert "sum to 1 ±" in says or "nats per word" in says


def test_a_blocked_word_with_a_frequency_is_found(copy, favourite):
    path = next((copy / "ngram").glob("*.combined"))
    text = path.read_text(encoding="utf-8")
    old = f" word={favourite},f=0,possibly_offensive=true"
    assert old in text
    path.write_text(text.replace(old, f" word={favourite},f=200"), encoding="utf-8")
    index_again(copy)
    found = findings(copy)
    assert found[path.name] == (False, f"suggests the blocked word {favourite!r}")
    assert found["aosp"][0] is False


def test_a_dictionary_of_another_bundle_is_found(copy, source, text, tmp_path):
    build.export(source, tmp_path / "other", config(order=2), text)
    path = next((copy / "ngram").glob("*.dict"))
    shutil.copyfile(tmp_path / "other" / "ngram" / path.name, path)
    index_again(copy)
    found = findings(copy)
    assert found[path.name][0] is False
    assert found["aosp"] == (False, "the two forms of the dictionary differ")


def test_public_text_must_be_public_and_of_the_vocabulary(source, text, tmp_path, monkeypatch):
    from pfl_lm.text.population import PopulationStore

    class Store:
        folder, tokenizer_digest = tmp_path, "another"
        require_vocabulary = PopulationStore.require_vocabulary

        def require_public(self):
            pass

    monkeypatch.setattr(PopulationStore, "open", lambda folder: Store())
    with pytest.raises(ValueError, match="another tokenizer than the bundle"):
        build.export(source, tmp_path / "b", config(public_text=tmp_path), text)
    assert not (tmp_path / "b").exists()


def test_the_users_own_text_is_no_public_text(source, text, tmp_path):
    """An n-gram would hold what they wrote, and say that it costs no further ε."""
    from pfl_lm.text.population import PopulationStore
    from pfl_lm.text.population_build import Input, build_population
    from pfl_lm.text.public_text import public_tokens

    words = source.tokenizer.words
    wrote = [[" ".join(words[10 + u + m : 16 + u + m]) for m in range(9)] for u in range(30)]
    records = [{"user": f"u{u}", "text": line} for u, own in enumerate(wrote) for line in own]
    (tmp_path / "theirs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    build_population([Input(tmp_path / "theirs.jsonl")], source.tokenizer, tmp_path / "people")
    public_tokens([tmp_path / "theirs.jsonl"], source.tokenizer, tmp_path / "public")
    of_people = replace(text, population=PopulationStore.open(tmp_path / "people"))
    with pytest.raises(ValueError, match="the public text is the users' own"):
        build.export(source, tmp_path / "b", config(public_text=tmp_path / "public"), of_people)
    assert not (tmp_path / "b").exists()


def test_public_text_is_counted_and_stated(source, text, tmp_path, monkeypatch):
    import numpy as np

    from pfl_lm.export.ngram import files
    from pfl_lm.streams import stream

    draw = stream(0, "public text")
    lines = [[2, *draw.integers(10, 60, 8), 3] for _ in range(60)]
    public = files._Public("some public text", "abc", np.concatenate(lines))
    monkeypatch.setattr(files, "_public_text", lambda *about: public)
    build.export(source, tmp_path / "b", config(), text)
    about = stated(tmp_path / "b")
    assert about["made_of"]["public_text"] == {"name": "some public text", "digest": "abc"}
    assert "parameters and public text" in about["statement"]
    assert "some public text" in (tmp_path / "b" / "MODEL_CARD.md").read_text()
    assert all(holds for holds, _ in findings(tmp_path / "b").values())


@pytest.mark.parametrize("content", [{}, {"files": 3}, {"files": [{"path": "../../x"}]}])
def test_an_index_that_says_something_else_of_the_n_gram_fails(copy, content):
    index = json.loads((copy / names.INDEX).read_text())
    for name in ("schema", "files", "digest"):
        index.pop(name)
    write_index(copy, index | {"model": index["model"] | {"ngram": content}})
    assert findings(copy)["n-gram"][0] is False


@pytest.mark.parametrize(
    ("fields", "says"),
    [({"order": 4}, "order"), ({"megabytes": 0.0}, "ngram_mb"), ({"words": 3}, "ngram_words")],
)
def test_settings_out_of_range_are_refused(fields, says):
    with pytest.raises(ValueError, match=says):
        NgramConfig(**fields)


def test_the_verb_writes_and_verifies(run_folder, tmp_path):
    def call(*words) -> str:
        found = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
        assert found.exit_code == 0, found.output
        return found.output

    said = call(
        "export", run_folder, "-o", tmp_path / "phone", "--zip", "--formats", "arpa,aosp",
        "--positions", "60", "--order", "2", "--ngram-words", "200",
    )  # fmt: skip
    assert "n-gram: sampling the model: 100%" in said
    assert "n-gram of order 2 (the network)" in said
    assert "no further ε" in said
    said = call("export", "verify", tmp_path / "phone.zip", "--run", run_folder)
    assert "Everything checked holds" in said
    assert "times the network's on text that the network wrote" in said


def test_the_test_vectors_are_of_the_words(ngram_bundle):
    with opened(ngram_bundle) as bundle:
        vectors = json.loads(bundle.path(names.VECTORS).read_text())
        words = Tokenizer.open(bundle.path(names.TOKENIZER)).vocabulary_size
    assert len(vectors["ngram"]["texts"]) > 30
    assert all(0 <= word < words for text in vectors["ngram"]["texts"] for word in text)
    assert vectors["ngram"]["ngram_nats"] > 0
    assert test_vectors.texts_of(vectors["predict"]["texts"])
