"""A server in a thread, devices in threads, and everything short."""

from __future__ import annotations

import socket
import threading
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("grpc_tools", reason="needs gRPC: pip install pfl-lm[network]")

from pfl_lm.devices.training import train
from pfl_lm.dp.mechanisms import decode, protect
from pfl_lm.language.population import windows
from pfl_lm.network.caller import Caller, Patience
from pfl_lm.network.device import Device
from pfl_lm.network.identity import DeviceKey, ServerKeys, enrol
from pfl_lm.network.server import Serving, serve
from pfl_lm.network.terms import Own
from pfl_lm.network.transport import Limits, channel_to
from pfl_lm.recipes import load_policy
from pfl_lm.scenario import EvaluationChoice, PopulationChoice
from pfl_lm.server.state import ServerState, close_round, open_round
from pfl_lm.world import choose_payload, open_world

DEVICES = 6
# Where nobody is silent nothing waits; where a tenth is, only for the grace.
PATIENT = Limits(phase_seconds=60.0, training_seconds=60.0, grace_seconds=0.5, hold_seconds=2.0)
RESTLESS = Patience(first_seconds=0.02, most_seconds=0.2, give_up_seconds=300.0, call_seconds=60.0)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class Trial:
    """One run over the network; threads play its server and devices."""

    scenario: object
    folder: Path
    keys: ServerKeys
    limits: Limits = PATIENT
    port: int = field(default_factory=free_port)

    def __post_init__(self) -> None:
        self.world = open_world(self.scenario)
        self.errors: list[BaseException] = []
        self.threads: list[threading.Thread] = []

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def serving(self, **changes) -> Serving:
        return replace(Serving(self.keys, self.address, self.limits), **changes)

    def key(self, number: int) -> DeviceKey:
        return DeviceKey.read(self.keys.folder / "devices" / f"{number:05d}.json")

    def own(self, number: int) -> Own:
        policy = self.scenario.policy and load_policy(self.scenario.policy)
        tokens = self.world.population.tokens("train", number)
        return Own(self.world.tokenizer, policy, tokens, trial=True)

    def caller(self, number: int) -> Caller:
        return Caller(channel_to(self.address, self.keys.certificate), self.key(number), RESTLESS)

    def device(self, number: int, sending=lambda round, kind: None, kind=Device) -> Device:
        return kind(self.caller(number), self.key(number), self.own(number), sending)

    def start(self, work, *arguments) -> threading.Thread:
        def guarded() -> None:
            try:
                work(*arguments)
            except BaseException as error:
                self.errors.append(error)

        thread = threading.Thread(target=guarded, daemon=True)
        self.threads.append(thread)
        thread.start()
        return thread

    def start_devices(self, numbers=range(DEVICES), sending=lambda round, kind: None) -> None:
        for number in numbers:
            self.start(lambda number=number: self.device(number, sending).run())

    def serve(self, watch, **options):
        """Run the server to its end, in this thread."""
        changes = {name: options.pop(name) for name in ("reached", "present") if name in options}
        return serve(self.scenario, self.folder, self.serving(**changes), watch, **options)

    def reference(self, survivors: list[list[int]]) -> dict[str, torch.Tensor]:
        """The model after rounds in which these devices' reports were summed."""
        world, scenario = self.world, self.scenario
        state = ServerState(0, world.start.parameters)
        for number, users in enumerate(survivors):
            broadcast = open_round(state, choose_payload(world, number))
            grid = world.protection.grid(broadcast.payload.dim)
            total = np.zeros(grid.dim, np.int64)
            task = world.task(broadcast, state.parameters)
            for user in users:
                text = windows(world.population.tokens("train", user), scenario.training.window, 65)
                updates, _ = train(task, [text], [user])
                bits = world.protection.bits("device", number, user)
                total += protect(updates, grid, None, bits)[0][0]
            mean = decode(total, grid, scenario.cohort)
            state = close_round(state, broadcast, mean, scenario.server)
        return dict(state.parameters)

    def join(self, *expected: type[BaseException]) -> None:
        """Wait for the devices; they end well, or in an expected way."""
        for thread in self.threads:
            thread.join(180)
            assert not thread.is_alive()
        assert all(isinstance(error, expected) for error in self.errors), self.errors


@pytest.fixture(scope="session")
def same_model():
    """A function that tells whether two models are the same to the byte."""

    def same(left, right) -> bool:
        return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)

    return same


@pytest.fixture(scope="session")
def keys_of(tmp_path_factory):
    """A function that returns the keys of so many devices."""

    @cache
    def keys(devices: int) -> ServerKeys:
        folder = tmp_path_factory.mktemp("keys") / "keys"
        enrol(folder, devices)
        return ServerKeys(folder)

    return keys


@pytest.fixture(scope="session")
def small(tiny_scenario):
    """A function that returns two rounds to which all devices are invited; repeatable."""

    def scenario(devices: int = DEVICES, **changes):
        fields = {
            "population": PopulationChoice("synthetic", users=devices, tokens_per_user=40),
            "rounds": 2,
            "cohort": devices,
            "reproducible": True,
            "evaluation": EvaluationChoice(0, users=2, final_users=2, tokens_per_user=30),
        }
        return tiny_scenario(**{**fields, **changes})

    return scenario


@pytest.fixture(scope="module")
def trial(small, keys_of, tmp_path_factory, quick):
    """A function that returns a trial; its arguments replace fields of the scenario."""

    def build(devices: int = DEVICES, limits: Limits = PATIENT, **changes) -> Trial:
        folder = tmp_path_factory.mktemp("served") / "run"
        return Trial(small(devices, **changes), folder, keys_of(devices), limits)

    return build
