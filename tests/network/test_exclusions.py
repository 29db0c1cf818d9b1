"""Devices that spoil a round, and revoked ones, are left out, over restarts of the server."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pfl_lm.network.device import Device
from pfl_lm.network.store import Store
from pfl_lm.network.transport import Limits
from pfl_lm.secagg.messages import ShareKeys

QUICK = Limits(
    phase_seconds=60.0,
    training_seconds=60.0,
    grace_seconds=0.5,
    gather_seconds=20.0,
    hold_seconds=1.0,
)
SPOILER = 5


class Stopped(Exception):
    """The server ends here, as if it were killed."""


class Spoiler(Device):
    """Commits to another seed than the one that it deals shares of."""

    def _config(self, broadcast, invitation):
        self._at = super()._config(broadcast, invitation)
        return self._at

    def _send(self, round: int, frame: bytes, seen: int):
        if frame[5] == ShareKeys.kind:
            config, place = self._at
            dealt = ShareKeys.decode(frame, config, place)
            frame = replace(dealt, seed_commitment=b"x" * 32).encode(config, place)
        return super()._send(round, frame, seen)


def test_a_spoiler_is_left_out_of_all_later_rounds_over_a_restart(trial, new_watcher, caplog):
    """The server stops right after the round was lost and is started again."""
    run = trial(rounds=3, limits=QUICK)
    run.start_devices(range(5))
    run.start(lambda: run.device(SPOILER, kind=Spoiler).run())

    def stop(point: str, round: int) -> None:
        if point == "lost":
            raise Stopped

    with pytest.raises(Stopped):
        run.serve(new_watcher(), reached=stop)
    store = Store.open(run.folder / "rounds.sqlite")
    assert list(store.expelled()) == [SPOILER]
    store.close()
    watcher = new_watcher()
    run.serve(watcher, resume=True)
    run.join(ValueError)
    assert [entry["reports"] for entry in watcher.rounds] == [5, 5]
    (refused,) = run.errors
    assert "device 5 is left out of this run: it spoiled round 0" in str(refused)
    assert "device 5 is expelled from the run" in caplog.text


def test_a_revoked_device_takes_part_before_and_not_after_a_resume(trial, new_watcher):
    run = trial(rounds=3, limits=QUICK)
    run.start_devices()

    def stop(point: str, round: int) -> None:
        if (point, round) == ("closed", 0):
            raise Stopped

    first, second = new_watcher(), new_watcher()
    with pytest.raises(Stopped):
        run.serve(first, reached=stop)
    run.serve(second, revoked=frozenset([run.key(2).identity.public]), resume=True)
    run.join(ValueError)
    assert [entry["reports"] for entry in second.rounds] == [5, 5]
    (refused,) = run.errors
    assert "device 2 is left out of this run: its key is revoked" in str(refused)


def test_a_run_whose_devices_are_nearly_all_revoked_says_so(trial, new_watcher):
    run = trial(rounds=1, limits=QUICK)
    revoked = frozenset(run.key(number).identity.public for number in range(4))
    with pytest.raises(ValueError, match="2 of 6 devices may take part, the others are revoked"):
        run.serve(new_watcher(), revoked=revoked)
