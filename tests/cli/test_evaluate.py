"""`pfl-lm evaluate`: a run measured again, and what does not fit refused."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import pytest
import typer
from typer.testing import CliRunner

from pfl_lm.cli.evaluate import _print_json, evaluate
from pfl_lm.models.file import Model, save_model
from pfl_lm.models.models import ModelSpec, initialise
from pfl_lm.text.synthetic.population import synthetic_tokenizer

app = typer.Typer()
app.command()(evaluate)
SPEC = ModelSpec("cifg_lstm", 10_000, 8, hidden_dim=8)


@pytest.fixture(scope="module")
def run(tmp_path_factory, plain_manifest):
    folder = tmp_path_factory.mktemp("run")
    tokenizer = synthetic_tokenizer(SPEC.vocabulary_size)
    parameters = initialise(SPEC, 0, tokenizer.unigram)
    save_model(folder / "model.pt", Model(SPEC, parameters, {"tokenizer_digest": tokenizer.digest}))
    scenario = plain_manifest["scenario"] | {"model": asdict(SPEC)}
    content = plain_manifest | {"scenario": scenario}
    (folder / "manifest.json").write_text(json.dumps(content))
    return folder


def call(*arguments):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


def test_a_run_of_invented_users(run):
    found = json.loads(call(run, "--json"))
    assert found["users"] == 8
    assert 1 < found["perplexity"] < 10_000
    assert json.loads(call(run, "--json", "--split", "validation"))["users"] == 5
    assert json.loads(call(run, "--json", "--users", 3))["users"] == 3


def test_the_table(run):
    output = call(run, "--tokens-per-user", 20)
    for text in ("8 test users", "perplexity", "keystrokes saved", "10k+"):
        assert text in output


def test_mistakes(run, tmp_path):
    with pytest.raises(ValueError, match="held-out users are in"):
        call(run, "--split", "train")
    with pytest.raises(ValueError, match="no such model file"):
        call(tmp_path / "absent.pt")
    with pytest.raises(ValueError, match="say whose text"):
        call(run / "model.pt")
    with pytest.raises(ValueError, match="needed together"):
        call(run, "--tokenizer", tmp_path)
    with pytest.raises(ValueError, match="no 'es_ES' in this vocabulary; it has art"):
        call(run, "--languages", "art, es_ES")
    with pytest.raises(ValueError, match="is not a run folder"):
        call(tmp_path)


def test_own_words(run):
    output = call(run, "--own-words", "--users", 3, "--tokens-per-user", 40)
    for text in ("3 users, their text from its beginning", "with own words", "of the users"):
        assert text in output
    found = json.loads(call(run, "--own-words", "--users", 3, "--tokens-per-user", 40, "--json"))
    assert found["shared"]["predictions"] == found["personal"]["predictions"]
    with pytest.raises(ValueError, match="choose one"):
        call(run, "--own-words", "--adapt", "lora")


def test_json_of_what_diverged_is_json(capsys):
    _print_json({"shared": {"perplexity": math.inf}, "hurt": math.nan}, ())
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {
        "shared": {"perplexity": None},
        "hurt": None,
    }
