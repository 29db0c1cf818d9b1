"""Several processes on one run: the same bytes as one, and nothing lost when one is killed."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from torch.distributed import TCPStore

from pfl_lm.machine import tune
from pfl_lm.ranks import ALONE, Ranks, launch
from pfl_lm.recipes import load
from pfl_lm.runs import RunFolder
from pfl_lm.scenario import Scenario
from pfl_lm.secagg.errors import Refused, TooFewReports
from pfl_lm.secagg.ideal import IdealAggregator
from pfl_lm.simulate import _check_ranks, simulate

SCENARIO = """
policy = "{policy}"
rounds = 6
cohort = 40
clip_norm = 0.5
seed = 3
reproducible = true
checkpoint_every = 2
[population]
kind = "synthetic"
users = 200
tokens_per_user = 30
[model]
kind = "cifg_lstm"
vocabulary_size = 300
embedding_dim = 8
hidden_dim = 8
[training]
learning_rate = 0.5
window = 8
max_tokens = 64
[evaluation]
every = 3
users = 5
final_users = 40
"""

# The command line, with a short public text; DEATHS names processes that die in a round:
# "start:rank:round", where a start is the first one or that after a restart. In the round PAUSE
# the processes wait: whoever interrupts them there has time.
PROGRAM = """
import os, signal, time
import pfl_lm.simulate, pfl_lm.world
from pfl_lm.cli import main

pfl_lm.world.PUBLIC_USERS = 20
me = os.environ.get("TORCHELASTIC_RESTART_COUNT"), os.environ.get("RANK")
rounds, plan = 0, pfl_lm.simulate.groups

def die_or_plan(*arguments):
    global rounds
    rounds += 1
    for death in os.environ.get("DEATHS", "").split():
        start, rank, round = death.split(":")
        if me == (start, rank) and rounds == int(round):
            os.kill(os.getpid(), signal.SIGKILL)
    if rounds == int(os.environ.get("PAUSE", "0")):
        time.sleep(60)
    return plan(*arguments)

pfl_lm.simulate.groups = die_or_plan
if __name__ == "__main__":
    main()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, policy_file) -> Path:
    """Where program and scenario lie."""
    folder = tmp_path_factory.mktemp("program")
    (folder / "program.py").write_text(PROGRAM)
    (folder / "scenario.toml").write_text(SCENARIO.format(policy=policy_file()))
    return folder


@pytest.fixture(scope="module")
def alone(folder, quick, new_watcher) -> dict:
    """What the run comes to that one process makes."""
    return outcome(simulated(folder, folder / "alone" / "run", new_watcher()))


def simulated(folder: Path, run: Path, watch, **options) -> Path:
    tune(1)  # as the command does: its products have bits of their own
    return simulate(load(Scenario, folder / "scenario.toml"), run, watch, **options).path


def started(
    folder: Path,
    run: Path,
    *options: str,
    by: tuple[str, ...] = (),
    deaths: str = "",
    pause: int = 0,
):
    """Start the command line, under another program if need be."""
    command = [sys.executable, *by, str(folder / "program.py"), "simulate"]
    command += [str(folder / "scenario.toml"), "-o", str(run), *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DEATHS": deaths, "PAUSE": str(pause)}
    return subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def outcome(run: Path) -> dict:
    """All that a run writes, but for how long it took; short enough to be printed."""
    model = hashlib.sha256((run / "model.pt").read_bytes()).hexdigest()
    metrics = [{k: v for k, v in e.items() if k != "seconds"} for e in RunFolder(run).metrics()]
    ledger, evaluation = ((run / name).read_text() for name in ("ledger.jsonl", "evaluation.json"))
    return {"metrics": metrics, "model": model, "evaluation": evaluation, "ledger": ledger}


def test_a_killed_process_starts_again_and_the_run_goes_on_to_the_bytes_of_one(
    folder, alone, tmp_path
):
    """Two processes by torchrun, of which one is killed in a round."""
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
                "--max-restarts=1")  # fmt: skip
    process = started(folder, tmp_path / "run", by=torchrun, deaths="0:1:3")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out.count("federated model") == 1  # one process speaks
    assert "exitcode: -9" in err
    assert outcome(tmp_path / "run") == alone


