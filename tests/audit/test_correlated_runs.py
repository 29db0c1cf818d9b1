"""Runs with correlated noise that break their promise; the audit names each."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from pfl_lm.audit.accounting import streams
from pfl_lm.audit.accounting.check import audit_accounting
from pfl_lm.audit.artifacts import RunArtifacts
from pfl_lm.audit.attack.attackers import gathered
from pfl_lm.audit.attack.canaries import Seen
from pfl_lm.audit.attack.check import audit_attack
from pfl_lm.audit.mechanism import check as mechanism_check
from pfl_lm.audit.mechanism.rebuild import rebuild_context
from pfl_lm.audit.mechanism.stream_tests import stream_findings
from pfl_lm.dp.correlated import tree, tree_stream
from pfl_lm.dp.correlated.buffers import Buffers
from pfl_lm.dp.correlated.history import History
from pfl_lm.dp.correlated.mechanism import Blt, Correlated
from pfl_lm.dp.correlated.sensitivity import sensitivity
from pfl_lm.dp.correlated.strategy import choose
from pfl_lm.dp.events import StreamPlan
from pfl_lm.dp.guarantee import _derived
from pfl_lm.dp.sampler.random_bits import reproducible_bits
from pfl_lm.models.models import ModelSpec
from pfl_lm.payload.plan import PayloadPlan
from pfl_lm.run import availability
from pfl_lm.run import privacy as run_privacy
from pfl_lm.run.noise_state import NoiseStates
from pfl_lm.streams import key
from tests.audit.doctoring import failing, rewrite_ledger, rewrite_manifest

POLICY = """
unit = "user"
neighboring = "zero_out"
epsilon = 2.0
delta = 1e-6
population = 1_000_000
report_goal = 5_000
rounds = 12
participation = { kind = "rotation", min_separation = 5 }
noise = { at = "server", kind = "blt" }
"""


@pytest.fixture(scope="module")
def blt_run(tiny_run, tmp_path_factory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("blt"), POLICY)


@pytest.fixture
def run(blt_run, tmp_path) -> Path:
    return Path(shutil.copytree(blt_run, tmp_path / "run"))


def stream_failures(run: Path) -> dict[str, str]:
    """Run the tests of the stream on the code that is here; return those that fail, by name."""
    artifacts = RunArtifacts.open(run)
    context = rebuild_context(artifacts)
    found = stream_findings(context, artifacts.guarantee["stream"])
    return {finding.name: finding.text for finding in found if finding.holds is False}


def test_an_honest_run_fails_nothing(blt_run):
    assert failing(blt_run) == {}
    artifacts = RunArtifacts.open(blt_run)
    part = mechanism_check.audit_mechanism(rebuild_context(artifacts), artifacts)
    assert {f.name: f.text for f in part.findings if f.holds is False} == {}
    held = {finding.name for finding in part.findings if finding.holds}
    assert held >= {
        "noise on the sum",
        "users keep their separation",
        "noise correlates as stated",
        "coordinates that stay at home keep their time",
        "a sum counts in its own round alone",
        "nobody moves the stream further than stated",
    }


def test_the_accounting_names_the_server_first(blt_run):
    part = audit_accounting(RunArtifacts.open(blt_run))
    texts = {finding.name: finding.text for finding in part.findings}
    assert "no ε holds against it" in texts["stated ε against the server"]
    assert "for the whole stream of noise as one release" in texts["stated ε"]


def test_a_state_that_is_reset_after_a_resumption(run, monkeypatch):
    monkeypatch.setattr(NoiseStates, "before", lambda self, round, entries: b"")
    assert "noise correlates as stated" in stream_failures(run)


def test_banded_noise_whose_records_come_from_the_disk(tiny_run, tmp_path, monkeypatch):
    run = tiny_run(tmp_path, POLICY.replace('"blt"', '"banded"'))
    assert stream_failures(run) == {}
    genuine = History.look_back

    def forgetful(self, strategy, own_time, places):
        newest = replace(self, records=self.records[:1], ended=self.ended[:1])
        return genuine(newest, strategy, own_time, places)

    monkeypatch.setattr(History, "look_back", forgetful)
    assert "noise correlates as stated" in stream_failures(run)


def test_numbers_of_another_policy_in_the_code(run, monkeypatch):
    genuine = Blt.planned

    def other(self, rounds, min_separation, participations):
        plan = genuine(self, rounds, min_separation, participations)
        return replace(plan, weights=tuple(0.3 * weight for weight in plan.weights))

    monkeypatch.setattr(Blt, "planned", other)
    _derived.cache_clear()
    try:
        assert "noise correlates as stated" in stream_failures(run)
    finally:
        monkeypatch.undo()
        _derived.cache_clear()


def test_noise_that_is_used_again_in_the_next_round(run, monkeypatch):
    def bits(self, purpose, round, user=0):
        return reproducible_bits(key(7, purpose, round // 2, user))

    monkeypatch.setattr(run_privacy.RunPrivacy, "bits", bits)
    assert "noise correlates as stated" in stream_failures(run)


@pytest.mark.parametrize(("kind", "separation"), [("blt", 12), ("banded_inverse_root", 5)])
def test_an_honest_run_whose_layers_take_turns_fails_nothing(tiny_run, tmp_path, kind, separation):
    policy = POLICY.replace('"blt"', f'"{kind}"').replace("= 5 }", f"= {separation} }}")
    policy += "clipping = { lowest = 1e-3, highest = 1e3, indicator_noise = 0.5 }\n"
    run = tiny_run(tmp_path, policy, payload=PayloadPlan(rows=100, layers=1))
    artifacts = RunArtifacts.open(run)
    part = mechanism_check.audit_mechanism(rebuild_context(artifacts), artifacts)
    assert failing(run) == {f.name: f.text for f in part.findings if f.holds is False} == {}


@pytest.mark.parametrize("separation", [5, 12])
@pytest.mark.parametrize("kind", ["blt", "banded", "banded_inverse_root"])
def test_coordinates_whose_noise_counts_in_another_time(
    tiny_run, tmp_path, monkeypatch, kind, separation
):
    """Own releases where users come again: two rounds of a user then lie closer than stated."""
    policy = POLICY.replace('"blt"', f'"{kind}"').replace("= 5 }", f"= {separation} }}")
    model = ModelSpec("cifg_lstm", 300, 48, hidden_dim=16)  # enough coordinates for any odds
    run = tiny_run(tmp_path, policy, payload=PayloadPlan(rows=100), model=model)
    assert stream_failures(run) == {}
    genuine = Correlated._stream

    def other(self):
        return replace(genuine(self), own_time=not genuine(self).own_time)

    monkeypatch.setattr(Correlated, "_stream", other)
    assert set(stream_failures(run)) == {"coordinates that stay at home keep their time"}


@pytest.mark.parametrize("factor", [0.0, 1.1, 2.0])
def test_sums_that_are_remembered_larger_or_smaller_than_they_were(run, monkeypatch, factor):
    """A user then moves the stream further than stated; silent devices cannot tell."""
    genuine = Buffers.remember

    def other(self, strategy, own_time, round, places, pair, past, error):
        pair = (factor * pair[0], pair[1])
        return genuine(self, strategy, own_time, round, places, pair, past, error)

    monkeypatch.setattr(Buffers, "remember", other)
    assert set(stream_failures(run)) == {"a sum counts in its own round alone"}


def test_banded_sums_that_are_remembered_twice_as_large(tiny_run, tmp_path, monkeypatch):
    run = tiny_run(
        tmp_path, POLICY.replace('"blt"', '"banded"'), payload=PayloadPlan(rows=100), rounds=6
    )
    assert stream_failures(run) == {}
    genuine = History.look_back

    def doubled(self, strategy, own_time, places):
        past = genuine(self, strategy, own_time, places)
        return past._replace(sums=2 * past.sums)

    monkeypatch.setattr(History, "look_back", doubled)
    assert "a sum counts in its own round alone" in stream_failures(run)


def test_noise_that_is_a_tenth_too_small(run, monkeypatch):
    genuine = Blt.mean

    def quiet(self, opened, state):
        return genuine(self, replace(opened, noise_multiplier=0.9 * opened.noise_multiplier), state)

    monkeypatch.setattr(Blt, "mean", quiet)
    assert "noise correlates as stated" in stream_failures(run)


def test_a_simulation_of_too_few_users_tells_nothing_of_the_policys_separation(run):
    artifacts = RunArtifacts.open(run)
    context = rebuild_context(artifacts)
    soon = replace(context.privacy.rule, min_separation=2)
    context = replace(context, privacy=replace(context.privacy, rule=soon))
    found = {f.name: f for f in stream_findings(context, artifacts.guarantee["stream"])}
    kept, moved = (
        found["users keep their separation"],
        found["nobody moves the stream further than stated"],
    )
    assert (kept.holds, moved.holds) == (None, None)
    assert "the policy's 5 cannot be tested" in kept.text


def test_some_users_come_back_too_soon(run, monkeypatch):
    genuine = availability.rules.cohort

    def cohort(rule, seed, round):
        invited = genuine(rule, seed, round).copy()
        if round:
            invited[0] = genuine(rule, seed, round - 1)[0]
        return np.sort(invited)

    monkeypatch.setattr(availability.rules, "cohort", cohort)
    found = stream_failures(run)
    assert "after 1 rounds, where 5 is the least" in found["users keep their separation"]
    assert "somebody took part more often" in found["nobody moves the stream further than stated"]


def state_of(place: int, name: str):
    """Return a doctoring that writes another digest of the noise's state into a round."""

    def change(entries):
        rounds = [entry for entry in entries if entry["kind"] == "round"]
        empty = rounds[0]["noise_taken_up"]
        rounds[place]["noise_taken_up"] = empty if name == "reset" else rounds[0]["noise_state"]

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (state_of(6, "reset"), "Round 6 began the noise again"),
        (state_of(6, "old"), "Round 6 took up another state"),
        (lambda entries: entries[7].pop("noise_taken_up"), "does not say which state"),
        (lambda entries: entries.insert(8, entries[7]), "Round 6 was released twice"),
        (
            lambda entries: entries[7].update(noise_state=entries[7]["noise_taken_up"]),
            "Round 6 left the state that it took up",
        ),
    ],
)
def test_a_stream_that_broke_off_in_the_ledger(run, change, told):
    rewrite_ledger(run, change)
    assert told in failing(run)["one stream of noise"]


