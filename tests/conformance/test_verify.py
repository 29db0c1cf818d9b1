"""`pfl-lm protocol`: foreign programs that answer well, badly, late, or not at all."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from pfl_lm.cli import app
from pfl_lm.conformance.suite import suite
from pfl_lm.conformance.verify import serve, verify

FEW = [vector for vector in suite() if vector.kind in ("context", "graph")]


def program(body: str) -> str:
    """A command that runs a statement for each request, ``request`` being the line."""
    loop = f"import json, sys, time\nfor request in sys.stdin:\n    {body}\n    sys.stdout.flush()"
    return f"{sys.executable} -c '{loop}'"


def test_the_reference_conforms_to_itself():
    command = f"{sys.executable} -m pfl_lm protocol answer"
    results = list(verify(command, FEW, 60))
    assert [result.vector for result in results] == FEW
    assert all(result.conforms for result in results)


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("print(1)", "no JSON object"),
        ("print(json.dumps(dict(output=dict())))", "expected"),
        ('print("x")', "no JSON: "),
        ('print("[" * 100000)', "no JSON: "),
        ("print(json.dumps(dict(output=dict(), refused=None)))", "expected"),
    ],
)
def test_a_wrong_answer(body, problem):
    results = list(verify(program(body), FEW[:2], 60))
    assert len(results) == 2
    assert all(problem in result.problem for result in results)


def test_a_kind_that_an_implementation_lacks_is_no_mismatch():
    (result,) = verify(program('print(json.dumps(dict(unsupported="context")))'), FEW[:1], 60)
    assert result.unsupported
    assert not result.conforms
    assert result.problem is None


def test_a_program_that_never_answers_is_stopped():
    results = list(verify(program("time.sleep(600)"), FEW[:2], 0.05))
    assert [result.problem for result in results] == ["no answer within 0.05 s"] * 2


def test_a_program_that_ends_is_given_up_with_its_last_words():
    command = program('sys.exit("out of paper")')
    with pytest.raises(ValueError, match=r"3 times in a row.*out of paper"):
        list(verify(command, FEW, 60))


@pytest.mark.parametrize("command", ["", "'", "/no/such/program"])
def test_a_command_that_cannot_be_started(command):
    with pytest.raises(ValueError, match="cannot be started"):
        list(verify(command, FEW, 60))


def test_true_is_not_one():
    vector = replace(FEW[0], output={"context": True})
    (result,) = verify(program("print(json.dumps(dict(output=dict(context=1))))"), [vector], 60)
    assert result.problem is not None


@pytest.mark.parametrize(
    "line",
    ["[", "[" * 100_000, "[]", '{"kind": "mask"}', '{"kind": "mask", "inputs": {}}'],
    ids=["cut", "deep", "a list", "no inputs", "empty inputs"],
)
def test_a_request_that_is_none(line):
    with pytest.raises(ValueError, match=r"request has|incomplete"):
        serve([line], io.StringIO())


def test_an_unknown_kind_is_unsupported():
    written = io.StringIO()
    serve(["", json.dumps({"kind": "telepathy", "inputs": {}})], written)
    assert json.loads(written.getvalue()) == {"unsupported": "telepathy"}


def test_the_table_and_the_exit_status():
    runner = CliRunner()
    good = f"{sys.executable} -m pfl_lm protocol answer"
    done = runner.invoke(app, ["protocol", "verify", good, "--kind", "hkdf"])
    assert done.exit_code == 0, done.output
    assert "3 of 3 vectors conform" in done.output
    bad = program("print(json.dumps(dict(output=dict())))")
    done = runner.invoke(app, ["protocol", "verify", bad, "--kind", "hkdf"])
    assert done.exit_code == 1
    assert "hkdf_pair_mask (hkdf): expected" in done.output
    done = runner.invoke(app, ["protocol", "verify", good, "--kind", "music"])
    assert isinstance(done.exception, ValueError)
    assert "expected one of" in str(done.exception)


def test_the_command_writes_them(tmp_path):
    done = CliRunner().invoke(app, ["protocol", "vectors", "-o", str(tmp_path / "vectors")])
    assert done.exit_code == 0, done.output
    index = json.loads((tmp_path / "vectors" / "index.json").read_text())
    assert f"{sum(index['counts'].values())} vectors" in done.output
    assert len(list((tmp_path / "vectors" / "negative").iterdir())) == index["counts"]["negative"]
