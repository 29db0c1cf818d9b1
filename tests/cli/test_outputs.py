"""A page takes the place of a page alone: no ledger, record, policy or manifest is written over."""

from __future__ import annotations

import json
import os

import pytest


@pytest.fixture
def run(tmp_path, plain_manifest):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps(plain_manifest))
    (folder / "ledger.jsonl").write_text("what was spent\n")
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("verb", ["report {}", "audit {}", "compare {} {}", "device record {}"])
def test_what_is_no_page_is_not_replaced(pfl_lm, run, verb):
    before, ledger = contents(run), run / "ledger.jsonl"
    status, out, err = pfl_lm(*verb.replace("{}", str(run)).split(), "-o", ledger)
    assert (status, out) == (2, "")
    assert err == (
        f"pfl-lm: --output {ledger} exists and is no HTML page, so it is not replaced: choose "
        "another name\n"
    )
    assert contents(run) == before


def test_a_pipe_in_the_way_is_not_waited_for(pfl_lm, run):
    os.mkfifo(run / "page.html")
    status, _, err = pfl_lm("report", run, "-o", run / "page.html")
    assert (status, "is no HTML page" in err) == (2, True)


@pytest.mark.parametrize("earlier", ["", "<!DOCTYPE html>\n<p>an earlier page"])
def test_a_page_is_written_again(pfl_lm, run, earlier):
    (run / "mine.html").write_text(earlier)
    assert pfl_lm("report", run, "-o", run / "mine.html")[0] == 0
    assert "<title>" in (run / "mine.html").read_text()


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("manifest.html", "would replace {}/manifest.json, which is no audit"),
        ("new.json", "{}/new.json would be both the page and the JSON file"),
    ],
)
def test_the_json_file_of_an_audit_replaces_nothing_else(pfl_lm, run, page, said):
    before = contents(run)
    status, out, err = pfl_lm("audit", run, "-o", run / page)
    assert (status, out) == (2, "")
    assert said.format(run) in err
    assert contents(run) == before


def test_an_audit_of_a_policy_is_written_again(pfl_lm, tmp_path):
    for _ in range(2):
        status, _, err = pfl_lm("audit", "privacy/keyboard_150", "-o", tmp_path / "told.html")
        assert status == 0, err
    assert sorted(contents(tmp_path)) == ["told.html", "told.json"]