def test_numbers_of_another_policy_in_the_ledger(run):
    def change(entries):
        entries[7]["event"]["stream"]["weights"][0] *= 0.9

    rewrite_ledger(run, change)
    assert "correlated by other numbers" in failing(run)["every round as promised"]


def test_a_manifest_whose_numbers_need_more_noise(run):
    """Numbers that a user moves further, in manifest and ledger alike: ε is another one."""

    def manifest(content):
        stream = content["guarantee"]["stream"]
        stream["weights"] = [1.5 * weight for weight in stream["weights"]]

    def ledger(entries):
        stream = json.loads((run / "manifest.json").read_text())["guarantee"]["stream"]
        for entry in entries:
            if entry["kind"] == "round":
                entry["event"]["stream"] = stream

    rewrite_manifest(run, manifest)
    rewrite_ledger(run, ledger)
    assert "the best that is proven independently" in failing(run)["stated ε"]


@pytest.mark.parametrize("kind", ["blt", "banded", "banded_inverse_root"])
@pytest.mark.parametrize(("n", "step", "times"), [(12, 12, 1), (12, 5, 3), (20, 4, 2), (9, 1, 9)])
def test_two_ways_to_a_sensitivity_agree(kind, n, step, times):
    chosen = choose(kind, n, step, times)
    plan = StreamPlan(chosen.kind, n, chosen.weights, chosen.decays)
    stream = {"kind": plan.kind, "rounds": n, "weights": plan.weights, "decays": plan.decays}
    expected = sensitivity(plan, step, times)
    assert streams.sensitivity(stream, step, times) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("kind", ["tree", "banded", "banded_inverse_root"])
