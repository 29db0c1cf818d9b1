"""Several processes on one run: the same bytes as one, and nothing lost when one is killed."""

from __future__ import annotations

import hashlib
import importlib
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from torch.distributed import TCPStore

import pfl_lm
from pfl_lm.distributed import ALONE, Ranks
from pfl_lm.distributed.processes import RESTARTS, _portable, launch
from pfl_lm.dp.secret_state import SecretState
from pfl_lm.native.tuning import tune
from pfl_lm.recipes import load
from pfl_lm.run.control import RunStopped
from pfl_lm.run.folder import RunFolder
from pfl_lm.run.scenario import Scenario
from pfl_lm.run.simulate import _check_ranks, simulate
from pfl_lm.secagg.errors import Refused, TooFewReports
from pfl_lm.secagg.ideal import IdealAggregator

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

# The command line, with a short public text. DEATHS names ranks that kill themselves in a round,
# each once: "rank:round", where rounds are counted from the last start; the round "open" is the
# moment when rank 0 is about to open the run folder. In the round PAUSE the processes wait, so that
# a test has time to interrupt them.
PROGRAM = """
import multiprocessing, os, signal, time
from pathlib import Path
import pfl_lm.run.simulate, pfl_lm.run.setup
from pfl_lm.cli import main

pfl_lm.run.setup.PUBLIC_USERS = 20
rounds, plan = 0, pfl_lm.run.simulate.groups
open_folder = pfl_lm.run.simulate.RunRecorder.open

def die_where_told(moment):
    rank = os.environ.get("RANK") or multiprocessing.current_process().name.removeprefix("rank ")
    for death in os.environ.get("DEATHS", "").split():
        died = Path(__file__).with_name("died " + death.replace(":", " "))
        if death == rank + ":" + moment and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)

def die_or_open(*arguments):
    die_where_told("open")
    return open_folder(*arguments)

def die_or_plan(*arguments):
    global rounds
    rounds += 1
    die_where_told(str(rounds))
    if rounds == int(os.environ.get("PAUSE", "0")):
        time.sleep(60)
    return plan(*arguments)

pfl_lm.run.simulate.groups = die_or_plan
pfl_lm.run.simulate.RunRecorder.open = die_or_open
if __name__ == "__main__":
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may be under nohup
    main()
"""


