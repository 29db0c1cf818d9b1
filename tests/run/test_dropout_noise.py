"""Noise under dropout: what a policy plans, what the opened sum carries, and what it costs."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from pfl_lm.dp.accounting.accountant import compose
from pfl_lm.dp.accounting.calibration import noise_multiplier
from pfl_lm.dp.events import RoundEvent
from pfl_lm.dp.guarantee import guarantee
from pfl_lm.dp.ledger import Ledger, verify
from pfl_lm.dp.noise import skellam_from_seed
from pfl_lm.dp.policy import Noise, Policy
from pfl_lm.recipes import load
from pfl_lm.run.aggregation import Aggregation
from pfl_lm.run.deployment import Deployment
from pfl_lm.run.privacy import RunPrivacy
from pfl_lm.run.round import protect_updates, release
from pfl_lm.run.setup import open_run
from pfl_lm.run.simulate import simulate
from pfl_lm.run.simulated_rule import simulated_rule
from pfl_lm.secagg.config import MessageKind
from pfl_lm.secagg.errors import TooFewReports
from pfl_lm.secagg.noise import RemovableNoise
from pfl_lm.secagg.parameters import Adversary
from pfl_lm.secagg.rounds import open_aggregator
from pfl_lm.server.state import Broadcast

DIM, COHORT, CLIP = 6000, 20, 0.5
REMOVED = '{ at = "device", kind = "skellam", tolerated_dropout = 0.4, excess = "removed" }'
KEPT = '{ at = "device", kind = "skellam", tolerated_dropout = 0.4 }'


@pytest.fixture(scope="module", params=["rotation", "poisson", "fixed"])
def participation(request) -> str:
    separation = ", min_separation = 100" if request.param == "rotation" else ""
    return f'{{ kind = "{request.param}"{separation} }}'


@pytest.fixture(scope="module")
def policy_with(policy_file):
    return lambda noise, **changes: load(Policy, policy_file(noise=noise, **changes))


@pytest.fixture(scope="module")
def planned() -> float:
    return noise_multiplier(TestRegression.EVENT, 2000, 2.0, 1e-6)


class TestRegression:
    """ε = 2 planned at q = 0.005, T = 2000, δ = 1e-6; the oracle's sentence, tight accounting."""

    EVENT = RoundEvent("gaussian", "zero_out", "poisson", 1.0, rate=0.005)

    @pytest.mark.parametrize(("dropout", "epsilon"), [(0.1, 2.33), (0.2, 2.79), (0.4, 4.43)])
    def test_dropout_without_remedy(self, planned, dropout, epsilon):
        left = replace(self.EVENT, noise_multiplier=planned * math.sqrt(1 - dropout))
        assert compose({left: 2000}, 1e-6).epsilon == pytest.approx(epsilon, rel=5e-3)

    def test_with_the_excess_removed_nothing_changes(self, policy_with):
        """The keyboard's own setting, with the Skellam bound that is proven."""
        policy = policy_with(REMOVED, rounds="2_000", delta="1e-6")
        z = guarantee(policy).noise_multiplier
        for dropout in (0.0, 0.1, 0.2, 0.4):
            event = policy.event(z, reports=round(5000 * (1 - dropout)))
            assert event.noise_multiplier == z
            assert compose({event: 2000}, 1e-6).epsilon == pytest.approx(2.0, abs=5e-3)
        assert policy.event(z, reports=2000).noise_multiplier < z


def test_removing_costs_less_noise_than_keeping(policy_with):
    """At full attendance the kept excess is the tolerated dropout's; removed, there is none."""
    found = {name: guarantee(policy_with(text)) for name, text in (("k", KEPT), ("r", REMOVED))}
    assert found["r"].noise_multiplier == pytest.approx(found["k"].noise_multiplier, rel=1e-5)
    ratio = found["k"].share_multiplier / found["r"].share_multiplier
    assert ratio == pytest.approx(math.sqrt(1 / 0.6), rel=1e-3)
    assert any("256-bit seeds" in line for line in found["r"].assumptions)


@pytest.mark.parametrize("honest", [1.0, 0.9, 0.5])
def test_honest_devices_alone_carry_the_planned_noise(policy_with, honest):
    """Whatever the dropout, and though the others add nothing and reveal no true seed."""
    text = REMOVED.replace("}", f", honest_fraction = {honest} }}")
    policy = policy_with(text)
    found = guarantee(policy)
    for reports in range(policy.least_reports, policy.report_goal + 1):
        whole = found.share_multiplier**2 * policy.report_goal  # of the sum, after removal
        carried = whole * math.floor(reports * honest + 1e-9) / reports
        assert carried >= found.noise_multiplier**2 * (1 - 1e-12)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"kind": "discrete_gaussian"}, "skellam"),
        ({"tolerated_dropout": 0.0}, "no excess"),
        ({"levels": 0}, "levels"),
    ],
)
def test_what_is_not_proven_is_refused(wrong, match):
    with pytest.raises(ValueError, match=match):
        Noise(**{"at": "device", "kind": "skellam", "tolerated_dropout": 0.1} | wrong
              | {"excess": "removed"})  # fmt: skip
    with pytest.raises(ValueError, match=r"skellam|concern"):
        Noise("server", "gaussian", tolerated_dropout=0.1, excess="removed")


