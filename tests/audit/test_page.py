"""The verb, its screen, its page and its exit status."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from pfl_lm.audit.artifacts import RunArtifacts
from pfl_lm.audit.findings import Finding, Part, Plot
from pfl_lm.audit.mechanism.rebuild import _difference
from pfl_lm.audit.page import _drawn, render, screen, verdict, write_audit

AUDIT = (
    "import typer; from pfl_lm.cli.audit import audit; app = typer.Typer(); app.command()(audit)"
)


@pytest.fixture
def run(honest_run, tmp_path):
    return shutil.copytree(honest_run, tmp_path / "run")


def part(holds: bool | None = True) -> Part:
    finding = Finding("the <b>test</b>", holds, "Some text & more.")
    plot = Plot("A plot", "axis", {"found": [1.0], "guaranteed": [2.0]}, "ε")
    return Part("ledger", "Was it kept?", ("this",), (finding,), ("that",), (), (plot,))


def invoke(*arguments: str) -> subprocess.CompletedProcess:
    code = f"{AUDIT}; import sys; app({list(arguments)!r}, standalone_mode=True)"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_the_first_two_parts_need_no_torch(run):
    code = (
        f"{AUDIT}; import sys\n"
        f"try: app([{str(run)!r}, '--part', 'accounting', '--part', 'ledger'])\n"
        "except SystemExit as end: print('status', end.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "status 0 False" in done.stdout
    assert "NOT checked" in done.stdout
    assert json.loads((run / "audit.json").read_text())["holds"] is True


def test_a_broken_ledger_exits_1_and_says_so(run):
    with (run / "ledger.jsonl").open("a") as file:
        file.write("{}\n")
    done = invoke(str(run), "--part", "ledger")
    assert done.returncode == 1
    assert "FAILED: hash chain" in done.stdout
    assert json.loads((run / "audit.json").read_text())["parts"]["ledger"]["holds"] is False


def test_the_page_is_one_file_that_fetches_nothing(run):
    text = render(RunArtifacts.open(run), [part(), part(False)])
    assert not re.search(r'(src|href)="(?!#)', text)
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")  # a name, not an address
    assert text.count("<script") == 1  # the cross-hair, inlined
    assert "&lt;b&gt;test" in text  # names are escaped
    HTMLParser().feed(text)


def test_page_and_json_stand_side_by_side(run):
    page, data = write_audit(RunArtifacts.open(run), [part(None)], run / "other.html")
    assert (page.name, data.name) == ("other.html", "other.json")
    assert json.loads(data.read_text())["parts"]["ledger"]["findings"][0]["holds"] is None


def test_a_screen_says_what_was_not_checked():
    text = screen(part())
    assert text.index("checked") < text.index("found") < text.index("NOT checked")
    assert max(map(len, text.split("\n"))) <= 96


def test_the_verdict_names_what_failed():
    assert verdict([part(), part()]) == "Everything that was checked holds."
    assert verdict([part(), part(None)]).endswith("1 point is for a person to judge.")
    assert verdict([part(), part(False)]) == "1 of the checks FAILED: the <b>test</b>."


def test_plots_leave_out_what_is_not_finite():
    assert _drawn(Plot("none", "lines", {"a": []}, "x")) == (None, None)
    chart, _ = _drawn(Plot("t", "lines", {"a": [(0, 1.0), (1, float("nan")), (2, 3.0)]}, "x"))
    assert "nan" not in chart
    assert "<svg" in chart
    chart, _ = _drawn(Plot("t", "axis", {"stated": [2.0], "b": [1.5], "c": [float("inf")]}, "ε"))
    assert chart.count("<circle") == 2
    assert "2.000" in chart
    assert 'class="level' in chart


def test_another_scenario_is_refused_and_the_difference_named():
    written = {"rounds": 12, "model": {"kind": "cifg_lstm"}}
    grown = {"rounds": 12, "model": {"kind": "cifg_lstm", "new": 1}}
    assert _difference(grown, written, "scenario") == ""
    other = {"rounds": 12, "model": {"kind": "transformer"}}
    assert _difference(other, written, "scenario") == "scenario.model.kind"
