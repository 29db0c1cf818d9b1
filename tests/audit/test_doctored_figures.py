"""Figures that a run's files claim and nobody measured: the audit derives each from the policy."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.audit.conftest import CENTRAL, POLICY, run_tiny
from tests.audit.doctoring import failing, rewrite_ledger

ROTATION = POLICY.replace('"poisson"', '"rotation", min_separation = 6')
REMOVED = ROTATION.replace(
    "tolerated_dropout = 0.1", 'tolerated_dropout = 0.3, excess = "removed", honest_fraction = 0.9'
)
PROMISED = "every round as promised"


@pytest.fixture(scope="module", params=["kept", "removed", "central"])
def honest(request, tmp_path_factory) -> Path:
    policy = {"kept": ROTATION, "removed": REMOVED, "central": CENTRAL}[request.param]
    return run_tiny(tmp_path_factory.mktemp(request.param), policy, rounds=3)


@pytest.fixture(scope="module")
def rotated(tmp_path_factory) -> Path:
    return run_tiny(tmp_path_factory.mktemp("rotated"), ROTATION, rounds=4)


@pytest.fixture
def run(rotated, tmp_path) -> Path:
    return Path(shutil.copytree(rotated, tmp_path / "run"))


def rewrite_rounds(run: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change every round of a ledger, and remove the checkpoints that remember the old one."""

    def each(entries: list[dict[str, Any]]) -> None:
        for entry in entries:
            if entry["kind"] == "round":
                change(entry)

    rewrite_ledger(run, each)
    shutil.rmtree(run / "checkpoints", ignore_errors=True)


def test_ten_times_the_noise_in_every_round(honest, tmp_path):
    run = Path(shutil.copytree(honest, tmp_path / "run"))

    def louder(entry):
        entry["sum_multiplier"] *= 10
        entry["event"]["noise_multiplier"] *= 10

    assert failing(run, accounting=False) == {}
    rewrite_rounds(run, louder)
    assert PROMISED in failing(run, accounting=False)


def test_more_noise_than_stays_where_the_excess_is_removed(tmp_path):
    run = run_tiny(tmp_path, REMOVED, rounds=3, dropout=0.1)
    assert failing(run, accounting=False) == {}
    rewrite_rounds(run, lambda entry: entry["noise"].update(achieved=10.0))
    assert "is removed" in failing(run, accounting=False)[PROMISED]


@pytest.mark.parametrize("name", ["event", "noise"])
def test_noise_that_is_no_number(run, name):
    figure = {"event": "noise_multiplier", "noise": "achieved"}[name]
    rewrite_rounds(run, lambda entry: entry[name].update({figure: float("nan")}))
    assert PROMISED in failing(run, accounting=False)
