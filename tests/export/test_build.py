"""From a run to a bundle: what is in it, and that half of one never is."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pfl_lm.dp.ledger import Ledger
from pfl_lm.export import build, card, forward
from pfl_lm.export.bundle import opened
from pfl_lm.export.config import NgramConfig
from pfl_lm.export.source import open_source
from pfl_lm.files import scratch_beside, sha256_of
from pfl_lm.models.file import Model, load_model, save_model
from pfl_lm.models.models import ModelSpec, initialise
from pfl_lm.models.side_branch import roles as side_roles
from pfl_lm.run.folder import RunFolder
from pfl_lm.text.tokenizer import Tokenizer

FILES = {
    "MODEL_CARD.md", "blocklist.txt", "personal.f32", "privacy.json", "testvectors.json",
    "weights.f32", "graphs/predict.fp32.onnx", "graphs/predict.int8.onnx",
    "graphs/train_step.fp32.onnx", "graphs/personal_step.fp32.onnx", "provenance/manifest.json",
    "provenance/ledger.jsonl", "tokenizer/tokenizer.model", "tokenizer/vocabulary.tsv",
    "tokenizer/tokenizer.json",
}  # fmt: skip


def small(**changes) -> build.ExportConfig:
    fields = {"formats": ("onnx",), "precisions": ("fp32",), "train": False, "personal": False}
    return build.ExportConfig(**{**fields, **changes})


def leftovers(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class TestWhatIsInIt:
    def test_every_part_and_its_checksum(self, bundle_folder):
        with opened(bundle_folder) as bundle:
            stated = bundle.index.files
            assert set(stated) >= FILES
            for name, about in stated.items():
                assert about["sha256"] == sha256_of(bundle.path(name))

    def test_the_index_tells_a_phone_all_it_needs(self, bundle_folder, source):
        index = json.loads((bundle_folder / "bundle.json").read_text())
        entry = next(g for g in index["graphs"] if g["precision"] == "int8")
        inputs = {name: (dtype, shape) for name, dtype, shape in entry["signature"]["inputs"]}
        assert inputs["token"] == ("int32", [1])
        assert inputs["mask"] == ("float32", [1, 300])
        assert set(entry["signature"]["state"].values()) <= set(inputs)
        assert {"least_runtime", "versions", "notes", "parity", "cost"} <= set(entry)
        assert entry["parity"]["top3_agreement"] == 1.0
        assert index["vocabulary"]["special_ids"]["bos_id"] == 2
        assert index["run"]["ledger_head"] == source.identity["ledger_head"]

    def test_the_words_are_the_run_s(self, bundle_folder, source):
        assert Tokenizer.open(bundle_folder / "tokenizer").digest == source.tokenizer.digest

    def test_the_weights_are_the_model_s(self, bundle_folder, source):
        import numpy as np

        lies = json.loads((bundle_folder / "bundle.json").read_text())["model"]["weights"]
        values = np.fromfile(bundle_folder / "weights.f32", "<f4")
        for name, tensor in source.model.parameters.items():
            first = lies[name]["offset"] // 4
            found = values[first : first + tensor.numel()].reshape(lies[name]["shape"])
            assert (found == tensor.numpy()).all(), name

    def test_the_card_leads_with_the_figure_against_everyone(self, bundle_folder):
        page = (bundle_folder / "MODEL_CARD.md").read_text()
        assert "ε = 2.000 against everyone, the honest-but-curious server included" in page

    def test_the_card_of_a_simulation_promises_no_epsilon_of_its_own(self, bundle_folder, source):
        page = (bundle_folder / "MODEL_CARD.md").read_text()
        assert source.manifest.statements.guaranteed.startswith("Nothing for this very model")
        figure = page.index("ε = 2.000 against everyone")
        paragraph = page[page.rindex("\n\n", 0, figure) : figure].strip()
        assert paragraph == (
            "ε = ∞ for this very model, which has no guarantee. Of a deployment under the policy "
            "it would hold:"
        )
        guarantee = source.manifest.guarantee
        its_own = card.Statements(guarantee.statement, "Nothing.")
        assert card._guarantee(guarantee, its_own).startswith("ε = 2.000 against everyone")

    def test_the_card_names_a_start_from_private_text(self, bundle_folder, source, text, tmp_path):
        stated = json.loads((bundle_folder / "bundle.json").read_text())
        for kind, says in (("public", "| no |"), ("private", "| yes, and no ε covers its text |")):
            model = replace(source.manifest.model, start={"kind": kind, "text": "some chats"})
            started = replace(source, manifest=replace(source.manifest, model=model))
            card.write_card(tmp_path, started, stated, text)
            assert f"| first model | some chats {says}" in (tmp_path / card.CARD).read_text()

    def test_the_card_names_words_from_what_people_typed(
        self, bundle_folder, source, text, tmp_path
    ):
        stated = json.loads((bundle_folder / "bundle.json").read_text())
        for words, says in (
            ({"kind": "wordfreq"}, "no"),
            ({"kind": "private_text"}, "yes, and no ε covers its words"),
            ({"kind": "discovered", "asked": [{}]}, "some words: users were asked for them"),
        ):
            content = source.manifest.content | {"vocabulary": words}
            known = replace(source, manifest=replace(source.manifest, content=content))
            card.write_card(tmp_path, known, stated, text)
            page = (tmp_path / card.CARD).read_text()
            row = next(line for line in page.splitlines() if line.startswith("| vocabulary |"))
            assert row.split("|")[3].strip().startswith(says)
            assert ("words of a public vocabulary" in page) == (says == "no")

    def test_the_card_says_that_no_epsilon_covers_figures_of_peoples_text(
        self, bundle_folder, source, text, tmp_path
    ):
        stated = json.loads((bundle_folder / "bundle.json").read_text())
        for kind in ("synthetic", "store"):
            scenario = source.manifest.scenario
            people = replace(scenario.population, kind=kind)
            scenario = replace(scenario, population=people)
            known = replace(source, manifest=replace(source.manifest, scenario=scenario))
            card.write_card(tmp_path, known, stated, text)
            page = (tmp_path / card.CARD).read_text()
            assert ("ε covers the model and not them" in page) == (kind == "store")
            assert ("and no ε covers them" in page) == (kind == "store")

    def test_counts_of_poisson_rounds_are_not_published(self, source, tmp_path):
        content = source.manifest.content
        policy = content["policy"] | {"participation": {"kind": "poisson"}}
        manifest = replace(source.manifest, content=content | {"policy": policy})
        sampled = replace(source, manifest=manifest)
        for name, one in (("rotation", source), ("poisson", sampled)):
            (tmp_path / name).mkdir()
            card.write_provenance(tmp_path / name, one)
        assert (tmp_path / "rotation" / "provenance" / "ledger.jsonl").exists()
        assert not (tmp_path / "poisson" / "provenance" / "ledger.jsonl").exists()
        stated = json.loads((tmp_path / "poisson" / "privacy.json").read_text())
        assert stated["ledger"]["head"] == source.identity["ledger_head"]

    def test_the_card_carries_both_statements_and_the_figures(self, bundle_folder, source):
        page = (bundle_folder / "MODEL_CARD.md").read_text()
        statements = source.manifest.content["statements"]
        assert statements["guaranteed"] in page
        assert statements["simulated"] in page
        assert source.identity["ledger_head"] in page
        for heading in ("What it is for", "What it was made of", "How good it is", "Limits"):
            assert f"## {heading}" in page
        assert "keystrokes saved" in page
        assert "invented" in page

    def test_two_exports_are_equal(self, kept_format, source, text, tmp_path):
        for name in ("one", "two"):
            build.export(source, tmp_path / name, small(), text)
        for path in (tmp_path / "one").rglob("*"):
            other = tmp_path / "two" / path.relative_to(tmp_path / "one")
            if path.is_file() and path.suffix != ".onnx" and path.name != "bundle.json":
                assert path.read_bytes() == other.read_bytes(), path.name


class TestAForgottenPart:
    """The graphs' forward is code of its own: what it forgot shows beside the simulator's model."""

    @pytest.fixture
    def branched(self, source):
        spec = replace(source.model.spec, side_branch=4)
        draw = torch.Generator().manual_seed(0)
        drawn = {
            name: torch.randn(role.shape, generator=draw) for name, role in side_roles(spec).items()
        }
        model = replace(source.model, spec=spec, parameters=source.model.parameters | drawn)
        return replace(source, model=model)

    def test_a_side_branch_is_exported(self, kept_format, branched, text, tmp_path):
        # A branch of random numbers leaves near ties, which eight bits may break otherwise.
        config = small(precisions=("fp32", "int8"), least_agreement=0.9)
        build.export(branched, tmp_path / "bundle", config, text)
        for entry in json.loads((tmp_path / "bundle" / "bundle.json").read_text())["graphs"]:
            if entry["precision"] == "fp32":
                assert entry["parity"]["top3_agreement"] >= 0.98
                assert entry["parity"]["most_difference"] < 1e-3

    def test_without_it_nothing_is_kept(self, kept_format, branched, text, tmp_path, monkeypatch):
        monkeypatch.setattr(forward, "_with_side_branch", lambda s, l, vectors, e: vectors)
        monkeypatch.setattr(forward, "check_reads_all", lambda spec: None)
        with pytest.raises(ValueError, match="too seldom the three suggestions of the trained"):
            build.export(branched, tmp_path / "bundle", small(), text)
        assert leftovers(tmp_path) == []


class TestAShortContext:
    @pytest.mark.parametrize("context", [1, 2, 4])
    @pytest.mark.parametrize("positions", ["learned", "rotary"])
    def test_every_part_reads_as_many_ids_as_the_model(
        self, kept_format, source, text, tmp_path, context, positions
    ):
        spec = ModelSpec(
            "transformer", source.model.spec.vocabulary_size, 8, heads=2, feedforward_dim=8,
            context=context, positions=positions,
        )  # fmt: skip
        model = Model(spec, initialise(spec, 0, source.tokenizer.unigram), source.model.origin)
        short = replace(source, model=model)
        assert short.window <= context
        config = small(
            formats=("onnx", "arpa"), personal=True, ngram=NgramConfig(order=2, words=500)
        )
        build.export(short, tmp_path / "bundle", config, replace(text, window=short.window))
        told = json.loads((tmp_path / "bundle" / "testvectors.json").read_text())
        for keys in told["predict"]["texts"]:
            assert 1 <= sum(not key["typed"] for key in keys) <= context
        index = json.loads((tmp_path / "bundle" / "bundle.json").read_text())
        assert index["model"]["personal"]["window"] <= context


class TestBlockedWords:
    def test_are_never_suggested_and_counted(self, kept_format, source, text, tmp_path):
        first = build.predict_graph(source.model, best=1, blocked=source.tokenizer.specials)
        favourite = int(first(**first.start)["words"][0, 0])
        word = source.tokenizer.words[favourite]
        (tmp_path / "blocked.txt").write_text(f"{word}\nnot-a-word\n")
        config = small(block_list=tmp_path / "blocked.txt", least_agreement=0.0)
        build.export(source, tmp_path / "bundle", config, text)
        told = json.loads((tmp_path / "bundle" / "testvectors.json").read_text())
        suggested = {
            word for text in told["predict"]["reference"] for key in text for word in key["words"]
        }
        assert favourite not in suggested
        with opened(tmp_path / "bundle") as bundle:
            assert bundle.index.vocabulary["blocked"]["words"] == 1
            assert bundle.path("blocklist.txt").read_text().split() == sorted([word, "not-a-word"])

    def test_a_list_without_any_known_word_is_refused(self, kept_format, source, text, tmp_path):
        (tmp_path / "blocked.txt").write_text("zzzz\n")
        config = small(block_list=tmp_path / "blocked.txt")
        with pytest.raises(ValueError, match="none of its words is in the vocabulary"):
            build.export(source, tmp_path / "bundle", config, text)
        assert leftovers(tmp_path) == ["blocked.txt"]


class TestWholeOrNotAtAll:
    def test_too_little_agreement_keeps_nothing(self, kept_format, source, text, tmp_path):
        worse = build.compare

        def compare(*readings):
            return replace(worse(*readings), top3_agreement=0.97)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(build, "compare", compare)
            with pytest.raises(ValueError, match=r"nothing was kept.*97\.00% \(bar 98%\)"):
                build.export(source, tmp_path / "bundle", small(), text)
        assert leftovers(tmp_path) == []

    @pytest.mark.parametrize("name", ["bundle", "bundle.zip"])
    def test_an_error_half_way_keeps_nothing(self, kept_format, source, text, tmp_path, name):
        def fail(*about):
            raise OSError("no space left")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(build, "write_index", fail)
            with pytest.raises(OSError, match="no space left"):
                build.export(source, tmp_path / name, small(), text)
        assert leftovers(tmp_path) == []

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
    def test_a_killed_export_leaves_nothing(self, run_folder, source, text, tmp_path, number):
        """SIGKILL cannot be answered: the next export clears what it left, and it has no name."""
        code = f"""
