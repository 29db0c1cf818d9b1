"""A run on a fleet: phones decide who takes part, rounds take time, and both can be resumed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pfl_lm.recipes import load
from pfl_lm.report.fleet import fleet_charts, fleet_facts
from pfl_lm.report.source import read_run
from pfl_lm.run.availability import demand, invite, phones_of
from pfl_lm.run.context import choose_payload
from pfl_lm.run.folder import RunFolder, read_json
from pfl_lm.run.scenario import PopulationConfig, Scenario
from pfl_lm.run.setup import open_run
from pfl_lm.run.simulate import simulate
from pfl_lm.secagg.config import MessageKind

pytestmark = pytest.mark.usefixtures("quick")

FLEET = """
source           = "this test"
check_in         = 6
over_selection   = 1.5
pause_minutes    = 30
time_zones       = [0.5, 0.5]
[profiles.large]
share              = 0.6
training_memory_mb = 100
gflops             = 10
download_mbps      = 50
upload_mbps        = 10
failures           = {{ download = 0.05, keys = 0.05, training = 0.1, answer = 0.05 }}
[profiles.small]
share              = 0.4
training_memory_mb = {small}
gflops             = 2
download_mbps      = 10
upload_mbps        = 2
"""


@pytest.fixture
def fleet_file(tmp_path: Path):
    def write(small: float = 100, more: str = "") -> Path:
        path = tmp_path / f"fleet_{len(list(tmp_path.glob('fleet_*')))}.toml"
        path.write_text(more + FLEET.format(small=small))
        return path

    return write


@pytest.fixture
def scenario(tiny_scenario, fleet_file):
    def make(**chosen) -> Scenario:
        people = PopulationConfig("synthetic", users=2000, tokens_per_user=60)
        usual = {"population": people, "cohort": 10, "rounds": 4, "fleet": fleet_file()}
        return tiny_scenario(**(usual | {"reproducible": True, "checkpoint_every": 2} | chosen))

    return make


def rounds_of(run: RunFolder) -> list[dict]:
    return [entry for entry in run.metrics() if entry["kind"] == "round"]


def test_rounds_take_time_and_close_at_the_goal(scenario, new_watcher, tmp_path) -> None:
    run = simulate(scenario(), tmp_path / "run", new_watcher())
    entries = rounds_of(run)
    assert [entry["reports"] for entry in entries] == [10] * 4
    assert [entry["invited"] for entry in entries] == [15] * 4
    opened = [entry["fleet"]["opened_hours"] for entry in entries]
    assert np.all(np.diff(opened) > 0.5)  # a pause of half an hour at least
    for entry in entries:
        figures = entry["fleet"]
        assert sum(figures["reports_by_profile"].values()) == 10
        assert sum(figures["lost"].values()) == 5
        assert sum(figures["rejected"].values()) + 15 == figures["checked_in"] == 60
    assert run.manifest()["fleet"]["left_out"] == []


def test_protocol_and_ideal_functionality_agree(scenario, new_watcher, tmp_path) -> None:
    found = []
    for kind in ("ideal", "protocol"):
        chosen = scenario(secure_aggregation=kind, cohort=20, rounds=2, corrupt=0.0)
        run = simulate(chosen, tmp_path / kind, new_watcher())
        found.append((run.model_path.read_bytes(), [e["reports"] for e in rounds_of(run)]))
    assert found[0] == found[1]


def test_an_interrupted_run_goes_on_at_its_hour(scenario, new_watcher, tmp_path) -> None:
    class Stop(new_watcher):  # type: ignore[misc,valid-type]
        def round_done(self, entry, rounds):
            if entry["round"] == 2:
                raise KeyboardInterrupt

    chosen = scenario()
    whole = simulate(chosen, tmp_path / "whole", new_watcher())
    with pytest.raises(KeyboardInterrupt):
        simulate(chosen, tmp_path / "cut", Stop())
    cut = simulate(chosen, tmp_path / "cut", new_watcher(), resume=True)
    assert cut.model_path.read_bytes() == whole.model_path.read_bytes()
    hours = [[e["fleet"]["opened_hours"] for e in rounds_of(run)] for run in (whole, cut)]
    assert hours[0][-1] == hours[1][-1]


def test_a_class_without_the_memory_is_left_out_and_named(
    scenario, fleet_file, new_watcher, tmp_path
) -> None:
    chosen = scenario(fleet=fleet_file(small=0.01))
    chosen = replace(chosen, evaluation=replace(chosen.evaluation, every=2))
    run = simulate(chosen, tmp_path / "run", new_watcher())
    assert run.manifest()["fleet"]["left_out"] == ["small"]
    assert all(e["fleet"]["reports_by_profile"]["small"] == 0 for e in rounds_of(run))
    rows = {row["name"]: row for row in read_json(run.evaluation_path)["profiles"]}
    assert [rows[name]["able"] for name in ("large", "small")] == [True, False]
    assert sum(row["users"] for row in rows.values()) >= 3
    facts = dict(fleet_facts(read_run(run)))
    assert facts["phones left out for memory"] == "small"
    assert float(facts["rounds a day"]) > 5
    lost = [sum(e["fleet"]["lost"].values()) for e in rounds_of(run)]
    late = [e["fleet"]["lost"]["after the goal"] for e in rounds_of(run)]
    gone = 100 * (sum(lost) - sum(late)) / sum(e["invited"] for e in rounds_of(run))
    assert facts["lost of the invited"] == f"{gone:.1f}%"
    assert facts["reports from small (40% of the phones)"] == "0%"
    assert facts["reports from large (60% of the phones)"] == "100%"
    assert facts["spent by a phone, a report"].endswith(" J")
    assert facts["moved, a report"]
    assert facts["to within 5% of the last perplexity"]
    assert any("never takes part" in name for name in facts)
    assert {title for title, *_ in fleet_charts(read_run(run))} >= {"Time", "Who takes part"}


def test_the_demand_is_public(scenario) -> None:
    """Nothing that is asked of a phone depends on what its user typed."""
    context = open_run(scenario())
    payload = choose_payload(context, 0)
    grid = context.privacy.grid(payload.dim)
    broadcast = SimpleNamespace(round=0, payload=payload)
    first = invite(context, broadcast, 0.0)
    silenced = open_run(
        scenario(population=PopulationConfig("synthetic", users=2000, tokens_per_user=5))
    )
    second = invite(silenced, broadcast, 0.0)
    assert demand(context, payload, grid) == demand(silenced, payload, grid)
    assert first.invited.tolist() == second.invited.tolist()
    assert first.silent == second.silent
    assert set(first.silent.values()) <= set(MessageKind)


def test_phones_may_follow_what_people_talk_about(scenario, fleet_file) -> None:
    context = open_run(scenario(fleet=fleet_file(more="text_relation = 1.0\n")))
    users = np.arange(500)
    own = phones_of(context, context.fleet, "train", users)
    groups = context.population.groups("train", users)
    assert np.array_equal(own.profile, (groups >= 0.6).astype(int))
    assert 0.4 < groups.mean() < 0.6


def test_sampling_amplifies_nothing_on_a_fleet(scenario, policy_file) -> None:
    with pytest.raises(ValueError, match='kind = "rotation"'):
        open_run(scenario(policy=policy_file()))


def test_a_fleet_and_a_dropout_are_too_much(scenario, fleet_file, tmp_path) -> None:
    with pytest.raises(ValueError, match="fleet and dropout"):
        scenario(dropout=0.1)
    with pytest.raises(ValueError, match="a fleet's server asks 60"):
        open_run(scenario(population=PopulationConfig("synthetic", users=50)))


def test_the_shipped_scenario_opens() -> None:
    recipes = Path(__file__).resolve().parents[2] / "simulations"
    open_run(load(Scenario, recipes / "fleet_10m.toml"))


def test_another_fleet_in_the_same_file_does_not_go_on(scenario, new_watcher, tmp_path) -> None:
    begun = scenario()
    simulate(begun, tmp_path / "run", new_watcher())
    begun.fleet.write_text(begun.fleet.read_text().replace("gflops             = 10", "gflops = 9"))
    with pytest.raises(ValueError, match=r"begun with another fleet \(\S+ was 10.0, now it is 9.0"):
        simulate(begun, tmp_path / "run", new_watcher(), resume=True)