# Work of ranks that can be imported.
WORK = """
import os, signal, time

def fail(ranks, rank, error):
    if ranks.rank == rank:
        raise error
    return ranks.all_gather("word")

def talk(ranks, size):
    import numpy as np
    count = 0
    for _ in range(3):
        count += len(list(ranks.work_queue(100)))
    shares = ranks.gather(count)
    total = ranks.reduce_sum(np.full(size, 2**31 - 1 - ranks.rank, np.int32))
    return ranks.on_rank_zero(sum, shares), ranks.all_gather(ranks.rank), total.tolist()[:2]

def change(ranks):
    import torch
    tensor = ranks.on_rank_zero(torch.zeros, 3)
    tensor += 1 + ranks.rank
    return [part.tolist() for part in ranks.gather(tensor)]

def die(ranks):
    os.kill(os.getpid(), signal.SIGKILL)

def sleep(ranks, file):
    with open(file, "a") as found:
        found.write(str(os.getpid()) + chr(10))
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, policy_file) -> Path:
    """Where the scenario lies."""
    folder = tmp_path_factory.mktemp("scenario")
    (folder / "scenario.toml").write_text(SCENARIO.format(policy=policy_file()))
    return folder


@pytest.fixture(scope="module")
def alone(folder, quick, new_watcher) -> dict:
    """What the run comes to that one process makes."""
    return outcome(simulated(folder, folder / "alone" / "run", new_watcher()))


@pytest.fixture
def work(tmp_path, monkeypatch):
    """The module ``WORK``, which processes that are started can import."""
    (tmp_path / "ranks_work.py").write_text(WORK)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "ranks_work", raising=False)
    return importlib.import_module("ranks_work")


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
    run.parent.mkdir(exist_ok=True)
    program = run.parent / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, *by, str(program), "simulate"]
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


TORCHRUN = ("-m", "torch.distributed.run", "--max-restarts=1")


def test_a_killed_process_starts_again_and_the_run_goes_on_to_the_bytes_of_one(
    folder, alone, tmp_path
):
    process = started(folder, tmp_path / "run", "--workers", "2", deaths="1:3 0:2")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out.count("federated model") == 1
    for rank in (1, 0):
        line = f"process {rank} of 2 was killed by signal 9; starting all of them again"
        assert err.count(line) == 1
    assert "Traceback" not in err
    assert outcome(tmp_path / "run") == alone


def test_the_state_of_correlated_noise_stays_with_the_first_process(
    policy_file, quick, new_watcher, tmp_path
):
    policy = policy_file(
        noise='{ at = "server", kind = "blt" }',
        participation='{ kind = "rotation", min_separation = 2 }',
    )
    (tmp_path / "scenario.toml").write_text(SCENARIO.format(policy=policy))
    alone = outcome(simulated(tmp_path, tmp_path / "alone" / "run", new_watcher()))
    process = started(tmp_path, tmp_path / "run", "--workers", "2", deaths="0:2")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert outcome(tmp_path / "run") == alone
    state = SecretState(b"past sums")
    assert pickle.loads(pickle.dumps(state)) == b""
    assert state == b"past sums"


def test_two_machines_make_the_bytes_of_one_process_though_a_process_is_killed(
    folder, alone, tmp_path
):
    """Two torchruns of one process each; one process is killed in a round."""
    by = (*TORCHRUN, "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d")
    by += (f"--rdzv-endpoint=localhost:{free_port()}", "--local-addr=localhost")
    first = started(folder, tmp_path / "run", by=(*by, "--rdzv-conf=is_host=1"), deaths="1:3")
    second = started(folder, tmp_path / "run", by=(*by, "--rdzv-conf=is_host=0"), deaths="1:3")
    said = [process.communicate(timeout=300) for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), said
    assert sum(out.count("federated model") for out, _ in said) == 1  # one process speaks
    assert sum("exitcode: -9" in err for _, err in said) == 1
    assert outcome(tmp_path / "run") == alone


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize(
    ("options", "deaths"),
    [({"by": (*TORCHRUN, "--standalone", "--nproc-per-node=1")}, ""), ({"workers": "2"}, "0:open")],
)
def test_an_earlier_run_is_refused_by_the_first_start_and_by_those_after_it(
    folder, alone, tmp_path, options, deaths
):
    """Nor does the death of a process make a restart resume what its launch had not opened."""
    run = tmp_path / "run"
    shutil.copytree(folder / "alone" / "run", run)
    (run / "model.pt").unlink()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    more = ("--workers", options["workers"]) if "workers" in options else ()
    process = started(folder, run, *more, by=options.get("by", ()), deaths=deaths)
    _, err = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "is not empty; choose another folder, --overwrite or --resume" in err
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert ("listens on every network interface" in err) == ("by" in options)


def test_an_interrupt_ends_every_process_and_keeps_what_was_paid_for(
    folder, alone, new_watcher, tmp_path
):
    run = tmp_path / "run"
    process = started(folder, run, "--workers", "2", pause=5)
    before = interrupted(process, run / "ledger.jsonl", signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "of 6 rounds; repeat the command with --resume" in err
    assert outcome(simulated(folder, run, new_watcher(), resume=True)) == alone
    assert (run / "ledger.jsonl").read_bytes().startswith(before)


def interrupted(process, ledger: Path, number: int) -> bytes:
    """Send a signal once three lines are in the ledger; return what the ledger held then."""
    while process.poll() is None:
        if ledger.exists() and ledger.read_bytes().count(b"\n") > 2:
            process.send_signal(number)
            break
        time.sleep(0.01)
    return ledger.read_bytes()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_ranks_end_with_the_process_that_started_them(folder, alone, new_watcher, tmp_path, number):
    """And let go of the ledger, so that the run can be resumed."""
    run = tmp_path / "run"
    process = started(folder, run, "--workers", "2", pause=5)
    interrupted(process, run / "ledger.jsonl", number)
    process.wait(timeout=120)
    process.communicate(timeout=120)  # until nobody holds its output
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
    assert outcome(simulated(folder, run, new_watcher(), resume=True)) == alone


def test_who_waits_for_the_others_can_be_interrupted(tmp_path):
    """Nobody comes, and waiting is no Python that could hear an exception."""
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    names = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(store.port), "RANK": "1"}
    names |= {"WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "alone"}
    names["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    names["LOCAL_WORLD_SIZE"] = "1"
    code = "from pfl_lm.distributed.torchrun import join; join().__enter__()"
    waiting = subprocess.Popen([sys.executable, "-c", code], env=os.environ | names)
    try:
        store.wait(["nonce/1"], timedelta(seconds=60))
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

    def gather(self, own):
        return [own, *(other.reports for other in self.others)] if self.is_first else []

    def reduce_sum(self, own):
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
    assert ALONE.shard(items).tolist() == items.tolist()
    assert list(ALONE.work_queue(3)) == [0, 1, 2]
    assert ALONE.on_rank_zero(max, 1, 2) == 2
    assert ALONE.all_gather("word") == ALONE.gather("word") == ["word"]
    assert ALONE.reduce_sum(items) is items
    assert not ALONE.begun


def test_together_the_ranks_share_everything_once():
    items = np.arange(11)
    shared = np.concatenate([Ranks(rank, 3).shard(items) for rank in range(3)])
    assert sorted(shared.tolist()) == items.tolist()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_ranks_of_one_machine_share_gather_and_sum(work, count):
    shared, ranks, total = launch(count, work.talk, 70_000)  # more than a pipe holds
    assert shared == 300
    assert ranks == list(range(count))
    whole = sum(2**31 - 1 - rank for rank in range(count))
    assert total == [(whole + 2**31) % 2**32 - 2**31] * 2


def test_tensors_are_copied_not_shared(work):
    assert launch(2, work.change) == [[1.0] * 3, [2.0] * 3]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("error", [ValueError("invalid word"), OSError("invalid word")])
def test_a_mistake_is_said_once_and_not_tried_again(work, caplog, rank, error):
    with pytest.raises(type(error), match=r"^invalid word$"):
        launch(2, work.fail, rank, error)
    assert not caplog.records


def test_a_mistake_keeps_its_kind_where_another_process_can_rebuild_it(work):
    class Local(ValueError):
        """Of which another process knows nothing."""

    with pytest.raises(RunStopped, match=r"^as was asked$"):
        launch(2, work.fail, 0, RunStopped("as was asked"))
    with pytest.raises(FileNotFoundError) as met:
        launch(2, work.fail, 1, FileNotFoundError(2, "No such file", "words"))
    assert met.value.filename == "words"
    assert type(_portable(Local("told"))) is ValueError


def test_at_least_one_process_works(work):
    for count in (0, -3):
        with pytest.raises(ValueError, match="start 1 or more"):
            launch(count, work.fail, 0, ValueError("called"))


def test_a_fault_of_the_program_is_not_tried_again(work, caplog, capfd):
    with pytest.raises(ChildProcessError, match="process 1 of 2 failed with status 1; --resume"):
        launch(2, work.fail, 1, KeyError("fault"))
    assert not caplog.records
    assert capfd.readouterr().err.count("KeyError: 'fault'") == 1


def test_processes_that_are_killed_again_and_again_end_the_run(work, caplog):
    with pytest.raises(ChildProcessError, match=f"killed by signal 9, after {RESTARTS} restarts"):
        launch(1, work.die)
    assert len(caplog.records) == RESTARTS


def test_a_signal_to_the_launching_process_alone_ends_the_ranks(work, tmp_path):
    """A rank that sleeps holds nothing up, and Ctrl-C while ranks start is not lost."""
    file = tmp_path / "ranks"
    code = "import ranks_work; from pfl_lm.distributed.processes import launch\n"
    code += f"if __name__ == '__main__': launch(2, ranks_work.sleep, {str(file)!r})\n"
    (tmp_path / "main.py").write_text(code)
    path = os.pathsep.join([str(tmp_path), str(Path(pfl_lm.__file__).parents[1])])
    process = subprocess.Popen(
        [sys.executable, tmp_path / "main.py"],
        env=os.environ | {"PYTHONPATH": path},
        stderr=subprocess.PIPE,
    )
    while not (file.exists() and file.read_text().count("\n") == 2):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert err.splitlines()[-1] == b"KeyboardInterrupt"
    for pid in map(int, file.read_text().split()):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize(
    "choice", [{"secure_aggregation": "protocol"}, {"aggregator": "tff", "policy": None}]
)
def test_what_sums_in_one_process_refuses_several(tiny_scenario, choice):
    with pytest.raises(ValueError, match="--workers 1"):
        _check_ranks(tiny_scenario(**choice), Ranks(0, 2))
