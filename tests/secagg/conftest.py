"""A round that stops between any two messages, so that a test can play the attacker."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pfl_lm.secagg.config import DevicePolicy, RoundConfig
from pfl_lm.secagg.device import KeysAdvertised
from pfl_lm.secagg.keys import certify, public_key
from pfl_lm.secagg.parameters import Adversary, GraphParameters
from pfl_lm.secagg.server import CollectingKeys

AUTHORITY_SECRET = b"a" * 32


class Round:
    """Devices and a server; every message lies in a dictionary before it is delivered."""

    def __init__(self, config: RoundConfig, goal: int | None = None) -> None:
        self.config = config
        authority = public_key(AUTHORITY_SECRET) if config.signed else None
        self.policy = DevicePolicy(config.min_reports, 3, 2, config.adversary, authority)
        self.server = CollectingKeys(config, goal, authority)
        self.vectors = np.random.default_rng(config.round).integers(
            -50, 50, (config.cohort, config.dim)
        )
        self.devices = {i: self.join(i) for i in range(config.cohort)}

    def join(self, index: int) -> KeysAdvertised:
        identity = certify(AUTHORITY_SECRET, bytes([index]) * 32) if self.config.signed else None
        return KeysAdvertised.join(self.config, index, self.policy, identity)

    def deliver(self, silent=()) -> None:
        """Carry the devices' messages to the server and end its phase."""
        for index, state in self.devices.items():
            if index not in silent:
                self.server.receive(index, state.message)
        self.server, outgoing = self.server.close()
        self.to_devices = dict(outgoing)

    def advertise(self, silent=()) -> Round:
        self.deliver(silent)
        self.devices = {i: self.devices[i] for i in self.to_devices}
        return self

    def share(self, silent=()) -> Round:
        """Devices read ``to_devices`` (rosters) and deal; it then holds the inboxes."""
        self.devices = {i: self.devices[i].share_keys(m) for i, m in self.to_devices.items()}
        self.deliver(silent)
        return self

    def mask(self, silent=()) -> Round:
        """Devices read their inboxes and report; ``to_devices`` then holds survivor sets."""
        self.devices = {
            i: self.devices[i].mask_input(m, self.vectors[i]) for i, m in self.to_devices.items()
        }
        self.deliver(silent)
        return self

    def confirm(self, silent=()) -> Round:
        if self.config.signed:
            self.devices = {i: self.devices[i].confirm(m) for i, m in self.to_devices.items()}
            self.deliver(silent)
        return self

    def unmask(self, silent=()):
        """Devices answer, and the server opens the sum."""
        self.devices = {i: self.devices[i].unmask(m) for i, m in self.to_devices.items()}
        for index, state in self.devices.items():
            if index not in silent:
                self.server.receive(index, state.message)
        return self.server.close()

    def sum_of(self, survivors) -> np.ndarray:
        return self.vectors[sorted(survivors)].sum(axis=0)


def config_of(
    cohort: int = 5,
    neighbours: int | None = None,
    threshold: int | None = None,
    adversary: Adversary = Adversary.SEMI_HONEST,
    corrupt: int = 0,
    window: int = 0,
    **others,
) -> RoundConfig:
    """A small round: the complete graph and a bare majority unless told otherwise."""
    k = cohort - 1 if neighbours is None else neighbours
    holders = cohort if k == cohort - 1 else k
    graph = GraphParameters(k, threshold or holders // 2 + 1, corrupt, window)
    plain = RoundConfig(
        round=7,
        model=b"m" * 32,
        payload=b"p" * 32,
        dim=11,
        bits=20,
        cohort=cohort,
        min_reports=max(2, cohort // 2),
        graph=graph,
        adversary=adversary,
    )
    return replace(plain, **others)


@pytest.fixture(scope="session")
def make_config():
    return config_of


@pytest.fixture(scope="session")
def make_round():
    return lambda goal=None, **overrides: Round(config_of(**overrides), goal)


@pytest.fixture(params=list(Adversary), ids=lambda adversary: adversary.value)
def adversary(request) -> Adversary:
    return request.param
