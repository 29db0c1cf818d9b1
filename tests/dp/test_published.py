"""Production policies: what was published of them follows from their files, to the digits given."""

from __future__ import annotations

from pathlib import Path

import pytest

from pfl_lm.audit.accounting.check import audit_accounting
from pfl_lm.audit.accounting.policy_file import PolicyFile
from pfl_lm.dp.guarantee import guarantee, stale
from pfl_lm.dp.policy import Policy
from pfl_lm.network.participation_rules import from_published_separation
from pfl_lm.recipes import load, shipped

FOLDER = Path(__file__).resolve().parents[2] / "privacy" / "published"
ZCDP = 79 / 98  # of the tree: printed as 0.81


@pytest.mark.parametrize(
    ("name", "rho", "epsilon", "between", "participations"),
    [
        ("gboard_es_es_2022", ZCDP, 8.5260935, 313, 6),
        ("gboard_es_es_2024", 0.1506840301548885, 3.4240074, 484, 3),
        ("gboard_pt_br_2024", 0.014342572340349278, 0.9935501, 1428, 2),
        ("gboard_es_us_2024", 0.014342572340349278, 0.9935501, 1132, 2),
    ],
)
def test_published_figures(name, rho, epsilon, between, participations):
    policy = load(Policy, FOLDER / f"{name}.toml")
    found = guarantee(policy)
    assert found.rho == pytest.approx(rho, rel=3e-7)
    assert found.epsilon == pytest.approx(epsilon, abs=5e-8)
    assert found.epsilon <= policy.epsilon
    assert found.participations == participations
    assert policy.participation.min_separation == from_published_separation(between)
    assert stale(policy.reviewed, found) == []
    assert policy.reviewed.rho == pytest.approx(rho, rel=1e-5)
    assert f"privacy/published/{name}" in shipped()


def test_the_noise_of_the_published_tree_is_the_published_noise():
    found = guarantee(load(Policy, FOLDER / "gboard_es_es_2022.toml"))
    assert found.noise_multiplier == pytest.approx(7.0, rel=1e-7)
    assert found.sensitivity**2 == pytest.approx(79)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.toml")), ids=lambda path: path.stem)
def test_the_audit_confirms_them(path):
    part = audit_accounting(PolicyFile.open(path))
    assert [finding.text for finding in part.findings if finding.holds is False] == []
