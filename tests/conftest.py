"""What every test may ask for."""

from __future__ import annotations

import os
import signal
from pathlib import Path

# Before numpy or torch is imported: test processes run side by side, one thread each.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Before gRPC is imported: in a test process that still has threads of a server, what gRPC does at
# a fork now and then ends the child.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
# A shell starts background jobs with SIGINT ignored, and the processes that tests start inherit it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
from hypothesis import HealthCheck, settings

from pfl_lm.run.progress import ProgressListener
from tests import entropy

IN_CI = "CI" in os.environ  # there a submission passes or fails for what it changed, not by chance
settings.register_profile(
    "default",
    max_examples=40,
    deadline=None,
    derandomize=IN_CI,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("default")


def pytest_configure(config: pytest.Config) -> None:
    if IN_CI:
        config.pluginmanager.register(entropy.Plugin())


SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real text and oracles beside the repository; the test skips without it."""
    if not SHARED.is_dir():
        pytest.skip("needs ../shared (real text and oracle tables), which is absent")
    return SHARED


@pytest.fixture(scope="session")
def plain_manifest() -> dict:
    """The least that a manifest holds: of a run of three rounds without a policy."""
    return {
        "format": 1,
        "run": "tiny",
        "scenario": {
            "rounds": 3,
            "cohort": 4,
            "clip_norm": 1.0,
            "seed": 1,
            "population": {"kind": "synthetic", "tokens_per_user": 50},
            "model": {"kind": "cifg_lstm"},
            "training": {"window": 10},
        },
        "policy": None,
        "guarantee": None,
        "statements": {"guaranteed": "Nothing.", "simulated": "Training."},
        "noise": {"drawn": "not at all", "source": "csprng"},
        "secure_aggregation": {"ran": "ideal", "simulated": None, "deployed": None},
        "tokenizer": {"digest": "ab" * 32, "vocabulary_size": 300},
        "population": {
            "name": "invented users",
            "users": {"train": 40, "validation": 5, "test": 8},
            "cohort_rule": {"kind": "poisson", "population": 40, "size_or_rate": 0.1},
        },
        "model": {"parameters": 4000, "start": {"kind": "random"}},
        "payload": {"total": 4000, "coordinates": 1000},
        "versions": {"pfl_lm": "0.1.0"},
    }


class Watcher(ProgressListener):
    """Follows a run and keeps what it was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.rounds: list[dict] = []
        self.evaluations: list[dict] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    def round_done(self, entry: dict, rounds: int) -> None:
        self.rounds.append(entry)

    def evaluated(self, entry: dict) -> None:
        self.evaluations.append(entry)


@pytest.fixture(scope="session")
def new_watcher() -> type[Watcher]:
    return Watcher


@pytest.fixture
def without_compiled(monkeypatch):
    """Call it, and from then on the test runs as where there is no C compiler."""
    from pfl_lm import native

    return lambda: monkeypatch.setattr(native, "load", lambda name: None)


@pytest.fixture(scope="module")
def quick():
    """Public text of invented users is short: fitting the bigram baseline is not under test."""
    import pfl_lm.run.setup

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pfl_lm.run.setup, "PUBLIC_USERS", 20)
        yield


@pytest.fixture(scope="session")
def tiny_scenario():
    """A function that returns a scenario of a few seconds; its arguments replace fields."""
    from pfl_lm.devices.local_training import LocalTraining
    from pfl_lm.models.models import ModelSpec
    from pfl_lm.run.scenario import EvaluationConfig, PopulationConfig, Scenario

    def scenario(**changes):
        fields = {
            "population": PopulationConfig("synthetic", users=200, tokens_per_user=40),
            "model": ModelSpec("cifg_lstm", vocabulary_size=300, embedding_dim=8, hidden_dim=8),
            "training": LocalTraining(0.5, batch_size=4, window=8, max_tokens=64),
            "rounds": 5,
            "cohort": 6,
            "clip_norm": 0.5,
            "seed": 3,
            "evaluation": EvaluationConfig(0, users=3, final_users=3, tokens_per_user=30),
        }
        return Scenario(**{**fields, **changes})

    return scenario


@pytest.fixture(scope="session")
def policy_file(tmp_path_factory):
    """A function that writes a policy recipe; its arguments replace lines."""

    def write(**changes: str) -> Path:
        lines = {
            "unit": '"user"',
            "neighboring": '"zero_out"',
            "epsilon": "2.0",
            "delta": "1e-7",
            "population": "1_000_000",
            "report_goal": "5_000",
            "rounds": "6",
            "participation": '{ kind = "poisson" }',
            "noise": '{ at = "device", kind = "skellam", tolerated_dropout = 0.1 }',
        } | changes
        if 'at = "server"' in lines["noise"]:
            lines = {"accepted_server_epsilon": "inf"} | lines
        path = tmp_path_factory.mktemp("policy") / "policy.toml"
        path.write_text("".join(f"{k} = {v}\n" for k, v in lines.items()), encoding="utf-8")
        return path

    return write