def opened_noise(
    policy, dropout: float, kind: str, number: int, path: Path
) -> tuple[np.ndarray, float]:
    """Return the mean of silent devices ÷ its stated deviation, and the noise recorded."""
    rule = simulated_rule(policy, 1000, COHORT)
    privacy = RunPrivacy(
        Deployment(policy), COHORT, CLIP, rule, 7, True, separate_noise=kind == "protocol"
    )
    # The spread of a Poisson cohort is no dropout: keep to the policy's own least count.
    least = math.ceil(COHORT * (1 - policy.noise.tolerated_dropout))
    assert privacy.least_reports <= least
    aggregation = Aggregation(kind, Adversary.SEMI_HONEST, 0.05, dropout, 0.4, privacy)
    grid = privacy.grid(DIM)
    payload = SimpleNamespace(digest="00" * 32, dim=DIM)
    broadcast = Broadcast(number, payload, np.zeros(DIM, np.float32))
    config = aggregation.config(broadcast, COHORT)
    silent = dict.fromkeys(range(round(COHORT * dropout)), MessageKind.INPUT)
    aggregator = _open(aggregation, config, grid, silent)
    for device in aggregator.waiting:
        silent = np.zeros((1, DIM), dtype=np.float32)
        vectors, _ = protect_updates(privacy, silent, broadcast, [device], COHORT)
        aggregator.submit(vectors, [device])
    with Ledger.create(path, {"run": "x", "policy_digest": "x"}) as ledger:
        mean = release(privacy, aggregator.close(), config, ledger, broadcast).mean
        recorded = ledger.entries()[-1]["noise"]["achieved"]
    return mean / (privacy.sum_multiplier * CLIP / COHORT), recorded


def _open(aggregation, config, grid, silent):
    plan = aggregation.privacy.noise_plan(grid, config.cohort)
    noise = None if plan is None else RemovableNoise(plan, skellam_from_seed)
    entropy = np.random.default_rng(config.round).bytes
    return open_aggregator(aggregation.kind, config, None, silent, entropy, noise)


@pytest.mark.parametrize("kind", ["ideal", "protocol"])
@pytest.mark.parametrize("dropout", [0.0, 0.1, 0.3])
def test_the_opened_sum_carries_the_stated_noise_two_sided(
    policy_with, participation, kind, dropout, tmp_path
):
    """Through every message of the protocol, and in the simulation that stands for it."""
    low, high = stats.chi2.ppf([1e-6, 1 - 1e-6], DIM - 1) / (DIM - 1)
    epsilon = {"epsilon": "8.0"} if "rotation" in participation else {}
    for text in (REMOVED, KEPT):
        policy = policy_with(text, participation=participation, **epsilon)
        noise, achieved = opened_noise(
            policy, dropout, kind, round(100 * dropout), tmp_path / f"{len(text)}.jsonl"
        )
        planned = guarantee(policy).noise_multiplier
        expected = 1.0 if text == REMOVED else 1 - dropout
        assert low < float(noise.var(ddof=1)) / expected < high
        if text == REMOVED:
            assert achieved == pytest.approx(planned, rel=1e-6)
            if dropout == 0.3:
                assert float(noise.var(ddof=1)) / 0.7 > high  # the wrong scale is rejected
        else:
            assert achieved == pytest.approx(planned * math.sqrt((1 - dropout) / 0.6), rel=1e-3)


def test_beyond_the_tolerance_nothing_is_opened(policy_with, tmp_path):
    policy = policy_with(REMOVED, participation='{ kind = "fixed" }')
    for kind in ("ideal", "protocol"):
        with pytest.raises(TooFewReports):
            opened_noise(policy, 0.45, kind, 1, tmp_path / f"{kind}.jsonl")


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("noise", "separate"), [(REMOVED, False), (KEPT, True)])
def test_components_exist_in_the_protocol_alone(tiny_scenario, policy_file, noise, separate):
    """Elsewhere a device's own share would lack them, and the sum would carry too little."""
    policy = policy_file(noise=noise, participation='{ kind = "fixed" }')
    scenario = tiny_scenario(policy=policy, cohort=10, separate_noise=True)
    assert open_run(scenario).privacy.separate_noise is separate
    protocol = replace(scenario, secure_aggregation="protocol")
    assert open_run(protocol).privacy.separate_noise


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("kind", ["ideal", "protocol"])
def test_a_run_records_planned_and_achieved_noise(
    tiny_scenario, policy_file, new_watcher, tmp_path, kind
):
    policy = policy_file(noise=REMOVED, participation='{ kind = "fixed" }')
    scenario = tiny_scenario(
        policy=policy, cohort=10, dropout=0.3, rounds=2, secure_aggregation=kind
    )
    run = simulate(scenario, tmp_path / "run", new_watcher())
    rounds = [entry for entry in verify(run.ledger_path) if entry["kind"] == "round"]
    assert rounds
    for entry in rounds:
        noise = entry["noise"]
        assert noise["achieved"] == pytest.approx(noise["planned"], rel=1e-9)
        assert entry["event"]["noise_multiplier"] == noise["planned"]
    assert all(entry["reports"] < 10 for entry in rounds)
