"""What a policy makes of a simulated round: its mean carries the deployment's noise, two-sided."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from pfl_lm import native
from pfl_lm.dp.cohort import CohortRule
from pfl_lm.dp.encoding import protect
from pfl_lm.dp.grid_norms import grid_norm, rounded_norm
from pfl_lm.dp.policy import Policy
from pfl_lm.recipes import load
from pfl_lm.run.deployment import Deployment
from pfl_lm.run.privacy import RunPrivacy
from pfl_lm.run.recorder import Budget
from pfl_lm.run.round import noisy_mean, protect_updates
from pfl_lm.run.simulated_rule import simulated_rule
from pfl_lm.secagg.ideal import OpenedSum
from pfl_lm.server.state import Broadcast

CLIP, COHORT, DIM = 0.5, 10, 20_000

NOISES = {
    "skellam": {},
    "discrete_gaussian": {
        "noise": '{ at = "device", kind = "discrete_gaussian", tolerated_dropout = 0.1, '
        "grid_steps = 64.0 }"
    },
    "gaussian": {"noise": '{ at = "server", kind = "gaussian" }'},
    "none": {"noise": '{ at = "none", kind = "none" }', "epsilon": "inf"},
}
ROTATION = {
    "participation": '{ kind = "rotation", min_separation = 100 }',
    "epsilon": "8.0",
    "noise": '{ at = "device", kind = "skellam", tolerated_dropout = 0.05 }',
}


def protect_with(policy, cohort=COHORT, population=1000, **changes) -> RunPrivacy:
    rule = simulated_rule(policy, population, cohort)
    privacy = RunPrivacy(Deployment(policy), cohort, CLIP, rule, 7, reproducible=True)
    return replace(privacy, **changes)


@pytest.fixture(scope="module")
def policies(policy_file):
    """A function from a kind of noise to a policy with it."""
    return lambda kind: load(Policy, policy_file(**NOISES[kind]))


def deployed_deviation(privacy) -> float:
    """Standard deviation of the noise on the mean of the policy's own cohort, from scratch."""
    policy, found = privacy.policy, privacy.guarantee
    if policy.noise.kind == "none":
        return 0.0
    if policy.noise.at == "server":
        longest = privacy.grid(DIM).norm_bound / privacy.grid(DIM).scale
        return found.noise_multiplier * longest / policy.report_goal
    shares = policy.report_goal * (found.share_multiplier * CLIP) ** 2
    return math.sqrt(shares) / policy.report_goal


def simulated_noise(privacy, reports=COHORT, round=0) -> np.ndarray:
    """float32[d]: the mean of silent devices."""
    silent = np.zeros((reports, DIM), np.float32)
    vectors, _ = protect_updates(privacy, silent, in_round(round), range(reports), COHORT)
    return mean_of(privacy, vectors.sum(0), reports, round)


def in_round(round) -> Broadcast:
    """Return a broadcast of which the size alone is read."""
    return Broadcast(round, SimpleNamespace(dim=DIM), np.zeros(0, np.float32))


def mean_of(privacy, total, reports, round=0) -> np.ndarray:
    config = SimpleNamespace(cohort=COHORT)
    return noisy_mean(privacy, OpenedSum(total, reports), config, in_round(round)).mean


def plausible(noise, deviation) -> bool:
    """Two-sided χ² test of the variance at the level 10⁻⁶."""
    statistic = float(np.square(noise, dtype=np.float64).sum()) / deviation**2
    tail = stats.chi2(len(noise))
    return min(tail.cdf(statistic), tail.sf(statistic)) > 5e-7