import sys, time
from pfl_lm.cli import main
from pfl_lm.export import build
def stop(*about):
    print("half way", flush=True)
    time.sleep(60)
build.read_trained = stop
build.ExportConfig.__post_init__ = lambda self: None
sys.argv[1:] = ["export", "run", {str(run_folder)!r}, "-o", {str(tmp_path / "bundle")!r},
                "--formats", "onnx", "--precisions", "fp32"]
main()
"""
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == "half way\n", process.stderr.read()
        process.send_signal(number)
        process.communicate(timeout=60)
        assert process.returncode != 0
        assert not (tmp_path / "bundle").exists()
        if number is signal.SIGKILL:
            with scratch_beside(tmp_path / "bundle"):
                assert len(leftovers(tmp_path)) == 1  # this one
        assert leftovers(tmp_path) == []

    def test_what_exists_is_not_overwritten(self, kept_format, bundle_folder, source, text):
        with pytest.raises(ValueError, match="exists already"):
            build.export(source, bundle_folder, small(), text)

    def test_what_does_not_hold_is_not_kept(self, kept_format, source, text, tmp_path):
        """Before it becomes visible, an export is verified as `export verify` does."""
        from pfl_lm.export import test_vectors

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(test_vectors, "text_vectors", lambda *about: [{"text": "a", "ids": [9]}])
            with pytest.raises(ValueError, match=r"nothing was kept.*tokenizer"):
                build.export(source, tmp_path / "bundle", small(), text)
        assert leftovers(tmp_path) == []


class TestWhatCannotBeExported:
    def test_a_missing_toolchain_names_its_extra(self):
        from pfl_lm.export.formats.registry import FORMATS

        absent = [name for name, known in FORMATS.items() if known.missing()]
        if not absent:
            pytest.skip("every toolchain is installed here")
        with pytest.raises(ValueError, match=rf"pfl-lm\[{absent[0]}\]"):
            build.ExportConfig(formats=(absent[0],))

    @pytest.mark.parametrize("fields", [{"formats": ()}, {"precisions": ()}])
    def test_no_format_or_no_precision(self, kept_format, fields):
        name = next(iter(fields))
        with pytest.raises(ValueError, match=f"--{name} names none: name one or more"):
            build.ExportConfig(**{"formats": ("onnx",), **fields})

    def test_without_formats_those_that_are_installed_are_written(self, monkeypatch, capsys):
        from pfl_lm.cli.export import _formats
        from pfl_lm.export.formats import registry

        absent = {"litert", "coreml"}
        monkeypatch.setattr(
            registry.Format, "missing", lambda known: "install it" * (known.name in absent)
        )
        assert _formats(None) == ("onnx", "executorch")
        said = capsys.readouterr().err
        assert said == "litert is left out: install it\ncoreml is left out: install it\n"
        assert _formats("litert, onnx") == ("litert", "onnx")
        absent |= {"onnx", "executorch"}
        with pytest.raises(ValueError, match="no format's toolchain is installed; the extras are"):
            _formats(None)

    def test_four_bits_of_a_width_without_groups_before_anything_is_read(
        self, kept_format, source, text, tmp_path, monkeypatch
    ):
        vocabulary = source.tokenizer.vocabulary_size
        spec = ModelSpec("transformer", vocabulary, 16, heads=2, feedforward_dim=16, context=8)
        narrow = replace(source, model=Model(spec, initialise(spec, 0), source.model.origin))
        monkeypatch.setattr(build, "read", None)
        monkeypatch.setattr(build, "_write", None)
        with pytest.raises(
            ValueError, match=r"--precisions int4: .*model\.embedding_dim = 16.* 32"
        ):
            build.export(narrow, tmp_path / "b", small(precisions=("fp32", "int4")), text)
        assert leftovers(tmp_path) == []
        build._check_width(narrow, small(precisions=("fp32", "int8")))
        build._check_width(source, small(precisions=("int4",)))  # a recurrent one is padded

    def test_an_unknown_format_or_precision(self, kept_format):
        with pytest.raises(ValueError, match="must be one of"):
            build.ExportConfig(formats=("wasm",))
        with pytest.raises(ValueError, match="must be one of"):
            build.ExportConfig(formats=("onnx",), precisions=("int3",))

    def test_a_run_that_has_not_ended(self, run_folder, tmp_path):
        copy = tmp_path / "run"
        copy.mkdir()
        for name in ("manifest.json", "ledger.jsonl"):
            (copy / name).write_bytes((run_folder / name).read_bytes())
        with pytest.raises(ValueError, match="has not ended"):
            open_source(copy)

    def test_a_run_whose_model_was_replaced(self, run_folder, tmp_path):
        """The statements are those of the run, and it trained another model."""
        run = RunFolder(Path(shutil.copytree(run_folder, tmp_path / "run")))
        model = load_model(run.model_path)
        save_model(run.model_path, replace(model, origin=model.origin | {"text": "another"}))
        with pytest.raises(ValueError, match=r"it was replaced.*bring the run's own"):
            open_source(run.path)

    @pytest.mark.parametrize("lines", [1, 3, 4])
    def test_a_run_whose_ledger_was_cut(self, run_folder, tmp_path, lines):
        run = RunFolder(Path(shutil.copytree(run_folder, tmp_path / "run")))
        kept = run.ledger_path.read_text().splitlines(keepends=True)[:lines]
        run.ledger_path.write_text("".join(kept))
        with pytest.raises(ValueError, match="no closing entry"):
            open_source(run.path)

    def test_a_run_that_went_on_after_its_end(self, run_folder, tmp_path):
        run = RunFolder(Path(shutil.copytree(run_folder, tmp_path / "run")))
        with Ledger.open(run.ledger_path) as ledger:
            ledger.record_round(9, {"released": "x"})
        with pytest.raises(ValueError, match="a round after its closing entry"):
            open_source(run.path)

    def test_a_run_whose_manifest_was_altered(self, run_folder, tmp_path):
        shutil.copytree(run_folder, tmp_path / "run")
        path = RunFolder(tmp_path / "run").manifest_path
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | {"run": "another"}))
        with pytest.raises(ValueError, match="begun for another manifest"):
            open_source(tmp_path / "run")
