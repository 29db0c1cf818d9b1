"""Whole runs over the network: the model that comes out, with everybody and with some gone."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import pfl_lm.run.simulate as simulation
from pfl_lm.dp.ledger import verify
from pfl_lm.models.file import load_model
from pfl_lm.network.device import Device
from pfl_lm.network.transport import Limits
from pfl_lm.payload.plan import PayloadPlan
from pfl_lm.run import control
from pfl_lm.run.folder import RunFolder

KINDS = {1: "keys", 3: "shares", 5: "report", 7: "confirmation", 9: "answer"}

BRISK = Limits(phase_seconds=8.0, training_seconds=60.0, grace_seconds=0.5, hold_seconds=2.0)


class Died(BaseException):
    """A device that is switched off."""


def dies_before(kind: int):
    def sending(round: int, sent: int) -> None:
        if (round, sent) == (1, kind):
            raise Died

    return sending


@pytest.mark.parametrize(
    ("adversary", "rotate"), [("semi-honest", False), ("active", False), ("semi-honest", True)]
)
def test_the_model_is_the_simulations_to_the_byte(
    trial, new_watcher, tmp_path, monkeypatch, same_model, adversary, rotate
):
    """Partial payloads, so that devices must catch up on what moved while it did not travel."""
    run = trial(rounds=3, adversary=adversary, rotate=rotate, payload=PayloadPlan(rows=100))
    run.start_devices()
    watcher = new_watcher()
    folder = run.serve(watcher)
    run.join()
    assert [entry["reports"] for entry in watcher.rounds] == [6, 6, 6]
    monkeypatch.setattr(simulation, "devices_at_once", lambda *arguments: 1)
    simulated = simulation.simulate(run.scenario, tmp_path / "simulated", new_watcher())
    found, expected = (load_model(f.model_path).parameters for f in (folder, simulated))
    assert same_model(found, expected)
    released = [
        [e["released"] for e in verify(f.ledger_path) if e["kind"] == "round"]
        for f in (folder, simulated)
    ]
    assert released[0] == released[1]


def test_devices_that_die_take_nothing_with_them(trial, new_watcher, same_model, caplog):
    """One is gone before each message of round 1; the sum of the others is exact."""
    dying = {13: 1, 12: 3, 11: 5, 10: 9}  # device: the message that it never sends
    run = trial(devices=14)
    run.start_devices(range(10))
    for device, kind in dying.items():
        run.start_devices([device], sending=dies_before(kind))
    folder = run.serve(new_watcher())
    run.join(Died)
    assert len(run.errors) == 4
    survivors = [list(range(14)), list(range(11))]
    assert same_model(load_model(folder.model_path).parameters, run.reference(survivors))
    for invited, (device, kind) in zip((14, 13, 12, 11), dying.items(), strict=True):
        assert f"round 1: no {KINDS[kind]} from 1 of {invited} devices: {device}" in caplog.text


class Older(Device):
    """Sends without a wait, and fetches what comes next in a call of its own."""

    def _send(self, round: int, frame: bytes, seen: int):
        empty = super()._send(round, frame, 0)
        assert empty.WhichOneof("content") is None
        return self._client.fetch(round, seen)


class Unlucky(Device):
    """Loses every answer, and sends the same bytes again."""

    def _send(self, round: int, frame: bytes, seen: int):
        lost = super()._send(round, frame, seen)  # of the last: an item of the next round
        assert super()._send(round, frame, seen) == lost
        return lost


def test_one_call_sends_a_message_and_waits_for_the_next(trial, new_watcher):
    """Two rounds: the first invitation, and then a download and four messages for each."""
    run = trial(limits=replace(BRISK, hold_seconds=30.0, phase_seconds=30.0))
    calls: Counter[str] = Counter()
    client = run.client(0)

    def count(name: str) -> None:
        call = getattr(client._stub, name)

        def counted(*arguments, **options):
            calls[name] += 1
            return call(*arguments, **options)

        setattr(client._stub, name, counted)

    for name in ("Fetch", "Model", "Send"):
        count(name)
    run.start(lambda: Device(client, run.key(0), run.setup(0)).run())
    run.start(lambda: run.device(1, kind=Older).run())
    run.start(lambda: run.device(2, kind=Unlucky).run())
    run.start_devices(range(3, 6))
    watcher = new_watcher()
    run.serve(watcher)
    run.join()
    assert [entry["reports"] for entry in watcher.rounds] == [6, 6]
    assert calls == {"Fetch": 1, "Model": 2, "Send": 8}


def test_who_comes_after_the_last_round_hears_that_it_was(trial, new_watcher):
    """A server that is killed after it comes back for nothing else."""
    run = trial(limits=replace(BRISK, grace_seconds=30.0))
    run.start_devices()
    run.serve(new_watcher())
    run.join()
    run.start_devices()
    watcher = new_watcher()
    run.serve(watcher, resume=True)
    run.join()
    assert watcher.rounds == []


class Asks:
    """A listener that asks the run something when a round is over, and counts the rounds."""

    def __init__(self, watcher, run: Path, request: str, after: int) -> None:
        self.watcher, self._run, self._request, self._after = watcher, run, request, after

    def __getattr__(self, name):
        return getattr(self.watcher, name)

    def round_done(self, entry, rounds) -> None:
        self.watcher.round_done(entry, rounds)
        if len(self.watcher.rounds) == self._after:
            control.ask(self._run, self._request)


def test_a_server_pauses_and_stops_as_it_is_asked_and_continues(trial, new_watcher):
    """While it pauses it answers: devices that wait for news hear that there is none."""
    run = trial(rounds=3)
    run.start_devices()
    asks, calls = Asks(new_watcher(), run.folder, control.PAUSE, after=1), Counter()
    going = threading.Timer(1.5, control.withdraw, (run.folder, control.PAUSE))

    def reached(point: str, round: int) -> None:
        if (point, round) == ("closed", 0):
            going.start()
        if (point, round) == ("invited", 1):
            calls["went on while it was asked to pause"] += control.asks(run.folder, control.PAUSE)
            control.ask(run.folder, control.STOP)

    with pytest.raises(control.RunStopped, match=r"stopped after 2 rounds, as was asked.*--resume"):
        run.serve(asks, reached=reached)
    assert not +calls
    assert [entry["reports"] for entry in asks.rounds] == [6, 6]
    assert not list(run.folder.glob("*.request"))
    rest = new_watcher()
    run.serve(rest, resume=True)
    run.join()
    assert [entry["round"] for entry in rest.rounds] == [2]


def test_a_server_that_waits_for_devices_stops_as_it_is_asked(trial, new_watcher):
    run = trial()

    def ask() -> None:
        while not (run.folder / "manifest.json").is_file() or not control.is_heeded(
            RunFolder(run.folder)
        ):
            time.sleep(0.05)
        time.sleep(0.5)
        control.ask(run.folder, control.STOP)

    run.start(ask)
    with pytest.raises(control.RunStopped, match="stopped after 0 rounds"):
        run.serve(new_watcher())
    run.join()


def test_too_few_devices_and_the_round_is_abandoned(trial, new_watcher, same_model, caplog):
    run = trial(limits=Limits(phase_seconds=3.0, training_seconds=60.0, hold_seconds=2.0))
    run.start_devices(range(1))
    run.start_devices(range(1, 6), dies_before(5))
    folder = run.serve(new_watcher())
    run.join(Died)
    kinds = [entry["kind"] for entry in verify(folder.ledger_path)]
    assert kinds == ["genesis", "round", "abandoned", "end"]
    assert same_model(load_model(folder.model_path).parameters, run.reference([list(range(6))]))
    assert "round 1 is abandoned: 1 reports arrived and the threshold is 2" in caplog.text


@pytest.mark.parametrize("excess", ["kept", "removed"])
def test_under_a_policy_every_device_adds_its_own_noise(trial, new_watcher, policy_file, excess):
    """Nobody learns at a rate of zero, so what is opened is rounding and the devices' noise.

    Where its excess is removed the noise is that of the policy in round 1 too, which a device
    leaves before it reports.
    """
    noise = f'{{ at = "device", kind = "skellam", tolerated_dropout = 0.4, excess = "{excess}" }}'
    policy = policy_file(
        population="6",
        report_goal="6",
        delta="0.1",
        noise=noise,
        participation='{ kind = "rotation", min_separation = 1 }',
        rounds="2",
    )
    run = trial(policy=policy, reproducible=False, limits=BRISK)
    quiet = replace(run.scenario.training, learning_rate=1e-9)
    run.scenario = replace(run.scenario, training=quiet)
    run.start_devices(range(5))
    run.start_devices([5], dies_before(5) if excess == "removed" else lambda round, kind: None)
    watcher = new_watcher()
    folder = run.serve(watcher)
    run.join(Died)
    reports = [entry["reports"] for entry in watcher.rounds]
    assert reports == ([6, 5] if excess == "removed" else [6, 6])
    for entry in watcher.rounds:
        # The norm of d independent values concentrates: 5 deviations of a chi with d = 3172.
        assert entry["mean_norm"] == pytest.approx(entry["noise_norm"], rel=5 / np.sqrt(2 * 3172))
    assert watcher.rounds[-1]["epsilon"] > 0
    drawn = "by every device, its own share"
    drawn += " and removable components" if excess == "removed" else ""
    assert folder.manifest()["noise"]["drawn"] == drawn