def hostile_updates(dim: int) -> np.ndarray:
    """float32[K, d]: updates of users who want to count for more than one."""
    random = np.random.default_rng(dim)
    rows = [np.full(dim, value) for value in (0, -0.0, 3.4e38, -3.4e38, 1e-45, 1e-38, np.nan)]
    rows += [CLIP * np.eye(1, dim, k=dim // 2)[0] * (1 + step) for step in (-1e-7, 0, 1e-7, 1)]
    rows += [random.normal(size=dim) * 10.0**power for power in (-20, -3, 0, 3, 30)]
    rows += [np.full(dim, CLIP / math.sqrt(dim)) * sign for sign in (1, -1)]
    one_infinite = random.normal(size=dim)
    one_infinite[-1] = np.inf
    return np.array([*rows, one_infinite]).astype(np.float32)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("dim", [1024, 1500, 4097])
@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.parametrize("clipping", [None, "{ lowest = 0.01, highest = 9.0 }"])
def test_no_user_moves_a_sum_by_more_than_the_accountant_counts(
    policy_file, monkeypatch, compiled, dim, rotate, clipping
):
    """In whole numbers, through rotation, indicator, clip and rounding, with kernels and without.

    A payload is a flat vector here, whatever part of the model it is.
    """
    if not compiled:
        monkeypatch.setattr(native, "load", lambda name: None)
    stated = {"clipping": clipping} if clipping else {}
    policy = load(Policy, policy_file(**ROTATION, **stated))
    privacy = protect_with(policy, rotate=rotate)
    updates = hostile_updates(dim)
    broadcast = Broadcast(0, SimpleNamespace(dim=dim), np.zeros(0, np.float32))
    users = range(len(updates))
    assert privacy.device_share(privacy.grid(dim), COHORT) is None, "devices add no noise here"
    vectors, _ = protect_updates(privacy, updates, broadcast, users, COHORT)
    event = privacy.event(COHORT, dim, 0)
    counted = rounded_norm(grid_norm(event.grid_steps, event.dim), event.dim)
    lengths = [math.isqrt(sum(x * x for x in vector)) for vector in vectors.tolist()]
    assert max(sum(x * x for x in vector) for vector in vectors.tolist()) <= counted**2
    assert max(lengths) > 0.9 * grid_norm(event.grid_steps, event.dim), "long updates are not lost"
    assert not vectors[-1].any(), "what is not finite is nothing"


@pytest.mark.parametrize("kind", ["skellam", "discrete_gaussian", "gaussian"])
def test_noise_on_the_mean_is_the_deployments(policies, kind):
    privacy = protect_with(policies(kind))
    noise, deviation = simulated_noise(privacy), deployed_deviation(privacy)
    assert plausible(noise, deviation)
    assert not plausible(noise, 0.9 * deviation)
    assert not plausible(noise, 1.1 * deviation)
    assert abs(noise.mean()) < 6 * deviation / math.sqrt(DIM)


@pytest.mark.parametrize("steps", ["0.4", "0.5"])
def test_shares_narrower_than_a_grid_step_have_the_deployments_variance(policy_file, steps):
    """Ten reports for many: a share's parameter is below a step, and its variance below that."""
    noise = NOISES["discrete_gaussian"]["noise"].replace("64.0", f"{steps}, min_dim = 20_000")
    privacy = protect_with(load(Policy, policy_file(noise=noise)))
    share = privacy.device_share(privacy.grid(DIM), COHORT)
    planned = privacy.grid(DIM).noise_variance(privacy.sum_multiplier) / COHORT
    assert planned < 0.2
    assert share.variance > 1.05 * planned
    drawn, deviation = simulated_noise(privacy), deployed_deviation(privacy)
    assert np.var(drawn) == pytest.approx(deviation**2, rel=0.1)


@pytest.mark.parametrize("kind", ["skellam", "discrete_gaussian"])
def test_fewer_reports_carry_less_noise(policies, kind):
    privacy = protect_with(policies(kind))
    noise, deviation = simulated_noise(privacy, reports=6), deployed_deviation(privacy)
    assert plausible(noise, deviation * math.sqrt(6 / COHORT))
    assert not plausible(noise, deviation)


def test_a_trusted_servers_noise_does_not_depend_on_who_came(policies):
    privacy = protect_with(policies("gaussian"))
    assert plausible(simulated_noise(privacy, reports=6), deployed_deviation(privacy))


def test_no_noise_adds_nothing(policies):
    for policy in (None, policies("none")):
        privacy = protect_with(policy)
        assert privacy.sum_multiplier == 0
        assert not simulated_noise(privacy).any()
        grid = privacy.grid(DIM)
        updates = np.random.default_rng(1).normal(size=(COHORT, DIM)).astype(np.float32)
        updates *= 0.4 / np.linalg.norm(updates, axis=1, keepdims=True)
        total = protect(updates, grid, None, privacy.bits("device", 0))[0].sum(0)
        mean = mean_of(privacy, total, COHORT)
        assert np.abs(mean - updates.mean(0)).max() < 1 / grid.scale


def test_the_mean_divides_by_a_public_constant(policies):
    privacy = protect_with(policies("none"))
    grid = privacy.grid(DIM)
    total = np.full(DIM, 100)
    few, many = (mean_of(privacy, total, reports) for reports in (3, 17))
    assert np.array_equal(few, many)
    assert few[0] == pytest.approx(100 / grid.scale / COHORT)


@pytest.mark.parametrize("kind", ["skellam", "discrete_gaussian", "gaussian"])
def test_reproducible_noise_differs_by_round_and_repeats(policies, kind):
    privacy = protect_with(policies(kind))
    first, again, next_one = (simulated_noise(privacy, round=r) for r in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, next_one)
    fresh = replace(privacy, reproducible=False)
    assert not np.array_equal(simulated_noise(fresh), simulated_noise(fresh))


class TestEvents:
    def test_a_whole_cohort_stands_for_a_whole_report_goal(self, policies):
        privacy = protect_with(policies("skellam"))
        event = privacy.event(COHORT, 4096, 3)
        assert event == privacy.policy.event(
            privacy.guarantee.noise_multiplier, reports=5000, dim=4096, round=3
        )
        assert privacy.event(4, 4096, 3) == event  # the spread of a small Poisson cohort

    def test_a_shortfall_under_rotation_is_a_shortfall_of_noise(self, policy_file):
        privacy = protect_with(load(Policy, policy_file(**ROTATION)))
        whole, short = (privacy.event(reports, 4096, 0) for reports in (COHORT, 8))
        ratio = math.floor(5000 * 0.8) / 5000
        assert short.noise_multiplier == pytest.approx(whole.noise_multiplier * math.sqrt(ratio))
        assert (
            privacy.deployment.compose([short]).epsilon
            > privacy.deployment.compose([whole]).epsilon
        )

    def test_all_rounds_of_the_policy_spend_its_epsilon(self, policies):
        for kind in ("skellam", "discrete_gaussian", "gaussian"):
            privacy = protect_with(policies(kind))
            policy = privacy.policy
            events = [privacy.event(COHORT, 1024, r) for r in range(policy.rounds)]
            found = privacy.deployment.compose(events).epsilon
            assert 0.99 * policy.epsilon < found <= policy.epsilon * (1 + 1e-9)
            assert privacy.deployment.compose([*events, events[0]]).epsilon > policy.epsilon

    def test_without_a_policy_there_is_nothing_to_spend(self):
        privacy = protect_with(None)
        assert privacy.guarantee is None
        assert privacy.event(COHORT, 1024, 0) is None
        assert privacy.deployment.compose([]) is None


class Record:
    """What a budget reads of a ledger."""

    def __init__(self, path):
        self.path, self.events = path, []

    def entries(self):
        return [{"kind": "genesis"}, *({"kind": "round", "event": e} for e in self.events)]


@pytest.mark.parametrize("dim", [1024, 4096])
def test_a_rotation_may_use_all_its_rounds_and_not_one_more_each(policy_file, tmp_path, dim):
    """Two rounds for everybody: 150 rounds, 100 apart. A repeated round would be a third."""
    privacy = protect_with(load(Policy, policy_file(**ROTATION, rounds="150")))
    record = Record(tmp_path / "ledger.jsonl")
    budget = Budget(privacy, record)
    for number in range(150):
        if number in (0, 1, 99, 100, 149):
            budget.check(number, dim)
        record.events.append(asdict(privacy.event(COHORT, dim, number)))
    assert budget.cost()["epsilon"] <= 8.0
    budget.check(149, dim)  # repeated to the byte: paid for already
    with pytest.raises(ValueError, match="round 200 would bring ε to"):
        budget.check(200, dim)  # the third round of those who were in rounds 0 and 100


class TestWhoTakesPart:
    def test_poisson_scales_its_rate(self, policies):
        rule = simulated_rule(policies("skellam"), 400, 20)
        assert rule == CohortRule("poisson", 400, 0.05)
        assert simulated_rule(None, 400, 20) == rule

    @pytest.mark.parametrize(
        ("population", "separation"), [(10_000, 100), (400, 40), (25, 2), (10, 1)]
    )
    def test_rotation_scales_its_separation(self, policy_file, population, separation):
        rule = simulated_rule(load(Policy, policy_file(**ROTATION)), population, COHORT)
        assert rule == CohortRule("rotation", population, COHORT, separation)

    def test_fixed_keeps_its_size(self, policy_file):
        policy = load(Policy, policy_file(participation='{ kind = "fixed" }'))
        assert simulated_rule(policy, 400, 20) == CohortRule("fixed", 400, 20)

    @pytest.mark.parametrize("policy", [True, False])
    def test_a_cohort_larger_than_the_population_is_refused(self, policies, policy):
        with pytest.raises(ValueError, match="cohort = 20 exceeds the 10 users"):
            simulated_rule(policies("skellam") if policy else None, 10, 20)


class TestWhenASumOpens:
    def test_a_poisson_cohort_has_its_spread(self, policies):
        privacy = protect_with(policies("skellam"), cohort=1000, population=10**5)
        assert privacy.least_reports == math.ceil(900 - 8 * math.sqrt(1000))
        assert privacy.most_reports is None
        assert protect_with(policies("skellam")).least_reports == 2

    def test_at_full_scale_it_is_the_policys(self, policies):
        privacy = protect_with(policies("skellam"), cohort=5000, population=10**6)
        assert privacy.least_reports == privacy.policy.least_reports == 4500

    @pytest.mark.parametrize("cohort", [10, 100, 1000])
    def test_the_spread_hides_no_dropout(self, policies, cohort):
        """A cohort may be small by chance; of those invited no more than 10% may be missing."""
        privacy = protect_with(policies("skellam"), cohort=cohort, population=10**5)
        for invited in (cohort // 2, cohort, cohort + cohort // 4):
            least = privacy.opens_from(invited)
            assert least >= privacy.least_reports
            assert least >= 0.9 * invited > 0.6 * invited

    def test_rotation_opens_at_the_policys_share(self, policy_file):
        privacy = protect_with(load(Policy, policy_file(**ROTATION)), cohort=100, population=1000)
        assert (privacy.least_reports, privacy.most_reports) == (95, 100)

    def test_one_report_is_never_opened(self, policies):
        for policy in (None, *map(policies, NOISES)):
            assert protect_with(policy, cohort=2).least_reports >= 2


class TestStatements:
    """A simulation never claims to be private."""

    @pytest.mark.parametrize(
        "changes",
        [
            {"cohort": 4999, "population": 10**6},
            {"cohort": 5000, "population": 10**6 - 1},
            {"cohort": 5000, "population": 10**6, "reproducible": True},
        ],
    )
    def test_anything_short_of_the_deployment_is_simulated(self, policy_file, changes):
        policy = load(Policy, policy_file(**ROTATION))
        assert protect_with(policy, **{"reproducible": False, **changes}).simulated

    @pytest.mark.parametrize(("asked", "short"), [(1, False), (33, False), (34, True)])
    def test_a_fleet_that_asks_so_many_that_users_come_again_too_soon_is_simulated(
        self, policy_file, asked, short
    ):
        """The policy has 6 rounds: of 10⁶ users at most 166,666 are asked in each."""
        policy = load(Policy, policy_file(**ROTATION))
        rule = simulated_rule(policy, policy.population, policy.report_goal, asked)
        at_scale = RunPrivacy(Deployment(policy), policy.report_goal, CLIP, rule, 7, False)
        assert at_scale.simulated is short

    def test_cohorts_that_a_public_seed_draws_amplify_nothing(self, policies, policy_file):
        full = {"cohort": 5000, "population": 10**6, "reproducible": False}
        assert protect_with(policies("skellam"), **full).simulated
        assert not protect_with(load(Policy, policy_file(**ROTATION)), **full).simulated

    def test_without_a_policy(self):
        assert protect_with(None).simulated
