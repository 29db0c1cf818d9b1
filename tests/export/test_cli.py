"""The verbs as they are typed: `export RUN`, `export verify BUNDLE`, `keyboard BUNDLE`."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from pfl_lm.cli import app
from pfl_lm.keyboard import runtime

runner = CliRunner()


def call(*words) -> str:
    found = runner.invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return found.output


def test_export_prints_a_table_and_verify_accepts_the_zip(kept_format, run_folder, tmp_path):
    said = call(
        "export", run_folder, "-o", tmp_path / "phone", "--zip", "--formats", "onnx",
        "--precisions", "fp32", "--positions", "50", "--no-train", "--no-personal",
    )  # fmt: skip
    assert "predict.fp32.onnx" in said
    assert "top-3 same" in said
    assert [path.name for path in tmp_path.iterdir()] == ["phone.zip"]
    said = call("export", "verify", tmp_path / "phone.zip", "--run", run_folder)
    assert "Everything checked holds" in said


def test_verify_ends_with_status_1_and_says_why(bundle_folder, tmp_path):
    import shutil

    shutil.copytree(bundle_folder, tmp_path / "copy")
    (tmp_path / "copy" / "blocklist.txt").write_text("x")
    found = runner.invoke(app, ["export", "verify", str(tmp_path / "copy")])
    assert found.exit_code == 1
    assert "blocklist.txt has 1 bytes, not 0" in found.output
    assert "Do not use this bundle" in found.output


def test_a_missing_tokenizer_is_named(kept_format, run_folder, tmp_path):
    import json
    import shutil

    run = tmp_path / "project" / "runs" / "run"  # beside no other test's vocabulary
    shutil.copytree(run_folder, run)
    path = run / "manifest.json"
    content = json.loads(path.read_text())
    content["scenario"]["population"]["kind"] = "store"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="--tokenizer is missing"):
        call("export", run, "-o", tmp_path / "phone", "--formats", "onnx")


def test_a_bundle_without_onnx_has_no_keyboard(bundle_folder):
    with pytest.raises(ValueError, match="no int4 predict graph in ONNX"):
        call("keyboard", bundle_folder, "--precision", "int4")


def test_the_page_can_be_written_as_a_folder(bundle_folder, tmp_path):
    if runtime.missing():
        with pytest.raises(ValueError, match="keyboard-web"):
            call("keyboard", bundle_folder, "-o", tmp_path / "page")
        return
    call("keyboard", bundle_folder, "-o", tmp_path / "page")
    for name in ("index.html", "site.json", "bundle/bundle.json", *runtime.FILES):
        place = f"runtime/{name}" if name in runtime.FILES else name
        assert (tmp_path / "page" / place).is_file(), name
