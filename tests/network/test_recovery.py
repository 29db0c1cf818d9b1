"""A server that is killed: no spent budget is lost, no round is opened twice."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pfl_lm.dp.ledger import Ledger, verify
from pfl_lm.network.recovery import open_store
from pfl_lm.network.server import recover, serve
from pfl_lm.network.store import Store
from pfl_lm.network.task_config import served
from pfl_lm.run.checkpoints import newest_checkpoint
from pfl_lm.run.context import choose_payload
from pfl_lm.run.folder import RunFolder
from pfl_lm.run.resume import begin_run
from pfl_lm.run.round import Release, abandon, ledger_entry
from pfl_lm.run.setup import open_run
from pfl_lm.server.state import close_round, open_round

PRELOADED = ["tests.network.warm", "pytest"]
POINTS = ("invited", "asking", "kept", "opened", "debited", "closed")


@dataclass
class ServerOnDisk:
    """What a server has on the disk, and what it would do in a round, without devices."""

    context: object
    folder: RunFolder
    ledger: Ledger
    store: Store

    def broadcast(self, number: int):
        state, _ = newest_checkpoint(self.folder)
        return open_round(replace(state, round=number), choose_payload(self.context, number))

    def mean(self, number: int) -> np.ndarray:
        dim = choose_payload(self.context, number).dim
        return np.random.default_rng(number).normal(0, 0.01, dim).astype(np.float32)

    def write(self, number: int, *steps: str) -> None:
        """Make the durable writes of a round up to where the server is killed."""
        for step in steps:
            match step:
                case "invited":
                    self.store.invited(number, bytes(32))
                case "asking":
                    self.store.asking(number, 5)
                case "opened":
                    self.store.opened(number, self.mean(number))
                case "debited":
                    self.record(number, self.mean(number))
                case "closed":
                    self.store.closed(number)
                case "abandoned":
                    abandon(number, 0, self.ledger)
                case "charged":
                    self.record(number, None)

    def record(self, number: int, mean: np.ndarray | None) -> None:
        released = None if mean is None else Release(mean)
        entry = ledger_entry(self.context.privacy, self.broadcast(number), 6, 5, released)
        self.ledger.record_round(number, entry)

    def recover(self):
        return recover(self.context, self.folder, self.ledger, self.store)

    def debits(self) -> list[int]:
        return [e["round"] for e in self.ledger.entries() if e["kind"] == "round"]


@pytest.fixture
def disk(small, keys_of, policy_file, tmp_path, quick):
    context = open_run(small(policy=policy_file(), rounds=4, reproducible=False))
    context = served(context, 6, trial=True)
    folder = RunFolder(tmp_path / "run")
    _, ledger = begin_run(context, folder)
    with ledger:
        store = Store.create(folder.path / "rounds.sqlite", keys_of(6).enrolled())
        yield ServerOnDisk(context, folder, ledger, store)
        store.close()


@pytest.mark.parametrize(
    ("steps", "state", "debits", "moved"),
    [
        ((), None, 0, False),
        (("invited",), "abandoned", 0, False),
        (("invited", "abandoned"), "abandoned", 0, False),
        (("invited", "asking"), "lost", 1, False),
        (("invited", "asking", "charged"), "lost", 1, False),
        (("invited", "asking", "abandoned"), "lost", 1, False),
        (("invited", "asking", "opened"), "closed", 1, True),
        (("invited", "asking", "opened", "debited"), "closed", 1, True),
        (("invited", "asking", "opened", "debited", "closed"), "closed", 1, True),
    ],
    ids=lambda value: " ".join(value) or "nothing" if isinstance(value, tuple) else str(value),
)
def test_every_line_of_the_table(disk, steps, state, debits, moved):
    """Twice: what recovery wrote, it does not write again."""
    disk.write(0, *POINTS)
    disk.write(1, *steps)
    for _ in range(2):
        found = disk.recover()
        assert found.round == (1 if state is None else 2)
        assert disk.debits() == [0] + [1] * debits
        assert [row.state for row in disk.store.rounds()][1:] == ([] if state is None else [state])
        expected, _ = newest_checkpoint(disk.folder)
        for number in (0, 1) if moved else (0,):
            optimizer = disk.context.scenario.server
            expected = close_round(
                replace(expected, round=number),
                disk.broadcast(number),
                disk.mean(number),
                optimizer,
            )
        assert all(torch.equal(found.parameters[n], v) for n, v in expected.parameters.items())
    with pytest.raises(ValueError, match="round 1 cannot be opened" if steps else "round 0"):
        disk.store.invited(1 if steps else 0, bytes(32))


def test_a_lost_round_says_that_nothing_was_released(disk):
    disk.write(0, "invited", "asking")
    disk.recover()
    (entry,) = (e for e in disk.ledger.entries() if e["kind"] == "round")
    assert entry["released"] is None
    assert entry["reports"] == 5


@pytest.fixture
def reopened(disk, keys_of):
    """A function that opens the store again beside a ledger, as a server does that goes on."""

    def reopen(ledger: Ledger) -> None:
        open_store(disk.store.path, ledger, keys_of(6).enrolled()).close()

    return reopen


@pytest.mark.parametrize("last", range(1, len(POINTS) + 1))
def test_a_store_belongs_to_its_ledger_wherever_the_server_was_killed(disk, reopened, last):
    disk.write(0, *POINTS)
    disk.write(1, *POINTS[:last])
    reopened(disk.ledger)
    disk.recover()
    reopened(disk.ledger)


@pytest.mark.parametrize("steps", [POINTS, ("invited", "asking"), ("invited",)])
def test_a_ledger_that_lacks_a_round_of_its_store_is_refused(disk, reopened, steps):
    """What is over in the store was recorded first: a shorter ledger is an older copy."""
    disk.write(0, *POINTS)
    before = disk.ledger.path.read_bytes()
    disk.write(1, *steps)
    disk.recover()
    older = disk.folder.path / "older.jsonl"
    older.write_bytes(before)
    with Ledger.open(older) as ledger, pytest.raises(ValueError, match="of round 1") as refused:
        reopened(ledger)
    assert str(disk.store.path) in str(refused.value)
    assert str(older) in str(refused.value)


def test_a_store_that_lacks_a_round_of_its_ledger_is_refused(disk, reopened):
    disk.write(0, *POINTS)
    disk.write(1, "charged")
    with pytest.raises(ValueError, match="has of round 1: nothing"):
        reopened(disk.ledger)


def test_a_debit_of_another_round_is_refused(disk, reopened):
    """The same number, and another count of reports: the files are of two runs."""
    disk.write(0, "invited")
    disk.store.asking(0, 4)
    disk.write(0, "charged")
    with pytest.raises(ValueError, match="4 reports, asking"):
        reopened(disk.ledger)


class Killing:
    """Ends the process, as kill -9 does, at the given points of the given rounds."""

    def __init__(self, points: dict[int, str]) -> None:
        self.points = points

    def __call__(self, point: str, round: int) -> None:
        if self.points.get(round) == point:
            os.kill(os.getpid(), signal.SIGKILL)


def run_server(scenario, path: Path, serving, resume: bool, watcher) -> None:
    import pfl_lm.run.setup

    pfl_lm.run.setup.PUBLIC_USERS = 20
    serve(scenario, path, serving, watcher, resume)


def linked(entries: list[dict]) -> bool:
    """Say whether each recorded round took up the noise's state that the one before left."""
    left = hashlib.sha256(b"").hexdigest()
    for entry in entries:
        if "noise_state" in entry:
            if entry["noise_taken_up"] != left:
                return False
            left = entry["noise_state"]
    return True


