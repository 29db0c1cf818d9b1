"""A run whose disk fails: it names the failure, holds no lock afterwards, and loses nothing."""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pfl_lm.dp.ledger import verify
from pfl_lm.run import folder as run_folder
from pfl_lm.run import recorder as run_recorder
from pfl_lm.run.simulate import simulate

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def scenario(tiny_scenario, policy_file):
    rotation = policy_file(participation='{ kind = "rotation", min_separation = 6 }')
    return tiny_scenario(policy=rotation, rounds=3, checkpoint_every=1)


def full(name: str):
    """A function that fails as a full disk does, naming a file."""

    def failing(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)

    return failing


def failing_log(broken: pytest.MonkeyPatch):
    """Let the line of the second round, and the end of the log, meet a full disk."""
    append, written = run_folder._append, []

    def third(file, entry):
        if entry["kind"] == "round" and entry["round"] == 1:
            full("metrics.jsonl")()
        written.append(append(file, entry))

    broken.setattr(run_folder, "_append", third)
    broken.setattr(run_recorder, "save_checkpoint", full("a checkpoint"))
    broken.setattr(run_recorder.RunLog, "close", full("the end of the log"))


def test_a_full_disk_is_told_by_what_met_it_first_and_leaves_no_lock(
    scenario, tmp_path, new_watcher
):
    watcher, scenario = new_watcher(), replace(scenario, checkpoint_every=3)
    with pytest.MonkeyPatch.context() as broken:
        failing_log(broken)
        with pytest.raises(OSError, match="No space") as met:
            simulate(scenario, tmp_path / "run", watcher)
    assert met.value.filename == "metrics.jsonl"
    told = [line for line in watcher.lines if line.startswith("as the run ended: ")]
    assert ["checkpoint" in told[0], "log" in told[1], len(told)] == [True, True, 2]
    simulate(scenario, tmp_path / "run", new_watcher(), resume=True)
    entries = verify(tmp_path / "run" / "ledger.jsonl")
    assert [e["round"] for e in entries if e["kind"] == "round"] == [0, 1, 2]


def test_a_log_that_cannot_be_opened_leaves_no_lock(scenario, tmp_path, new_watcher):
    with pytest.MonkeyPatch.context() as broken:
        broken.setattr(run_recorder, "RunLog", full("metrics.jsonl"))
        with pytest.raises(OSError, match=r"metrics\.jsonl"):
            simulate(scenario, tmp_path / "run", new_watcher())
    simulate(scenario, tmp_path / "run", new_watcher(), resume=True)


def test_a_file_of_metrics_that_cannot_grow_is_named(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    file = (tmp_path / "metrics.jsonl").open("a", encoding="utf-8")
    with pytest.raises(OSError, match="No space") as met:
        run_folder._append(file, {"kind": "round", "round": 0})
    assert met.value.filename == str(tmp_path / "metrics.jsonl")
    with pytest.raises(OSError, match="No space"):  # what was not written is tried again
        file.close()


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"no checkpoint")])
def test_an_ended_run_without_its_last_checkpoint_keeps_its_model(
    scenario, tmp_path, new_watcher, damage
):
    run = tmp_path / "run"
    simulate(scenario, run, new_watcher())
    model, ledger = (run / "model.pt").read_bytes(), (run / "ledger.jsonl").read_bytes()
    damage(run / "checkpoints" / "round-000003.pt")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"has ended .*lacks 1 round\(s\); leave the run"):
            simulate(scenario, run, new_watcher(), resume=True)
    assert (run / "model.pt").read_bytes() == model
    assert (run / "ledger.jsonl").read_bytes() == ledger


def test_an_ended_run_without_model_and_checkpoint_says_what_its_model_lacks(
    scenario, tmp_path, new_watcher
):
    run, watcher = tmp_path / "run", new_watcher()
    simulate(scenario, run, new_watcher())
    (run / "checkpoints" / "round-000003.pt").unlink()
    (run / "model.pt").unlink()
    simulate(scenario, run, watcher, resume=True)
    assert any(
        "1 recorded round(s) from 2 on have lost their means" in line for line in watcher.lines
    )


def test_a_link_to_a_run_is_not_overwritten(scenario, tmp_path, new_watcher):
    simulate(scenario, tmp_path / "run", new_watcher())
    (tmp_path / "link").symlink_to("run")
    before = (tmp_path / "run" / "ledger.jsonl").read_bytes()
    with pytest.raises(ValueError, match=f"symbolic link.*name the folder.*{tmp_path / 'run'}"):
        simulate(scenario, tmp_path / "link", new_watcher(), overwrite=True)
    assert (tmp_path / "run" / "ledger.jsonl").read_bytes() == before
    shutil.rmtree(tmp_path / "run")
