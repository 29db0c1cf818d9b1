"""A stream's noise is C⁻¹z: its covariance, its restart from a saved state, its refusals."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pfl_lm.dp.correlated.buffers import Buffers
from pfl_lm.dp.correlated.history import History, Record
from pfl_lm.dp.correlated.strategy import Strategy, choose
from pfl_lm.dp.correlated.stream import Stream
from pfl_lm.dp.correlated.toeplitz import inverse
from pfl_lm.dp.correlated.tree_stream import TreeState
from pfl_lm.dp.correlated.tree_stream import release as tree_release
from pfl_lm.dp.sampler.random_bits import RandomBits, reproducible_bits
from pfl_lm.streams import key

KINDS = ("blt", "banded", "banded_inverse_root", "identity")
N, DIM = 8, 4000


def source(label: str, round: int) -> RandomBits:
    return reproducible_bits(key(0, label, round))


def strategy_of(kind: str) -> Strategy:
    return choose(kind, N, 4, 2)


def stream_of(strategy: Strategy, own_time: bool = False) -> Stream:
    return Stream(strategy, N, 1.5, own_time)


def run(strategy, sums, multiplier=2.0, label="stream", state=None, first=0, clip=1.0):
    stream, rows = stream_of(strategy), []
    state = state or stream.begin(sums.shape[1])
    for t in range(first, len(sums)):
        row, state = stream.release(
            state, sums[t], round=t, clip_norm=clip, noise_multiplier=multiplier,
            bits=source(label, t),
        )  # fmt: skip
        rows.append(row)
    return np.array(rows), state


@pytest.mark.parametrize("kind", KINDS)
def test_the_covariance_between_rounds_is_that_of_the_inverse(kind):
    strategy = strategy_of(kind)
    sums = np.random.default_rng(0).normal(size=(N, DIM))
    noise = run(strategy, sums)[0] - sums
    column = inverse(strategy.coefficients(N), N)
    lower = np.array([[column[i - j] if i >= j else 0.0 for j in range(N)] for i in range(N)])
    expected = 4.0 * lower @ lower.T
    measured = noise @ noise.T / DIM
    spread = np.sqrt((expected**2 + np.outer(np.diag(expected), np.diag(expected))) / DIM)
    assert (np.abs(measured - expected) < 5 * spread).all()
    if kind != "identity":  # the test can tell: independent noise of the same size fails
        assert not (np.abs(measured - np.diag(np.diag(expected))) < 5 * spread).all()


def content(state) -> list[bytes]:
    records = state.records if isinstance(state, History) else ()
    return [state.to_bytes(), *(record.to_bytes() for record in records)]


def restored(state):
    if isinstance(state, Buffers):
        return Buffers.from_bytes(state.to_bytes())
    records = [Record.from_bytes(record.to_bytes(), b"name") for record in state.records]
    return History.from_bytes(state.to_bytes(), records)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_goes_on_from_its_state_to_the_byte(kind):
    strategy = strategy_of(kind)
    sums = np.random.default_rng(1).normal(size=(N, 50))
    whole, end = run(strategy, sums)
    head, state = run(strategy, sums[:3])
    state = restored(state)
    tail, again = run(strategy, sums, state=state, first=3)
    assert np.concatenate([head, tail]).tobytes() == whole.tobytes()
    assert content(again) == content(end)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_released_is_a_function_of_the_noisy_products_alone(kind):
    """Two streams whose products round to the same lattice points release the same bits."""
    strategy = strategy_of(kind)
    sums = np.random.default_rng(2).normal(size=(1, 64))
    nudged = sums + 1e-13  # far below a lattice step of about 1e-9
    assert run(strategy, sums)[0].tobytes() == run(strategy, nudged)[0].tobytes()


def test_the_last_prefix_sum_has_less_noise_than_independent_noise_leaves():
    strategy = strategy_of("blt")
    sums = np.zeros((N, DIM))
    prefix = run(strategy, sums)[0].sum(axis=0)
    expected = 4.0 * strategy.prefix_errors(N)[-1]
    assert abs(prefix.var() / expected - 1) < 5 * np.sqrt(2 / DIM)
    assert expected < 0.6 * 4.0 * N


TRAVELS = np.array(
    [[1, 1, 0, 1], [1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 0], [1, 0, 0, 1], [1, 1, 1, 0],
     [0, 0, 0, 0], [1, 1, 0, 1]], dtype=bool)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("own_time", [True, False])
def test_coordinates_that_stay_at_home_have_their_own_matrix(kind, own_time):
    """The noise of each coordinate is C_i⁻¹z, for the C_i of the docstring; lost rounds included.

    Rounds 2 and 6 are lost: nobody asks the stream for them.
    """
    strategy = strategy_of(kind)
    c, width = strategy.coefficients(N), DIM // 4
    stream = stream_of(strategy, own_time)
    state = stream.begin(DIM)
    sums = np.random.default_rng(3).normal(size=(N, DIM))
    noise = np.full((N, DIM), np.nan)
    for t in np.flatnonzero(TRAVELS.any(axis=1)):
        places = np.flatnonzero(np.repeat(TRAVELS[t], width))
        mean, state = stream.release(
            state, sums[t, places], round=int(t), clip_norm=1.0, noise_multiplier=2.0,
            bits=source(kind, int(t)), places=places,
        )  # fmt: skip
        noise[t, places] = mean - sums[t, places]
    for i in range(4):
        when = np.flatnonzero(TRAVELS[:, i])
        times = np.arange(len(when)) if own_time else when
        matrix = np.array([[c[a - b] if a >= b else 0.0 for b in times] for a in times])
        expected = 4.0 * np.linalg.inv(matrix) @ np.linalg.inv(matrix).T
        seen = noise[when, i * width : (i + 1) * width]
        spread = np.sqrt((expected**2 + np.outer(np.diag(expected), np.diag(expected))) / width)
        assert (np.abs(seen @ seen.T / width - expected) < 5 * spread).all()


def schedules(rounds: int, coordinates: int):
    random = np.random.default_rng(4)
    yield np.ones((rounds, coordinates), bool)
    for share in (0.3, 0.6, 0.8):
        yield random.random((rounds, coordinates)) < share


@pytest.mark.parametrize(("n", "step", "times"), [(12, 4, 3), (12, 12, 1), (10, 2, 3), (9, 1, 4)])
@pytest.mark.parametrize("kind", KINDS)
def test_no_schedule_and_no_split_of_an_update_costs_more_than_the_bound(kind, n, step, times):
    """Brute force over the rounds of a user, with updates split over coordinates at random.

    For each pattern and split the exact ‖C_i·Δ[:, i]‖² is added up.
    """
    strategy, coordinates = choose(kind, n, step, times), 5
    bound = strategy.squared_sensitivity(n, step, times)
    own_time = times == 1
    c = strategy.coefficients(n)
    lower = np.array([[c[i - j] if i >= j else 0.0 for j in range(n)] for i in range(n)])
    random = np.random.default_rng(5)
    for travels in schedules(n, coordinates):
        grams = np.zeros((coordinates, n, n))
        for i, column in enumerate(travels.T):
            when = np.flatnonzero(column)
            block = lower[: len(when), : len(when)] if own_time else lower[np.ix_(when, when)]
            grams[i][np.ix_(when, when)] = block.T @ block
        for pattern in patterns(n, step, times):
            splits = random.normal(size=(30, len(pattern), coordinates)) ** 3
            splits[0] = 1.0
            splits *= travels[list(pattern)]
            lengths = np.linalg.norm(splits, axis=2, keepdims=True)
            splits /= np.where(lengths == 0, 1.0, lengths)
            blocks = grams[np.ix_(range(coordinates), pattern, pattern)]
            costs = np.einsum("sti,itu,sui->s", splits, blocks, splits)
            assert costs.max() <= bound * (1 + 1e-9)


def patterns(n: int, step: int, times: int):
    for count in range(1, times + 1):
        for rounds in itertools.combinations(range(n), count):
            if all(b - a >= step for a, b in itertools.pairwise(rounds)):
                yield rounds


def test_own_time_would_not_do_where_users_come_twice():
    """Two rounds far apart are neighbours in the own time of a coordinate that travels in both."""
    strategy = choose("blt", 12, 6, 2)
    c = strategy.coefficients(12)
    own = np.array([[1.0, 0.0], [c[1], 1.0]]) @ np.ones(2)
    apart = strategy.squared_sensitivity(12, 6, 2)
    assert (own**2).sum() + sum((c[k] + c[k + 1]) ** 2 for k in range(1, 10)) > apart


def test_a_stream_refuses_what_it_cannot_account_for():
    strategy = strategy_of("blt")
    stream, sums = stream_of(strategy), np.zeros((N, 4))
    begin = stream.begin(4)
    _, state = run(strategy, sums)
    common = {"clip_norm": 1.0, "bits": source("refusals", 0)}
    with pytest.raises(ValueError, match="planned for 8 rounds"):
        stream.release(state, sums[0], round=N, noise_multiplier=1.0, **common)
    with pytest.raises(ValueError, match="round 3 has had its noise: the stream is at 8"):
        stream.release(state, sums[0], round=3, noise_multiplier=1.0, **common)
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="finite"):
            stream.release(begin, sums[0] + bad, round=0, noise_multiplier=1.0, **common)
    for multiplier in (0.0, np.nan, -1.0):
        with pytest.raises(ValueError, match="positive"):
            stream.release(begin, sums[0], round=0, noise_multiplier=multiplier, **common)
    big, state = np.full(4, 3e7), begin
    with pytest.raises(ValueError, match="cannot be kept"):
        for t in range(N):
            _, state = stream.release(state, big, round=t, noise_multiplier=1.0, **common)


@pytest.mark.parametrize("content", [b"", b"something else", b"pfl-lm s", None])
def test_a_damaged_state_is_refused(content):
    if content is None:
        content = Buffers.begin(2, 3).to_bytes()[:-1]
    with pytest.raises(ValueError, match=r"no state|damaged"):
        Buffers.from_bytes(content)


def test_a_tree_releases_prefix_sums_with_the_noise_of_their_nodes():
    rounds, dim, state, rows = 8, 4000, TreeState.begin(8, 4000), []
    sums = np.random.default_rng(6).normal(size=(rounds, dim))
    sums[2] = 0.0  # a lost round
    for t in (0, 1, 3, 4, 5, 6, 7):
        row, state = tree_release(
            state, sums[t], round=t, rounds=rounds, sensitivity=2.0, clip_norm=1.0,
            noise_multiplier=2.0, bits=source("tree", t),
        )  # fmt: skip
        state = TreeState.from_bytes(state.to_bytes())
        rows.append(row)
    prefixes = np.cumsum(rows, axis=0) - np.cumsum(sums, axis=0)[[0, 1, 3, 4, 5, 6, 7]]
    for place, length in enumerate((1, 2, 4, 5, 6, 7, 8)):
        expected = 4.0 * length.bit_count()
        assert abs(prefixes[place].var() / expected - 1) < 5 * np.sqrt(2 / dim)
    # Prefixes of 4 and 5 rounds share the node of 4.
    assert abs((prefixes[2] * prefixes[3]).mean() / 4.0 - 1) < 5 * np.sqrt(3 / dim)
    with pytest.raises(ValueError, match="none of the tree's"):
        tree_release(
            state, sums[0], round=7, rounds=8, sensitivity=2.0, clip_norm=1.0,
            noise_multiplier=2.0, bits=source("tree", 9),
        )  # fmt: skip
    with pytest.raises(ValueError, match="damaged"):
        TreeState.from_bytes(state.to_bytes()[:-8])
