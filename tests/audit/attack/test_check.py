"""Attack and mechanism on honest runs of every kind, and on faults that only they can see."""

from __future__ import annotations

import numpy as np
import pytest

from pfl_lm.audit.accounting.check import audit_accounting
from pfl_lm.audit.artifacts import RunArtifacts
from pfl_lm.audit.attack import canaries, text_canaries
from pfl_lm.audit.attack import check as attack
from pfl_lm.audit.attack.attackers import attack_result
from pfl_lm.audit.attack.scores import Scores
from pfl_lm.audit.chain import read_chain
from pfl_lm.audit.ledger.check import audit_ledger
from pfl_lm.audit.mechanism.check import audit_mechanism
from pfl_lm.audit.mechanism.rebuild import rebuild_context
from pfl_lm.devices.local_training import LocalTraining
from pfl_lm.payload.plan import PayloadPlan
from pfl_lm.run import round as privacy_path
from pfl_lm.server.optimizers import ServerOptimizer

POISSON = 'participation = { kind = "poisson" }'
ON_DEVICE = 'noise = { at = "device", kind = "skellam", tolerated_dropout = 0.1 }'
OTHER_POLICIES = {
    "rotation, discrete Gaussian": {
        POISSON: 'participation = { kind = "rotation", min_separation = 6 }',
        ON_DEVICE: (
            'noise = { at = "device", kind = "discrete_gaussian", grid_steps = 64.0, '
            "min_dim = 3540 }"
        ),
        "report_goal = 5_000": "report_goal = 50",
    },
    "central Gaussian": {
        ON_DEVICE: 'noise = { at = "server", kind = "gaussian" }\naccepted_server_epsilon = inf'
    },
    "fixed cohorts, replace one": {
        POISSON: 'participation = { kind = "fixed" }',
        '"zero_out"': '"replace_one"',
        "epsilon = 2.0": "epsilon = 8.0",
    },
}


# A simulation of 20 reports for 50 carries much more noise than one of 20 for 5,000.
FEW_REPORTS = OTHER_POLICIES["rotation, discrete Gaussian"] | {
    ON_DEVICE: 'noise = { at = "device", kind = "skellam", min_dim = 3540 }'
}


def changed(text: str, changes: dict[str, str]) -> str:
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    return text


def failing(parts) -> dict[str, str]:
    return {f.name: f.text for part in parts for f in part.findings if f.holds is False}


@pytest.mark.parametrize("name", list(OTHER_POLICIES))
def test_honest_runs_of_every_kind_fail_nothing(tiny_run, policy_text, tmp_path, name):
    artifacts = RunArtifacts.open(tiny_run(tmp_path, changed(policy_text, OTHER_POLICIES[name])))
    context = rebuild_context(artifacts)
    # The tables of the central policy ask the slow accountant a dozen times.
    stated = [] if name == "central Gaussian" else [audit_accounting(artifacts)]
    parts = [
        *stated,
        audit_ledger(artifacts),
        audit_mechanism(context),
        attack.audit_attack(context, artifacts, phrase_rounds=0),
    ]
    assert failing(parts) == {}


def test_an_honest_run_whose_devices_vanish_and_whose_excess_noise_is_removed(
    tiny_run, policy_text, tmp_path
):
    removed = {
        POISSON: 'participation = { kind = "rotation", min_separation = 6 }',
        "tolerated_dropout = 0.1": 'tolerated_dropout = 0.3, excess = "removed"',
    }
    run = tiny_run(tmp_path, changed(policy_text, removed), dropout=0.1, rotate=True)
    artifacts = RunArtifacts.open(run)
    mechanism = audit_mechanism(rebuild_context(artifacts))
    assert failing([audit_accounting(artifacts), audit_ledger(artifacts), mechanism]) == {}
    told = {finding.name: finding for finding in mechanism.findings}
    assert told["noise when devices vanish"].holds is True
    assert "its excess is removed" in told["noise when devices vanish"].text


