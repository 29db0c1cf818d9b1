from __future__ import annotations

import numpy as np
import pytest
import torch

from pfl_lm.models.models import ModelSpec, initialise, roles
from pfl_lm.payload.choice import choose
from pfl_lm.payload.layout import gather
from pfl_lm.payload.plan import PayloadPlan
from pfl_lm.server.optimizers import ServerOptimizer
from pfl_lm.server.state import ServerState, abandon_round, close_round, open_round

SPEC = ModelSpec("cifg_lstm", vocabulary_size=40, embedding_dim=4, hidden_dim=4)
UNIGRAM = np.full(40, 1 / 40)


def payload_of(round: int, rows: int | str = 10, dense: str = "none"):
    plan = PayloadPlan(rows=rows, dense=dense)
    return choose(plan, roles(SPEC), UNIGRAM, (0, 1, 2, 3), seed=5, round=round)


@pytest.fixture
def state():
    return ServerState(0, initialise(SPEC, seed=1))


def steps(state, optimizer, rounds=1, **plan):
    for number in range(rounds):
        broadcast = open_round(state, payload_of(number, **plan))
        mean = np.random.default_rng(number).normal(size=broadcast.payload.dim).astype(np.float32)
        state = close_round(state, broadcast, mean, optimizer)
    return state


def test_a_broadcast_is_the_model_on_the_payload(state):
    payload = payload_of(0)
    broadcast = open_round(state, payload)
    rows = torch.from_numpy(payload.rows)
    assert np.array_equal(broadcast.values, gather(state.parameters, payload))
    assert set(state.parameters["embedding"][rows].flatten().tolist()) <= set(
        broadcast.values.tolist()
    )


def test_sgd_adds_the_mean_on_the_payload_and_nowhere_else(state):
    payload = payload_of(0)
    broadcast = open_round(state, payload)
    mean = np.linspace(-1, 1, payload.dim, dtype=np.float32)
    after = close_round(state, broadcast, mean, ServerOptimizer("sgd", 1.0))
    assert np.array_equal(gather(after.parameters, payload), broadcast.values + mean)
    home = np.setdiff1d(np.arange(40), payload.rows)
    for name, value in state.parameters.items():
        still = home if name in ("embedding", "output_bias") else slice(None)
        assert torch.equal(after.parameters[name][still], value[still])


@pytest.mark.parametrize("kind", ["sgd", "momentum", "adam", "yogi"])
def test_a_step_leaves_the_old_state_as_it_was(state, kind):
    first = steps(state, ServerOptimizer(kind))
    kept = {n: v.clone() for n, v in first.parameters.items()}
    moments = {m: {n: v.clone() for n, v in t.items()} for m, t in first.moments.items()}
    steps(ServerState(1, first.parameters, first.moments), ServerOptimizer(kind), rounds=2)
    assert all(torch.equal(first.parameters[n], v) for n, v in kept.items())
    assert all(torch.equal(first.moments[m][n], v) for m in moments for n, v in moments[m].items())


@pytest.mark.parametrize("kind", ["momentum", "adam", "yogi"])
def test_moments_of_rows_that_stayed_at_home_are_not_touched(state, kind):
    optimizer = ServerOptimizer(kind)
    first = steps(state, optimizer)
    broadcast = open_round(first, payload_of(7))
    second = close_round(first, broadcast, np.ones(broadcast.payload.dim, np.float32), optimizer)
    home = np.setdiff1d(np.arange(40), broadcast.payload.rows)
    learnt = np.intersect1d(home, payload_of(0).rows)
    assert len(learnt)
    for moment, tables in second.moments.items():
        before = first.moments[moment]["embedding"]
        assert torch.equal(tables["embedding"][home], before[home])
        assert (before[learnt] != optimizer.initial(moment)).any()
    assert torch.equal(second.parameters["embedding"][home], first.parameters["embedding"][home])


@pytest.mark.parametrize("kind", ["momentum", "adam", "yogi"])
def test_moments_begin_where_the_optimizer_says_when_a_table_first_travels(state, kind):
    optimizer = ServerOptimizer(kind)
    only_rows = steps(state, optimizer)
    dense = payload_of(1, rows="none", dense="all")
    broadcast = open_round(only_rows, dense)
    nothing = np.zeros(dense.dim, np.float32)
    both = close_round(only_rows, broadcast, nothing, optimizer)
    fresh = close_round(state, open_round(state, dense), nothing, optimizer)
    new = {s.name for s in dense.segments} - set(only_rows.moments["first"])
    assert new
    for moment in optimizer.moments:
        for name in new:
            assert torch.equal(both.moments[moment][name], fresh.moments[moment][name])


def test_rounds_count_whether_opened_or_abandoned(state):
    after = abandon_round(steps(state, ServerOptimizer("sgd")))
    assert after.round == 2
    opened = steps(state, ServerOptimizer("sgd"))
    assert all(torch.equal(after.parameters[n], v) for n, v in opened.parameters.items())


def test_a_mean_of_another_dimension_is_refused(state):
    broadcast = open_round(state, payload_of(0))
    with pytest.raises(ValueError, match="the payload's is"):
        close_round(state, broadcast, np.zeros(3, np.float32), ServerOptimizer())
