"""A question to a fleet: who is idle, who vanishes, and the noise that stays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pfl_lm.dp.ledger import verify
from pfl_lm.phones.fleet import Fleet
from pfl_lm.queries.ask import QuerySession
from pfl_lm.queries.discover import WordsQuestion, discover
from pfl_lm.queries.fleet import Work, invite
from pfl_lm.queries.word_list import word_query
from pfl_lm.recipes import load
from pfl_lm.run.progress import ProgressListener
from pfl_lm.text.population import PopulationStore
from pfl_lm.text.tokenizer import Tokenizer
from tests.queries.conftest import USERS, policy_of


class Heard(ProgressListener):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture(scope="module")
def fleet() -> Fleet:
    """Phones of all classes, of whom five times as many check in as answer; many get lost."""
    return replace(load(Fleet, Path("fleets/mixed")), check_in=5.0, over_selection=1.4)


@pytest.fixture
def asking(word_list: Path, fleet: Fleet) -> WordsQuestion:
    return WordsQuestion(entries=4, candidates=200, candidates_from=word_list, fleet=fleet)


def test_phones_of_a_fleet_answer(
    asking: WordsQuestion, store: PopulationStore, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Of 300 users 60 answers are summed; the noise stays the policy's although some vanish."""
    policy = policy_of(epsilon=20, tolerated_dropout=0.3, excess="removed")
    heard = Heard()
    discover(replace(asking, seed=5), store, tokenizer, policy, tmp_path / "w", heard)
    (entry,) = [e for e in verify(tmp_path / "w" / "ledger.jsonl") if e["kind"] == "round"]
    assert (entry["divisor"], entry["reports"]) == (60, 60)
    assert entry["noise"]["achieved"] == pytest.approx(entry["noise"]["planned"])
    (line,) = [line for line in heard.lines if "checked in" in line]
    assert line.startswith("300 phones checked in")
    assert "84 were invited" in line


def test_protocol_and_ideal_sum_as_many_phones(
    asking: WordsQuestion, store: PopulationStore, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    policy, released = policy_of(epsilon=20, tolerated_dropout=0.4), []
    for kind in ("ideal", "protocol"):
        asks = replace(asking, aggregation=kind, seed=5, cohort=12)
        found = discover(asks, store, tokenizer, policy, tmp_path / kind)
        released.append({word.word for word in found})
        entries = verify(tmp_path / kind / "ledger.jsonl")
        released.append([e["reports"] for e in entries if e["kind"] == "round"])
    assert released[0] == released[2]
    assert released[1] == released[3]


def test_the_rounds_of_a_tree_take_the_hours_of_a_fleet(
    store: PopulationStore, tokenizer: Tokenizer, tmp_path: Path, fleet: Fleet
) -> None:
    heard = Heard()
    asks = WordsQuestion(domain="open", entries=4, cells=100_000, fleet=fleet, seed=5)
    policy = policy_of(epsilon=60, rounds=2, tolerated_dropout=0.3)
    discover(asks, store, tokenizer, policy, tmp_path / "w", heard)
    lines = [line for line in heard.lines if "checked in" in line]
    assert len(lines) == 2
    assert lines[0] != lines[1]


def test_a_fleet_needs_users_for_all_who_check_in(fleet: Fleet) -> None:
    with pytest.raises(ValueError, match=r"at most 60 .* check_in = 5"):
        QuerySession.of(policy_of(), USERS, 61, fleet=fleet)
    with pytest.raises(ValueError, match="a fleet brings its own losses"):
        QuerySession.of(policy_of(), USERS, None, dropout=0.1, fleet=fleet)


@pytest.mark.parametrize("check_in", [1.4, 1.5, 2.5, 10.0])
def test_nobody_is_asked_again_sooner_than_the_policy_says(fleet: Fleet, check_in: float) -> None:
    policy = policy_of(rounds=2, users=3_000, min_separation=2, delta=1e-4)
    fleet = replace(fleet, check_in=check_in)
    for users in range(2_000, 2_040):
        session = QuerySession.of(policy, users, None, fleet=fleet)
        assert session.rule.min_separation == 2
        assert users - 2 * session.rule.size_or_rate < 2 * check_in + 2  # nor fewer than may be


def test_a_rule_that_asks_somebody_again_too_soon_is_refused(fleet: Fleet) -> None:
    policy = policy_of(rounds=2, min_separation=2)
    with pytest.raises(ValueError, match="one is asked again after 1, and the policy asks"):
        QuerySession(policy, USERS, 31, 0, fleet=fleet)


def test_work_that_no_phone_holds_is_refused(fleet: Fleet) -> None:
    session = QuerySession.of(policy_of(), USERS, None, fleet=fleet)
    query = word_query(["a", "b"], 2, 64)
    with pytest.raises(ValueError, match="have the 9000 MB"):
        invite(session, query, 0, 0.0, Work(memory_bytes=9 * 10**9))
