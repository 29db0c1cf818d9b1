"""Bundles that were damaged, cut, mixed or outlived: each refused with a line that says why."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from copy import copy as copy_of
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pfl_lm.export import build, test_vectors, verify
from pfl_lm.export import bundle as names
from pfl_lm.export.bundle import BundleError, opened, write_index, write_zip
from pfl_lm.export.formats import registry as formats
from pfl_lm.export.graphs.train_artifact import first_task
from pfl_lm.export.verify import BundleCheck, verify_bundle
from pfl_lm.export.vocabulary import BlockList, describe_vocabulary
from pfl_lm.files import sha256_of
from pfl_lm.models.file import load_model, save_model
from pfl_lm.run.folder import digest_of


@pytest.fixture
def copy(bundle_folder, tmp_path) -> Path:
    return Path(shutil.copytree(bundle_folder, tmp_path / "copy"))


def findings(path: Path, run: Path | None = None) -> list[BundleCheck]:
    with opened(path) as bundle:
        return list(verify_bundle(bundle, run))


def failure(path: Path, run: Path | None = None) -> str:
    """The one thing that does not hold."""
    wrong = [finding for finding in findings(path, run) if finding.holds is False]
    assert len(wrong) == 1, wrong
    return f"{wrong[0].name}: {wrong[0].says}"


def line_of(path: Path) -> str:
    """Whatever a bundle's index holds, the answer is a line: why it is not opened, or fails."""
    try:
        wrong = [finding for finding in findings(path) if finding.holds is False]
    except ValueError as error:
        return str(error)
    return "; ".join(f"{finding.name}: {finding.says}" for finding in wrong)


def index_again(folder: Path, **changes) -> None:
    """Do as a forger would: write the index anew over what lies there."""
    content = json.loads((folder / names.INDEX).read_text())
    for name in ("schema", "files", "digest"):
        content.pop(name)
    write_index(folder, content | changes)


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


class TestAWholeBundle:
    def test_holds(self, bundle_folder, run_folder):
        found = findings(bundle_folder, run_folder)
        assert all(finding.holds for finding in found), found
        said = {finding.name for finding in found}
        assert {"files", "of one piece", "of the run", "tokenizer", "predict.int8.onnx",
                "train_step.fp32.onnx", "personal_step.fp32.onnx"} <= said  # fmt: skip

    def test_holds_as_a_zip_of_the_same_bytes(self, bundle_folder, tmp_path):
        for name in ("one.zip", "two.zip"):
            write_zip(bundle_folder, tmp_path / name)
        assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
        assert all(finding.holds for finding in findings(tmp_path / "one.zip"))

    def test_a_runtime_that_is_not_here_is_said_to_be_not_run(self, bundle_folder, kept_format):
        from pfl_lm.export.formats import registry as formats

        with pytest.MonkeyPatch.context() as patch:
            absent = replace(kept_format, runtime=("no_such_runtime",))
            patch.setitem(formats.FORMATS, "onnx", absent)
            found = {finding.name: finding for finding in findings(bundle_folder)}
        assert found["predict.int8.onnx"].holds is None
        assert found["predict.int8.onnx"].says.startswith("not run: onnx needs no_such_runtime")


