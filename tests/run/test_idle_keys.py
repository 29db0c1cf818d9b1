"""A key that changes nothing is told; one that does, or that nobody set, is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pfl_lm.models.spec import ModelSpec
from pfl_lm.recipes import load
from pfl_lm.run.idle_keys import idle_keys
from pfl_lm.run.look import foresee, judge
from pfl_lm.run.scenario import Scenario
from pfl_lm.run.setup import open_run

SIMULATIONS = Path(__file__).resolve().parents[2] / "simulations"
BASE = SIMULATIONS / "fleet_10m.toml"


@pytest.mark.parametrize(
    ("idle", "read"),
    [
        ({"server.kind": "sgd", "server.momentum": 0.5}, {"server.kind": "momentum"}),
        ({"server.kind": "momentum", "server.adaptivity": 0.1}, {"server.kind": "yogi"}),
        ({"server.average.share": 0.5}, {"server.average.kind": "tail"}),
        ({"server.average.decay": 0.5}, {"server.average.kind": "exponential"}),
        ({"training.loss": "softmax", "training.negatives": 7}, {"training.loss": "nce"}),
        ({"training.segment_length": 3}, {"training.activations": "recomputed"}),
        ({"training.modulation": 0.5}, {"training.method": "forward_only"}),
        ({"payload.draw": "uniform", "payload.temper": 0.5}, {"payload.draw": "unigram"}),
        ({"payload.layers": 99}, {"payload.layers": 1}),
        (
            {"training.method": "forward_only", "training.activations": "recomputed"},
            {"training.method": "backpropagation"},
        ),
        (
            {"payload.rows": "all", "payload.draw": "uniform", "payload.outside": "unk"},
            {"payload.rows": 100},
        ),
    ],
    ids=lambda keys: ", ".join(keys),
)
def test_a_key_that_is_not_read_is_named(idle, read):
    key, value = list(idle.items())[-1]
    lines = idle_keys(load(Scenario, BASE, idle))
    assert any(line.startswith(f"{key} = {value} changes nothing") for line in lines), lines
    assert not any(
        line.startswith(f"{key} ") for line in idle_keys(load(Scenario, BASE, idle | read))
    )


def test_factors_that_do_not_travel_are_named_unless_the_start_may_have_them():
    idle = {"model.lora": {"rank": 4}, "payload.dense": "biases"}
    named = "model.lora = { rank = 4, "
    assert any(line.startswith(named) for line in idle_keys(load(Scenario, BASE, idle)))
    for read in ({"payload.dense": "ffa_lora"}, {"start": "model.pt"}):
        lines = idle_keys(load(Scenario, BASE, idle | read))
        assert not any(line.startswith(named) for line in lines), lines


def test_sizes_of_another_kind_of_model_are_named(tiny_scenario):
    spec = ModelSpec("cifg_lstm", 300, 8, hidden_dim=8, heads=2, context=9)
    told = [line.partition(" ")[0] for line in idle_keys(tiny_scenario(model=spec))]
    assert told == ["model.heads", "model.context"]
    spec = ModelSpec("transformer", 300, 8, heads=2, feedforward_dim=8, hidden_dim=8)
    assert [line.partition(" ")[0] for line in idle_keys(tiny_scenario(model=spec))] == [
        "model.hidden_dim"
    ]


@pytest.mark.parametrize("path", sorted(SIMULATIONS.glob("*.toml")), ids=lambda path: path.stem)
def test_what_ships_has_no_such_key(path):
    if "pretrain" in path.stem or "central" in path.stem:
        pytest.skip("a recipe of another kind")
    assert idle_keys(load(Scenario, path)) == []


def test_a_run_tells_of_it_before_its_first_round(tiny_scenario, quick):
    lines: list[str] = []
    scenario = tiny_scenario()
    server = replace(scenario.server, momentum=0.5)
    judge(foresee(open_run(replace(scenario, server=server))), False, lines.append)
    assert lines[0] == (
        "warning: server.momentum = 0.5 changes nothing: it is read only where "
        'server.kind = "momentum", "adam" or "yogi"'
    )