def test_an_interrupt_ends_every_process_and_keeps_what_was_paid_for(
    folder, alone, new_watcher, tmp_path
):
    run = tmp_path / "run"
    process = started(folder, run, "--workers", "2", pause=5)
    ledger = run / "ledger.jsonl"
    while process.poll() is None:
        if ledger.exists() and ledger.read_bytes().count(b"\n") > 2:
            process.send_signal(signal.SIGINT)
            break
        time.sleep(0.01)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "of 6 rounds are kept" in err
    before = ledger.read_bytes()
    assert outcome(simulated(folder, run, new_watcher(), resume=True)) == alone
    assert ledger.read_bytes().startswith(before)


def test_who_waits_for_the_others_can_be_interrupted(tmp_path):
    """Nobody comes, and waiting is no Python that could hear an exception."""
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    names = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(store.port), "RANK": "1"}
    names |= {"WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "alone"}
    names["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    code = "from pfl_lm.ranks import join; join().__enter__()"
    waiting = subprocess.Popen([sys.executable, "-c", code], env=os.environ | names)
    try:
        store.wait(["word/1"], timedelta(seconds=60))
        time.sleep(0.5)
        waiting.send_signal(signal.SIGINT)
        assert waiting.wait(timeout=20) == -signal.SIGINT
    finally:
        waiting.kill()


class Several(Ranks):
    """Ranks whose talk is put on and heard in this process: what rank 0 sees of the others."""

    def __init__(self, rank: int, others: list) -> None:
        super().__init__(rank, 1 + len(others))
        self.others = others

    def hand_in(self, own):
        return [own, *(other.reports for other in self.others)] if self.is_first else []

    def add_up(self, own):
        for other in self.others:
            own = own + other._total.astype(own.view(f"u{own.itemsize}").dtype).view(own.dtype)
        return own


@pytest.mark.parametrize("bits", [17, 32, 33, 62])
def test_merged_sums_open_as_one_sum(bits):
    draw = np.random.default_rng(bits)
    vectors = draw.integers(-(2**62), 2**62, (9, 50))
    parts = [IdealAggregator(50, bits, 2) for _ in range(3)]
    for part, some in zip(parts, (vectors[:4], vectors[4:4], vectors[4:]), strict=True):
        part.submit(some)
    whole = IdealAggregator(50, bits, 2)
    whole.submit(vectors)
    first, *others = parts
    first.merge(Several(0, others))
    opened, expected = first.close(), whole.close()
    assert opened.reports == expected.reports == 9
    np.testing.assert_array_equal(opened.vector, expected.vector)


def test_several_processes_keep_to_threshold_and_goal():
    def merged(threshold, goal):
        parts = [IdealAggregator(3, 20, threshold, goal) for _ in range(2)]
        for part in parts:
            part.submit(np.ones((3, 3), np.int64))
        parts[0].merge(Several(0, parts[1:]))
        return parts[0]

    with pytest.raises(TooFewReports):
        merged(7, None).close()
    with pytest.raises(Refused, match="6 reports of several processes, the goal is 5"):
        merged(2, 5).close()
    assert merged(6, 6).close().reports == 6


def test_a_rank_that_is_alone_talks_to_itself():
    items = np.arange(5)
    assert ALONE.is_first
    assert ALONE.share(items).tolist() == items.tolist()
    assert list(ALONE.turns(3)) == [0, 1, 2]
    assert ALONE.first(max, 1, 2) == 2
    assert ALONE.exchange("word") == ALONE.hand_in("word") == ["word"]
    assert ALONE.add_up(items) is items
    assert not ALONE.restarted


def test_together_the_ranks_share_everything_once():
    items = np.arange(11)
    shared = np.concatenate([Ranks(rank, 3).share(items) for rank in range(3)])
    assert sorted(shared.tolist()) == items.tolist()


def test_a_mistake_is_said_once_and_not_tried_again():
    with pytest.raises(ValueError, match="invalid literal"):
        launch(1, int, "word")


@pytest.mark.parametrize(
    "choice", [{"secure_aggregation": "protocol"}, {"aggregator": "tff", "policy": None}]
)
def test_what_sums_in_one_process_refuses_several(tiny_scenario, choice):
    with pytest.raises(ValueError, match="--workers 1"):
        _check_ranks(tiny_scenario(**choice), Ranks(0, 2))