class TestDamage:
    def test_a_changed_byte(self, copy):
        path = copy / "graphs" / "predict.int8.onnx"
        content = bytearray(path.read_bytes())
        content[100] ^= 1
        path.write_bytes(content)
        assert "predict.int8.onnx is not the file that was exported" in failure(copy)

    def test_a_truncated_file(self, copy):
        path = copy / "weights.f32"
        path.write_bytes(path.read_bytes()[:-5])
        assert "weights.f32" in failure(copy)
        assert "truncated" in failure(copy)

    def test_a_missing_file(self, copy):
        (copy / "blocklist.txt").unlink()
        assert "blocklist.txt is missing" in failure(copy)

    def test_a_file_too_many(self, copy):
        (copy / "graphs" / "more.onnx").write_bytes(b"1")
        assert "more.onnx is no part of this bundle" in failure(copy)

    @pytest.mark.parametrize("keep", [0.0, 0.3, 0.9, 0.999])
    def test_a_truncated_zip(self, bundle_folder, tmp_path, keep):
        write_zip(bundle_folder, tmp_path / "bundle.zip")
        content = (tmp_path / "bundle.zip").read_bytes()
        (tmp_path / "bundle.zip").write_bytes(content[: int(len(content) * keep)])
        with pytest.raises(BundleError, match="cut off or damaged"):
            findings(tmp_path / "bundle.zip")

    def test_a_damaged_zip(self, bundle_folder, tmp_path):
        write_zip(bundle_folder, tmp_path / "bundle.zip")
        content = bytearray((tmp_path / "bundle.zip").read_bytes())
        content[len(content) // 2] ^= 0xFF
        (tmp_path / "bundle.zip").write_bytes(content)
        with pytest.raises(BundleError, match="cut off or damaged"):
            findings(tmp_path / "bundle.zip")

    def test_what_desktops_leave_in_folders_is_no_damage(self, copy):
        (copy / ".DS_Store").write_bytes(b"\0")
        (copy / "__MACOSX").mkdir()
        (copy / "__MACOSX" / "._bundle.json").write_bytes(b"\0")
        assert all(finding.holds is not False for finding in findings(copy))

    def test_a_zip_with_the_folder_itself(self, copy, tmp_path):
        (tmp_path / "outer").mkdir()
        copy.rename(tmp_path / "outer" / "copy")
        write_zip(tmp_path / "outer", tmp_path / "deep.zip")
        with pytest.raises(BundleError, match=r"deep\.zip: .*one folder too deep.*copy"):
            findings(tmp_path / "deep.zip")

    @pytest.mark.parametrize("name", ["bundle.json", "another.json"])
    def test_a_zip_without_an_index_is_named(self, name, tmp_path):
        (tmp_path / "outer").mkdir()
        (tmp_path / "outer" / name).write_text("[]")
        write_zip(tmp_path / "outer", tmp_path / "x.zip")
        with pytest.raises(BundleError, match=r"x\.zip"):
            findings(tmp_path / "x.zip")

    def test_a_zip_that_reaches_outside_itself(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "bundle.zip", "w") as archive:
            archive.writestr("../evil", "1")
        with pytest.raises(BundleError, match="outside itself"):
            findings(tmp_path / "bundle.zip")
        assert not (tmp_path.parent / "evil").exists()

    @pytest.mark.parametrize(
        "name", ["/etc/evil", "a/../../evil", "..", "C:evil", "C:/evil", "a\\..\\evil", "a\nb"]
    )
    def test_a_name_that_leads_out_of_a_zip(self, name, tmp_path):
        with zipfile.ZipFile(tmp_path / "bundle.zip", "w") as archive:
            archive.writestr(zipfile.ZipInfo("ok"), "1")
            entry = zipfile.ZipInfo("x")
            entry.filename = name
            archive.writestr(entry, "1")
        with pytest.raises(BundleError, match="outside itself"):
            findings(tmp_path / "bundle.zip")

    def test_a_link_in_a_zip_and_a_name_twice(self, tmp_path):
        link = zipfile.ZipInfo("link")
        link.external_attr = 0o120777 << 16
        for number, entries in enumerate((["a", link], ["a", "b", "A"])):
            path = tmp_path / f"{number}.zip"
            with zipfile.ZipFile(path, "w") as archive:
                for entry in entries:
                    archive.writestr(entry, "/etc/passwd")
            with pytest.raises(BundleError, match="symbolic link" if number == 0 else "'A' twice"):
                findings(path)

    def test_a_zip_bomb_is_refused_before_it_is_unpacked(self, tmp_path):
        """A gigabyte of zeros in a megabyte, and members that share their bytes."""
        path = tmp_path / "bomb.zip"
        with (
            zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
            archive.open("zeros", "w", force_zip64=True) as member,
        ):
            for _ in range(300):
                member.write(bytes(1 << 20))
        with pytest.raises(BundleError, match="would unpack to 314,572,800 bytes"):
            findings(path)
        with zipfile.ZipFile(tmp_path / "quoted.zip", "w") as archive:
            archive.writestr("a", os.urandom(10_000))
            for number in range(100):  # the directory names the same bytes again and again
                again = copy_of(archive.infolist()[0])
                again.filename = f"b{number}"
                archive.filelist.append(again)
                archive._didModify = True
        with pytest.raises(BundleError, match="members overlap"):
            findings(tmp_path / "quoted.zip")

    @pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "graphs/../../evil", "C:evil", ""])
    def test_an_index_whose_names_lead_out(self, copy, name):
        content = json.loads((copy / names.INDEX).read_text())
        graphs = [{**content["graphs"][0], "path": name, "name": name.rpartition("/")[2]}]
        index_again(copy, graphs=graphs)
        with pytest.raises(BundleError, match="names a file outside the bundle"):
            findings(copy)

    def test_an_index_with_a_graph_of_another_name(self, copy):
        content = json.loads((copy / names.INDEX).read_text())
        index_again(copy, graphs=[{**content["graphs"][0], "name": "../../evil"}])
        with pytest.raises(BundleError, match="another name than its path"):
            findings(copy)

    def test_vectors_that_lead_out_of_the_bundle(self, copy):
        vectors = json.loads((copy / names.VECTORS).read_text())
        step = vectors["train_step"]
        step["inputs"] = dict.fromkeys(step["inputs"], "../../../etc/passwd")
        (copy / names.VECTORS).write_text(json.dumps(vectors))
        index_again(copy)
        assert "names a file outside itself" in failure(copy)

    @pytest.mark.parametrize("place", ["weights.f32", "graphs"])
    def test_a_link_in_a_folder(self, copy, tmp_path, place):
        """The same bytes behind a link to another place: a bundle holds files alone."""
        (copy / place).rename(tmp_path / "elsewhere")
        (copy / place).symlink_to(tmp_path / "elsewhere")
        assert f"files: {place} is a symbolic link" in failure(copy)

    def test_json_nested_too_deep(self, copy):
        (copy / names.INDEX).write_text("[" * 100_000)
        with pytest.raises(BundleError, match="damaged"):
            findings(copy)

    def test_an_index_without_a_head(self, copy):
        content = json.loads((copy / names.INDEX).read_text())
        run = {key: value for key, value in content["run"].items() if key != "ledger_head"}
        index_again(copy, run=run)
        with pytest.raises(BundleError, match=r"damaged: 'run' is damaged.*ledger_head"):
            findings(copy)

    @pytest.mark.parametrize("value", [KeyError, None, [7], 10**9])
    @pytest.mark.parametrize(
        "place",
        [
            "vocabulary.size", "vocabulary.emoji_ids", "vocabulary.special_ids",
            "vocabulary.blocked", "vocabulary.blocked.words", "vocabulary.digest", "model.spec",
            "model.spec.vocabulary_size", "model.own_words", "model.weights",
            "model.personal.rank", "run.ledger_entries", "graphs.0.signature", "graphs.0.precision",
            "graphs.0.path",
        ],
    )  # fmt: skip
    def test_an_index_that_states_something_else(self, copy, place, value):
        content = json.loads((copy / names.INDEX).read_text())
        *way, last = (int(part) if part.isdigit() else part for part in place.split("."))
        table = content
        for part in way:
            table = table[part]
        if value is KeyError:
            del table[last]
        else:
            table[last] = value
        for name in ("schema", "files", "digest"):
            content.pop(name)
        write_index(copy, content)
        if (place, value) == ("model.weights", None):
            return  # so states an export without train_step
        assert line_of(copy)

    @pytest.mark.parametrize(
        "name",
        [
            names.CARD, names.PRIVACY, names.VECTORS, names.BLOCKLIST, names.MANIFEST,
            names.WEIGHTS, names.PERSONAL, "graphs/predict.fp32.onnx",
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("how", ["absent", "empty"])
    def test_an_index_without_a_file_that_every_bundle_has(self, copy, name, how):
        if how == "absent" or name == names.BLOCKLIST:
            (copy / name).unlink()
        else:
            (copy / name).write_bytes(b"")
        index_again(copy)
        if how == "empty" and name.startswith("graphs"):
            assert "does not run" in failure(copy)
            return
        with pytest.raises(BundleError, match=f"no {name}"):
            findings(copy)

    def test_vectors_whose_files_are_gone(self, copy):
        for path in (copy / names.VECTOR_FILES).glob("personal_step.outputs.*"):
            path.unlink()
        index_again(copy)
        assert failure(copy).startswith("personal_step.fp32.onnx: does not run")

    @pytest.mark.parametrize("content", [{}, {"schema": names.SCHEMA}, {"schema": 0}])
    def test_vectors_that_are_none(self, copy, content):
        (copy / names.VECTORS).write_text(json.dumps(content))
        index_again(copy)
        assert failure(copy).startswith("vectors: testvectors.json")

    @pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"schema": 2}', "\x00\xff"])
    def test_an_index_that_is_none(self, copy, content):
        (copy / names.INDEX).write_text(content, encoding="utf-8")
        with pytest.raises(BundleError, match=r"damaged|schema"):
            findings(copy)

    def test_an_index_that_was_altered(self, copy):
        edit_json(copy / names.INDEX, name="another")
        with pytest.raises(BundleError, match="altered after it was written"):
            findings(copy)

    def test_an_index_with_an_unknown_key(self, copy):
        edit_json(copy / names.INDEX, extra=1)
        with pytest.raises(BundleError, match="'extra' is not a key"):
            findings(copy)

    def test_no_bundle_at_all(self, tmp_path):
        with pytest.raises(BundleError, match="no such bundle"):
            findings(tmp_path / "none.zip")
        with pytest.raises(BundleError, match="is not a bundle"):
            findings(tmp_path)


class TestAMixture:
    """The index was written anew, so that all checksums fit; the parts betray one another."""

    def test_a_poisson_run_s_bundle_needs_no_ledger_and_another_does(self, copy):
        manifest = json.loads((copy / names.MANIFEST).read_text())
        policy = manifest["policy"] | {"participation": {"kind": "poisson"}}
        (copy / names.LEDGER).unlink()
        index_again(copy)
        assert "the ledger does not hold" in failure(copy)
        edit_json(copy / names.MANIFEST, policy=policy)
        edit_json(copy / names.PRIVACY, policy=policy)
        run = json.loads((copy / names.INDEX).read_text())["run"]
        digest = digest_of(manifest | {"policy": policy})
        index_again(copy, run=run | {"manifest_digest": digest})
        found = findings(copy)
        assert all(finding.holds for finding in found), found

    def test_another_run_s_manifest(self, copy):
        edit_json(copy / names.MANIFEST, run="another")
        index_again(copy)
        assert "mixed: the ledger was begun for another manifest" in failure(copy)

    def test_a_ledger_that_was_cut(self, copy):
        path = copy / names.LEDGER
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
        index_again(copy)
        assert "the ledger does not hold" in failure(copy)

    def test_another_model_than_the_ledger_ends_with(self, copy):
        run = json.loads((copy / names.INDEX).read_text())["run"]
        index_again(copy, run=run | {"model_sha256": "0" * 64})
        assert "not the model that the ledger's closing entry names" in failure(copy)

    def test_a_ledger_that_was_cut_before_its_head(self, copy):
        path = copy / names.LEDGER
        lines = path.read_text().splitlines(keepends=True)[:3]
        path.write_text("".join(lines))
        head = json.loads(lines[-1])["hash"]
        privacy = json.loads((copy / names.PRIVACY).read_text())
        edit_json(copy / names.PRIVACY, ledger=privacy["ledger"] | {"head": head, "entries": 3})
        run = json.loads((copy / names.INDEX).read_text())["run"]
        index_again(copy, run=run | {"ledger_head": head, "ledger_entries": 3})
        assert "no closing entry" in failure(copy)

    def test_a_ledger_that_was_altered(self, copy):
        path = copy / names.LEDGER
        path.write_text(path.read_text().replace('"reports":', '"Reports":', 1))
        index_again(copy)
        assert "the ledger does not hold" in failure(copy)

    def test_softer_statements(self, copy):
        statements = {"guaranteed": "Everything.", "simulated": "Nothing."}
        edit_json(copy / names.PRIVACY, statements=statements)
        index_again(copy)
        assert "privacy.json speaks of another run" in failure(copy)

    def test_another_block_list(self, copy):
        (copy / names.BLOCKLIST).write_text("word\n")
        index_again(copy)
        assert "the block list is another" in failure(copy)

    def test_another_vocabulary(self, copy):
        from pfl_lm.text.synthetic.population import synthetic_tokenizer

        shutil.rmtree(copy / names.TOKENIZER)
        synthetic_tokenizer(301).save(copy / names.TOKENIZER)
        index_again(copy)
        wrong = [finding.says for finding in findings(copy) if finding.holds is False]
        assert any("the vocabulary is not the one trained with" in says for says in wrong)

    def test_another_model_s_graph(self, copy):
        graphs = copy / names.GRAPHS
        shutil.copyfile(graphs / "train_step.fp32.onnx", graphs / "predict.int8.onnx")
        index_again(copy)
        assert "predict.int8.onnx" in failure(copy)

    def test_weights_of_another_model(self, copy):
        values = np.fromfile(copy / names.WEIGHTS, "<f4")
        (values * 1.5).astype("<f4").tofile(copy / names.WEIGHTS)
        index_again(copy)
        assert failure(copy).startswith("train_step.fp32.onnx")

    @pytest.mark.parametrize("name", [names.WEIGHTS, names.PERSONAL])
    def test_numbers_that_are_cut(self, copy, name):
        (copy / name).write_bytes((copy / name).read_bytes()[:-4])
        index_again(copy)
        assert f"{name} does not hold" in failure(copy)

    def test_a_block_list_that_the_graphs_do_not_have(self, copy, source):
        """Everything that the index states of the list is true; the graphs suggest its word."""
        word = source.tokenizer.words[50]
        (copy / names.BLOCKLIST).write_text(f"{word}\n")
        blocked = BlockList.read(copy / names.BLOCKLIST, source.tokenizer)
        index_again(copy, vocabulary=describe_vocabulary(source.tokenizer, blocked))
        wrong = [finding for finding in findings(copy) if finding.holds is False]
        assert {finding.name for finding in wrong} == {"predict.fp32.onnx", "predict.int8.onnx"}
        assert all("suggests the blocked id 50" in finding.says for finding in wrong)

    def test_a_block_list_that_was_emptied(
        self, bundle_folder, kept_format, source, text, tmp_path
    ):
        (tmp_path / "blocked.txt").write_text(f"{source.tokenizer.words[50]}\n")
        config = build.ExportConfig(
            formats=("onnx",), precisions=("fp32",), train=False, personal=False,
            block_list=tmp_path / "blocked.txt", least_agreement=0.0,
        )  # fmt: skip
        build.export(source, tmp_path / "bundle", config, text)
        (tmp_path / "bundle" / names.BLOCKLIST).write_text("")
        index_again(tmp_path / "bundle")
        assert "the block list is another" in failure(tmp_path / "bundle")


class TestBesideTheRun:
    """The index, the vectors and the list were rewritten honestly: only the run tells."""

    @pytest.fixture
    def foreign(self, source):
        draw = torch.Generator().manual_seed(0)
        drawn = {
            n: torch.randn(v.shape, generator=draw) for n, v in source.model.parameters.items()
        }
        return replace(source, model=replace(source.model, parameters=drawn))

    def failures(self, copy, run_folder) -> set[str]:
        assert all(finding.holds is not False for finding in findings(copy))
        found = findings(copy, run_folder)
        return {finding.name for finding in found if finding.holds is False}

    def test_a_bundle_of_another_model(self, kept_format, foreign, run_folder, text, tmp_path):
        """Another model's whole export, which states this run's identity."""
        build.export(foreign, tmp_path / "b", build.ExportConfig(formats=("onnx",)), text)
        assert self.failures(tmp_path / "b", run_folder) == {
            "weights.f32 of the run", "predict.fp32.onnx of the run",
            "predict.int8.onnx of the run", "personal_step.fp32.onnx of the run",
        }  # fmt: skip

    def test_one_graph_of_another_model(
        self, copy, kept_format, foreign, run_folder, text, tmp_path
    ):
        config = build.ExportConfig(formats=("onnx",), precisions=("fp32",), train=False)
        build.export(foreign, tmp_path / "other", config, text)
        graph = "graphs/predict.fp32.onnx"
        shutil.copyfile(tmp_path / "other" / graph, copy / graph)
        mine, other = (
            json.loads((f / names.VECTORS).read_text()) for f in (copy, tmp_path / "other")
        )
        name = "predict.fp32.onnx"
        mine["predict"]["files"][name] = other["predict"]["files"][name]
        (copy / names.VECTORS).write_text(json.dumps(mine))
        index_again(copy)
        assert self.failures(copy, run_folder) == {"predict.fp32.onnx of the run"}

    def test_the_run_s_own_holds(self, bundle_folder, run_folder):
        said = {f.name: f for f in findings(bundle_folder, run_folder)}
        for name in ("weights.f32", "predict.int8.onnx", "train_step.fp32.onnx",
                     "personal_step.fp32.onnx"):  # fmt: skip
            assert said[f"{name} of the run"].holds

    def test_beside_a_run_whose_model_was_replaced(
        self, kept_format, source, run_folder, text, tmp_path
    ):
        """A bundle of the replaced model: both fit one another, and not the ledger."""
        run = Path(shutil.copytree(run_folder, tmp_path / "run"))
        model = load_model(run / "model.pt")
        save_model(run / "model.pt", replace(model, origin=model.origin | {"text": "another"}))
        replaced = source.identity | {"model_sha256": sha256_of(run / "model.pt")}
        with pytest.raises(ValueError, match="it was replaced"):
            build.export(
                replace(source, identity=replaced), tmp_path / "b",
                build.ExportConfig(formats=("onnx",)), text,
            )  # fmt: skip
        assert not (tmp_path / "b").exists()


class TestAWrongConversion:
    """What a toolchain could get wrong in ``train_step``: the export's own vectors show it, and
    nothing is kept."""

    @pytest.mark.parametrize("name", ["windows", "slots", "values", "candidates", "log_weight"])
    def test_an_input_that_became_a_constant(self, exporting, name):
        def wrong(run, task, given):
            return run(**given | {name: np.zeros_like(given[name])})

        with pytest.raises(ValueError, match=r"nothing was kept.*train_step\.fp32\.onnx"):
            exporting(wrong)

    def test_a_word_that_counts_once_however_often_it_is_read(self, exporting):
        def wrong(run, task, given):
            found, segment = run(**given), task.payload.segments[0]
            assert segment.name == "embedding"
            table = found["gradient"][segment.offset :][: segment.size].reshape(segment.shape)
            slots, times = np.unique(given["slots"][given["windows"]], return_counts=True)
            assert (times[slots >= 0] > 1).any()
            table[slots[slots >= 0]] /= times[slots >= 0, None]
            return found

        with pytest.raises(ValueError, match=r"gradient is .* away from torch's"):
            exporting(wrong)

    def test_a_right_one_passes(self, exporting):
        exporting(lambda run, task, given: run(**given))

    @pytest.fixture
    def exporting(self, kept_format, source, text, tmp_path, monkeypatch):
        """Export ``train_step`` with a runtime that computes otherwise."""
        task = first_task(source)
        assert task.payload.rows is not None

        def export(wrong) -> None:
            def opened_wrongly(folder, exported):
                run = formats.open_file(folder, exported)
                if exported.graph != "train_step":
                    return run
                return lambda **given: wrong(run, task, given)

            monkeypatch.setattr(verify, "open_file", opened_wrongly)
            config = build.ExportConfig(formats=("onnx",), precisions=("fp32",), personal=False)
            build.export(source, tmp_path / "bundle", config, text)

        return export


class TestAnOldBundle:
    def test_of_another_schema(self, copy):
        edit_json(copy / names.INDEX, schema=0)
        with pytest.raises(BundleError, match="schema 0, this version reads 2: export"):
            findings(copy)

    def test_of_a_run_that_has_gone_on(self, bundle_folder, run_folder, tmp_path):
        from pfl_lm.dp.ledger import Ledger

        run = Path(shutil.copytree(run_folder, tmp_path / "run"))
        with Ledger.open(run / "ledger.jsonl") as ledger:
            ledger.record_round(9, {"released": "x"})
        assert "outdated: the run has spent 1 more rounds" in failure(bundle_folder, run)

    def test_of_a_model_that_was_replaced(self, bundle_folder, run_folder, tmp_path):
        run = Path(shutil.copytree(run_folder, tmp_path / "run"))
        (run / "model.pt").write_bytes(b"another")
        assert "the run's model has changed" in failure(bundle_folder, run)

    def test_of_another_run(self, bundle_folder, tiny_scenario, new_watcher, tmp_path):
        from pfl_lm.run.simulate import simulate

        other = simulate(tiny_scenario(rounds=1, seed=8), tmp_path / "other", new_watcher()).path
        assert "is another run" in failure(bundle_folder, other)


class TestTheComparison:
    STATED = [{"words": [5, 6, 7], "scores": [3.0, 2.0, 0.0]}]  # noqa: RUF012

    def test_accepts_small_differences_and_swapped_neighbours(self):
        near = [{"words": [5, 6, 8], "scores": [3.05, 1.96, 0.02]}]
        assert test_vectors.differences(near, self.STATED, 0.1) == ""

    def test_refuses_a_score_too_far(self):
        far = [{"words": [5, 6, 7], "scores": [3.3, 2.0, 0.0]}]
        assert "0.3 away" in test_vectors.differences(far, self.STATED, 0.1)

    def test_refuses_a_leading_word_that_is_gone(self):
        gone = [{"words": [5, 9, 7], "scores": [3.0, 2.0, 0.0]}]
        assert "word 6 is not suggested" in test_vectors.differences(gone, self.STATED, 0.1)

    def test_refuses_what_is_no_number(self):
        broken = [{"words": [5, 6, 7], "scores": [float("nan"), 2.0, 0.0]}]
        assert test_vectors.differences(broken, self.STATED, 0.1)
