"""Without tensorflow-federated, one line says what to run; nothing else of the core notices."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pfl_lm.interop import tff
from pfl_lm.interop.tff import PYTHON_VARIABLE, TffFailed, TffMissing, Worker, find_python
from pfl_lm.interop.tff_sum import TffAggregator
from pfl_lm.run.setup import open_run


def fake_python(path: Path, version: str, tff_version: str) -> Path:
    path.write_text(f"#!/bin/sh\necho '[[{version}], \"{tff_version}\"]'\n")
    path.chmod(0o755)
    return path


def test_where_it_is_not_built(monkeypatch, tmp_path):
    monkeypatch.delenv(PYTHON_VARIABLE, raising=False)
    monkeypatch.setattr(tff, "_FOLDER", ".env-nowhere")
    with pytest.raises(TffMissing, match=r"there is no \.env-nowhere; run `make tff`.*Python 3.11"):
        find_python()


def test_a_scenario_says_so_before_it_runs(monkeypatch, tiny_scenario):
    monkeypatch.setenv(PYTHON_VARIABLE, "/nowhere/python")
    with pytest.raises(ValueError, match="no such file; run `make tff`"):
        open_run(tiny_scenario(aggregator="tff"), TffAggregator())


@pytest.mark.parametrize(
    ("version", "found", "reason"),
    [
        ("3, 12", "0.87.0", "is Python 3.12"),
        ("3, 11", "", "has no tensorflow-federated"),
        ("3, 11", "0.20.0", "has tensorflow-federated 0.20.0"),
    ],
)
def test_the_wrong_one(monkeypatch, tmp_path, version, found, reason):
    monkeypatch.setenv(PYTHON_VARIABLE, str(fake_python(tmp_path / "python", version, found)))
    with pytest.raises(TffMissing, match=f"{reason}; run `make tff`"):
        find_python()


def test_the_right_one(monkeypatch, tmp_path):
    python = fake_python(tmp_path / "python", "3, 11", "0.87.0")
    monkeypatch.setenv(PYTHON_VARIABLE, str(python))
    assert find_python() == python


def test_a_worker_that_ends_is_an_error_with_its_log(tmp_path):
    with Worker(Path("/bin/false")) as worker:
        with pytest.raises(TffFailed, match=r"ended during versions.*its log is"):
            worker.call("versions")
        assert worker.log.exists()
    worker.log.unlink()


def test_the_workers_loop_without_tff(tmp_path):
    """The worker imports TFF only when a task needs it: its errors come back as text."""
    worker = Worker(Path(sys.executable), log=tmp_path / "log")
    with worker, pytest.raises(TffFailed, match="ValueError: no such task: 'dance'"):
        worker.call("dance")
    assert "Traceback" in (tmp_path / "log").read_text()


class TestScenarios:
    def test_other_ways_to_sum_are_refused(self, tiny_scenario):
        for other in ({"rotate": True}, {"secure_aggregation": "protocol"}, {"modulus_bits": 30}):
            with pytest.raises(ValueError, match="brings its own noise"):
                tiny_scenario(aggregator="tff", **other)

    def test_noise_that_tff_does_not_have_is_refused(self, tiny_scenario, policy_file):
        policy = policy_file(
            noise='{ at = "device", kind = "discrete_gaussian", tolerated_dropout = 0.1 }'
        )
        with pytest.raises(ValueError, match="the policy states other noise"):
            open_run(tiny_scenario(aggregator="tff", policy=policy), TffAggregator())

    def test_a_seed_cannot_name_tffs_noise(self, tiny_scenario, policy_file):
        with pytest.raises(ValueError, match="comes from no seed"):
            open_run(
                tiny_scenario(aggregator="tff", policy=policy_file(), reproducible=True),
                TffAggregator(),
            )

    def test_it_must_be_handed_over(self, tiny_scenario):
        with pytest.raises(ValueError, match='aggregator = "tff": hand that library'):
            open_run(tiny_scenario(aggregator="tff"))
