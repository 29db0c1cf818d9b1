"""A run as a whole: repeated, interrupted, killed, ended by its budget; and what one round does."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import pfl_lm.run.simulate as simulation
from pfl_lm import native
from pfl_lm.devices.local_training import LocalTraining
from pfl_lm.dp.cohort import cohort
from pfl_lm.dp.ledger import Ledger, verify
from pfl_lm.models.models import LoraSpec, ModelSpec, hidden
from pfl_lm.payload.plan import PayloadPlan
from pfl_lm.run import recorder, resume
from pfl_lm.run.availability import Cohort
from pfl_lm.run.checkpoints import newest_checkpoint
from pfl_lm.run.folder import RunFolder, read_json, write_json
from pfl_lm.run.recorder import RoundRecorder
from pfl_lm.run.scenario import PopulationConfig
from pfl_lm.run.setup import open_run
from pfl_lm.run.simulate import Ends, run_round, simulate
from pfl_lm.run.trained import load_trained
from pfl_lm.server.averages import Average
from pfl_lm.server.optimizers import ServerOptimizer
from pfl_lm.server.state import ServerState
from pfl_lm.text.population import PAD_ID
from tests.run.killing import END, killed

pytestmark = pytest.mark.usefixtures("quick")

ROUNDS = 6


class Killed(BaseException):
    """What no handler of errors expects."""


def outcome(run: Path) -> tuple[bytes, bytes]:
    return (run / "model.pt").read_bytes(), (run / "ledger.jsonl").read_bytes()


def entries_of(run: Path, kind: str = "round") -> list[int]:
    return [e["round"] for e in verify(run / "ledger.jsonl") if e["kind"] == kind]


def kill_after_the_record_of(round: int, patch: pytest.MonkeyPatch, saving: bool) -> None:
    """End a run between the debit of a round and the step of its model."""

    def killed(privacy, scenario, state, *rest):
        if state.round == round:
            if not saving:
                patch.setattr(recorder, "save_checkpoint", lambda *about: None)
            raise Killed
        return step(privacy, scenario, state, *rest)

    step = simulation.step
    patch.setattr(simulation, "step", killed)


def killed_in_round_3(scenario, run: Path, watcher, monkeypatch) -> tuple[Path, ServerState]:
    """End a run after the step of round 3 and before its figures; return the state it had."""
    last: list[ServerState] = []

    def stepped(*arguments):
        last.append(step(*arguments))
        if last[-1].round == 4:
            patch.setattr(recorder, "save_checkpoint", lambda *about: None)
            raise Killed
        return last[-1]

    step = simulation.step
    with monkeypatch.context() as patch:
        patch.setattr(simulation, "step", stepped)
        with pytest.raises(Killed):
            simulate(scenario, run, watcher)
    assert list(RunFolder(run).checkpoints()) == [0]
    return run, last[-1]


@pytest.fixture(scope="module")
def repeatable(tiny_scenario, policy_file):
    """Six rounds, of which nobody is invited to round 2, which is therefore abandoned.

    The server's rate follows a schedule and its models are averaged: both survive a crash.
    """
    server = ServerOptimizer(
        "momentum", warmup=0.3, cooldown=0.5, average=Average("exponential", decay=0.5)
    )
    return tiny_scenario(
        policy=policy_file(), rounds=ROUNDS, reproducible=True, checkpoint_every=2, server=server
    )


@pytest.fixture(scope="module")
def straight(repeatable, quick, new_watcher, tmp_path_factory) -> Path:
    return simulate(repeatable, tmp_path_factory.mktemp("straight") / "run", new_watcher()).path


class TestResuming:
    def test_the_run_to_repeat_has_an_abandoned_round(self, straight):
        assert entries_of(straight) == [0, 1, 3, 4, 5]
        assert entries_of(straight, "abandoned") == [2]

    def test_a_reproducible_run_is_repeated_to_the_byte(
        self, repeatable, straight, new_watcher, tmp_path
    ):
        again = simulate(repeatable, tmp_path / "run", new_watcher()).path
        assert outcome(again) == outcome(straight)

    @pytest.mark.parametrize("saving", [True, False], ids=["interrupted", "killed"])
    @pytest.mark.parametrize("round", [0, 1, 3, 4, 5])
    def test_and_resumed_to_the_byte(
        self, repeatable, straight, new_watcher, tmp_path, monkeypatch, round, saving
    ):
        run = tmp_path / "run"
        with monkeypatch.context() as patch:
            kill_after_the_record_of(round, patch, saving)
            with pytest.raises(Killed):
                simulate(repeatable, run, new_watcher())
        assert entries_of(run)[-1] == round
        assert newest_checkpoint(RunFolder(run))[0].round <= round
        watcher = new_watcher()
        simulate(repeatable, run, watcher, resume=True)
        assert outcome(run) == outcome(straight)
        assert not watcher.lines
        losses = [[m["loss"] for m in RunFolder(r).metrics()] for r in (run, straight)]
        assert losses[0] == losses[1]

    @pytest.mark.parametrize("fresh", [False, True], ids=["seeded", "fresh"])
    @pytest.mark.parametrize(
        "place",
        [
            (Ledger, "record_round"),
            (simulation, "step"),
            (recorder.RunRecorder, "round_done"),
            (simulation, "validate"),
            (recorder.RunRecorder, "evaluated"),
            (recorder.RunRecorder, "save_where_due"),
        ],
        ids=lambda place: place[1],
    )
    def test_ctrl_c_loses_no_round_no_figure_and_no_evaluation(
        self, repeatable, new_watcher, tmp_path, monkeypatch, place, fresh
    ):
        """Interrupted in the second round, from its debit to its checkpoint, and resumed."""
        owner, name = place
        evaluation = replace(repeatable.evaluation, every=2)
        scenario = replace(
            repeatable, evaluation=evaluation, checkpoint_every=5, reproducible=not fresh
        )
        action, calls = getattr(owner, name), []

        def interrupted(*arguments):
            calls.append(name)
            if len(calls) == 2:
                os.kill(os.getpid(), signal.SIGINT)
            return action(*arguments)

        straight, broken = tmp_path / "straight" / "run", tmp_path / "broken" / "run"
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, interrupted)
            with pytest.raises(KeyboardInterrupt):
                simulate(scenario, broken, new_watcher())
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        paid = (broken / "ledger.jsonl").read_bytes()
        watcher = new_watcher()
        simulate(scenario, broken, watcher, resume=True)
        assert (broken / "ledger.jsonl").read_bytes().startswith(paid)
        assert not watcher.lines  # nothing that was paid for had been lost
        noted = [(line["kind"][0], line["round"]) for line in RunFolder(broken).metrics()]
        assert "".join(f"{kind}{round}" for kind, round in noted) == "e0r0r1e2r2r3e4r4r5e6"
        if not fresh:
            simulate(scenario, straight, new_watcher())
            assert outcome(broken) == outcome(straight)

    def test_a_finished_run_resumed_is_evaluated_again_and_nothing_else(
        self, repeatable, straight, new_watcher, tmp_path
    ):
        run = tmp_path / "run"
        shutil.copytree(straight, run)
        (run / "model.pt").unlink()
        watcher = new_watcher()
        simulate(repeatable, run, watcher, resume=True)
        assert outcome(run) == outcome(straight)
        assert watcher.rounds == []

    def test_killed_processes_lose_no_spent_round(
        self, repeatable, straight, new_watcher, tmp_path
    ):
        """kill -9 at random moments, again and again, until a process reaches the end."""
        run, moments = tmp_path / "run", random.Random(1)
        known: list[bytes] = []
        for goal in range(2, 20):
            if run.exists() and not (run / "manifest.json").exists():
                shutil.rmtree(run)  # killed as it began: the message says so
            resume = run.exists()
            done = kill_once_ledger_has(
                goal,
                moments.uniform(0, 0.03),
                run / "ledger.jsonl",
                lambda resume=resume: simulate(repeatable, run, new_watcher(), resume=resume),
            )
            lines = (run / "ledger.jsonl").read_bytes().split(b"\n")[:-1]
            assert lines[: len(known)] == known
            known = lines
            if done:
                break
        assert done
        assert goal > 3
        assert outcome(run) == outcome(straight)

    def test_kill_9_with_fresh_noise_loses_no_step(
        self, repeatable, new_watcher, tmp_path, monkeypatch
    ):
        """Killed after the debit of round 3, without a checkpoint: the model takes its step."""
        scenario = replace(repeatable, reproducible=False, seed=5, checkpoint_every=10)
        run, after = killed_in_round_3(scenario, tmp_path / "run", new_watcher(), monkeypatch)
        begun: list[ServerState] = []
        before, watcher = (run / "ledger.jsonl").read_bytes(), new_watcher()
        with monkeypatch.context() as patch:
            patch.setattr(simulation, "run_round", lambda *a: begun.append(a[1]) or run_round(*a))
            simulate(scenario, run, watcher, resume=True)
        assert (run / "ledger.jsonl").read_bytes().startswith(before)
        assert entries_of(run) == list(range(ROUNDS))
        assert [e["round"] for e in watcher.rounds] == [4, 5]
        assert not watcher.lines
        for name, value in after.parameters.items():
            assert torch.equal(begun[0].parameters[name], value)
        for moment, tables in after.moments.items():
            for name, value in tables.items():
                assert torch.equal(begun[0].moments[moment][name], value)
        assert not (run / "means").exists()

    def test_a_round_whose_mean_is_gone_stays_spent_and_is_said(
        self, repeatable, new_watcher, tmp_path, monkeypatch
    ):
        scenario = replace(repeatable, reproducible=False, seed=5, checkpoint_every=10)
        run, _ = killed_in_round_3(scenario, tmp_path / "run", new_watcher(), monkeypatch)
        (run / "means" / "round-000002.npy").write_bytes(b"damaged")
        watcher = new_watcher()
        simulate(scenario, run, watcher, resume=True)
        assert entries_of(run) == list(range(ROUNDS))
        assert [e["round"] for e in watcher.rounds] == [4, 5]
        assert watcher.lines[0].startswith("2 recorded round(s) from 2 on")
        assert "stays spent" in watcher.lines[0]

    def test_only_means_that_no_checkpoint_holds_are_kept(
        self, repeatable, new_watcher, tmp_path, monkeypatch
    ):
        run = tmp_path / "run"
        with monkeypatch.context() as patch:
            kill_after_the_record_of(5, patch, saving=False)
            with pytest.raises(Killed):
                simulate(repeatable, run, new_watcher())
        assert list(RunFolder(run).checkpoints()) == [2, 4]
        means = sorted(path.name for path in (run / "means").iterdir())
        assert means == ["round-000003.npy", "round-000004.npy", "round-000005.npy"]


def kill_once_ledger_has(lines: int, wait: float, ledger: Path, work) -> bool:
    """Fork a process that works and kill it; return whether it came to its end before."""
    child = os.fork()
    if not child:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert os.waitstatus_to_exitcode(status) == 0
            return True
        if ledger.exists() and ledger.read_bytes().count(b"\n") >= lines:
            break
        time.sleep(0.001)
    time.sleep(wait)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == 0


def test_an_unfinished_run_is_read_as_it_evaluates_itself(straight, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    finished = load_trained(run)[0].parameters
    (run / "model.pt").unlink()
    unfinished = load_trained(run)[0].parameters  # of the last checkpoint: averages, as at the end
    assert all(torch.equal(unfinished[name], value) for name, value in finished.items())


class TestRefusals:
    """Each names the remedy, and leaves the run as it was."""

    @pytest.fixture
    def begun(self, straight, tmp_path) -> Path:
        """A run that was killed after four rounds."""
        run = tmp_path / "run"
        shutil.copytree(straight, run)
        for name in ("model.pt", "evaluation.json", "checkpoints/round-000006.pt"):
            (run / name).unlink()
        return run

    def refused(self, scenario, run, match, new_watcher, resume=True, overwrite=False):
        before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
        with pytest.raises(ValueError, match=match) as caught:
            simulate(scenario, run, new_watcher(), resume=resume, overwrite=overwrite)
        assert "\n" not in str(caught.value)
        assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before

    def test_a_folder_that_is_not_empty(self, repeatable, begun, new_watcher):
        self.refused(repeatable, begun, "choose another folder", new_watcher, resume=False)

    def test_a_run_that_is_going_is_not_overwritten(self, repeatable, straight, begun, new_watcher):
        refused = "another process is writing the run in .*stop it, or choose another folder"
        with Ledger.open(begun / "ledger.jsonl"):
            self.refused(repeatable, begun, refused, new_watcher, resume=False, overwrite=True)
            self.refused(repeatable, begun, "is open in another process", new_watcher)
        simulate(repeatable, begun, new_watcher(), overwrite=True)
        assert outcome(begun) == outcome(straight)

    def test_nor_one_that_began_meanwhile(self, repeatable, begun, new_watcher, monkeypatch):
        """Two processes overwrite a run; one is still checking when the other has begun."""
        other = begun.with_name("other")
        shutil.copytree(begun, other)
        lock = resume.fcntl.flock

        def slow(descriptor, operation):
            if other.exists():
                shutil.rmtree(begun)
                other.rename(begun)
            lock(descriptor, operation)

        monkeypatch.setattr(resume.fcntl, "flock", slow)
        with pytest.raises(ValueError, match="another process is writing the run"):
            simulate(repeatable, begun, new_watcher(), overwrite=True)
        assert entries_of(begun)

    @pytest.mark.parametrize("step", ["Ledger.create", "save_checkpoint", "write_json"])
    def test_a_run_that_cannot_begin_leaves_nothing(
        self, repeatable, new_watcher, tmp_path, monkeypatch, step
    ):
        def full_disk(*_arguments, **_named):
            raise OSError("no space left on device")

        holder, _, name = step.rpartition(".")
        monkeypatch.setattr(getattr(resume, holder) if holder else resume, name, full_disk)
        with pytest.raises(OSError, match="no space left"):
            simulate(repeatable, tmp_path / "run", new_watcher())
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_without_a_run(self, repeatable, new_watcher, tmp_path):
        self.refused(repeatable, tmp_path, "no manifest.json.*start again", new_watcher)

    @pytest.mark.parametrize("changes", [{"seed": 4}, {"rounds": 4}, {"clip_norm": 1.0}])
    def test_another_scenario(self, repeatable, begun, new_watcher, changes):
        other = replace(repeatable, **changes)
        self.refused(
            other, begun, r"another scenario \(\S+ was .*now it is .*\); resume with", new_watcher
        )

    def test_another_policy_in_the_same_file(self, repeatable, begun, new_watcher, policy_file):
        weaker = replace(repeatable, policy=policy_file(epsilon="8.0"))
        self.refused(weaker, begun, "another policy", new_watcher)

    @pytest.mark.parametrize(
        ("content", "match"),
        [
            (b"{", "manifest.json is damaged"),
            (b"[]", "manifest.json is damaged"),
            (b"{}", "manifest.json is damaged: it has no scenario"),
            (b"\xff\xfe", "manifest.json is damaged"),
        ],
    )
    def test_a_damaged_manifest(self, repeatable, begun, new_watcher, content, match):
        (begun / "manifest.json").write_bytes(content)
        self.refused(repeatable, begun, match, new_watcher)

    def test_a_manifest_that_lacks_a_key(self, repeatable, begun, new_watcher):
        path = begun / "manifest.json"
        manifest = read_json(path)
        del manifest["scenario"]["fleet"]
        write_json(path, manifest)
        self.refused(repeatable, begun, "fleet was absent, now it is null", new_watcher)

    @pytest.mark.parametrize("content", ["{}", '{"format": 1, "scenario": {"population": 3}}'])
    def test_a_damaged_manifest_is_not_overwritten(self, repeatable, begun, new_watcher, content):
        (begun / "manifest.json").write_text(content)
        match = "manifest.json is damaged.* is not overwritten: choose another folder"
        self.refused(repeatable, begun, match, new_watcher, resume=False, overwrite=True)

    def test_a_round_without_its_figures(self, repeatable, begun, new_watcher):
        lines = (begun / "metrics.jsonl").read_text().splitlines()[:1]
        (begun / "metrics.jsonl").write_text(lines[0] + '\n{"kind": "round", "round": 1}\n')
        with pytest.raises(ValueError, match=r"line of round 2 is damaged.*: Field required; put"):
            simulate(repeatable, begun, new_watcher(), resume=True)

    def test_a_manifest_that_promises_something_else(self, repeatable, begun, new_watcher):
        path = begun / "manifest.json"
        manifest = read_json(path)
        manifest["statements"]["guaranteed"] = "ε = 0.1"
        write_json(path, manifest)
        self.refused(repeatable, begun, "not the manifest that the ledger began", new_watcher)

    def test_a_manifest_that_the_ledger_did_not_begin_with(self, repeatable, begun, new_watcher):
        path = begun / "manifest.json"
        manifest = read_json(path)
        manifest["versions"]["code"] = "another"
        write_json(path, manifest)
        self.refused(repeatable, begun, "not the manifest that the ledger began", new_watcher)

    def test_a_ledger_that_was_cut_short(self, repeatable, begun, new_watcher):
        path = begun / "ledger.jsonl"
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:3]))
        self.refused(repeatable, begun, "cut short.*put the ledger back", new_watcher)

    def test_a_ledger_that_was_edited(self, repeatable, begun, new_watcher):
        path = begun / "ledger.jsonl"
        path.write_bytes(path.read_bytes().replace(b'"reports":4', b'"reports":5', 1))
        self.refused(repeatable, begun, "the chain breaks here", new_watcher)

    def test_no_ledger(self, repeatable, begun, new_watcher):
        (begun / "ledger.jsonl").unlink()
        self.refused(repeatable, begun, "there is no ledger", new_watcher)

    def test_no_readable_checkpoint(self, repeatable, begun, new_watcher):
        for path in (begun / "checkpoints").iterdir():
            path.write_bytes(path.read_bytes()[:-100])
        self.refused(repeatable, begun, "no readable checkpoint; start", new_watcher)

    def test_the_ledger_is_free_again_after_a_refusal(self, repeatable, begun, new_watcher):
        path = begun / "checkpoints" / "round-000004.pt"
        whole = path.read_bytes()
        path.write_bytes(b"")
        self.refused(repeatable, begun, "no readable checkpoint", new_watcher)
        path.write_bytes(whole)
        simulate(repeatable, begun, new_watcher(), resume=True)

    def test_what_the_killed_run_was_writing_is_swept(self, repeatable, begun, new_watcher):
        half = [begun / "checkpoints" / ".round-000004.pt.a1b2c3d4", begun / ".model.pt.a1b2c3d4"]
        for path in half:
            path.write_bytes(b"half")
        simulate(repeatable, begun, new_watcher(), resume=True)
        assert not any(path.exists() for path in half)

    @pytest.mark.parametrize("damage", ["cut", "flipped"])
    def test_a_damaged_checkpoint_falls_back_to_the_one_before(
        self, repeatable, straight, new_watcher, tmp_path, damage
    ):
        run = tmp_path / "run"
        shutil.copytree(straight, run)
        path = run / "checkpoints" / f"round-{ROUNDS:06d}.pt"
        content = bytearray(path.read_bytes())
        if damage == "cut":
            content = content[: len(content) // 2]
        else:
            content[len(content) // 2] ^= 1
        path.write_bytes(content)
        assert newest_checkpoint(RunFolder(run))[0].round == 4
        watcher = new_watcher()
        simulate(repeatable, run, watcher, resume=True)
        assert [e["round"] for e in watcher.rounds] == [4, 5]
        assert outcome(run) == outcome(straight)

    def test_nothing_is_left_of_a_run_whose_noise_cannot_be_had(
        self, tiny_scenario, policy_file, new_watcher, tmp_path
    ):
        noise = '{ at = "device", kind = "discrete_gaussian", grid_steps = 0.5, %s }'
        policy = policy_file(noise=noise % "tolerated_dropout = 0.1", epsilon="20.0")
        with pytest.raises(ValueError, match="raise grid_steps or min_dim, or use skellam"):
            simulate(tiny_scenario(policy=policy), tmp_path / "run", new_watcher())
        assert not (tmp_path / "run").exists()


class TestBudget:
    def test_it_ends_the_run_before_the_round_that_would_exceed_it(
        self, repeatable, new_watcher, tmp_path, monkeypatch
    ):
        """Rounds that were debited again with fresh noise leave less than the scenario wants."""
        scenario = replace(repeatable, reproducible=False, seed=5, checkpoint_every=1)
        run = tmp_path / "run"
        with monkeypatch.context() as patch:
            kill_after_the_record_of(3, patch, saving=False)
            with pytest.raises(Killed):
                simulate(scenario, run, new_watcher())
        with Ledger.open(run / "ledger.jsonl") as ledger:
            last = {k: v for k, v in ledger.entries()[-1].items() if k not in ("kind", "round")}
            ledger.record_round(3, {**last, "released": "again"}, again=True)
        watcher = new_watcher()
        with pytest.raises(
            ValueError, match=r"the budget ends here: round 5 .* above the policy's"
        ):
            simulate(scenario, run, watcher, resume=True)
        assert [e["round"] for e in watcher.rounds] == [4]
        assert watcher.rounds[-1]["epsilon"] <= 2.0
        spent = (run / "ledger.jsonl").read_bytes()
        kept, _ = newest_checkpoint(RunFolder(run))
        assert kept.round == 5
        with pytest.raises(ValueError, match="the budget ends here"):
            simulate(scenario, run, new_watcher(), resume=True)
        assert (run / "ledger.jsonl").read_bytes() == spent
        again, _ = newest_checkpoint(RunFolder(run))
        assert again.round == 5
        assert all(torch.equal(again.parameters[n], v) for n, v in kept.parameters.items())
        assert not (run / "model.pt").exists()

    def test_epsilon_rises_with_the_rounds_and_never_beyond_the_policy(self, straight):
        found = [m for m in RunFolder(straight).metrics() if m["kind"] == "round"]
        spent = [m["epsilon"] for m in found]
        assert spent == sorted(spent)
        assert spent[1] == spent[2]  # an abandoned round opens nothing and costs nothing
        assert 0 < spent[-1] <= 2.0
        assert all(m["epsilon_unamplified"] == m["epsilon"] for m in found)

    def test_without_a_policy_epsilon_is_infinite(self, tiny_scenario, new_watcher, tmp_path):
        watcher = new_watcher()
        folder = simulate(tiny_scenario(rounds=2), tmp_path / "run", watcher)
        assert [e["epsilon"] for e in watcher.rounds] == [None, None]
        assert "ε = ∞" in folder.manifest()["statements"]["guaranteed"]
        assert folder.manifest()["guarantee"] is None
        assert folder.manifest()["versions"]["kernels"] == native.backend()
        assert [e["event"] for e in verify(folder.ledger_path) if e["kind"] == "round"] == [
            None,
            None,
        ]


@pytest.fixture
def new_ledger(tmp_path):
    """A function that starts a ledger; all are closed in the end."""
    opened = []

    def new() -> Ledger:
        path = tmp_path / f"ledger-{len(opened)}.jsonl"
        opened.append(Ledger.create(path, {"run": "x", "policy_digest": "x"}))
        return opened[-1]

    yield new
    for ledger in opened:
        ledger.close()


def test_a_round_with_too_few_reports_is_abandoned(repeatable, new_ledger):
    context = open_run(replace(repeatable, policy=None))
    state = ServerState(4, context.start.parameters)
    ledger = new_ledger()
    alone = Ends(invite=lambda *about: Cohort(np.array([17])))
    after, entry = run_round(context, state, RoundRecorder(ledger), ends=alone)
    assert after.round == 5
    assert all(torch.equal(after.parameters[n], v) for n, v in state.parameters.items())
    assert ledger.entries()[-1] == {"kind": "abandoned", "round": 4, "reports": 1}
    assert (entry["invited"], entry["reports"], entry["mean_norm"]) == (1, 1, None)


def test_devices_at_once_equal_one_at_a_time(repeatable, new_ledger, monkeypatch):
    """They differ by float rounding, which may tip the rounding to the grid: a step of it."""
    context = open_run(replace(repeatable, cohort=30))
    state = ServerState(0, context.start.parameters)
    found = {}
    for at_once in (1, 4, 64):
        monkeypatch.setattr(simulation, "devices_at_once", lambda *about, k=at_once: k)
        after, _ = run_round(context, state, RoundRecorder(new_ledger()))
        found[at_once] = torch.cat([v.flatten() for v in after.parameters.values()])
    start = torch.cat([v.flatten() for v in state.parameters.values()])
    step = 1 / (context.privacy.grid(len(start)).scale * context.privacy.cohort)
    for at_once in (4, 64):
        difference = (found[at_once] - found[1]).abs()
        assert difference.max() <= 2 * step
        assert (difference > step / 2).float().mean() < 0.01
    assert (found[1] - start).norm() > 100 * step


def federated_averaging(context, invited, rate):
    """Plain FedAvg with one local step on all of a device's text; the divisor is public."""
    received = {n: v.clone() for n, v in context.start.parameters.items()}
    total = {n: torch.zeros_like(v) for n, v in received.items()}
    for user in invited:
        words = np.int64(context.population.tokens("train", user))[:65]
        rows = [words[at : at + 9] for at in range(0, len(words) - 1, 8)]
        text = torch.tensor([np.pad(r, (0, 9 - len(r))).tolist() for r in rows])
        model = {n: v.clone().requires_grad_() for n, v in received.items()}
        embedded = model["embedding"][text[:, :-1]].unsqueeze(0)
        vectors = hidden(context.spec, model, embedded).flatten(0, 2)
        guess = vectors @ model["embedding"].mT + model["output_bias"]
        loss = torch.nn.functional.cross_entropy(guess, text[:, 1:].flatten(), ignore_index=PAD_ID)
        gradients = torch.autograd.grad(loss, list(model.values()))
        for name, gradient in zip(model, gradients, strict=True):
            total[name] -= rate * gradient
    return {n: v + total[n] / context.scenario.cohort for n, v in received.items()}


