"""tensorflow-federated itself: its sums and ours, its files and ours, its round and ours."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from pfl_lm.dp.encoding import decode, protect
from pfl_lm.dp.grid import Grid
from pfl_lm.dp.sampler.random_bits import reproducible_bits
from pfl_lm.interop.tff import TffFailed, Worker
from pfl_lm.interop.tff_sum import TffAggregator, TffMean, external_aggregator
from pfl_lm.models.file import load_model
from pfl_lm.run.simulate import simulate

CLIENTS, DIM, CLIP = 8, 20_000, 0.5


@pytest.fixture(scope="module")
def round_of_vectors():
    """A grid, and the clipped and rounded updates of a cohort, int64[K, d]."""
    updates = np.random.default_rng(1).normal(size=(CLIENTS, DIM)).astype(np.float32)
    grid = Grid.choose(DIM, CLIP, reports_max=CLIENTS)
    return grid, protect(updates, grid, None, reproducible_bits(bytes(32)))[0]


@pytest.mark.parametrize(("kind", "tolerance"), [("gaussian", 1e-7), ("skellam", 1e-5)])
def test_without_noise_its_mean_is_our_decoded_mean(worker, round_of_vectors, kind, tolerance):
    grid, vectors = round_of_vectors
    ours = decode(vectors.sum(0), grid, CLIENTS)
    theirs = TffMean(kind, CLIP, 0.0, CLIENTS).of(vectors, grid, worker)
    assert float(np.abs(ours).max()) > 1e-3
    np.testing.assert_allclose(theirs, ours, atol=tolerance, rtol=0)


@pytest.mark.parametrize("kind", ["gaussian", "skellam"])
def test_its_noise_has_the_variance_that_was_asked_for(worker, round_of_vectors, kind):
    """Two-sided: a deviation 5% off either way would be seen (5% is 10 standard errors)."""
    grid, vectors = round_of_vectors
    multiplier, divisor = 0.7, CLIENTS + 2  # fewer reports than the public divisor
    mean = TffMean(kind, CLIP, multiplier, divisor).of(vectors, grid, worker)
    noise = (mean - vectors.sum(0) / grid.scale / divisor) * divisor
    # A server's noise covers the rounding of vectors; devices' noise comes one share a report.
    expected = multiplier * grid.norm_bound / grid.scale
    if kind == "skellam":
        expected = multiplier * CLIP * np.sqrt(CLIENTS / divisor)
    measured = float(noise.std())
    error = expected / np.sqrt(2 * DIM)
    assert abs(measured - expected) < 5 * error
    for wrong in (0.95, 1.05):
        assert abs(measured - wrong * expected) > 5 * error
    assert abs(float(noise.mean())) < 5 * expected / np.sqrt(DIM)


def test_a_run_summed_by_tff_is_the_run_summed_here(
    worker, tiny_scenario, tmp_path, quick, new_watcher
):
    runs = [
        simulate(
            tiny_scenario(reproducible=True, rounds=2, aggregator=how),
            tmp_path / how,
            new_watcher(),
            external=external_aggregator(how),
        )
        for how in ("exact", "tff")
    ]
    ours, theirs = (load_model(run.model_path).parameters for run in runs)
    for name, values in ours.items():
        np.testing.assert_allclose(theirs[name], values, atol=1e-6)


@pytest.mark.parametrize(
    "noise",
    [
        '{ at = "server", kind = "gaussian" }',
        '{ at = "device", kind = "skellam", tolerated_dropout = 0.1 }',
    ],
)
def test_a_run_under_a_policy_says_that_it_guarantees_nothing(
    worker, tiny_scenario, policy_file, tmp_path, quick, new_watcher, noise
):
    """Even where nothing else makes it a simulation: every report, every user, a rotation."""
    policy = policy_file(
        population="200",
        report_goal="6",
        delta="1e-5",
        epsilon="50.0",
        participation='{ kind = "rotation", min_separation = 5 }',
        noise=noise,
    )
    scenario = tiny_scenario(policy=policy, rounds=2, aggregator="tff")
    watcher = new_watcher()
    run = simulate(scenario, tmp_path / "run", watcher, external=TffAggregator())
    said = run.manifest()["statements"]["guaranteed"]
    assert said.startswith("Nothing for this very model: ")
    assert "tensorflow-federated draws the noise" in said
    assert run.manifest()["noise"]["drawn"] == "by tensorflow-federated"
    assert all(0 < entry["epsilon"] < 50 for entry in watcher.rounds)


def test_one_round_of_federated_averaging_is_theirs(worker, monkeypatch):
    examples = Path(__file__).resolve().parents[2] / "examples"
    monkeypatch.syspath_prepend(str(examples))
    import fedavg_beside_tff

    largest, difference = fedavg_beside_tff.compare(worker)
    assert largest > 0.05
    assert difference < 1e-4


class TestTheProcess:
    def test_it_ends_with_everything_that_it_started(self, tff_python, round_of_vectors):
        _, vectors = round_of_vectors
        with Worker(tff_python, threads=1) as running:
            TffMean("none", CLIP, 0.0, CLIENTS).of(
                vectors[:, :10], Grid(10, CLIP, 8.0, 30), running
            )
            leader = running._process.pid
            assert len(session(leader)) >= 2  # itself and TFF's executor
        assert wait_for_end(leader)
        assert not running.log.exists()

    def test_it_ends_when_the_core_is_killed(self, tff_python):
        program = (
            "from pfl_lm.interop.tff import Worker; import time, numpy as np;"
            "w = Worker(threads=1);"
            "w.call('mean', {'vectors': np.ones((2, 4), np.float32)}, kind='gaussian',"
            " clip_norm=9.0, noise_multiplier=0.0, clients=2);"
            "print(w._process.pid, flush=True); time.sleep(600)"
        )
        core = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        assert core.stdout is not None
        leader = int(core.stdout.readline())
        started = session(leader)
        core.send_signal(signal.SIGKILL)
        core.wait()
        core.stdout.close()
        assert len(started) >= 2
        assert wait_for_end(leader)

    def test_a_refusal_leaves_it_running(self, worker):
        with pytest.raises(TffFailed, match="KeyError"):
            worker.call("mean", {"vectors": np.ones((2, 2), np.float32)}, kind="laplace",
                        clip_norm=1.0, noise_multiplier=0.0, clients=2)  # fmt: skip
        assert worker.call("versions")[0]["tff"] == "0.87.0"


def session(leader: int) -> set[int]:
    """Processes of a session that are not dead yet, by /proc."""
    alive = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, _, sid = path.read_text().rpartition(") ")[2].split()[:4]
            if int(sid) == leader and state not in "ZX":
                alive.add(int(path.parent.name))
    return alive


def wait_for_end(leader: int) -> bool:
    deadline = time.monotonic() + 20
    while processes := session(leader):
        if time.monotonic() > deadline:
            for process in processes:
                os.kill(process, signal.SIGKILL)
            return False
        time.sleep(0.1)
    return True
