"""XNoise: the variance that stays is the target's, at any tolerated dropout."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pfl_lm.secagg.errors import Refused
from pfl_lm.secagg.messages import ShareKeys, UnmaskAnswer
from pfl_lm.secagg.noise import NoiseChain, NoisePlan, add_components, superfluous


def skellam(seed: bytes, variance: float, dim: int) -> np.ndarray:
    """A stand-in for the exact sampler: closed under addition, and the same for one seed."""
    rng = np.random.default_rng(int.from_bytes(seed, "little"))
    return rng.poisson(variance / 2, dim) - rng.poisson(variance / 2, dim)


@given(st.integers(2, 400), st.data())
def test_what_stays_is_the_target_exactly_where_the_step_divides_the_dropouts(cohort, data):
    levels = data.draw(st.integers(0, cohort - 1))
    plan = NoisePlan(1.0, cohort, levels)
    kept, stays = Fraction(1, cohort), {0: Fraction(1, cohort)}
    for level in range(1, levels + 1):
        component = Fraction(1, (cohort - level) * (cohort - level + 1))
        assert plan.component(level) == pytest.approx(float(component), rel=1e-12)
        kept += component
        stays[level] = kept
    for dropped, variance in stays.items():
        assert variance * (cohort - dropped) == 1
        assert plan.achieved(cohort - dropped) == pytest.approx(1.0, rel=1e-12)


@given(st.integers(2, 400), st.integers(1, 20), st.data())
def test_steps_keep_at_least_the_target_and_components_telescope(cohort, step, data):
    levels = data.draw(st.integers(0, (cohort - 1) // step))
    plan = NoisePlan(3.0, cohort, levels, step)
    for dropped in range(levels * step + 1):
        reports = cohort - dropped
        parts = [plan.component(level) for level in range(1, plan.kept(reports) + 1)]
        assert plan.achieved(reports) == pytest.approx(reports * (plan.share + sum(parts)))
        assert plan.achieved(reports) >= 3.0 * (1 - 1e-12)
        paid_for = plan.kept(reports) * step
        assert dropped <= paid_for < dropped + step
    with pytest.raises(ValueError, match="fall short"):
        plan.kept(cohort - levels * step - 1)


def test_a_secret_reveals_its_level_and_those_above_only():
    whole = NoiseChain(b"r" * 32, b"c" * 32, 4, levels=6)
    secrets, seeds = whole.secrets(), whole.seeds()
    assert len(set(secrets) | set(seeds.values())) == 12
    for level in range(1, 7):
        tail = NoiseChain(secrets[level - 1], b"c" * 32, 4, 6, start=level)
        assert tail.seeds() == {at: seeds[at] for at in range(level, 7)}
        assert tail.commitment == whole.commitment
    assert NoiseChain(b"r" * 32, b"c" * 32, 5, 6).seeds()[1] != seeds[1]
    assert NoiseChain(b"r" * 32, b"d" * 32, 4, 6).seeds()[1] != seeds[1]


@pytest.mark.parametrize("silent_at_the_end", [set(), {0, 9}])
@pytest.mark.parametrize("dropped", [0, 2, 6])
def test_the_opened_noise_has_the_stated_variance_two_sided(make_round, dropped, silent_at_the_end):
    """0, 10 and 30% of twenty; the seeds of devices that fall silent come from their holders."""
    variance, dim = 400.0, 4000
    lab = make_round(cohort=20, dim=dim, bits=32, min_reports=14, noise_levels=6)
    plan = NoisePlan.of(lab.config, variance)
    constant = lab.vectors.copy()
    for index, state in lab.devices.items():
        own = skellam(bytes([index]) * 32, plan.share, dim)
        lab.vectors[index] += own + add_components(plan, state.noise, dim, skellam)
    gone = set(range(1, 1 + dropped))
    lab.advertise().share().mask(silent=gone)
    lab.devices = {i: s for i, s in lab.devices.items() if i not in gone}
    opened = lab.unmask(silent=silent_at_the_end)
    assert len(opened.noise_secrets) == (20 - dropped if dropped < 6 else 0)
    exact = constant[sorted(opened.survivors)].sum(axis=0)
    before = opened.vector - exact
    after = before - superfluous(plan, lab.config, opened.noise_secrets, opened.reports, skellam)
    # (dim - 1) s²/σ² is nearly chi-square: these Skellam sums are nearly normal.
    low, high = stats.chi2.ppf([1e-5, 1 - 1e-5], dim - 1) / (dim - 1)
    assert low < after.var(ddof=1) / variance < high
    if dropped < 6:
        assert before.var(ddof=1) / variance > high  # removing nothing is the wrong scale
    without_components = (20 - dropped) * plan.share / variance
    if dropped:
        assert without_components < low  # and so is dropout without remedy


def test_unrecoverable_noise_stays_in_rather_than_losing_the_round(make_round):
    lab = make_round(cohort=6, min_reports=4, noise_levels=2).advertise()
    lab.devices = {i: lab.devices[i].share_keys(m) for i, m in lab.to_devices.items()}
    dealt = ShareKeys.decode(lab.devices[2].message, lab.config, 2)
    cheat = ShareKeys(dealt.seed_commitment, b"?" * 32, dealt.shares)
    lab.devices[2].message = cheat.encode(lab.config, 2)
    lab.deliver()
    opened = lab.mask().unmask(silent={2})
    assert set(opened.noise_secrets) == {0, 1, 3, 4, 5}
    assert np.array_equal(opened.vector, lab.sum_of(range(6)))


def test_a_noise_secret_that_was_not_committed_to(make_round):
    lab = make_round(cohort=6, min_reports=4, noise_levels=2).advertise().share().mask()
    answer = UnmaskAnswer.decode(lab.devices[0].unmask(lab.to_devices[0]).message, lab.config, 0)
    wrong = UnmaskAnswer(answer.self_shares, answer.mask_shares, b"?" * 32, answer.noise_shares)
    with pytest.raises(Refused, match="another noise secret"):
        lab.server.receive(0, wrong.encode(lab.config, 0))


def test_no_level_that_still_protects_is_ever_revealed(make_round):
    """With two dropouts the first two components stay: their secrets are in no answer."""
    lab = make_round(cohort=8, min_reports=4, noise_levels=4)
    chains = {index: state.noise.secrets() for index, state in lab.devices.items()}
    lab.advertise().share().mask(silent={6, 7})
    lab.devices = {i: s for i, s in lab.devices.items() if i < 6}
    opened = lab.unmask()
    for index, secret in opened.noise_secrets.items():
        assert secret == chains[index][2]
    sent = b"".join(state.message for state in lab.devices.values())
    for secrets in chains.values():
        assert secrets[0] not in sent
        assert secrets[1] not in sent


@pytest.mark.parametrize(
    "wrong",
    [
        {"variance": -1.0},
        {"variance": float("nan")},
        {"levels": 10},
        {"levels": -1},
        {"levels": 5, "step": 2},
        {"step": 0},
    ],
)
def test_impossible_plans_are_refused(wrong):
    with pytest.raises(ValueError, match=r"variance|levels"):
        NoisePlan(**({"variance": 1.0, "cohort": 10, "levels": 2} | wrong))
    with pytest.raises(ValueError, match="level"):
        NoisePlan(1.0, 10, 2).component(3)
