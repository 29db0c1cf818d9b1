"""Tests of the sum at a deployment's own noise: they find what the noise hides, or say so."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pfl_lm.audit.artifacts import RunArtifacts
from pfl_lm.audit.mechanism.harness import everybody_reports
from pfl_lm.audit.mechanism.rebuild import rebuild_context
from pfl_lm.audit.mechanism.sum_tests import division, sum_of_all
from pfl_lm.payload.plan import PayloadPlan
from pfl_lm.run import round as privacy_path
from pfl_lm.run.context import RunContext
from pfl_lm.secagg import rounds
from pfl_lm.secagg.ideal import IdealAggregator
from tests.audit.conftest import ROTATION, run_tiny

# A run of 20 reports at its policy's own scale: the noise on the sum is above one clip norm.
OWN_SCALE = ROTATION.replace("1_000_000", "400").replace("5_000", "20").replace("1e-6", "1e-3")
SKELLAM = 'kind = "skellam", tolerated_dropout = 0.1'
NOISES = {
    "skellam": {SKELLAM: 'kind = "skellam", tolerated_dropout = 0.2'},
    "discrete gaussian": {SKELLAM: 'kind = "discrete_gaussian", tolerated_dropout = 0.2'},
    "excess removed": {SKELLAM: 'kind = "skellam", tolerated_dropout = 0.3, excess = "removed"'},
    "central": {f'at = "device", {SKELLAM}': 'at = "server", kind = "gaussian"'},
    "correlated": {f'at = "device", {SKELLAM}': 'at = "server", kind = "blt"'},
    "tree": {f'at = "device", {SKELLAM}': 'at = "server", kind = "tree"'},
    "public groups": {"rounds = 12": "rounds = 12\ngroups = 4"},
}


@pytest.fixture(scope="module", params=NOISES)
def context(request, tmp_path_factory) -> RunContext:
    policy = OWN_SCALE
    for old, new in NOISES[request.param].items():
        assert old in policy
        policy = policy.replace(old, new)
    payload = PayloadPlan() if request.param == "tree" else PayloadPlan(rows=100)
    run = run_tiny(tmp_path_factory.mktemp("scale"), policy, rounds=1, payload=payload)
    context = everybody_reports(rebuild_context(RunArtifacts.open(run)))
    assert context.privacy.sum_multiplier > 0.5
    return context


def test_honest_code_passes_and_its_error_is_told(context):
    found = sum_of_all(context)
    assert found.holds, found.text
    assert "without noise 1.000 ± 0.000" in found.text
    found = division(context)
    # Of four groups of five reports each is opened whole.
    assert found.holds is (None if context.privacy.groups > 1 else True), found.text


def test_rounding_of_rotated_reports_is_in_every_sum(context, monkeypatch):
    """Each of 20 rotated reports is rounded in every coordinate, also in those of the others."""
    rotated = replace(context, privacy=replace(context.privacy, rotate=True))
    for _ in range(3):
        found = sum_of_all(rotated)
        assert found.holds, found.text
    test_a_report_counted_twice_is_found(rotated, monkeypatch)


def test_a_report_counted_twice_is_found(context, monkeypatch):
    class Generous(IdealAggregator):
        def submit(self, vectors):
            summed = super().submit(vectors)
            super().submit(vectors[:1])
            self.reports -= 1
            return summed

    monkeypatch.setattr(rounds, "IdealAggregator", Generous)
    found = sum_of_all(context)
    assert found.holds is False, found.text


def test_a_mean_that_divides_by_how_many_came_is_found(context, monkeypatch):
    if context.privacy.groups > 1:
        pytest.skip("its groups are opened whole")
    genuine = privacy_path.noisy_mean

    def by_reports(privacy, opened, *about):
        released = genuine(privacy, opened, *about)
        return replace(released, mean=released.mean * np.float32(privacy.cohort / opened.reports))

    monkeypatch.setattr(privacy_path, "noisy_mean", by_reports)
    found = division(context)
    assert found.holds is False, found.text


def test_where_noise_cannot_be_left_out_the_tests_say_what_they_miss(context):
    """Another library draws the noise: its sums are never without."""
    context = replace(context, privacy=replace(context.privacy, aggregator="tff"))
    found = sum_of_all(context)
    assert found.holds is None
    assert "cannot be told" in found.text
