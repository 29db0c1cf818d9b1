"""Between the JSON of vectors and the objects of the protocol."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pfl_lm.secagg.config import DevicePolicy, RoundConfig
from pfl_lm.secagg.parameters import Adversary, GraphParameters

_GRAPH = ("neighbours", "threshold", "corrupt", "window_survivors")
_PLAIN = ("round", "dim", "bits", "cohort", "min_reports", "noise_levels", "noise_step")


def bytes_of(inputs: Mapping[str, Any], *names: str) -> tuple[bytes, ...]:
    """Return the bytes of hexadecimal fields."""
    return tuple(bytes.fromhex(inputs[name]) for name in names)


def hexes(values: Iterable[bytes]) -> list[str]:
    """Write bytes as hexadecimal."""
    return [value.hex() for value in values]


def indexed(records: Mapping[str, str]) -> dict[int, bytes]:
    """Read {"index": hexadecimal}."""
    return {int(index): bytes.fromhex(value) for index, value in records.items()}


def indexed_hexes(records: Mapping[int, bytes]) -> dict[str, str]:
    """Write {"index": hexadecimal}."""
    return {str(index): bytes(value).hex() for index, value in records.items()}


def config_of(plain: Mapping[str, Any]) -> RoundConfig:
    """Read a round's configuration.

    Raises:
        ValueError: numbers that no round may have.
    """
    return RoundConfig(
        model=bytes.fromhex(plain["model"]),
        payload=bytes.fromhex(plain["payload"]),
        graph=GraphParameters(**{name: plain[name] for name in _GRAPH}),
        adversary=Adversary(plain["adversary"]),
        **{name: plain[name] for name in _PLAIN},
    )


def plain_config(config: RoundConfig) -> dict[str, Any]:
    """Write what ``config_of`` reads."""
    return {
        "model": config.model.hex(),
        "payload": config.payload.hex(),
        "adversary": config.adversary.value,
        **{name: getattr(config.graph, name) for name in _GRAPH},
        **{name: getattr(config, name) for name in _PLAIN},
    }


def policy_of(plain: Mapping[str, Any]) -> DevicePolicy:
    """Read what a device insists on; its clock stands at ``now``."""
    authority = plain["authority"]
    return DevicePolicy(
        plain["least_reports"],
        plain["least_cohort"],
        plain["least_neighbours"],
        Adversary(plain["adversary"]),
        bytes.fromhex(authority) if authority else None,
        lambda: float(plain["now"]),
    )
