"""A query takes the way of an update: clip, noise, sum, ledger."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pfl_lm.dp.ledger import Ledger
from pfl_lm.dp.policy import Noise, Participation
from pfl_lm.queries.ask import QuerySession, ask
from pfl_lm.queries.query import NOTHING, Answer, Query, equal_weights
from tests.queries.conftest import policy_of

QUERY = Query("letters", tuple("abcdefgh"), entries=4, least_dim=64)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger.create(tmp_path / "ledger.jsonl", {"run": "q", "policy_digest": "x"})


def session_of(users: int = 40, **changes: object) -> QuerySession:
    return replace(QuerySession(policy_of(users=users), users, users, seed=7), **changes)


def first_letter(user: int) -> Answer:
    return equal_weights([0]) if user % 2 else equal_weights([1, 2])


class TestSum:
    def test_is_the_devices_sum_and_the_stated_noise(self, ledger: Ledger) -> None:
        session = session_of()
        sums = [
            ask(replace(session, seed=seed), QUERY, 0, range(40), first_letter, _fresh(ledger))
            for seed in range(30)
        ]
        exact = np.array([20, 20 / np.sqrt(2), 20 / np.sqrt(2), 0, 0, 0, 0, 0])
        off = (np.array(sums) - exact) / session.deviation(QUERY)
        assert abs(off.mean()) < 5 / np.sqrt(off.size)
        assert abs(off.var() - 1) < 5 * np.sqrt(2 / off.size)

    def test_no_answer_is_longer_than_the_norm(self, ledger: Ledger) -> None:
        # Four entries of 1 are an accepted answer of norm 2; the clip makes it 1.
        loud = Answer(np.arange(4), np.ones(4, dtype=np.float32))
        session = session_of()
        counts = ask(session, QUERY, 0, range(40), lambda user: loud, ledger)
        assert np.linalg.norm(counts) < 40 + 5 * session.deviation(QUERY) * np.sqrt(8)

    def test_the_protocol_opens_the_same_bytes(self, ledger: Ledger) -> None:
        ideal = session_of(12, separate_noise=True)
        protocol = session_of(12, aggregation="protocol")
        opened = [
            ask(session, QUERY, 0, range(12), first_letter, _fresh(ledger))
            for session in (ideal, protocol)
        ]
        assert opened[0].tobytes() == opened[1].tobytes()


class TestDropout:
    @pytest.mark.parametrize("aggregation", ["ideal", "protocol"])
    def test_the_sum_of_those_who_stay_carries_the_planned_noise(
        self, ledger: Ledger, aggregation: str
    ) -> None:
        policy = policy_of(users=30, tolerated_dropout=0.4, excess="removed")
        session = QuerySession(policy, 30, 30, 7, aggregation, dropout=0.3)  # type: ignore[arg-type]
        query = replace(QUERY, labels=tuple(map(str, range(3_000))))
        sums = ask(session, query, 0, range(30), lambda user: NOTHING, ledger)
        (entry,) = [e for e in ledger.entries() if e["kind"] == "round"]
        assert 21 <= entry["reports"] < 30
        planned = session.deviation(query)
        achieved = entry["noise"]["achieved"] / entry["noise"]["planned"]
        assert 1 <= achieved < 1.1
        assert sums.std() / planned / achieved == pytest.approx(1, abs=5 / np.sqrt(2 * 3_000))

    def test_too_many_who_fall_silent_end_the_round_unopened(self, ledger: Ledger) -> None:
        policy = policy_of(users=30, tolerated_dropout=0.1)
        session = QuerySession(policy, 30, 30, 7, dropout=0.5)
        with pytest.raises(ValueError, match="reports"):
            ask(session, QUERY, 0, range(30), first_letter, ledger)
        assert not [e for e in ledger.entries() if e["kind"] == "round"]


class TestLedger:
    def test_holds_the_cost_before_the_sum_is_seen(self, ledger: Ledger) -> None:
        session = session_of()
        ask(session, QUERY, 0, range(40), first_letter, ledger)
        (entry,) = [e for e in ledger.entries() if e["kind"] == "round"]
        assert entry["reports"] == 40
        assert entry["clip_norm"] == QUERY.norm
        assert entry["payload"] == {"dim": QUERY.dim, "digest": QUERY.digest}
        assert entry["event"]["noise_multiplier"] >= session.guarantee.noise_multiplier

    def test_the_same_question_is_counted_once_and_other_noise_refused(
        self, ledger: Ledger
    ) -> None:
        session = session_of()
        sums = [ask(session, QUERY, 0, range(40), first_letter, ledger) for _ in range(2)]
        assert sums[0].tobytes() == sums[1].tobytes()
        assert sum(e["kind"] == "round" for e in ledger.entries()) == 1
        with pytest.raises(ValueError, match="spent stays"):
            ask(replace(session, seed=8), QUERY, 0, range(40), first_letter, ledger)

    def test_a_round_that_the_policy_does_not_pay_for_is_refused(self, ledger: Ledger) -> None:
        with pytest.raises(ValueError, match="pays"):
            ask(session_of(), QUERY, 1, range(40), first_letter, ledger)

    def test_too_few_coordinates_for_the_policy_are_refused(self, ledger: Ledger) -> None:
        with pytest.raises(ValueError, match="least_dim"):
            ask(session_of(), replace(QUERY, least_dim=8), 0, range(40), first_letter, ledger)

    def test_a_sum_of_too_few_reports_stays_closed_and_is_free(self, ledger: Ledger) -> None:
        session = session_of()
        with pytest.raises(ValueError, match="reports"):
            ask(session, QUERY, 0, range(20), lambda user: NOTHING, ledger)
        assert [e["kind"] for e in ledger.entries()] == ["genesis", "abandoned"]


class TestPolicy:
    def test_without_noise_nobody_is_asked(self) -> None:
        policy = policy_of()
        silent = replace(policy, epsilon=float("inf"), noise=replace_noise("none"))
        with pytest.raises(ValueError, match="adds no noise"):
            QuerySession(silent, 300, 300, 0)

    def test_secret_coins_are_refused(self) -> None:
        policy = policy_of()
        sampled = replace(
            policy, participation=Participation("poisson"), accepted_server_epsilon=100.0
        )
        with pytest.raises(ValueError, match="rotation"):
            QuerySession(sampled, 300, 300, 0)

    def test_noise_that_is_correlated_between_rounds_is_refused(self) -> None:
        policy = replace(policy_of(), noise=Noise("server", "blt"))
        with pytest.raises(ValueError, match=r'noise\.kind = "blt" cancels in the sum of rounds'):
            QuerySession(policy, 300, 300, 0)

    def test_more_users_than_the_report_goal_are_refused(self) -> None:
        with pytest.raises(ValueError, match="report_goal"):
            QuerySession(policy_of(), 400, 301, 0)


def replace_noise(at: str):
    from pfl_lm.dp.policy import Noise

    return Noise(at, "none")  # type: ignore[arg-type]


def _fresh(ledger: Ledger) -> Ledger:
    """Start another ledger beside a test's own."""
    folder = ledger.path.parent
    number = len(list(folder.glob("*.jsonl")))
    return Ledger.create(folder / f"{number}.jsonl", {"run": "q", "policy_digest": "x"})