def test_an_honest_run_of_another_stream_fails_nothing(kind, tiny_run, tmp_path):
    run = tiny_run(tmp_path, POLICY.replace('"blt"', f'"{kind}"'), payload=PayloadPlan())
    artifacts = RunArtifacts.open(run)
    part = mechanism_check.audit_mechanism(rebuild_context(artifacts), artifacts)
    assert {f.name: f.text for f in part.findings if f.holds is False} == {}
    held = {finding.name for finding in part.findings if finding.holds}
    assert held >= {"noise on the sum", "noise correlates as stated"}
    assert "nobody moves the stream further than stated" in held


@pytest.mark.parametrize(
    ("noise", "rounds"),
    [
        ('at = "server", kind = "blt"', 1),
        ('at = "server", kind = "blt"', 2),
        ('at = "server", kind = "banded"', 2),
        ('at = "device", kind = "skellam"', 1),
    ],
)
def test_an_honest_run_of_a_round_or_two_fails_nothing(tiny_run, tmp_path, noise, rounds):
    """Fewer rounds than the audit probes: a stream was planned for no more."""
    policy = POLICY.replace("rounds = 12", f"rounds = {rounds}")
    policy = policy.replace('at = "server", kind = "blt"', noise)
    run = tiny_run(tmp_path, policy, rounds=rounds)
    artifacts = RunArtifacts.open(run)
    context = rebuild_context(artifacts)
    parts = [mechanism_check.audit_mechanism(context, artifacts), audit_attack(context, artifacts)]
    findings = [finding for part in parts for finding in part.findings]
    assert failing(run) == {f.name: f.text for f in findings if f.holds is False} == {}


