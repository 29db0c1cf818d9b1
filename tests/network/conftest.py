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
from pfl_lm.dp.encoding import decode, protect
from pfl_lm.dp.policy import Policy
from pfl_lm.network.device import Device
from pfl_lm.network.identity import DeviceKey, ServerKeys, enrol
from pfl_lm.network.rpc_client import RetryPolicy, RpcClient
from pfl_lm.network.server import Serving, serve
from pfl_lm.network.task_config import DeviceSetup
from pfl_lm.network.transport import Limits, channel_to
from pfl_lm.recipes import load
from pfl_lm.run.context import choose_payload
from pfl_lm.run.scenario import EvaluationConfig, PopulationConfig
from pfl_lm.run.setup import open_run
from pfl_lm.server.state import ServerState, close_round, open_round
from pfl_lm.text.population import windows

DEVICES = 6
# Where nobody is silent nothing waits; where a tenth is, only for the grace.
PATIENT = Limits(phase_seconds=60.0, training_seconds=60.0, grace_seconds=0.5, hold_seconds=2.0)
RESTLESS = RetryPolicy(
    first_seconds=0.02, most_seconds=0.2, give_up_seconds=300.0, call_seconds=60.0
)


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
    is_trial: bool = True

    def __post_init__(self) -> None:
        self.context = open_run(self.scenario)
        self.errors: list[BaseException] = []
        self.threads: list[threading.Thread] = []
        self.ledgers = self.folder.parent / "ledgers"

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def serving(self, **changes) -> Serving:
        serving = Serving(
            self.keys, self.address, self.limits, trial=self.is_trial, ledgers=self.ledgers
        )
        return replace(serving, **changes)

    def key(self, number: int) -> DeviceKey:
        return DeviceKey.read(self.keys.folder / "devices" / f"{number:05d}.json")

    def setup(self, number: int) -> DeviceSetup:
        policy = self.scenario.policy and load(Policy, self.scenario.policy)
        tokens = self.context.population.tokens("train", number)
        return DeviceSetup(self.context.tokenizer, policy, tokens, trial=True)

    def client(self, number: int) -> RpcClient:
        channel = channel_to(self.address, self.keys.certificate)
        digest = self.keys.server_certificate().digest
        return RpcClient(channel, self.key(number), digest, RESTLESS)

    def device(self, number: int, sending=lambda round, kind: None, kind=Device) -> Device:
        return kind(self.client(number), self.key(number), self.setup(number), sending)

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
        names = ("reached", "present", "revoked", "front_ends")
        changes = {name: options.pop(name) for name in names if name in options}
        return serve(self.scenario, self.folder, self.serving(**changes), watch, **options)

    def reference(self, survivors: list[list[int]]) -> dict[str, torch.Tensor]:
        """The model after rounds in which these devices' reports were summed."""
        context, scenario = self.context, self.scenario
        state = ServerState(0, context.start.parameters)
        for number, users in enumerate(survivors):
            broadcast = open_round(state, choose_payload(context, number))
            grid = context.privacy.grid(broadcast.payload.dim)
            total = np.zeros(grid.dim, np.int64)
            task = context.task(broadcast, state.parameters)
            for user in users:
                text = windows(
                    context.population.tokens("train", user), scenario.training.window, 65
                )
                updates, _ = train(task, [text], [user])
                bits = context.privacy.bits("device", number, user)
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
            "population": PopulationConfig("synthetic", users=devices, tokens_per_user=40),
            "rounds": 2,
            "cohort": devices,
            "reproducible": True,
            "adversary": "semi-honest",
            "evaluation": EvaluationConfig(0, users=2, final_users=2, tokens_per_user=30),
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
