"""What banded noise remembers: the same as a shift register of every coordinate, in less."""

from __future__ import annotations

import numpy as np
import pytest

from pfl_lm.dp.correlated.history import History, Record
from pfl_lm.dp.correlated.mechanism import Banded
from pfl_lm.dp.correlated.strategy import Strategy, choose
from pfl_lm.dp.correlated.stream import Stream
from pfl_lm.dp.grid import Grid
from pfl_lm.dp.mechanism import Opened
from pfl_lm.dp.sampler.random_bits import reproducible_bits
from pfl_lm.dp.secret_state import SecretState
from pfl_lm.streams import key

ROUNDS, DIM = 24, 60
KINDS = ("banded", "banded_inverse_root")


def travelling(share: float):
    """Yield each round's coordinates: some travel always, lost rounds have none."""
    random = np.random.default_rng(1)
    for round in range(ROUNDS):
        chosen = random.random(DIM) < np.where(np.arange(DIM) < 10, 1.0, share)
        if round % 7 != 3:
            yield round, None if share == 1 else np.flatnonzero(chosen)


class Registers:
    """The ten-line version: every coordinate's last m sums and releases, shifted in its time."""

    def __init__(self, strategy: Strategy, own_time: bool) -> None:
        self.weights = np.array(strategy.weights)
        self.products, self.own_time = strategy.remembers_products, own_time
        self.pasts = np.zeros((2, strategy.memory, DIM))
        self.round = 0

    def shift(self, here, values):
        self.pasts[:, :, here] = np.concatenate([values[:, None], self.pasts[:, :-1, here]], axis=1)

    def release(self, round, here, total, noise):
        """Return the mean of a round whose product got this noise."""
        everything = np.arange(DIM)
        away = np.setdiff1d(everything, here)
        for lost in range(self.round, round + 1):
            idle = everything if lost < round else away
            past = np.einsum("j,pji->pi", self.weights, self.pasts[:, :, idle])
            if not self.own_time:
                self.shift(idle, past if self.products else 0 * past)
        past = np.einsum("j,pji->pi", self.weights, self.pasts[:, :, here])
        product = total + past[0]
        noisy = product + noise
        mean = noisy - past[1]
        self.shift(here, np.array([product, noisy] if self.products else [total, mean]))
        self.round = round + 1
        return mean


@pytest.mark.parametrize("share", [0.1, 0.4, 1.0])
@pytest.mark.parametrize("own_time", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_is_that_of_a_shift_register(kind, own_time, share):
    strategy = choose(kind, ROUNDS, ROUNDS if own_time else 6, 1 if own_time else 4, memory=5)
    stream, plain = Stream(strategy, ROUNDS, 1.5, own_time), Registers(strategy, own_time)
    state, random = stream.begin(DIM), np.random.default_rng(2)
    for round, places in travelling(share):
        here = np.arange(DIM) if places is None else places
        total = random.normal(size=len(here))
        bits = reproducible_bits(key(0, kind, round))
        look = state
        while not own_time and look.round < round:
            look = look.pass_by(strategy, 0.0)
        product = total + look.look_back(strategy, own_time, places).sums
        mean, after = stream.release(
            state, total, round=round, clip_norm=1.0, noise_multiplier=2.0, bits=bits, places=places
        )
        noise = mean + look.look_back(strategy, own_time, places).released - product
        assert np.abs(mean - plain.release(round, here, total, noise)).max() < 1e-12
        records = [
            Record.from_bytes(record.to_bytes(), bytes([place]))
            for place, record in enumerate(after.records)
        ]
        state = History.from_bytes(after.to_bytes(), records)
        if own_time or not strategy.remembers_products:
            check_size(state, strategy, own_time, share)


def check_size(state: History, strategy: Strategy, own_time: bool, share: float) -> None:
    """Hold what is kept against what is needed."""
    found = np.zeros(DIM, int)
    for record in state.records:
        found[slice(None) if record.places is None else record.places] += 1
    needed = np.minimum(found, strategy.memory).sum() if own_time else found.sum()
    assert len(state.records) <= (ROUNDS if own_time and share < 1 else strategy.memory)
    assert found.sum() <= 2 * needed


def test_a_round_leaves_the_records_of_others_as_they_are_and_salts_its_own():
    mechanism = Banded(Banded().planned(ROUNDS, ROUNDS, 1), ROUNDS, 1)
    grid, state = Grid(DIM, 0.5, 8.0, 40), SecretState()
    for round, places in travelling(0.4):
        total = np.zeros(len(places), np.int64)
        bits = reproducible_bits(key(0, "noise", round))
        before = dict(state.parts)
        opened = Opened(total, grid, 1, 2.0, bits, round, places, DIM)
        state = SecretState(mechanism.mean(opened, state)[1])
        new = [name for name in state.parts if name not in before]
        assert len(new) == 1
        assert all(state.parts[name] is before[name] for name in before)
        assert all(name in state for name in state.parts)
    assert len({part[:32] for part in state.parts.values()}) == len(state.parts)


def test_what_is_no_record_or_no_state_is_refused():
    record = Record(3, None, np.ones(4), np.ones(4), 1.0)
    for content in (b"", b"something else" * 9, record.to_bytes()[:-8]):
        with pytest.raises(ValueError, match=r"no record|damaged"):
            Record.from_bytes(content, b"")
    state = History(4, (record,), (0,), 4)
    for content in (b"", b"pfl-lm s" * 9, state.to_bytes()[:-8]):
        with pytest.raises(ValueError, match=r"no state|damaged"):
            History.from_bytes(content, [record])
    with pytest.raises(ValueError, match="records are missing"):
        History.from_bytes(state.to_bytes(), [])
