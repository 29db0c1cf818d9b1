"""Sums by public groups: who is in which, what each carries, what it costs, what a poisoner can."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from pfl_lm.audit.artifacts import RunArtifacts
from pfl_lm.audit.ledger.check import audit_ledger
from pfl_lm.audit.mechanism.harness import ProbeRecorder, ends_of, everybody_reports, probe_round
from pfl_lm.audit.mechanism.noise_tests import noise
from pfl_lm.cli import app
from pfl_lm.dp.guarantee import guarantee
from pfl_lm.dp.ledger import verify
from pfl_lm.dp.policy import Policy
from pfl_lm.queries.ask import QuerySession
from pfl_lm.recipes import load
from pfl_lm.run import groups as module
from pfl_lm.run.context import RunContext, choose_payload
from pfl_lm.run.groups import GroupedRound, divide
from pfl_lm.run.progress import ProgressListener
from pfl_lm.run.setup import open_run
from pfl_lm.run.simulate import run_round, simulate
from pfl_lm.run.trimmed import noise_ratio, trimmed_mean
from pfl_lm.secagg.errors import TooFewReports
from pfl_lm.server.state import ServerState, open_round
from tests.audit.doctoring import rewrite_ledger

pytestmark = pytest.mark.usefixtures("quick")

GOAL, COHORT = 1_200, 24
POLICY = """
unit = "user"
neighboring = "zero_out"
epsilon = 8.0
delta = 1e-6
population = 100_000
report_goal = 1_200
rounds = 4
groups = {groups}
participation = {{ kind = "rotation", min_separation = 2 }}
noise = {noise}
"""
NOISE = '{ at = "device", kind = "skellam", min_dim = 64 }'


@pytest.fixture
def opened(tiny_scenario, tmp_path):
    """A function that opens a run of 24 reports a round under a policy with groups."""

    def build(groups: int = 4, noise: str = NOISE, **changes) -> RunContext:
        path = tmp_path / f"{groups}.toml"
        path.write_text(POLICY.format(groups=groups, noise=noise))
        fields = {"policy": path, "cohort": COHORT, "rounds": 4}
        return open_run(tiny_scenario(**{**fields, **changes}))

    return build


def release(context: RunContext, updates, number: int = 0):
    """Run one round of chosen updates: what was kept, and what was recorded."""
    recorder = ProbeRecorder()
    users = range(context.privacy.cohort)
    state = ServerState(number, context.start.parameters)
    run_round(context, state, recorder, ends=ends_of(users, updates))
    return recorder.opened(context)


def quiet(users, dim: int) -> np.ndarray:
    return np.zeros((len(users), dim), np.float32)


class TestDivision:
    def test_every_place_is_in_one_group_and_groups_change(self) -> None:
        for round in range(5):
            groups = divide(3, round, COHORT, 4)
            assert sorted(place for group in groups for place in group) == [*range(COHORT)]
            assert [len(group) for group in groups] == [6] * 4
        assert divide(3, 0, COHORT, 4) == divide(3, 0, COHORT, 4) != divide(3, 1, COHORT, 4)

    def test_a_trimmed_mean_leaves_out_both_ends_of_every_coordinate(self) -> None:
        means = np.array([[0, 9], [1, 2], [2, 1], [30, 0]], np.float32)
        np.testing.assert_allclose(trimmed_mean(means, 1), [1.5, 1.5])
        np.testing.assert_allclose(trimmed_mean(means, 0), means.mean(axis=0))
        with pytest.raises(ValueError, match="cannot be left out"):
            trimmed_mean(means, 2)

    def test_trimming_widens_the_noise_a_little(self) -> None:
        assert noise_ratio(4, 0) == 1.0
        draws = np.random.default_rng(9).standard_normal((4, 50_000)).astype(np.float32)
        assert noise_ratio(4, 1) == pytest.approx(2 * trimmed_mean(draws, 1).std(), rel=0.02)
        assert noise_ratio(4, 1) > noise_ratio(8, 1) > 1


class TestPrice:
    def test_every_groups_sum_has_the_noise_of_a_round(self, tmp_path: Path) -> None:
        policies = {}
        for groups in (1, 4):
            (tmp_path / "p.toml").write_text(POLICY.format(groups=groups, noise=NOISE))
            policies[groups] = load(Policy, tmp_path / "p.toml")
        one, four = guarantee(policies[1]), guarantee(policies[4])
        assert one.noise_multiplier == four.noise_multiplier
        assert four.share_multiplier == pytest.approx(2 * one.share_multiplier)
        assert (one.least_reports, four.least_reports) == (1_200, 300)
        assert "each of a round's 4 public groups" in four.statement
        assert any("holds in every group" in line for line in four.assumptions)

    def test_check_states_the_price(self, tmp_path: Path) -> None:
        (tmp_path / "p.toml").write_text(POLICY.format(groups=4, noise=NOISE))
        shown = CliRunner().invoke(app, ["check", str(tmp_path / "p.toml")]).output
        assert "price of 4 public groups: the noise on a round's mean is 2 times" in " ".join(
            shown.split()
        )

    def test_noise_on_the_mean_grows_by_the_root_of_the_groups(self, opened) -> None:
        whole, parts = opened(1), everybody_reports(opened(4))
        assert parts.privacy.mean_deviation(0) == pytest.approx(2 * whole.privacy.mean_deviation(0))
        for context in (whole, parts):
            stated = context.privacy.mean_deviation(0) * COHORT
            spread = np.std([release(context, quiet, number).total for number in range(4)])
            assert spread == pytest.approx(stated, rel=0.1)

    def test_a_round_is_charged_for_its_smallest_sum(self, opened) -> None:
        recorded = release(opened(4), quiet).recorded
        assert recorded["reports"] == COHORT // 4
        assert recorded["event"]["noise_multiplier"] == pytest.approx(
            guarantee(opened(4).privacy.policy).noise_multiplier
        )
        assert [group["reports"] for group in recorded["groups"]] == [6, 6, 6, 6]

    def test_each_group_draws_noise_of_its_own(self, opened) -> None:
        context = everybody_reports(opened(4, reproducible=True))
        four = release(context, quiet).total / 2
        whole = release(opened(1, reproducible=True), quiet).total
        assert abs(np.corrcoef(four, whole)[0, 1]) < 0.5


class TestPoison:
    NONE = '{ at = "none", kind = "none" }'

    def mean(self, context: RunContext, poisoned: bool) -> np.ndarray:
        clip = context.privacy.clip_norm

        def updates(users, dim: int) -> np.ndarray:
            rows = np.full((len(users), dim), 1e-3 * clip / math.sqrt(dim), np.float32)
            for row, user in enumerate(users):
                if poisoned and user == 5:
                    rows[row] = 0
                    rows[row, 0] = clip
            return rows

        return release(context, updates).total / COHORT

    def test_one_within_the_clip_moves_one_group_and_is_left_out(
        self, tiny_scenario, tmp_path: Path
    ) -> None:
        moved = {}
        for groups in (1, 4):
            path = tmp_path / "none.toml"
            text = POLICY.replace("epsilon = 8.0", "epsilon = inf")
            path.write_text(text.format(groups=groups, noise=self.NONE))
            context = open_run(tiny_scenario(policy=path, cohort=COHORT, rounds=4))
            moved[groups] = self.mean(context, True)[0] - self.mean(context, False)[0]
            clip = context.privacy.clip_norm
        assert moved[1] == pytest.approx(clip / COHORT, rel=0.05)
        assert abs(moved[4]) < 0.02 * moved[1]

    def test_one_beyond_the_bound_costs_its_group_alone(self, opened, monkeypatch) -> None:
        context = opened(4)
        real = GroupedRound.submit

        def spoil(self, vectors, devices=None):
            vectors = vectors.copy()
            if devices is not None and 5 in devices:
                bits = context.privacy.grid(vectors.shape[1]).modulus_bits
                vectors[list(devices).index(5)] = 1 << (bits - 3)
            return real(self, vectors, devices)

        monkeypatch.setattr(GroupedRound, "submit", spoil)
        recorded = release(context, quiet).recorded
        failed = [group for group in recorded["groups"] if group["failure"]]
        assert len(failed) == 1
        assert failed[0]["asked"]
        assert "a device sent more than its bound" in failed[0]["failure"]


class TestRun:
    def test_a_run_is_recorded_resumed_and_audited(self, opened, tmp_path: Path) -> None:
        context = opened(4)
        folder = simulate(context.scenario, tmp_path / "run", ProgressListener())
        rounds = [e for e in verify(folder.ledger_path) if e["kind"] == "round"]
        assert [len(entry["groups"]) for entry in rounds] == [4] * 4
        assert self.failing(folder.path) == {}

    def failing(self, run: Path) -> dict[str, str]:
        part = audit_ledger(RunArtifacts.open(run))
        return {f.name: f.text for f in part.findings if f.holds is False}

    @pytest.mark.parametrize(
        ("change", "name"),
        [
            (lambda e: e[1]["groups"].pop(), "sums by public groups"),
            (lambda e: e[1]["groups"][0].update(reports=5), "every round as promised"),
            (lambda e: e[1].update(reports=24), "sums by public groups"),
            (lambda e: e[1].update(trimmed=2), "sums by public groups"),
            (lambda e: e[1].pop("groups"), "sums by public groups"),
            (lambda e: e[1].update(sum_multiplier=1e-3), "every round as promised"),
        ],
    )
    def test_a_doctored_record_is_named(self, opened, tmp_path: Path, change, name: str) -> None:
        folder = simulate(opened(4).scenario, tmp_path / "run", ProgressListener())
        rewrite_ledger(folder.path, change)
        assert name in self.failing(folder.path)

    def test_a_group_without_noise_is_found_in_the_running_code(self, opened, monkeypatch) -> None:
        context = everybody_reports(opened(4))
        real = module.noisy_mean

        def forgetful(privacy, *more, group: int = 0):
            if group == 1:  # its devices are taken to have drawn their shares
                privacy = replace(privacy, separate_noise=True)
            return real(privacy, *more, group=group)

        for holds in (True, False):
            rounds = [probe_round(context, number, range(COHORT), quiet) for number in range(4)]
            assert noise(context, rounds).holds is holds
            monkeypatch.setattr(module, "noisy_mean", forgetful)

    def test_the_protocol_opens_the_same_sums(self, opened) -> None:
        means = []
        for kind in ("ideal", "protocol"):
            context = opened(4, secure_aggregation=kind, reproducible=True, separate_noise=True)
            means.append(release(context, quiet).total)
        np.testing.assert_array_equal(*means)

    def test_a_group_that_loses_too_many_is_left_out_and_the_others_go_on(self, opened) -> None:
        noise = '{ at = "device", kind = "skellam", min_dim = 64, tolerated_dropout = 0.2 }'
        context = opened(4, noise, dropout=0.09, secure_aggregation="ideal")  # 2 of 24
        recorded = release(context, quiet).recorded
        asked = [group["reports"] for group in recorded["groups"] if group["asked"]]
        assert min(asked) == recorded["reports"] >= 5
        strict = opened(4, dropout=0.09)  # no dropout is tolerated: 1 or 2 groups stay closed
        try:
            recorded = release(strict, quiet).recorded
        except ValueError:  # 2 groups are left, and both are trimmed
            return
        assert [group["reports"] for group in recorded["groups"] if group["asked"]] == [6] * 3

    def test_without_groups_enough_nothing_is_opened(self, opened) -> None:
        context = opened(4, dropout=0.5)
        broadcast = open_round(ServerState(0, context.start.parameters), choose_payload(context, 0))
        total = GroupedRound(context.aggregation, broadcast, COHORT)
        with pytest.raises(TooFewReports):
            total.release(context.privacy, None, broadcast, 1)


class TestRefused:
    @pytest.mark.parametrize(
        ("groups", "changes", "match"),
        [
            (4, {"cohort": 22}, "multiple of the policy's groups"),
            (8, {"cohort": 16}, "at least 3 reports in each"),
            (4, {"trimmed_groups": 2}, "leave none"),
            (1, {"trimmed_groups": 1}, "one sum a round"),
            (4, {"aggregator": "tff"}, "aggregator"),
        ],
    )
    def test_a_scenario(self, opened, groups: int, changes: dict, match: str) -> None:
        with pytest.raises(ValueError, match=match):
            opened(groups, **changes)

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            ({"groups": 0}, "at least 1"),
            ({"groups": 7}, "must divide report_goal"),
            ({"groups": 600}, "must divide report_goal"),
            ({"participation": "poisson"}, "rotation"),
            ({"noise": "removed"}, "excess"),
            ({"noise": "server"}, "excess"),
        ],
    )
    def test_a_policy(self, tmp_path: Path, change: dict, match: str) -> None:
        text = POLICY.format(groups=change.get("groups", 4), noise=NOISE)
        if change.get("participation"):
            text = text.replace('kind = "rotation", min_separation = 2', 'kind = "poisson"')
        if change.get("noise") == "removed":
            text = text.replace("min_dim = 64", 'tolerated_dropout = 0.1, excess = "removed"')
        if change.get("noise") == "server":
            text = text.replace(NOISE, '{ at = "server", kind = "gaussian" }')
        (tmp_path / "p.toml").write_text(text)
        with pytest.raises(ValueError, match=match):
            load(Policy, tmp_path / "p.toml")

    def test_a_served_run_has_one_sum(self, opened) -> None:
        pytest.importorskip("grpc", reason="needs gRPC: pip install pfl-lm[network]")
        from pfl_lm.network.requirements import check_run
        from pfl_lm.network.task_config import served

        context = opened(4)
        with pytest.raises(ValueError, match="groups = 4: over the network a round has one sum"):
            check_run(context.privacy.policy, context.scenario, 100_000)
        with pytest.raises(ValueError, match="over the network a round has one sum"):
            served(context, 100, trial=True)

    def test_a_question_has_one_sum(self, tmp_path: Path) -> None:
        (tmp_path / "p.toml").write_text(POLICY.format(groups=4, noise=NOISE))
        policy = replace(load(Policy, tmp_path / "p.toml"), population=2_400)
        with pytest.raises(ValueError, match="a question has one sum"):
            QuerySession(policy, 2_400, 1_200, 1)
