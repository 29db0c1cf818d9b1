"""A run whose clip norm follows its updates: every kind of noise, killed anywhere, refusals."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import pytest
import scipy.stats
import torch

from pfl_lm.devices.local_training import LocalTraining
from pfl_lm.dp.clipping import Clipping
from pfl_lm.dp.ledger import verify
from pfl_lm.dp.policy import Policy
from pfl_lm.payload.plan import PayloadPlan
from pfl_lm.queries.ask import QuerySession
from pfl_lm.recipes import load
from pfl_lm.run import round as privacy_path
from pfl_lm.run import simulate
from pfl_lm.run.checkpoints import read_checkpoint
from pfl_lm.run.setup import open_run
from pfl_lm.secagg.errors import SumLost
from tests.run.killing import POINTS, killed

pytestmark = pytest.mark.usefixtures("quick")

ROUNDS = 5
SKELLAM = '{ at = "device", kind = "skellam", tolerated_dropout = 0.1 }'
ROTATION = '{ kind = "rotation", min_separation = 2 }'
TABLE = "{ lowest = 1e-3, highest = 1e3 }"


@pytest.fixture
def scenario_of(tiny_scenario, policy_file):
    def make(noise: str = SKELLAM, participation: str = ROTATION, table: str = TABLE, **changes):
        policy = policy_file(
            noise=noise, participation=participation, clipping=table, epsilon="8.0"
        )
        settings = {"policy": policy, "rounds": ROUNDS, "checkpoint_every": 2} | changes
        return tiny_scenario(**settings)

    return make


def recorded(run: Path) -> list[dict]:
    return [entry for entry in verify(run / "ledger.jsonl") if entry["kind"] == "round"]


KINDS = {
    "skellam": {},
    "rotated": {"rotate": True},
    "discrete gaussian": {
        "noise": '{ at = "device", kind = "discrete_gaussian", grid_steps = 64.0 }',
    },
    "excess removed": {
        "noise": SKELLAM.replace("0.1", '0.4, excess = "removed"'),
        "dropout": 0.2,
    },
    "server": {"noise": '{ at = "server", kind = "gaussian" }'},
    "poisson": {
        "noise": '{ at = "server", kind = "gaussian" }',
        "participation": '{ kind = "poisson" }',
    },
    "blt": {"noise": '{ at = "server", kind = "blt" }', "payload": PayloadPlan(rows=100)},
    "tree": {"noise": '{ at = "server", kind = "tree" }'},
    "directions": {"payload": PayloadPlan(directions=16)},
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_clip_norm_follows_what_was_released(scenario_of, new_watcher, tmp_path, kind):
    changes = dict(KINDS[kind])
    if kind == "directions":
        changes["training"] = LocalTraining(0.5, window=8, method="zeroth_order")
        policy = scenario_of().policy
        policy.write_text(policy.read_text().replace("0.1 }", "0.1, min_dim = 16 }"))
        changes["policy"] = policy
    scenario, run, watcher = scenario_of(**changes), tmp_path / "run", new_watcher()
    simulate.simulate(scenario, run, watcher)
    rule = load(Policy, scenario.policy).clipping
    clip = rule.begin(scenario.clip_norm)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line["kind"] == "round"]
    lines = {line["round"]: line for line in lines}
    entries = recorded(run)
    assert len(entries) > 2  # an empty Poisson cohort is abandoned
    for entry in entries:
        line = lines[entry["round"]]
        assert entry["clip_norm"] == line["clip_norm"] == clip.norm
        assert entry["clipping"]["share"] == line["short_share"]
        assert entry["event"]["dim"] in (1, entry["payload"]["dim"] + 1)
        clip = rule.after(clip, line["short_share"])
        assert entry["clipping"]["next"] == asdict(clip)
    if kind != "directions":  # so few coordinates that indicators of this small cohort round to 0
        assert len({entry["clip_norm"] for entry in entries}) > 1
    manifest = json.loads((run / "manifest.json").read_text())
    assert "the clip norm follows the 0.5 quantile" in manifest["statements"]["simulated"]
    assert manifest["guarantee"]["indicator_weight"] > 0


def test_it_costs_what_a_fixed_clip_norm_costs(scenario_of, policy_file):
    context = open_run(scenario_of())
    fixed = load(Policy, policy_file(noise=SKELLAM, participation=ROTATION, epsilon="8.0"))
    from pfl_lm.dp.guarantee import guarantee

    assert context.privacy.guarantee.noise_multiplier == guarantee(fixed).noise_multiplier
    assert context.privacy.guarantee.epsilon == guarantee(fixed).epsilon


def test_noise_on_update_and_share_is_as_stated(scenario_of, new_watcher, tmp_path):
    """Nobody learns, so that all are short: what is released is noise, and what rounding adds."""
    still, rounds = LocalTraining(1e-9, batch_size=4, window=8, max_tokens=64), 40
    policy = scenario_of().policy
    policy.write_text(policy.read_text().replace("rounds = 6", f"rounds = {rounds}"))
    scenario, watcher = scenario_of(training=still, rounds=rounds, policy=policy), new_watcher()
    simulate.simulate(scenario, tmp_path / "run", watcher)
    weight = open_run(scenario).privacy.guarantee.indicator_weight
    deviations = []
    for line, entry in zip(watcher.rounds, recorded(tmp_path / "run"), strict=True):
        assert line["mean_norm"] == pytest.approx(line["noise_norm"], rel=6 / math.sqrt(2 * 3000))
        steps = weight * entry["clip_norm"] * entry["grid"]["scale"]  # of an indicator, per device
        rounding = scenario.cohort * (steps % 1) * (1 - steps % 1)
        noise = (0.05 * 2 * steps * scenario.cohort) ** 2
        noise *= (entry["noise"]["achieved"] / entry["noise"]["planned"]) ** 2
        off = (line["short_share"] - 1) * 2 * steps * scenario.cohort
        deviations.append(off**2 / (noise + rounding))
    low, high = scipy.stats.chi2.ppf([1e-5, 1 - 1e-5], rounds)
    assert low < sum(deviations) < high


BLT = '{ at = "server", kind = "blt" }'
DEATHS = [(SKELLAM, point, "after") for point in sorted(POINTS.keys() - {"state"})]
DEATHS += [(SKELLAM, "record", "before"), (BLT, "state", "after"), (BLT, "record", "after")]


@pytest.mark.parametrize(("noise", "point", "when"), DEATHS)
def test_killed_anywhere_the_clip_norm_goes_on(
    scenario_of, new_watcher, tmp_path, noise, point, when
):
    scenario, run = scenario_of(noise, reproducible=True), tmp_path / "run"
    killed(lambda: simulate.simulate(scenario, run, new_watcher()), point, when, 3)
    simulate.simulate(scenario, run, new_watcher(), resume=True)
    straight = tmp_path / "straight" / "run"
    simulate.simulate(scenario, straight, new_watcher())
    assert (straight / "ledger.jsonl").read_bytes() == (run / "ledger.jsonl").read_bytes()
    assert (straight / "model.pt").read_bytes() == (run / "model.pt").read_bytes()


def test_it_goes_on_under_a_policy_whose_figures_were_approved_meanwhile(
    scenario_of, new_watcher, tmp_path
):
    """`check --write` between two resumes changes no promise; another ε does."""
    scenario, run = scenario_of(), tmp_path / "run"
    killed(lambda: simulate.simulate(scenario, run, new_watcher()), "figures", "after", 3)
    written, text = (run / "manifest.json").read_bytes(), scenario.policy.read_text()
    scenario.policy.write_text(text.replace("epsilon = 8.0", "epsilon = 7.0", 1))
    with pytest.raises(ValueError, match=r"another policy \(epsilon was 8.0, now it is 7.0\)"):
        simulate.simulate(scenario, run, new_watcher(), resume=True)
    scenario.policy.write_text(f"{text}\n[reviewed]\nepsilon = 8.0\n")
    simulate.simulate(scenario, run, new_watcher(), resume=True)
    assert (run / "manifest.json").read_bytes() == written


def test_with_fresh_noise_it_goes_on_where_the_ledger_ends_even_if_means_are_lost(
    scenario_of, new_watcher, tmp_path
):
    scenario, run = scenario_of(checkpoint_every=10), tmp_path / "run"
    killed(lambda: simulate.simulate(scenario, run, new_watcher()), "figures", "after", 3)
    (run / "means" / "round-000001.npy").unlink()
    simulate.simulate(scenario, run, new_watcher(), resume=True)
    entries = recorded(run)
    assert len(entries) == ROUNDS
    for before, after in pairwise(entries):
        assert after["clip_norm"] == before["clipping"]["next"]["norm"]


@pytest.mark.parametrize("off", [10.0, 0.1])
def test_ten_times_off_it_comes_to_the_norm_of_the_updates(scenario_of, new_watcher, tmp_path, off):
    scenario, watcher = scenario_of(clip_norm=0.4 * off, cohort=20, rounds=6), new_watcher()
    simulate.simulate(scenario, tmp_path / "run", watcher)
    first, last = watcher.rounds[0], watcher.rounds[-1]
    assert abs(math.log(first["clip_norm"] / first["update_norm"])) > 1.5
    assert abs(math.log(last["clip_norm"] / last["update_norm"])) < 0.8
    if off > 1:  # the noise falls with the clip norm
        assert last["noise_norm"] < first["noise_norm"] / 3


def test_a_round_far_above_the_updates_moves_the_clip_norm_alone(
    scenario_of, new_watcher, tmp_path
):
    """All updates are short at 500: noise made for that length would drown the model."""
    scenario = scenario_of(clip_norm=500.0, rounds=2, checkpoint_every=1)
    simulate.simulate(scenario, tmp_path / "run", new_watcher())
    first, second = (
        read_checkpoint(tmp_path / "run" / "checkpoints" / f"round-{n:06d}.pt")[0] for n in (1, 2)
    )
    assert all(torch.equal(first.parameters[n], second.parameters[n]) for n in first.parameters)
    entries = recorded(tmp_path / "run")
    assert [entry["released"] is not None for entry in entries] == [True, True]
    share = entries[0]["clipping"]["share"]  # 1, with noise of 0.05
    moved = 500 * math.exp(-2 * (min(share, 1) - 0.5))
    assert entries[1]["clip_norm"] == pytest.approx(moved)


def test_a_lost_round_leaves_the_clip_norm(scenario_of, new_watcher, tmp_path, monkeypatch):
    genuine = privacy_path.check_sum

    def losing(privacy, opened, config, broadcast):
        if broadcast.round == 2:
            raise SumLost(opened.reports, "lost on purpose")
        return genuine(privacy, opened, config, broadcast)

    monkeypatch.setattr(privacy_path, "check_sum", losing)
    run, watcher = tmp_path / "run", new_watcher()
    simulate.simulate(scenario_of(), run, watcher)
    entries = recorded(run)
    assert "clipping" not in entries[2]
    assert (
        entries[2]["clip_norm"] == entries[3]["clip_norm"] == entries[1]["clipping"]["next"]["norm"]
    )
    assert watcher.rounds[2]["short_share"] is None


def test_the_protocol_releases_what_the_ideal_sum_does(scenario_of, new_watcher, tmp_path):
    """To the byte: the indicator is masked, summed and opened with the rest."""
    released = []
    for kind in ("ideal", "protocol"):
        run = tmp_path / kind / "run"
        more = {"reproducible": True, "separate_noise": True, "secure_aggregation": kind}
        simulate.simulate(scenario_of(rounds=3, **more), run, new_watcher())
        released.append([(e["released"], e["clipping"]) for e in recorded(run)])
    assert released[0] == released[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clip_norm": 2e3}, "clip_norm = 2000, of the first round, lies outside"),
        ({"clip_norm": 1e-4}, "clip_norm = 0.0001, of the first round, lies outside"),
        ({"noise": '{ at = "none", kind = "none" }'}, "clipping: indicators without noise"),
        ({"table": f"{TABLE}\ngroups = 2"}, "groups: a clip norm that follows the updates"),
        ({"table": "{ lowest = 1.0 }"}, r"clipping\.highest"),
        ({"table": TABLE.replace("1e3 }", "1e3, quantil = 0.4 }")}, "quantil"),
        ({"table": TABLE.replace("1e3 }", "1e3, indicator_noise = 1e-4 }")}, "indicator_noise"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_its_field(scenario_of, changes, message):
    if "none" in changes.get("noise", ""):
        scenario = scenario_of(**changes)
        text = scenario.policy.read_text().replace("epsilon = 8.0", "epsilon = inf")
        scenario.policy.write_text(text)
        with pytest.raises(ValueError, match=message):
            open_run(scenario)
        return
    with pytest.raises(ValueError, match=message):
        from pfl_lm.run.manifest import manifest

        manifest(open_run(scenario_of(**changes)), "run")


def test_another_librarys_sum_has_no_indicators(scenario_of):
    class Other:
        name = "tff"

        def check(self) -> None: ...

        def unsupported_reason(self, policy):
            return None

    with pytest.raises(ValueError, match='aggregator = "tff" sums at one clip norm alone'):
        open_run(scenario_of(aggregator="tff"), Other())


def test_a_question_has_no_clip_norm_that_could_follow(scenario_of):
    policy = load(Policy, scenario_of().policy)
    with pytest.raises(ValueError, match="clipping: no clip norm follows the answers"):
        QuerySession.of(policy, policy.population, 0)


def test_a_policy_says_where_its_clip_norm_may_lie(scenario_of):
    policy = load(Policy, scenario_of().policy)
    assert policy.clipping == Clipping(1e-3, 1e3, 0.5, 0.2, 2.0, 0.05)
