"""Messages of secure aggregation: read by either side, in the state in which they come.

Bodies are mutated and framed again with a sound checksum: it stops no attacker.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

from pfl_lm.secagg.errors import SecaggError
from pfl_lm.secagg.parameters import Adversary
from pfl_lm.secagg.wire import SERVER, frame
from tests.fuzz.targets import Target
from tests.secagg.conftest import Round, config_of

_BODY = slice(52, -16)


def targets() -> Iterator[Target]:
    """Yield a target for each message of a signed and of an unsigned round with noise."""
    for adversary in Adversary:
        lab = Round(config_of(cohort=6, adversary=adversary, noise_levels=3, min_reports=3))
        yield from _of_round(lab, adversary.value)


def _of_round(lab: Round, name: str) -> Iterator[Target]:
    yield _to_server(lab, f"{name} keys")
    lab.advertise()
    yield _to_device(lab, f"{name} roster", lambda state, message: state.share_keys(message))
    lab.devices = {i: lab.devices[i].share_keys(m) for i, m in lab.to_devices.items()}
    yield _to_server(lab, f"{name} shares")
    lab.deliver()
    vector = lab.vectors[0]
    yield _to_device(lab, f"{name} inbox", lambda state, message: state.mask_input(message, vector))
    lab.devices = {
        i: lab.devices[i].mask_input(m, lab.vectors[i]) for i, m in lab.to_devices.items()
    }
    yield _to_server(lab, f"{name} input")
    lab.deliver(silent={5})
    del lab.devices[5]
    if lab.config.signed:
        yield _to_device(lab, f"{name} survivors", lambda state, message: state.confirm(message))
        lab.confirm()
    yield _to_device(lab, f"{name} request", lambda state, message: state.unmask(message))
    lab.devices = {i: lab.devices[i].unmask(m) for i, m in lab.to_devices.items()}
    yield _to_server(lab, f"{name} answer")


def _to_server(lab: Round, name: str) -> Target:
    """A device's message, to the phase that awaits it and then, if it counts, on to its end."""
    kind = lab.devices[0].message[5]
    phase = copy.deepcopy(lab.server)
    others = {i: state.message for i, state in lab.devices.items() if i}

    def attempt(body: bytes) -> None:
        server = copy.deepcopy(phase)
        for index, message in others.items():
            server.receive(index, message)
        server.receive(0, frame(kind, 0, lab.config.context, body))
        server.close()

    return Target(name, [lab.devices[0].message[_BODY]], attempt, (SecaggError,))


def _to_device(lab: Round, name: str, answer: Callable[[Any, bytes], object]) -> Target:
    kind, state = lab.to_devices[0][5], copy.copy(lab.devices[0])

    def attempt(body: bytes) -> None:
        answer(copy.copy(state), frame(kind, SERVER, lab.config.context, body))

    return Target(name, [lab.to_devices[0][_BODY]], attempt, (SecaggError,))
