"""What a stream of correlated noise costs: one Gaussian release, at noise ÷ sensitivity."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from pfl_lm.dp.correlated.mechanism import Correlated
from pfl_lm.dp.correlated.sensitivity import sensitivity
from pfl_lm.dp.events import RoundEvent
from pfl_lm.dp.mechanisms import MECHANISMS

_LEAST = 1e-90  # of a noise multiplier; less is none


def unsupported_stream(events: list[RoundEvent]) -> str | None:
    """Return why rounds of correlated noise cannot be accounted for, or None."""
    for event in events:
        correlated = isinstance(MECHANISMS.get(event.mechanism), Correlated)
        if correlated != (event.stream is not None):
            return f"mechanism {event.mechanism!r} needs a stream, and no other kind has one"
        if correlated and event.sampling != "rotation":
            return (
                f"noise that is correlated between rounds has no proof for sampling "
                f"{event.sampling!r}; state rotation"
            )
    streams = {replace(event, noise_multiplier=0.0) for event in events if event.stream is not None}
    alone = all(event.stream is not None for event in events)
    if streams and not (len(streams) == 1 and alone):
        return "a stream of correlated noise composes with no other noise, numbers or separation"
    return None


def repeated_round(counted: Counter[RoundEvent], listed: list[RoundEvent]) -> str | None:
    """Return why these are not rounds of one stream, each of them once, or None."""
    for event in counted:
        if event.stream is None:
            continue
        rounds = event.stream.rounds
        numbers = [other.round for other in listed]
        if len(set(numbers)) < len(numbers) or None in numbers:
            return "a round of a stream is on record twice, or without its number: see the ledger"
        if sum(counted.values()) > rounds or any(n is not None and n >= rounds for n in numbers):
            return f"the stream was planned for {rounds} rounds, and more are on record"
    return None


def as_one_release(streams: Mapping[RoundEvent, int]) -> Counter[RoundEvent]:
    """Return Gaussian releases that cost what a stream of correlated noise costs.

    The stream costs one release at multiplier z = noise ÷ sensitivity, and so do n releases at
    z·√n. As many are returned as the stream has rounds, because each of its rounds draws noise on
    the lattice (``lattice``). Some rounds of a stream cost no more than all of them, and with the
    least of their noise.

    Source: Denisov et al. 2022 (arXiv:2202.08312), Theorem 2.1.
    """
    event = min(streams, key=lambda member: member.noise_multiplier)
    assert event.stream is not None
    rounds = event.stream.rounds
    multiplier = event.noise_multiplier / stream_sensitivity(event) * math.sqrt(rounds)
    multiplier *= 1 - 2.0**-50  # so that float64's rounding errs towards less noise
    plain = RoundEvent(
        "gaussian", event.neighboring, "none", multiplier if multiplier > _LEAST else 0.0
    )
    return Counter({plain: rounds})


def stream_sensitivity(event: RoundEvent) -> float:
    """Return by how many clip norms one user moves all that a stream releases; 1 for a round."""
    if event.stream is None:
        return 1.0
    return sensitivity(event.stream, event.min_separation, event.max_participations)


def most_participations(event: RoundEvent) -> int:
    """Return the most rounds of a stream that one user may be in."""
    assert event.stream is not None
    separated = 1 + (event.stream.rounds - 1) // event.min_separation
    return min(separated, event.max_participations or separated)
