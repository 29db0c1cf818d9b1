"""Whole runs with devices in Node beside devices in Python: the model is the simulation's."""

from __future__ import annotations

import numpy as np
import pytest

import pfl_lm.run.simulate as simulation
from pfl_lm.devices.training import train
from pfl_lm.models.file import load_model
from pfl_lm.run.setup import choose_payload, text_of
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


@pytest.mark.parametrize("adversary", ["semi-honest", "active"])
def test_the_model_is_the_simulations_to_the_byte(
    web_trial, new_watcher, tmp_path, monkeypatch, same_model, adversary
):
    """Two of six devices run in Node over HTTP, with the updates that Python would have trained."""
    run = web_trial(rounds=2, adversary=adversary)
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
