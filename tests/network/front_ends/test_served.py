"""Whole rounds through front ends, which are killed."""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest

from pfl_lm.models.file import load_model
from pfl_lm.network import server
from pfl_lm.network.front_ends.group import FrontEnds

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a shared port needs Linux")


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_front_ends_killed_in_a_round_lose_nothing(trial, new_watcher, same_model, monkeypatch):
    """One dies before each kind of message, in one of two rounds: the model is the simulator's."""
    groups: list[FrontEnds] = []
    killed: list[int] = []

    class Watched(FrontEnds):
        def __init__(self, *arguments) -> None:
            super().__init__(*arguments)
            groups.append(self)

    def kill_one(round: int, kind: int) -> None:
        if (round, kind) in ((0, 1), (1, 3), (0, 5), (1, 7), (0, 9)):
            while not (alive := [pid for pid in groups[0].pids if pid not in killed]):
                time.sleep(0.05)
            killed.append(alive[0])
            os.kill(alive[0], signal.SIGKILL)

    monkeypatch.setattr(server, "FrontEnds", Watched)
    run = trial(adversary="active")
    run.start_devices([0], kill_one)
    run.start_devices(range(1, 6))
    watcher = new_watcher()
    folder = run.serve(watcher, front_ends=2)
    run.join()
    assert len(killed) == 5
    assert [entry["reports"] for entry in watcher.rounds] == [6, 6]
    assert same_model(load_model(folder.model_path).parameters, run.reference([range(6)] * 2))
    until = time.monotonic() + 30
    while any(map(is_alive, killed)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(is_alive, killed))
    assert not groups[0].pids
