"""Whole runs with devices in Node beside devices in Python: the model is the simulation's."""

from __future__ import annotations

import json

import numpy as np

import pfl_lm.run.simulate as simulation
from pfl_lm.devices.training import train
from pfl_lm.dp.guarantee import guarantee
from pfl_lm.dp.policy import Policy
from pfl_lm.models.file import load_model
from pfl_lm.network.participation_record import ParticipationRecord
from pfl_lm.network.task_config import DeviceSetup, served
from pfl_lm.network.web_task import web_task
from pfl_lm.payload.plan import PayloadPlan
from pfl_lm.recipes import load
from pfl_lm.run.context import choose_payload, text_of
from pfl_lm.run.setup import open_run
from pfl_lm.server.state import ServerState, open_round
from tests.network.web.conftest import needs_node

pytestmark = needs_node
IN_NODE = (1, 4)


def updates_of(run, states, user: int) -> list[np.ndarray]:
    """What the simulator's device would send in each round, before it is clipped."""
    updates = []
    for number, parameters in enumerate(states):
        broadcast = open_round(ServerState(number, parameters), choose_payload(run.context, number))
        task = run.context.task(broadcast, parameters)
        own, _ = train(task, [text_of(run.context, user, number)], [user])
        updates.append(own[0])
    return updates


def test_the_model_is_the_simulations_to_the_byte(
    web_trial, new_watcher, tmp_path, monkeypatch, same_model
):
    """Two of six devices run in Node over HTTP, with the updates that Python would have trained.

    Some rows travel, so that devices must draw them, and catch up on what moved meanwhile.
    """
    run = web_trial(rounds=2, adversary="active", payload=PayloadPlan(rows=100, draw="unigram"))
    monkeypatch.setattr(simulation, "devices_at_once", lambda *arguments: 1)
    simulated = simulation.simulate(run.scenario, tmp_path / "simulated", new_watcher())
    states = [run.context.start.parameters, run.reference([list(range(6))])]
    ended = {}
    for user in IN_NODE:
        updates = updates_of(run, states, user)
        run.start(lambda user=user, u=updates: ended.update({user: run.node(user, u)}))
    run.start_devices([user for user in range(6) if user not in IN_NODE])
    watcher = new_watcher()
    folder = run.serve(watcher)
    run.join()
    assert ended == {user: {"rounds": 2} for user in IN_NODE}
    assert [entry["reports"] for entry in watcher.rounds] == [6, 6]
    found, expected = (load_model(f.model_path).parameters for f in (folder, simulated))
    assert same_model(found, expected)


FULL = {
    "epsilon": "8.0",
    "delta": "1e-3",
    "population": "6",
    "report_goal": "6",
    "rounds": "2",
    "participation": '{ kind = "rotation", min_separation = 1 }',
    "noise": '{ at = "device", kind = "skellam", tolerated_dropout = 0.4 }',
}
STRONG = {"reproducible": False, "secure_aggregation": "protocol", "adversary": "active"}


def test_at_full_strength_each_round_stands_in_the_record(
    web_trial, new_watcher, policy_file, tmp_path
):
    """The noise is the devices' own, and the record what Python's devices write."""
    path = policy_file(**FULL)
    run = web_trial(policy=path, **STRONG)
    run.is_trial = False
    policy, ended = load(Policy, path), {}

    def setup(number: int) -> DeviceSetup:
        record = ParticipationRecord(tmp_path / f"{number}.record", first_install=True)
        tokens = run.context.population.tokens("train", number)
        return DeviceSetup(run.context.tokenizer, policy, tokens, record)

    run.setup = setup
    zeros = [np.zeros(choose_payload(run.context, 0).dim, np.float32)] * 2
    for user in IN_NODE:
        kept = {"record": str(tmp_path / f"{user}.json"), "first_install": True}
        run.start(lambda user=user, k=kept: ended.update({user: run.node(user, zeros, **k)}))
    run.start_devices([0, 2, 3, 5])
    watcher = new_watcher()
    run.serve(watcher)
    run.join()
    assert ended == {user: {"rounds": 2} for user in IN_NODE}
    assert [entry["reports"] for entry in watcher.rounds] == [6, 6]
    record = json.loads((tmp_path / "1.json").read_text())
    shown = web_task(served(open_run(run.scenario), 6), False)["noise_multiplier"]
    assert shown == guarantee(policy).noise_multiplier  # with the tolerated dropout, not without
    python = ParticipationRecord(tmp_path / "0.record").participations()
    names = [name for name in record["participations"][0] if name != "time"]
    assert [[entry[name] for name in names] for entry in record["participations"]] == [
        [getattr(entry, name) for name in names] for entry in python
    ]
