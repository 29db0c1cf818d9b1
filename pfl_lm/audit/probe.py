"""One round of the run's own code with chosen updates: what an attacker in the lab would do.

``simulate.run_round`` runs as it is, doctored or not; only its two ends are replaced: what the
devices computed from their text, and the step of the model. Everything between them is the code
under audit: clip, rounding, noise, secure sum, decoding, the ledger's entry.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pfl_lm import simulate
from pfl_lm.devices.report import Trace
from pfl_lm.devices.task import Task
from pfl_lm.payload import Payload
from pfl_lm.server.state import ServerState
from pfl_lm.world import World, choose_payload

FIRST_ROUND = 1_000_000  # far from every round of a run: a probe repeats none of its streams

Updates = Callable[[Sequence[int], int], np.ndarray]
"""(users, d) → float32[K, d]: what each device's training would have returned."""


@dataclass(frozen=True)
class Opened:
    """What a probed round released.

    Attributes:
        total: float64[d], the mean times its divisor: the noisy sum, in model units.
        debit: what the ledger recorded.
        payload: which coordinates travelled.
    """

    total: np.ndarray
    debit: dict[str, Any]
    payload: Payload


class _Ledger:
    """Takes the place of a ledger; a probe is no round of the run."""

    def __init__(self) -> None:
        self.debits: list[dict[str, Any]] = []

    def entries(self) -> list[dict[str, Any]]:
        return []

    def record(self, entry: dict[str, Any]) -> str:
        raise ValueError(f"a probed round was not opened: {entry}")

    def record_round(self, round: int, entry: dict[str, Any], **_: Any) -> str:
        self.debits.append({**entry, "round": round})
        return ""


def everybody_reports(world: World) -> World:
    """Return the world without simulated dropout: every device that is asked sends its report."""
    scenario = replace(world.scenario, dropout=0.0, fleet=None)
    return replace(world, scenario=scenario, fleet=None)


def probe_round(world: World, number: int, users: Sequence[int], updates: Updates) -> Opened:
    """Run round ``number`` with these users and these updates, and return what it released.

    Raises:
        ValueError: the round was not opened (too few users).
    """
    means: list[np.ndarray] = []

    def captured(state: ServerState, _: Any, mean: np.ndarray, *__: Any) -> ServerState:
        means.append(mean)
        return state

    ledger = _Ledger()
    state = ServerState(number, world.start.parameters)
    invited = np.asarray(users, dtype=np.int64)
    with _replaced(invited, updates, close_round=captured):
        simulate.run_round(world, state, ledger)  # type: ignore[arg-type]
    (debit,) = ledger.debits
    total = means[0].astype(np.float64) * debit["divisor"]
    return Opened(total, debit, choose_payload(world, number))


def rounds_of(
    world: World,
    first: int,
    count: int,
    users_of: Callable[[int], np.ndarray],
    updates_of: Callable[[int, Sequence[int], int], np.ndarray],
) -> Iterator[tuple[Opened, ServerState]]:
    """Run rounds in a row, the model moving as in the run; yield what each released and left.

    Args:
        first: number of the first round; places count from 0.
        users_of, updates_of: by place, who sends and what.
    """
    state = ServerState(first, world.start.parameters)
    step = simulate.close_round
    means: list[np.ndarray] = []

    def captured(before: ServerState, broadcast: Any, mean: np.ndarray, *rest: Any) -> ServerState:
        means.append(mean)
        return step(before, broadcast, mean, *rest)

    for place in range(count):
        ledger = _Ledger()

        def updates(users: Sequence[int], dim: int, place: int = place) -> np.ndarray:
            return updates_of(place, users, dim)

        with _replaced(users_of(place), updates, close_round=captured):
            state, _ = simulate.run_round(world, state, ledger)  # type: ignore[arg-type]
        (debit,) = ledger.debits
        total = means.pop().astype(np.float64) * debit["divisor"]
        yield Opened(total, debit, choose_payload(world, first + place)), state


def encoded(
    world: World, number: int, users: Sequence[int], updates: Updates
) -> Iterator[np.ndarray]:
    """Yield what devices submit, int64[K, d], group by group, in order of ``users``' groups."""
    state = ServerState(number, world.start.parameters)
    payload = choose_payload(world, number)
    broadcast = simulate.open_round(state, payload)
    grid = world.protection.grid(payload.dim)
    invited = np.asarray(users, dtype=np.int64)
    with _replaced(invited, updates):
        for group in simulate.participate(world, state, broadcast, grid, invited):
            yield group.vectors


@contextmanager
def _replaced(invited: np.ndarray, updates: Updates, **others: Any) -> Iterator[None]:
    """Replace both ends of a round for the length of a block: who sends, and what."""

    def trained(task: Task, _: Any, users: list[int]) -> tuple[np.ndarray, list[Trace]]:
        values = np.ascontiguousarray(updates(users, task.payload.dim), dtype=np.float32)
        return values, [Trace(user, 0.0, _text_of(user), 1, 0.0) for user in users]

    def text(_: Any, user: int, *__: Any) -> np.ndarray:
        return np.zeros((_text_of(user), 2), dtype=np.int64)

    ends = {"cohort": lambda *_: invited, "train": trained, "text_of": text}
    with replaced(**ends, **others):
        yield


def _text_of(user: int) -> int:
    """Return how much a probed device has typed, in words: not all alike, lest weights hide."""
    return 1 + user % 3


@contextmanager
def replaced(**parts: Any) -> Iterator[None]:
    """Replace functions that ``pfl_lm.simulate`` calls, by name, for the length of a block."""
    before = {name: getattr(simulate, name) for name in parts}
    for name, part in parts.items():
        setattr(simulate, name, part)
    try:
        yield
    finally:
        for name, part in before.items():
            setattr(simulate, name, part)


def quiet_ledger() -> Any:
    """Return what takes the place of a ledger where rounds are no rounds of a run."""
    return _Ledger()


def places(world: World, count: int | None = None) -> range:
    """Return the users of a probed round: a cohort, or ``count`` of them."""
    return range(count or world.protection.cohort)


def zeros(users: Sequence[int], dim: int) -> np.ndarray:
    """Return updates of devices that learnt nothing."""
    return np.zeros((len(users), dim), np.float32)


def dim_of(world: World) -> int:
    """Return how many coordinates travel in a probed round."""
    return int(choose_payload(world, FIRST_ROUND).dim)


def fewest(world: World) -> int:
    """Return the fewest reports that are opened, of a small cohort no less than half."""
    return max(world.protection.least_reports, math.ceil(world.protection.cohort / 2))
