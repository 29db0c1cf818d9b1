"""A run whose start read public text that votes chose: it says what they cost, and is audited."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pfl_lm.audit.accounting.flags import flags
from pfl_lm.audit.accounting.stated import StatedGuarantee
from pfl_lm.audit.accounting.this_model import claim
from pfl_lm.audit.artifacts import RunArtifacts
from pfl_lm.models.file import Model, load_model, save_model
from pfl_lm.models.models import ModelSpec, initialise
from pfl_lm.run.simulate import simulate
from pfl_lm.text.synthetic.population import synthetic_tokenizer
from tests.audit.conftest import ROTATION, Silence, run_tiny
from tests.audit.doctoring import rewrite_manifest
from tests.run.test_pretrain_mixture import VOTES

COST = " Votes of chat chose the public text that it starts from: ε = 0.500, δ = 1e-06 per user"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    spec, tokenizer = ModelSpec("cifg_lstm", 300, 16, hidden_dim=16), synthetic_tokenizer(300)
    origin = {"kind": "public", "text": "forum", "tokenizer_digest": tokenizer.digest}
    start = Model(spec, initialise(spec, 1), {**origin, "votes": [VOTES]})
    save_model(tmp_path / "start.pt", start)
    return run_tiny(
        tmp_path, ROTATION, rounds=2,
        start=lambda scenario, path: simulate(
            replace(scenario, start=tmp_path / "start.pt"), path, Silence()
        ),
    )  # fmt: skip


def test_statements_bundle_and_audit_say_what_the_votes_cost(run: Path) -> None:
    artifacts = RunArtifacts.open(run)
    assert all(COST in said for said in artifacts.statements.values())
    assert load_model(run / "model.pt").origin["statements"] == artifacts.statements
    assert claim(artifacts).holds
    guarantee = StatedGuarantee.of(artifacts)
    assert guarantee is not None
    found = {f.name: f for f in flags(guarantee, artifacts)}
    started = found["what training started from"]
    assert started.holds is None  # for a person to judge
    assert "ε = 0.500 on top of this run's ε" in started.text


def test_a_statement_that_hides_a_question_for_words_is_caught(run: Path) -> None:
    asked = {"population": "chat", "unit": "user", "epsilon": 1.0, "delta": 1e-6}
    said = (
        " Words of its vocabulary come from a question to chat: ε = 1.000, δ = 1e-06 per user who "
        "was asked, on top of this."
    )
    rewrite_manifest(run, lambda manifest: manifest["vocabulary"].update(asked=[asked]))
    assert claim(RunArtifacts.open(run)).holds is False

    def tell(manifest: dict) -> None:
        manifest["statements"] = {n: text + said for n, text in manifest["statements"].items()}

    rewrite_manifest(run, tell)
    assert claim(RunArtifacts.open(run)).holds


def test_a_statement_that_hides_the_votes_is_caught(run: Path) -> None:
    def hide(manifest: dict) -> None:
        said = manifest["statements"]
        said["simulated"] = said["simulated"].split(" Votes of")[0]

    rewrite_manifest(run, hide)
    assert claim(RunArtifacts.open(run)).holds is False