@pytest.mark.parametrize("first", [0, 2, 5])
def test_the_noise_of_a_tree_covaries_as_the_audit_says(first):
    # Prefix sums of 1, 2, … 8 rounds have 1, 1, 2, 1, 2, 2, 3, 1 intervals.
    stream, rounds, dim = {"kind": "tree", "rounds": 8}, 3, 20_000
    state, rows = tree_stream.TreeState.begin(8, dim), []
    bits = reproducible_bits(key(1, "tree"))
    for number in range(first, first + rounds):
        noise, state = tree_stream.release(
            state, np.zeros(dim), round=number, rounds=8, sensitivity=2.0, clip_norm=1.0,
            noise_multiplier=1.0, bits=bits,
        )  # fmt: skip
        rows.append(noise)
    measured = np.array(rows) @ np.array(rows).T / dim
    assert measured == pytest.approx(streams.noise_covariance(stream, first, rounds), abs=0.06)


@pytest.mark.parametrize(("n", "step", "times"), [(8, 2, 4), (13, 5, 3), (12, 1, 12)])
def test_the_worst_rounds_of_a_tree_are_found_among_its_inner_products(n, step, times):
    products = streams.inner_products({"kind": "tree", "rounds": n})
    patterns = (
        rounds
        for count in range(1, times + 1)
        for rounds in combinations(range(n), count)
        if (np.diff(rounds) >= step).all()
    )
    worst = max(products[np.ix_(rounds, rounds)].sum() for rounds in patterns)
    assert worst == tree.squared_sensitivity(n, step, times)


@pytest.mark.parametrize("n", [1, 5, 8, 13, 40])
@pytest.mark.parametrize(("step", "times"), [(1, 3), (2, 9), (5, 4), (40, 1)])
def test_two_ways_to_a_tree_agree(n, step, times):
    expected = tree.squared_sensitivity(n, step, times)
    assert streams.tree_squared(n, step, times) == expected


def test_two_ways_to_a_tree_agree_where_the_bound_by_levels_is_larger():
    expected = tree.squared_sensitivity(140, 3, 12)
    assert streams.tree_squared(140, 3, 12) == expected < tree.by_levels(140, 3, 12)


def test_what_the_audit_has_no_proof_for_costs_everything():
    for stream in (
        {"kind": "magic", "rounds": 8, "weights": [], "decays": []},
        {"kind": "banded", "rounds": 8, "weights": [0.1, 0.9], "decays": []},
        {"kind": "banded", "rounds": 8, "weights": [float("nan")], "decays": []},
    ):
        assert streams.sensitivity(stream, 2, 3) == float("inf")


def test_the_attack_stays_within_the_rounds_of_the_plan(blt_run):
    artifacts = RunArtifacts.open(blt_run)
    part = audit_attack(rebuild_context(artifacts), artifacts, rounds=500, phrase_rounds=2)
    assert part.figures["rounds"] == 12
    assert all(finding.holds is not False for finding in part.findings)
    assert {f.name: f.holds for f in part.findings}["power of the attack"]


def test_an_attacker_gathers_what_a_round_left_in_the_later_ones():
    """A round by itself shows less than all that it left behind together."""
    rounds, many, noise = 12, 4000, 0.5
    chosen = choose("blt", rounds, rounds, 1)
    stream = {"kind": "blt", "rounds": rounds, "weights": chosen.weights, "decays": chosen.decays}
    column = streams.coefficients(stream)
    lower = np.array([[column[i - j] if i >= j else 0.0 for j in range(rounds)]
                      for i in range(rounds)])  # fmt: skip
    released = np.linalg.inv(lower) @ np.random.default_rng(0).normal(0, noise, (rounds, many))
    released[2, : many // 2] += 1  # half of them took part in round 2
    seen = Seen(released, np.ones(rounds), np.zeros(many))
    responses = gathered(stream, seen, noise)[0].responses

    def distance(values):
        took_part, did_not = values[: many // 2], values[many // 2 :]
        return (took_part.mean() - did_not.mean()) / did_not.std()

    best = np.linalg.norm(lower[:, 2]) / noise
    assert distance(responses[2]) == pytest.approx(best, abs=0.12)
    alone = 1 / (noise * math.sqrt(streams.noise_covariance(stream, 0, rounds)[2, 2]))
    assert distance(released[2]) == pytest.approx(alone, abs=0.12)
    assert alone < 0.75 * best
    spread = gathered(stream, seen, noise)[1]
    assert responses[2, many // 2 :].std() == pytest.approx(spread[2, 0], rel=0.1)
