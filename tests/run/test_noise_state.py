"""Noise that is correlated from round to round: its secret state, through every way to be killed.

The toy mechanism adds w(n) − w(n − 1)/2 at the server. No privacy is claimed for it: it has what
correlated noise needs of a run, a state that must never serve two released sums.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pfl_lm.dp.ledger import verify
from pfl_lm.dp.mechanisms import MECHANISMS, Mechanism
from pfl_lm.dp.noise import add_central_gaussian
from pfl_lm.run import simulate
from pfl_lm.run.checkpoints import newest_checkpoint
from pfl_lm.run.folder import RunFolder
from tests.run.killing import POINTS, killed

pytestmark = pytest.mark.usefixtures("quick", "toy")

ROUNDS = 5


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Toy(Mechanism):
    """Notes in a file which state every draw took up, which noise it drew, and what it left."""

    name = "toy"
    place = "server"
    label = "toy"
    stateful = True
    initial_state = b"start"

    def event(self, event, dim, grid_steps, shares):
        return replace(event, mechanism="gaussian")

    def mean(self, opened, state):
        nothing = np.zeros(len(opened.total))
        before = nothing if state == b"start" else np.frombuffer(state)
        fresh = add_central_gaussian(
            nothing, opened.sensitivity, opened.noise_multiplier, opened.bits
        )
        line = {"took": digest(state), "drew": digest(fresh.tobytes())}
        with open(os.environ["TOY_NOTES"], "a", encoding="utf-8") as notes:
            notes.write(json.dumps(line) + "\n")
        noisy = opened.in_model_units + fresh - before / 2
        return (noisy / opened.divisor).astype(np.float32), fresh.tobytes()


@pytest.fixture
def toy(monkeypatch, tmp_path):
    monkeypatch.setitem(MECHANISMS, "toy", Toy())
    monkeypatch.setenv("TOY_NOTES", str(tmp_path / "notes"))


@pytest.fixture
def correlated(tiny_scenario, policy_file):
    rotation = '{ kind = "rotation", min_separation = 3 }'
    policy = policy_file(
        noise='{ at = "server", kind = "toy" }', participation=rotation, epsilon="8.0"
    )
    return tiny_scenario(policy=policy, rounds=ROUNDS, reproducible=True, checkpoint_every=2)


def recorded(run: Path) -> list[dict]:
    return [entry for entry in verify(run / "ledger.jsonl") if entry["kind"] == "round"]


def drawn(tmp_path: Path) -> dict[str, list[str]]:
    """Return which states each noise value was drawn from, by the value: each draw is a line."""
    found: dict[str, list[str]] = {}
    for line in (tmp_path / "notes").read_text().splitlines():
        note = json.loads(line)
        found.setdefault(note["drew"], []).append(note["took"])
    return found


@pytest.mark.parametrize("fresh", [False, True], ids=["seeded", "fresh"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("point", POINTS)
def test_killed_anywhere_no_state_serves_two_released_sums(
    correlated, new_watcher, tmp_path, point, when, fresh
):
    scenario = replace(correlated, reproducible=not fresh)
    run = tmp_path / "run"
    killed(lambda: simulate.simulate(scenario, run, new_watcher()), point, when, 3)
    paid = (run / "ledger.jsonl").read_bytes()
    simulate.simulate(scenario, run, new_watcher(), resume=True)
    assert (run / "ledger.jsonl").read_bytes().startswith(paid)
    entries = recorded(run)
    assert [entry["round"] for entry in entries] == list(range(ROUNDS))
    took = drawn(tmp_path)
    before = digest(Toy.initial_state)
    for entry in entries:
        # Each recorded round took up what the recorded round before it left.
        assert set(took[entry["noise_state"]]) == {before}
        before = entry["noise_state"]
    assert len({entry["noise_state"] for entry in entries}) == ROUNDS
    assert not (run / "noise").exists()
    if not fresh:
        straight = tmp_path / "straight" / "run"
        simulate.simulate(scenario, straight, new_watcher())
        assert (straight / "ledger.jsonl").read_bytes() == (run / "ledger.jsonl").read_bytes()
        assert (straight / "model.pt").read_bytes() == (run / "model.pt").read_bytes()


@pytest.fixture
def stopped(correlated, new_watcher, tmp_path) -> Path:
    """A run that was killed after the record of its fourth round."""
    run = tmp_path / "run"
    killed(lambda: simulate.simulate(correlated, run, new_watcher()), "record", "after", 4)
    return run


def test_the_state_is_secret_and_in_no_checkpoint(stopped):
    files = sorted((stopped / "noise").iterdir())
    assert stat.S_IMODE((stopped / "noise").stat().st_mode) == 0o700
    assert files
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in files)
    assert len(files) <= 4  # two for the newest rounds, two for the checkpoints
    assert newest_checkpoint(RunFolder(stopped))[0].noise_state == b""
    for checkpoint in (stopped / "checkpoints").iterdir():
        assert all(path.read_bytes() not in checkpoint.read_bytes() for path in files)


def test_a_state_that_is_gone_or_changed_ends_the_run(correlated, stopped, new_watcher):
    scenario = correlated
    newest = {path.name: path for path in (stopped / "noise").iterdir()}
    needed = newest["round-000003.bin"]  # before the round that a seeded run repeats
    content = needed.read_bytes()
    needed.write_bytes(content[::-1])
    with pytest.raises(ValueError, match="is not the state that the ledger names"):
        simulate.simulate(scenario, stopped, new_watcher(), resume=True)
    needed.unlink()
    with pytest.raises(ValueError, match="is missing: without the state of its noise"):
        simulate.simulate(scenario, stopped, new_watcher(), resume=True)
    needed.write_bytes(content)
    simulate.simulate(scenario, stopped, new_watcher(), resume=True)
    assert len(recorded(stopped)) == ROUNDS


def test_a_finished_run_needs_no_state_any_more(correlated, new_watcher, tmp_path):
    run = tmp_path / "run"
    simulate.simulate(correlated, run, new_watcher())
    assert not (run / "noise").exists()
    simulate.simulate(correlated, run, new_watcher(), resume=True)