def test_without_noise_a_round_is_federated_averaging(tiny_scenario, policy_file, new_ledger):
    exact = policy_file(epsilon="inf", noise='{ at = "none", kind = "none", grid_steps = 4096.0 }')
    scenario = tiny_scenario(policy=exact, clip_norm=5.0, reproducible=True)
    scenario = replace(scenario, training=replace(scenario.training, batch_size=64))
    context = open_run(scenario)
    start = ServerState(0, context.start.parameters)
    state, entry = run_round(context, start, RoundRecorder(new_ledger()))
    assert entry["clipped_share"] == 0
    expected = federated_averaging(
        context, cohort(context.privacy.rule, scenario.seed, 0).tolist(), rate=0.5
    )
    for name, value in expected.items():
        assert torch.allclose(state.parameters[name], value, atol=2e-5), name
        assert not torch.equal(value, context.start.parameters[name]), name


def test_memory_of_a_round_does_not_depend_on_the_population(tiny_scenario, new_ledger):
    peaks = []
    for users in (10**4, 10**4, 10**8):  # the first one fills the caches
        people = PopulationConfig("synthetic", users=users, tokens_per_user=40)
        context = open_run(tiny_scenario(population=people, cohort=40, seed=1))
        ledger = new_ledger()
        tracemalloc.start()
        start = ServerState(0, context.start.parameters)
        _, entry = run_round(context, start, RoundRecorder(ledger))
        peaks.append(tracemalloc.get_traced_memory()[1] / entry["reports"])
        tracemalloc.stop()
    assert peaks[2] < 1.5 * peaks[1]


