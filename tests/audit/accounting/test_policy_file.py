"""A policy without a run: its arithmetic is checked, and what is not is said."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pfl_lm.audit.accounting.check import audit_accounting
from pfl_lm.audit.accounting.policy_file import PolicyFile
from pfl_lm.audit.page import render
from pfl_lm.cli import app
from pfl_lm.dp.policy import Policy
from pfl_lm.recipes import load

POLICIES = sorted((Path(__file__).resolve().parents[3] / "privacy").rglob("*.toml"))
LOCK = """
[reviewed]
noise_multiplier = 3.67
epsilon = 2.0
epsilon_unamplified = 2.0
"""


@pytest.fixture
def policy(tmp_path, policy_text):
    """A cheap policy: one Gaussian release."""
    text = policy_text.replace(
        'noise = { at = "device", kind = "skellam", tolerated_dropout = 0.1 }',
        'noise = { at = "server", kind = "gaussian" }',
    ).replace('{ kind = "poisson" }', '{ kind = "rotation", min_separation = 12 }')
    path = tmp_path / "policy.toml"
    path.write_text(text, encoding="utf-8")
    return path


def failing(path: Path, **changes) -> dict[str, str]:
    part = audit_accounting(PolicyFile.open(path), **changes)
    return {finding.name: finding.text for finding in part.findings if finding.holds is False}


@pytest.mark.parametrize("path", POLICIES, ids=lambda path: path.stem)
def test_the_auditor_reads_a_policy_as_the_run_does(path):
    stated = asdict(load(Policy, path))
    assert PolicyFile.open(path).policy == stated


@pytest.mark.parametrize("name", ["keyboard_150", "rotation"])
def test_shipped_policies_hold(name):
    path = next(path for path in POLICIES if path.stem == name)
    assert failing(path) == {}


def test_an_unreviewed_policy_is_checked_at_what_follows_and_says_so(policy):
    found = PolicyFile.open(policy)
    assert not found.is_reviewed
    part = audit_accounting(found)
    assert part.holds
    assert next(f for f in part.findings if f.name == "reviewed figures").holds is None


def test_reviewed_figures_that_promise_too_much(policy):
    policy.write_text(policy.read_text() + LOCK.replace("3.67", "1.5"))
    assert "2.000 is stated, but the best that is proven" in failing(policy)["stated ε"]


def test_figures_above_the_policys_own_limit(policy):
    policy.write_text(policy.read_text() + LOCK.replace("2.0", "3.0").replace("3.67", "2.5"))
    assert "the policy allows 2" in failing(policy)["stated ε"]


def test_a_policy_that_pfl_lm_would_refuse_to_run_is_audited_all_the_same(policy):
    policy.write_text(policy.read_text().replace("delta = 1e-6", "delta = 1e-3") + LOCK)
    assert "ABOVE one in the population" in failing(policy)["δ against the population"]


def test_trainings_that_were_not_paid_for(policy):
    assert "unpaid" in failing(policy, trials=5)["hyperparameter tuning"]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("epsilon = 2.0", "epsilom = 2.0", "'epsilom' is no key"),
        ("delta = 1e-6", "", "delta is missing"),
        ('kind = "gaussian"', 'kin = "gaussian"', "noise.kin is no key"),
        ('at = "server", ', "", "noise.at is missing"),
        ("rounds = 12", "rounds =", "cannot be read as a policy"),
    ],
)
def test_what_is_no_policy_is_refused_by_key(policy, old, new, says):
    policy.write_text(policy.read_text().replace(old, new))
    with pytest.raises(ValueError, match=says):
        PolicyFile.open(policy)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("epsilon = 2.0\ndelta", 'epsilon = "two"\ndelta', "epsilon = 'two' is refused"),
        ("epsilon = 2.0\ndelta", "epsilon = nan\ndelta", "epsilon = nan is refused"),
        ("delta = 1e-6", "delta = 1.5", "delta = 1.5 is refused"),
        ("rounds = 12", "rounds = 0", "rounds = 0 is refused"),
        ("rounds = 12", "rounds = true", "rounds = True is refused"),
        ("min_separation = 12", "min_separation = 0", "min_separation = 0 is refused"),
        ('"rotation"', '"banana"', "participation.kind = 'banana' is refused"),
        ('"gaussian"', '"gaussian", tolerated_dropout = -0.5', "tolerated_dropout = -0.5"),
        ('"gaussian"', '"gaussian", honest_fraction = 2.0', "honest_fraction = 2.0 is refused"),
        ("noise_multiplier = 3.67", "noise_multiplier = nan", "reviewed.noise_multiplier = nan"),
        ("unamplified = 2.0", "unamplified = nan", "reviewed.epsilon_unamplified = nan"),
    ],
)
def test_values_of_a_wrong_type_or_out_of_range_are_refused_by_key(policy, old, new, says):
    text = policy.read_text() + LOCK
    assert old in text
    policy.write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=says) as refused:
        PolicyFile.open(policy)
    assert str(policy) in str(refused.value)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"rotation"', '"poisson"', "poisson sampling keeps no min_separation"),
        ("min_separation = 12", "min_separation = 12, max_participations = 1", ""),
        ('at = "server"', 'at = "device"', "'gaussian' is not added at the device"),
        ("population = 1_000_000", "population = 59_999", "there are 59,999"),
        ("report_goal = 5_000", "report_goal = 2_000_000", "2,000,000 reports a round"),
        ('"gaussian"', '"gaussian", excess = "removed"', "excess noise is removed"),
        ("rounds = 12", "rounds = 12\ngroups = 2", "public groups need"),
    ],
)
def test_terms_without_a_proof_confirm_nothing(policy, old, new, says):
    text = policy.read_text() + LOCK
    assert old in text
    policy.write_text(text.replace(old, new))
    told = failing(policy)
    assert says in told.get("terms that a proof covers", "")
    assert bool(told) == bool(says)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("epsilon_unamplified = 2.0", "epsilon_unamplified = 0.1", "epsilon_unamplified = 0.1"),
        ("epsilon_unamplified = 2.0", "epsilon_unamplified = 2.0\nrho = 0.001", "rho = 0.001"),
    ],
)
def test_reviewed_figures_beside_epsilon(policy, old, new, says):
    policy.write_text(policy.read_text() + LOCK.replace(old, new))
    assert says in failing(policy)["figures beside ε"]


def test_a_device_that_is_removed_takes_its_noise_along(policy_text, tmp_path):
    path = tmp_path / "policy.toml"
    path.write_text(policy_text.replace("zero_out", "add_remove") + LOCK)
    assert "share of the noise along" in failing(path)["terms that a proof covers"]


class TestVerb:
    def test_a_sound_policy(self, policy):
        done = CliRunner().invoke(app, ["audit", str(policy)])
        assert done.exit_code == 0, done.output
        assert "nothing was run" in done.output
        assert [path.name for path in policy.parent.iterdir()] == ["policy.toml"]

    def test_a_wrong_one_exits_1_and_writes_the_page_that_was_asked_for(self, policy, tmp_path):
        policy.write_text(policy.read_text() + LOCK.replace("3.67", "1.5"))
        page = tmp_path / "out.html"
        done = CliRunner().invoke(app, ["audit", str(policy), "-o", str(page)])
        assert done.exit_code == 1
        assert page.exists()
        assert page.with_suffix(".json").exists()

    def test_parts_that_need_a_run(self, policy):
        done = CliRunner().invoke(app, ["audit", str(policy), "--part", "ledger"])
        assert isinstance(done.exception, ValueError)
        assert "the others need a run" in str(done.exception)

    def test_no_torch(self, policy):
        code = (
            "import sys; from pfl_lm.cli import app\n"
            f"try: app(['audit', {str(policy)!r}])\n"
            "except SystemExit as end: print('status', end.code, 'torch' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert "status 0 False" in done.stdout, done.stderr


def test_the_page_of_a_policy_says_that_nothing_was_trained(policy):
    found = PolicyFile.open(policy)
    text = render(found, [audit_accounting(found)])
    assert "nothing was trained" in text
    assert "policy policy" in text
