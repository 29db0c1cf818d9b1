from __future__ import annotations

import numpy as np
import pytest

from pfl_lm.server.optimizers import ServerOptimizer, step


def moments(optimizer, size):
    return {name: np.full(size, optimizer.initial(name), np.float32) for name in optimizer.moments}


def test_sgd_at_rate_one_is_federated_averaging():
    mean = np.float32([1.0, -2.0])
    change, kept = step(ServerOptimizer("sgd", 1.0), mean, {})
    assert np.array_equal(change, mean)
    assert kept == {}


def test_momentum_accumulates_geometrically():
    optimizer = ServerOptimizer("momentum", 0.5, momentum=0.9)
    state = moments(optimizer, 1)
    total = 0.0
    for _ in range(200):
        change, state = step(optimizer, np.ones(1, np.float32), state)
        total = float(change[0])
    assert total == pytest.approx(0.5 / (1 - 0.9), rel=1e-4)


@pytest.mark.parametrize("kind", ["adam", "yogi"])
def test_adaptive_steps_tend_to_the_sign_of_a_constant_update(kind):
    optimizer = ServerOptimizer(kind, 0.1, second_momentum=0.9, adaptivity=1e-6)
    state = moments(optimizer, 2)
    for _ in range(300):
        change, state = step(optimizer, np.float32([3.0, -0.01]), state)
    assert np.allclose(change, np.float32([0.1, -0.1]), rtol=2e-2)


def test_yogi_moves_its_second_moment_by_a_bounded_amount_where_adam_forgets():
    past = {"first": np.zeros(1, np.float32), "second": np.ones(1, np.float32)}
    tiny = np.float32([1e-4])
    _, adam = step(ServerOptimizer("adam", second_momentum=0.9), tiny, past)
    _, yogi = step(ServerOptimizer("yogi", second_momentum=0.9), tiny, past)
    assert float(adam["second"][0]) == pytest.approx(0.9)
    assert float(yogi["second"][0]) == pytest.approx(1.0)


def test_without_warmup_and_cooldown_the_rate_is_constant():
    assert {ServerOptimizer(learning_rate=0.3).rate(r, 10) for r in range(10)} == {0.3}


def test_a_cooldown_over_all_rounds_is_a_linear_decay_to_0():
    optimizer = ServerOptimizer(learning_rate=2.0, cooldown=1.0)
    rates = [optimizer.rate(r, 10) for r in range(10)]
    assert rates == pytest.approx([2.0 * (10 - r) / 10 for r in range(10)])
    assert sum(rates) == pytest.approx(2.0 * 11 / 2)  # half of the constant rate's sum, and 1 / R


def test_the_rate_rises_stays_and_falls():
    optimizer = ServerOptimizer(learning_rate=1.0, warmup=0.25, cooldown=0.5)
    rates = [optimizer.rate(r, 8) for r in range(8)]
    assert rates == pytest.approx([0.5, 1, 1, 1, 1, 0.75, 0.5, 0.25])


def test_a_rounds_rate_replaces_the_optimizers():
    optimizer = ServerOptimizer("momentum", 0.5)
    change, kept = step(optimizer, np.ones(1, np.float32), moments(optimizer, 1), 0.1)
    assert float(change[0]) == pytest.approx(0.1)
    assert float(kept["first"][0]) == 1.0  # the past is kept in units of the update


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("learning_rate", 0.0),
        ("momentum", 1.0),
        ("second_momentum", -0.1),
        ("adaptivity", 0.0),
        ("warmup", -0.1),
        ("cooldown", 1.5),
    ],
)
def test_impossible_settings_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        ServerOptimizer(**{field: value})


def test_warmup_and_cooldown_must_not_overlap():
    with pytest.raises(ValueError, match="together be at most 1"):
        ServerOptimizer(warmup=0.6, cooldown=0.6)