def test_metrics_and_evaluations_are_written_as_the_run_goes(tiny_scenario, new_watcher, tmp_path):
    scenario = tiny_scenario(rounds=4)
    scenario = replace(scenario, evaluation=replace(scenario.evaluation, every=2))
    watcher = new_watcher()
    folder = simulate(scenario, tmp_path / "run", watcher)
    found = folder.metrics()
    assert [(m["kind"], m["round"]) for m in found] == [
        ("evaluation", 0), ("round", 0), ("round", 1), ("evaluation", 2),
        ("round", 2), ("round", 3), ("evaluation", 4),
    ]  # fmt: skip
    assert [e["round"] for e in watcher.evaluations] == [0, 2, 4]
    names = [row["name"] for row in json.loads(folder.evaluation_path.read_text())["rows"]]
    assert names == ["federated model", "public unigram", "public bigram"]
    assert list(folder.tensorboard_path.iterdir())


PARTIAL = {
    "model": ModelSpec("cifg_lstm", 300, 16, hidden_dim=16, lora=LoraSpec(2)),
    "payload": PayloadPlan(rows=100, draw="unigram", dense="lora"),
    "training": LocalTraining(0.3, batch_size=2, window=8, loss="nce", negatives=30),
}


@pytest.mark.parametrize(
    ("server", "noise"),
    [
        ("momentum", '{ at = "device", kind = "skellam", tolerated_dropout = 0.1 }'),
        ("adam", '{ at = "device", kind = "discrete_gaussian", grid_steps = 64.0 }'),
        ("yogi", '{ at = "server", kind = "gaussian" }'),
    ],
    ids=["momentum-skellam", "adam-discrete_gaussian", "yogi-gaussian"],
)
def test_every_noise_and_optimizer_resumes_to_the_byte(
    tiny_scenario, policy_file, new_watcher, tmp_path, monkeypatch, noise, server
):
    """Partial rows, LoRA factors and NCE; phones that rotate."""
    rotation = '{ kind = "rotation", min_separation = 100 }'
    scenario = tiny_scenario(
        policy=policy_file(participation=rotation, noise=noise, epsilon="8.0"),
        rounds=4,
        reproducible=True,
        server=ServerOptimizer(server, 0.1),
        **PARTIAL,
    )
    watcher = new_watcher()
    straight = simulate(scenario, tmp_path / "straight" / "run", watcher).path
    assert [e["reports"] for e in watcher.rounds] == [scenario.cohort] * 4
    assert all(0 < e["epsilon"] <= 8.0 for e in watcher.rounds)
    with monkeypatch.context() as patch:
        kill_after_the_record_of(2, patch, saving=True)
        with pytest.raises(Killed):
            simulate(scenario, tmp_path / "run", new_watcher())
    simulate(scenario, tmp_path / "run", new_watcher(), resume=True)
    assert outcome(tmp_path / "run") == outcome(straight)


def test_killed_twice_at_its_end_a_run_loses_no_round(tiny_scenario, new_watcher, tmp_path):
    """Resumed after its last round it had no checkpoint of it, and erased the means all the same.

    Killed again in the last evaluation, it wrote a model without the rounds since the checkpoint
    before.
    """
    scenario = tiny_scenario(rounds=4, checkpoint_every=100)
    once, run = tmp_path / "once" / "run", tmp_path / "run"
    killed(lambda: simulate(scenario, run, new_watcher()), "checkpoint", "before", 1)
    shutil.copytree(run, once)
    simulate(scenario, once, new_watcher(), resume=True)
    killed(lambda: simulate(scenario, run, new_watcher(), resume=True), END, "before", 1)
    assert not (run / "means").exists()
    simulate(scenario, run, new_watcher(), resume=True)
    assert (run / "model.pt").read_bytes() == (once / "model.pt").read_bytes()
    assert entries_of(run) == entries_of(once)
