"""Bytes that a device sends and receives in a round, from the real messages."""

from __future__ import annotations

from dataclasses import dataclass

from pfl_lm.secagg.config import RoundConfig
from pfl_lm.secagg.keys import CERTIFICATE_BYTES, KEY_BYTES, SIGNATURE_BYTES
from pfl_lm.secagg.messages import (
    AdvertiseKeys,
    Confirmation,
    Message,
    Roster,
    SealedShares,
    ShareInbox,
    ShareKeys,
    SurvivorSet,
    UnmaskAnswer,
    UnmaskRequest,
)
from pfl_lm.secagg.sharing import SHARE_BYTES
from pfl_lm.secagg.wire import FRAME_BYTES


@dataclass(frozen=True)
class Traffic:
    """Bytes of one device in one round, frames included, transport excluded.

    ``vector_bytes`` is the part of ``upload_bytes`` that is the masked vector itself.
    """

    upload_bytes: int
    download_bytes: int
    vector_bytes: int


def device_traffic(
    config: RoundConfig,
    members: int | None = None,
    dealers: int | None = None,
    surviving_dealers: int | None = None,
    reports: int | None = None,
) -> Traffic:
    """What a device that takes part to the end sends and receives.

    The messages are built, with placeholders of the right length for keys and shares, and
    measured; the vector's length is computed.

    Args:
        config: the round.
        members: devices that advertised keys; the cohort by default.
        dealers: of this device's share holders, those that shared keys; all by default.
        surviving_dealers: those of them that reported; all by default (it matters only to rounds
            with noise components).
        reports: reports in the sum; ``members`` by default (likewise).
    """
    members = config.cohort if members is None else members
    degree = min(config.graph.neighbours, members - 1)
    holders = members if degree == members - 1 else degree
    dealers = holders if dealers is None else dealers
    surviving = dealers if surviving_dealers is None else surviving_dealers
    reports = members if reports is None else reports
    up = [_advertised(config), _share_keys(config, holders)]
    up.append(_answer(config, dealers, surviving, reports))
    listed = members if config.signed else degree
    outcome = SurvivorSet(frozenset(), frozenset())
    down = [
        Roster(members, dict.fromkeys(range(listed), _advertised(config))),
        ShareInbox(dict.fromkeys(range(dealers), _sealed(config))),
    ]
    signatures = {}
    if config.signed:
        up.append(Confirmation(bytes(SIGNATURE_BYTES)))
        down.append(outcome)
        signatures = dict.fromkeys(range(config.quorum(members)), bytes(SIGNATURE_BYTES))
    down.append(UnmaskRequest(outcome, signatures))
    vector = config.ring.packed_bytes(config.dim)
    return Traffic(_measure(up, config) + FRAME_BYTES + vector, _measure(down, config), vector)


def _measure(messages: list[Message], config: RoundConfig) -> int:
    return sum(len(message.encode(config, 0)) for message in messages)


def _advertised(config: RoundConfig) -> AdvertiseKeys:
    keys = AdvertiseKeys(bytes(KEY_BYTES), bytes(KEY_BYTES))
    if not config.signed:
        return keys
    certificate, signature = bytes(CERTIFICATE_BYTES), bytes(SIGNATURE_BYTES)
    return AdvertiseKeys(keys.box_key, keys.mask_key, bytes(KEY_BYTES), certificate, signature)


def _sealed(config: RoundConfig) -> bytes:
    return bytes(SealedShares.bytes_in(config))


def _share_keys(config: RoundConfig, holders: int) -> ShareKeys:
    noise = bytes(KEY_BYTES) if config.noise_levels else b""
    return ShareKeys(bytes(KEY_BYTES), noise, dict.fromkeys(range(holders), _sealed(config)))


def _answer(config: RoundConfig, dealers: int, surviving: int, reports: int) -> UnmaskAnswer:
    shares = dict.fromkeys(range(dealers), bytes(SHARE_BYTES))
    if config.noise_level(reports) >= config.noise_levels:
        return UnmaskAnswer(shares, {})
    noise = dict.fromkeys(range(surviving), bytes(SHARE_BYTES))
    return UnmaskAnswer(shares, {}, bytes(KEY_BYTES), noise)