@pytest.mark.parametrize("correlated", [False, True], ids=["no policy", "correlated noise"])
def test_servers_killed_at_every_point_while_devices_wait(
    trial, policy_file, new_watcher, correlated
):
    """Six rounds, each with another point at which the server dies, and the same six devices.

    The last two servers have front ends, where the system shares ports; those of the one that is
    killed leave the port to the next.
    """
    policy = policy_file(
        noise='{ at = "server", kind = "blt" }',
        participation='{ kind = "rotation", min_separation = 2 }',
        epsilon="8.0",
        rounds="7",
    )
    run = trial(rounds=7, policy=policy if correlated else None)
    run.start_devices()
    points = dict(enumerate(POINTS))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    ends = []
    for attempt in range(len(POINTS) + 1):
        serving = run.serving(
            reached=Killing(dict(list(points.items())[attempt:])),
            front_ends=2 if sys.platform == "linux" and attempt + 1 >= len(POINTS) else 1,
        )
        arguments = (run.scenario, run.folder, serving, attempt > 0, new_watcher())
        server = context.Process(target=run_server, args=arguments, daemon=True)
        server.start()
        server.join(300)
        ends.append(server.exitcode)
    run.join()
    assert ends == [-signal.SIGKILL] * len(POINTS) + [0]
    entries = verify(run.folder / "ledger.jsonl")
    assert linked(entries)
    assert not (run.folder / "noise").exists()
    if correlated:
        opened = [e for e in entries if e["kind"] == "round" and e["released"] is not None]
        assert len({e["noise_state"] for e in opened}) == 4
    assert [(e["kind"], e["round"]) for e in entries[1:-1]] == [
        ("abandoned", 0),
        ("round", 1),
        ("round", 2),
        ("round", 3),
        ("round", 4),
        ("round", 5),
        ("round", 6),
    ]
    assert (entries[-1]["kind"], entries[-1]["rounds"]) == ("end", 7)
    states = [row.state for row in Store.open(run.folder / "rounds.sqlite").rounds()]
    assert states == ["abandoned", "lost", "lost", "closed", "closed", "closed", "closed"]
    rounds = [line for line in RunFolder(run.folder).metrics() if line["kind"] == "round"]
    assert [line["round"] for line in rounds] == list(range(7))  # noted by whoever came after
    assert [line["reports"] > 0 for line in rounds] == [False] * 3 + [True] * 4
    assert all(line["upload_bytes"] > 0 for line in rounds[3:])
    assert [line["seconds"] is None for line in rounds] == [True] * 6 + [False]
    assert all("epsilon" in line for line in rounds)
