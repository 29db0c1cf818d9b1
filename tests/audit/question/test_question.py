"""The audit of a question: an honest one passes, each kind of doctoring is caught by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from pfl_lm.audit.accounting.tuning import TUNING
from pfl_lm.audit.question.accounting import audit_question_accounting
from pfl_lm.audit.question.artifacts import QuestionArtifacts, is_question
from pfl_lm.audit.question.ledger import audit_question_ledger
from pfl_lm.audit.question.mechanism import audit_question_mechanism
from pfl_lm.cli import app
from pfl_lm.dp import encoding
from pfl_lm.queries import ask as asking
from pfl_lm.queries.discover import WordsQuestion, discover
from pfl_lm.queries.query import Query
from pfl_lm.secagg import rounds
from pfl_lm.secagg.ideal import IdealAggregator
from pfl_lm.text.population import PopulationStore
from pfl_lm.text.population_build import BuildOptions, Input, build_population
from pfl_lm.text.synthetic.population import synthetic_tokenizer
from tests.audit.doctoring import rewrite_ledger, rewrite_manifest
from tests.queries.conftest import policy_of

USERS = 80


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("question")
    tokenizer = synthetic_tokenizer(300)
    rows = ({"user": f"u{user}", "text": "rakudo moarvm"} for user in range(USERS))
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = BuildOptions(fractions=(1.0, 0.0, 0.0), keep_unknown_words=True)
    build_population([Input(folder / "a.jsonl")], tokenizer, folder / "store", options)
    (folder / "list.tsv").write_text("word\tcount\nrakudo\t9\nmoarvm\t8\nnobody\t7\n")
    question = WordsQuestion(entries=3, candidates_from=folder / "list.tsv")
    store = PopulationStore.open(folder / "store")
    discover(question, store, tokenizer, policy_of(users=USERS), folder / "asked")
    return folder / "asked"


@pytest.fixture
def question(honest: Path, tmp_path: Path) -> Path:
    """A copy to doctor."""
    shutil.copytree(honest, tmp_path / "asked")
    return tmp_path / "asked"


def recorded(question: Path) -> dict[str, str]:
    """Audit what was written down; return the findings that fail, by name."""
    part = audit_question_ledger(QuestionArtifacts.open(question))
    return {f.name: f.text for f in part.findings if f.holds is False}


def running(question: Path) -> set[str]:
    """Audit the code; return the names of the findings that fail."""
    part = audit_question_mechanism(QuestionArtifacts.open(question))
    return {f.name for f in part.findings if f.holds is False}


class TestHonest:
    def test_every_check_holds_and_a_page_is_written(self, question: Path) -> None:
        done = CliRunner().invoke(app, ["audit", str(question)])
        assert done.exit_code == 0, done.output
        assert "Everything that was checked holds" in done.output
        assert "this very answer" in done.output
        assert "question asked" in (question / "audit.html").read_text()

    def test_choosing_is_told_in_a_question_s_own_words(self, question: Path) -> None:
        part = audit_question_accounting(QuestionArtifacts.open(question))
        told = next(found.text for found in part.findings if found.name == TUNING)
        assert "answers" in told
        assert "training" not in told
        chosen = audit_question_accounting(QuestionArtifacts.open(question), trials=5)
        assert any(found.name == TUNING and found.holds is False for found in chosen.findings)

    def test_a_question_is_told_from_a_run(self, question: Path, tmp_path: Path) -> None:
        assert is_question(question)
        assert not is_question(tmp_path)
        rewrite_manifest(question, lambda manifest: manifest.pop("asked"))
        with pytest.raises(ValueError, match="asked"):
            QuestionArtifacts.open(question)


class TestDoctoredRecords:
    @pytest.mark.parametrize(
        ("change", "name"),
        [
            (lambda e: e[1].update(sum_multiplier=0.1), "every round as promised"),
            (lambda e: e[1].update(reports=2), "every round as promised"),
            (lambda e: e[1].update(clip_norm=2.0), "every round as promised"),
            (lambda e: e[1].update(event=None), "every round as promised"),
            (lambda e: e.insert(2, {**e[1], "released": "ab"}), "nobody is asked too often"),
            (lambda e: e.insert(2, {**e[1], "round": 1}), "nobody is asked too often"),
            (lambda e: e[1].update(reports=900), "nobody is asked too often"),
            (lambda e: e[2].update(result="ab" * 32), "the result is the one that was paid for"),
            (lambda e: e.pop(), "the result is the one that was paid for"),
            (lambda e: e.pop(1), "the result is the one that was paid for"),
        ],
    )
    def test_a_rewritten_ledger(
        self, question: Path, change: Callable[[list[dict[str, Any]]], None], name: str
    ) -> None:
        assert recorded(question) == {}
        rewrite_ledger(question, change)
        assert name in recorded(question)

    def test_an_edited_line_and_another_list(self, question: Path) -> None:
        path = question / "ledger.jsonl"
        path.write_text(path.read_text().replace('"reports":80', '"reports":79'))
        assert "hash chain" in recorded(question)

    def test_another_list(self, question: Path) -> None:
        with (question / "words.tsv").open("a") as file:
            file.write("secret\t9.0\t9.0\n")
        assert "the result is the one that was paid for" in recorded(question)

    def test_another_manifest(self, question: Path) -> None:
        path = question / "manifest.json"
        path.write_text(path.read_text().replace('"entries": 3', '"entries": 2'))
        assert "manifest and ledger belong together" in recorded(question)

    def test_a_seed_that_was_left_behind(self, question: Path) -> None:
        (question / "noise.secret").write_text("7\n")
        assert "the noise cannot be had again" in recorded(question)

    def test_a_fleet_that_asks_more_users_than_there_are(self, question: Path) -> None:
        fleet = {"check_in": 24.0}
        rewrite_manifest(question, lambda manifest: manifest["asked"].update(fleet=fleet))
        assert "nobody is asked too often" in recorded(question)

    def test_more_users_asked_than_there_are(self, question: Path) -> None:
        rewrite_manifest(question, lambda manifest: manifest["population"].update(users=20))
        assert "nobody is asked too often" in recorded(question)


class TestDoctoredCode:
    def test_more_than_m_entries(self, question: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        _allow(monkeypatch, "entries; the query allows")
        assert running(question) == {"no device fills more than m cells"}

    def test_a_cell_hit_twice(self, question: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        _allow(monkeypatch, "is filled twice")
        assert running(question) == {"no cell is filled twice"}

    def test_an_entry_beyond_its_bound(
        self, question: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _allow(monkeypatch, "an entry is above")
        assert running(question) == {"no entry is above the bound"}

    def test_noise_off(self, question: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(encoding, "add_noise", lambda *_: None)
        monkeypatch.setattr(encoding, "one_table", lambda *_: None)
        assert "noise on the sum" in running(question)

    def test_noise_that_never_changes(
        self, question: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plain = asking.QuerySession.privacy
        monkeypatch.setattr(
            asking.QuerySession, "privacy", lambda self, query: _seeded(plain(self, query))
        )
        assert "fresh noise for every question" in running(question)

    def test_a_clip_that_is_too_wide(self, question: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        plain = encoding.clip_factors
        bound = encoding.Grid.norm_bound_squared
        monkeypatch.setattr(encoding, "clip_factors", lambda norms, clip: plain(norms, 2 * clip))
        monkeypatch.setattr(
            encoding.Grid, "norm_bound_squared", property(lambda self: 4 * bound.fget(self))
        )
        assert "no device moves the sum by more than the sensitivity" in running(question)

    def test_one_answer_counted_twice(
        self, question: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Generous(IdealAggregator):
            def submit(self, vectors: Any) -> Any:
                super().submit(vectors[:1])
                self.reports -= 1
                return super().submit(vectors)

        monkeypatch.setattr(rounds, "IdealAggregator", Generous)
        assert "each answer counts once" in running(question)

    def test_answers_counted_twice(self, question: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        plain = asking.release
        monkeypatch.setattr(asking, "release", lambda *args: _doubled(plain(*args)))
        assert "each answer counts once" in running(question)


def _allow(monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    """Let the devices' own code pass over one reason to refuse an answer."""
    plain = Query.refusal

    def refusal(self: Query, answer: Any) -> str | None:
        why = plain(self, answer)
        return None if why is not None and reason in why else why

    def vectors(self: Query, answers: Any) -> np.ndarray:
        rows = np.zeros((len(answers), self.dim), dtype=np.float32)
        for row, answer in zip(rows, answers, strict=True):
            if self.refusal(answer) is None:
                np.add.at(row, answer.cells, answer.values)
        return rows

    monkeypatch.setattr(Query, "refusal", refusal)
    monkeypatch.setattr(Query, "vectors", vectors)


def _seeded(privacy: Any) -> Any:
    from dataclasses import replace

    return replace(privacy, seed=5)


def _doubled(released: Any) -> Any:
    from dataclasses import replace

    return replace(released, mean=2 * released.mean)