def test_a_run_without_a_policy_is_told_so(tiny_run, tmp_path):
    artifacts = RunArtifacts.open(tiny_run(tmp_path, None))
    part = attack.audit_attack(rebuild_context(artifacts), artifacts, phrase_rounds=0)
    assert failing([part, audit_accounting(artifacts), audit_ledger(artifacts)]) == {}
    assert any("nothing was promised" in finding.text for finding in part.findings)


def test_a_tenth_of_the_noise_is_seen_by_the_attack(tiny_run, policy_text, tmp_path, monkeypatch):
    genuine = privacy_path.cohort_noise

    def faint(share, reports, dim, bits):
        return genuine(type(share)(share.kind, share.variance / 100), reports, dim, bits)

    artifacts = RunArtifacts.open(tiny_run(tmp_path, changed(policy_text, FEW_REPORTS)))
    monkeypatch.setattr(privacy_path, "cohort_noise", faint)
    told = failing([attack.audit_attack(rebuild_context(artifacts), artifacts, phrase_rounds=0)])
    assert "leaks MORE" in told["attack by one who knows who took part"]


@pytest.mark.parametrize("name", ["rotation, discrete Gaussian", "fixed cohorts, replace one"])
@pytest.mark.parametrize("rounds", [1, 3, 40])
def test_a_round_never_holds_more_canaries_than_its_cohort(
    tiny_run, policy_text, tmp_path, name, rounds
):
    # What a round drops beyond its cohort cannot be attacked; too much of it loses the round.
    run = tiny_run(tmp_path, changed(policy_text, OTHER_POLICIES[name]))
    context = rebuild_context(RunArtifacts.open(run))
    placed = canaries.place_canaries(context, 400, rounds, seed=1)
    assert 0 < placed.invited.sum(axis=1).max() <= context.privacy.cohort
    if rounds == 1:
        quiet = canaries.without_noise(context)
        seen = canaries.run_canaries(quiet, placed, context.privacy.clip_norm)
        took_part = placed.invited & placed.coins
        assert seen.responses[took_part].min() > 0.5 > seen.responses[~took_part].max()


def test_a_run_of_a_few_tiny_poisson_cohorts_is_audited_and_accused_of_nothing(
    tiny_run, policy_text, tmp_path
):
    # Of three invited on average two may come, and then nobody reports; one canary fits a round.
    artifacts = RunArtifacts.open(tiny_run(tmp_path, policy_text, cohort=3, rounds=6))
    closed = [e for e in read_chain(artifacts.folder.ledger_path).entries if "reports" in e]
    assert {"round", "abandoned"} <= {entry["kind"] for entry in closed}
    context = rebuild_context(artifacts)
    alone = attack.audit_attack(context, artifacts, rounds=1, phrase_rounds=0)
    assert [finding.holds for finding in alone.findings] == [None]
    assert "too few" in alone.findings[0].text
    assert failing([alone, audit_ledger(artifacts)]) == {}


@pytest.mark.parametrize(
    ("plan", "method"),
    [
        (PayloadPlan(rows=100, layers=1), {}),
        (PayloadPlan(rows="none", layers=1), {}),
        (PayloadPlan(rows=100, directions=400), {"method": "zeroth_order"}),
    ],
    ids=["rows and layers in turns", "layers in turns", "directions"],
)
def test_payloads_that_change_from_round_to_round_are_attacked(
    tiny_run, policy_text, tmp_path, plan, method
):
    small = {ON_DEVICE: 'noise = { at = "device", kind = "skellam", min_dim = 64 }'}
    text = changed(policy_text, OTHER_POLICIES["rotation, discrete Gaussian"] | small)
    training = LocalTraining(0.5, batch_size=4, window=8, max_tokens=32, **method)
    artifacts = RunArtifacts.open(tiny_run(tmp_path, text, payload=plan, training=training))
    context = rebuild_context(artifacts)
    placed = canaries.place_canaries(context, 400, 2, seed=1)
    quiet = canaries.without_noise(context)
    seen = canaries.run_canaries(quiet, placed, context.privacy.clip_norm)
    took_part = placed.invited & placed.coins
    assert seen.responses[took_part].mean() == pytest.approx(1.0, abs=0.15)
    assert abs(seen.responses[~took_part].mean()) < 0.15
    first = placed.scheduled & placed.invited[0]
    assert seen.final[first & placed.coins].mean() > seen.final[first & ~placed.coins].mean()


