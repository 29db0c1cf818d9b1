"""Averages of the server's models: of each coordinate, over the rounds in which it travelled."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from pfl_lm.models.models import ModelSpec, initialise, roles
from pfl_lm.payload.choice import choose
from pfl_lm.payload.plan import PayloadPlan
from pfl_lm.server.averages import Average
from pfl_lm.server.optimizers import ServerOptimizer
from pfl_lm.server.state import ServerState, abandon_round, close_round, open_round

SPEC = ModelSpec("cifg_lstm", vocabulary_size=40, embedding_dim=4, hidden_dim=4)
UNIGRAM = np.full(40, 1 / 40)
ROUNDS = 12


def run(average: Average, rows: int | str = 10, **more) -> list[ServerState]:
    """Twelve rounds of random updates, of which round 5 is abandoned; the states after each."""
    optimizer = ServerOptimizer("momentum", 0.5, average=average, **more)
    states = [ServerState(0, initialise(SPEC, seed=1))]
    for number in range(ROUNDS):
        plan = PayloadPlan(rows=rows, dense="biases")
        payload = choose(plan, roles(SPEC), UNIGRAM, (0, 1, 2, 3), seed=5, round=number)
        broadcast = open_round(states[-1], payload)
        mean = np.random.default_rng(number).normal(size=payload.dim).astype(np.float32)
        if number == 5:
            states.append(abandon_round(states[-1]))
        else:
            states.append(close_round(states[-1], broadcast, mean, optimizer, ROUNDS))
    return states


def iterates(states: list[ServerState], name: str, rows: int | str, first: int = 0) -> list:
    """Of each word, the values of its row after the rounds in which it travelled."""
    found: list[list[np.ndarray]] = [[] for _ in range(40)]
    for number in range(first, ROUNDS):
        plan = PayloadPlan(rows=rows, dense="biases")
        payload = choose(plan, roles(SPEC), UNIGRAM, (0, 1, 2, 3), seed=5, round=number)
        for word in range(40) if payload.rows is None else payload.rows:
            if number != 5:
                found[word].append(states[number + 1].parameters[name][word].numpy())
    return found


@pytest.mark.parametrize("rows", [10, "all"])
def test_a_tail_is_the_mean_over_the_last_rounds_in_which_a_row_travelled(rows) -> None:
    states = run(Average("tail", share=0.5), rows)
    assert not states[6].moments.keys() & {"average", "travels"}  # counting begins with round 6
    averaged = states[-1].averaged()["embedding"].numpy()
    for word, values in enumerate(iterates(states, "embedding", rows, first=6)):
        expected = states[-1].parameters["embedding"][word] if not values else np.mean(values, 0)
        np.testing.assert_allclose(averaged[word], expected, atol=1e-6)


@pytest.mark.parametrize("rows", [10, "all"])
def test_an_exponential_average_forgets_and_holds_nothing_of_the_start(rows) -> None:
    states = run(Average("exponential", decay=0.7), rows)
    averaged = states[-1].averaged()["embedding"].numpy()
    seen = set()
    for word, values in enumerate(iterates(states, "embedding", rows)):
        expected = states[0].parameters["embedding"][word].numpy()
        for n, value in enumerate(values, 1):
            expected = expected + max(0.3, 1 / n) * (value - expected)
        np.testing.assert_allclose(averaged[word], expected, atol=1e-6)
        seen.add(len(values))
    assert rows == "all" or {0, 1} <= seen  # some rows never travelled, some once


def test_a_row_that_stays_at_home_keeps_its_own_average() -> None:
    states = run(Average("exponential"))
    for before, after in pairwise(states[1:]):
        same = (before.parameters["embedding"] == after.parameters["embedding"]).all(1)
        assert same.any()
        assert torch.equal(
            before.averaged()["embedding"][same], after.averaged()["embedding"][same]
        )


@pytest.mark.parametrize(
    "average", [Average(), Average("tail", share=1e-9), Average("exponential", decay=0.0)]
)
def test_in_the_limit_the_average_is_the_last_model(average: Average) -> None:
    last = run(average, "all")[-1]
    for name, value in last.averaged().items():
        torch.testing.assert_close(value, last.parameters[name], atol=1e-6, rtol=1e-6)


def test_an_exponential_average_that_never_forgets_is_the_mean_of_all() -> None:
    averages = Average("exponential", decay=1 - 1e-9), Average("tail", share=1.0)
    slow, whole = (run(average)[-1].averaged() for average in averages)
    assert all(torch.allclose(slow[name], whole[name], atol=1e-6) for name in slow)


@pytest.mark.parametrize("kind", ["tail", "exponential"])
def test_training_goes_on_from_the_last_model(kind) -> None:
    plain, averaged = run(Average())[-1], run(Average(kind))[-1]
    assert all(torch.equal(averaged.parameters[n], v) for n, v in plain.parameters.items())
    assert not torch.equal(averaged.averaged()["embedding"], plain.averaged()["embedding"])


def test_shares_of_the_rounds_need_their_number() -> None:
    state = ServerState(0, initialise(SPEC, seed=1))
    payload = choose(PayloadPlan(), roles(SPEC), UNIGRAM, (0, 1, 2, 3), seed=5, round=0)
    mean = np.zeros(payload.dim, np.float32)
    plain = ServerOptimizer()
    for optimizer in (replace(plain, cooldown=0.5), replace(plain, average=Average("tail"))):
        with pytest.raises(ValueError, match="rounds is missing"):
            close_round(state, open_round(state, payload), mean, optimizer)


@pytest.mark.parametrize(
    ("field", "value"), [("kind", "mean"), ("share", 0.0), ("share", 1.1), ("decay", 1.0)]
)
def test_impossible_averages_are_refused_by_name(field, value) -> None:
    with pytest.raises(ValueError, match=field):
        Average(**{field: value})
