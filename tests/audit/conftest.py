"""A tiny run to audit, and ways to doctor one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

POLICY = """
unit = "user"
neighboring = "zero_out"
epsilon = 2.0
delta = 1e-6
population = 1_000_000
report_goal = 5_000
rounds = 12
participation = { kind = "poisson" }
noise = { at = "device", kind = "skellam", tolerated_dropout = 0.1 }
"""

ROTATION = POLICY.replace('"poisson"', '"rotation", min_separation = 6')

CENTRAL = (
    POLICY.replace('{ at = "device", kind = "skellam", tolerated_dropout = 0.1 }',
                   '{ at = "server", kind = "gaussian" }')
    + "accepted_server_epsilon = inf\n"
)  # fmt: skip


class Silence:
    """Watches a run without a word."""

    def say(self, line: str) -> None: ...

    def round_done(self, entry: dict, rounds: int) -> None: ...

    def evaluated(self, entry: dict) -> None: ...


def run_tiny(
    folder: Path,
    policy: str | None = POLICY,
    listener: object | None = None,
    resume: bool = False,
    start: Callable[..., object] | None = None,
    **changes,
) -> Path:
    """Run twelve rounds of 20 reports on invented users, and return the run's folder.

    Args:
        start: called with the scenario and the folder in place of ``simulate``.
        changes: fields of the scenario.
    """
    from pfl_lm.devices.local_training import LocalTraining
    from pfl_lm.models.models import ModelSpec
    from pfl_lm.payload.plan import PayloadPlan
    from pfl_lm.run.scenario import EvaluationConfig, PopulationConfig, Scenario
    from pfl_lm.run.simulate import simulate

    recipe = folder / "policy.toml"
    recipe.write_text(policy or "", encoding="utf-8")
    settings = {
        "population": PopulationConfig("synthetic", users=400, tokens_per_user=40),
        "model": ModelSpec("cifg_lstm", 300, 16, hidden_dim=16),
        "rounds": 12,
        "cohort": 20,
        "clip_norm": 0.5,
        "policy": None if policy is None else recipe,
        "payload": PayloadPlan(rows=100),
        "training": LocalTraining(learning_rate=0.5, window=10),
        "evaluation": EvaluationConfig(every=0, users=5, final_users=5, tokens_per_user=50),
    } | changes
    scenario = Scenario(**settings)
    if start is None:
        simulate(scenario, folder / "run", listener or Silence(), resume)
    else:
        start(scenario, folder / "run")
    return folder / "run"


@pytest.fixture(scope="session")
def honest_run(tmp_path_factory) -> Path:
    """An undoctored run; tests copy it before they touch it."""
    return run_tiny(tmp_path_factory.mktemp("honest"))


@pytest.fixture(scope="session")
def tiny_run() -> Callable[..., Path]:
    return run_tiny


@pytest.fixture(scope="session")
def policy_text() -> str:
    return POLICY
