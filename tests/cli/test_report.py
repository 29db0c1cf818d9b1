"""`pfl-lm report`: where the page goes, and what is refused."""

from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from pfl_lm.cli.report import report

app = typer.Typer()
app.command()(report)


@pytest.fixture
def run(tmp_path, plain_manifest):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps(plain_manifest))
    return folder


def test_the_page_lies_in_the_run(run):
    done = CliRunner().invoke(app, [str(run)])
    assert done.exit_code == 0
    assert done.output.strip().endswith("report.html")
    assert (run / "report.html").read_text().startswith("<!doctype html>")


def test_or_where_output_says(run, tmp_path):
    page = tmp_path / "pages" / "mine.html"
    assert CliRunner().invoke(app, [str(run), "--output", str(page)]).exit_code == 0
    assert page.is_file()
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}/absent"], "is not a run folder"),
        (["{tmp}"], "is not a run folder"),
        (["{tmp}/run", "--output", "{tmp}"], "is a folder"),
    ],
)
def test_mistakes(run, tmp_path, arguments, message):
    done = CliRunner().invoke(app, [part.format(tmp=tmp_path) for part in arguments])
    assert isinstance(done.exception, ValueError)
    assert message in str(done.exception)
    assert [path.name for path in run.iterdir()] == ["manifest.json"]