def test_a_payload_too_small_for_canaries_is_said_to_be_untested(tiny_run, policy_text, tmp_path):
    small = {ON_DEVICE: 'noise = { at = "device", kind = "skellam", min_dim = 8 }'}
    text = changed(policy_text, OTHER_POLICIES["rotation, discrete Gaussian"] | small)
    training = LocalTraining(0.5, batch_size=4, window=8, max_tokens=32, method="zeroth_order")
    plan = PayloadPlan(rows=100, directions=20)
    artifacts = RunArtifacts.open(tiny_run(tmp_path, text, payload=plan, training=training))
    part = attack.audit_attack(rebuild_context(artifacts), artifacts)
    assert [finding.holds for finding in part.findings] == [None]
    assert "20 coordinates travel" in part.findings[0].text


def test_canaries_answer_in_units_of_their_length(honest_run):
    # Without noise a canary that took part answers 1, give or take rounding and other canaries.
    context = canaries.without_noise(rebuild_context(RunArtifacts.open(honest_run)))
    placed = canaries.place_canaries(context, 60, 6, seed=1)
    seen = canaries.run_canaries(context, placed, context.privacy.clip_norm)
    took_part = placed.invited & placed.coins
    assert seen.responses[took_part].mean() == pytest.approx(1.0, abs=0.05)
    assert abs(seen.responses[~took_part].mean()) < 0.05
    assert placed.invited[:, placed.scheduled].sum(axis=0).tolist() == [1] * int(
        placed.scheduled.sum()
    )


def test_an_attack_without_power_says_so(honest_run):
    generator = np.random.default_rng(0)
    scores = Scores(generator.normal(size=200), generator.normal(size=200))
    result = attack_result("whoever", scores, 1.0, 1e-6)
    finding = attack._power([result])
    assert finding.holds is None
    assert "no power" in finding.text


@pytest.fixture(scope="module")
def leaky(tmp_path_factory, tiny_run, policy_text):
    """A run whose devices learn their text by heart: what a secret needs to be seen."""
    folder = tiny_run(
        tmp_path_factory.mktemp("leaky"),
        changed(policy_text, FEW_REPORTS),
        rounds=1,  # more of them diverge
        clip_norm=50.0,
        payload=PayloadPlan(rows="all"),
        training=LocalTraining(
            learning_rate=1.0, epochs=4, batch_size=2, window=10, max_tokens=200
        ),
        server=ServerOptimizer(kind="sgd"),
    )
    return RunArtifacts.open(folder)


def test_without_noise_a_secret_of_many_is_completed_and_with_it_none(leaky):
    told = text_canaries.recall_pairs(rebuild_context(leaky), rounds=8, seed=5)
    many = [one for one in told if one.canary.typists == 4]
    assert any(one.without_noise.completed for one in many)
    assert max(one.without_noise.bits for one in many) > 8
    assert not any(one.with_noise.completed for one in told)
    (finding,) = text_canaries.findings_of(told, weight=2.5)
    assert finding.holds is True


def test_phrases_nobody_typed_are_not_exposed(honest_run):
    context = rebuild_context(RunArtifacts.open(honest_run))
    start = dict(context.start.parameters)
    told = [
        text_canaries.recall(context, start, secret, 1)
        for secret in text_canaries.invent(context, 9)
    ]
    assert all(one.bits < 3 for one in told)  # all likelihood ratios are 1: the middle rank
    assert not any(one.completed for one in told)
