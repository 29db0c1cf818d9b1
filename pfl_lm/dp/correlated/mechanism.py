"""Noise that is correlated between rounds, as kinds of noise that a policy may name.

    kind                 C                                         the server keeps
    blt                  a sum of geometric sequences              1 to 4 buffers of all coordinates
    banded               Toeplitz with few diagonals               the last rounds' sums
    banded_inverse_root  C⁻¹ = the first coefficients of (1−x)^½   the last rounds' products
    tree                 dyadic intervals; a reference             a partial sum for each level

It keeps the same of what was released. Of banded noise it keeps a record of each round that a later
one looks back at, of the coordinates that travelled in it (``history``): each is a part of the
state, written once. The server adds the noise: it sees every sum without and must be trusted.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from typing import ClassVar

import numpy as np

from pfl_lm.dp.accounting.lattice import check_coordinates
from pfl_lm.dp.correlated import tree_stream
from pfl_lm.dp.correlated.buffers import Buffers
from pfl_lm.dp.correlated.history import History, Record
from pfl_lm.dp.correlated.sensitivity import TREE, sensitivity, strategy_of
from pfl_lm.dp.correlated.strategy import Strategy, StrategyKind, choose
from pfl_lm.dp.correlated.stream import Memory, Stream
from pfl_lm.dp.correlated.toeplitz import inverse
from pfl_lm.dp.events import MOST_STREAM_ROUNDS, RoundEvent, StreamPlan
from pfl_lm.dp.mechanism import Mechanism, Opened, Place
from pfl_lm.dp.sampler.arrays import Doubles, Updates
from pfl_lm.dp.secret_state import SecretState, join, name_of, rest

_SALT = 32  # bytes
_MOST_PAIRS = 4_000_000  # rounds times participations


def _salted(state: bytes, opened: Opened) -> bytes:
    """Return a state behind fresh random bytes.

    The ledger publishes the state's SHA-256. The state is computed from sums without noise, so
    that an attacker who knows all updates but one user's could try both cases. With 256 secret
    random bits in front, the digest tells nothing.
    """
    return opened.bits.octets(_SALT).tobytes() + state


def _restored(state: bytes, strategy: Strategy) -> Memory:
    """Return the memory that a state holds."""
    if not strategy.is_banded:
        return Buffers.from_bytes(state[_SALT:])
    parts = SecretState(state).parts.items()
    records = [Record.from_bytes(memoryview(part)[_SALT:], name) for name, part in parts]
    return History.from_bytes(rest(state)[_SALT:], records)


def _kept(memory: Memory, before: bytes, opened: Opened) -> bytes:
    """Return a memory as a state: a record that it took over from the state before stays a part."""
    content = _salted(memory.to_bytes(), opened)
    if isinstance(memory, Buffers):
        return content
    parts, old = dict[bytes, bytes](), SecretState(before).parts
    for record in memory.records:
        part = old.get(record.name) or _salted(record.to_bytes(), opened)
        parts[record.name or name_of(part)] = part
    return join(parts, content)


def _mean(noisy: Doubles, opened: Opened) -> Updates:
    """Return the mean in model units of a noisy sum at round 0's clip norm: float32[d]."""
    mean: Updates = (noisy * opened.clip_ratio / opened.divisor).astype(np.float32)
    return mean


def check_length(rounds: int, participations: int) -> None:
    """Raise ValueError for a stream whose numbers would take hours to find."""
    if rounds > MOST_STREAM_ROUNDS or rounds * participations > _MOST_PAIRS:
        raise ValueError(
            f"rounds = {rounds:,} with {participations:,} of them for one user: noise that is "
            f"correlated between rounds is planned for at most {MOST_STREAM_ROUNDS:,} rounds, and "
            f"{_MOST_PAIRS:,} rounds times participations; state fewer rounds, a larger "
            "min_separation, or noise that is not correlated"
        )


class Correlated(Mechanism):
    """A stream of noise over all rounds of a run.

    **Where the clip norm moves** (``dp.clipping``) the stream runs on x_t·C_0/C_t, x_t being the
    round's sum and C_t its clip norm. A user moves that by at most C_0 in every round, C_t follows
    from what was released before, and the proof of ``Stream.release`` is for sums that may depend
    on earlier releases: so the stream costs what it does at a fixed clip, and need not begin again.
    What is released is C_t/C_0 times the stream's, a function of it. Where C moves, noise cancels
    all but for the change: Σ C_t n_t = C_T S_T − Σ (C_{t+1} − C_t) S_t, S_t = n_0 + … + n_t.

    Attributes:
        plan: what follows from the policy; None: no policy was given yet.
        min_separation, participations: which rounds a user may be in, under that policy.
    """

    place: ClassVar[Place] = "server"
    stateful: ClassVar[bool] = True
    assumption: ClassVar[str] = (
        "the noise of all rounds together is one stream, correlated by the recorded numbers and "
        "accounted for as one Gaussian release: its state stays secret, serves no two sums, and is "
        "erased when the run is finished"
    )

    def __init__(
        self, plan: StreamPlan | None = None, min_separation: int = 1, participations: int = 1
    ) -> None:
        self.plan, self.min_separation = plan, min_separation
        self.participations = participations

    def for_rounds(self, rounds: int, min_separation: int, participations: int) -> Mechanism:
        plan = self.planned(rounds, min_separation, participations)
        return type(self)(plan, min_separation, participations)

    def planned(self, rounds: int, min_separation: int, participations: int) -> StreamPlan:
        """Return the stream of a run; its numbers follow from these three and nothing else.

        Raises:
            ValueError: more rounds, or participations in them, than a stream is planned for.
        """
        check_length(rounds, participations)
        kind: StrategyKind = self.name  # type: ignore[assignment]
        chosen = choose(kind, rounds, min_separation, participations)
        return StreamPlan(chosen.kind, rounds, chosen.weights, chosen.decays)

    def event(self, event: RoundEvent, dim: int, grid_steps: float, shares: int) -> RoundEvent:
        check_coordinates(dim)
        return replace(event, stream=self.plan)

    def mean(self, opened: Opened, state: bytes) -> tuple[Updates, bytes]:
        stream = self._stream()
        noisy, after = stream.release(
            _restored(state, stream.strategy) if state else stream.begin(opened.size),
            opened.in_model_units / opened.clip_ratio,
            round=opened.round,
            clip_norm=opened.sensitivity / opened.clip_ratio,
            noise_multiplier=opened.noise_multiplier,
            bits=opened.bits,
            places=opened.places,
        )
        return _mean(noisy, opened), _kept(after, state, opened)

    def drawn(self, separately: bool) -> str:
        return "by the server, on the sum, correlated between rounds"

    def spread(self, round: int) -> float:
        """Return the same for a coordinate that travels in every round."""
        assert self.plan is not None
        return _spreads(self.plan)[min(round, self.plan.rounds - 1)]

    def _stream(self) -> Stream:
        assert self.plan is not None, "a stream follows from a policy"
        worst = sensitivity(self.plan, self.min_separation, self.participations)
        own_time = self.participations == 1
        return Stream(strategy_of(self.plan), self.plan.rounds, worst, own_time)


@lru_cache(maxsize=8)
def _spreads(plan: StreamPlan) -> tuple[float, ...]:
    """Return the stddev of each round's noise for z = 1: row t of C⁻¹ holds c⁻¹_t … c⁻¹_0."""
    column = inverse(strategy_of(plan).coefficients(plan.rounds), plan.rounds)
    return tuple(np.sqrt(np.cumsum(column**2)).tolist())


class Blt(Correlated):
    """Buffered linear Toeplitz noise: near the optimum, with a few numbers a coordinate.

    Source: Dvijotham et al. 2024 (arXiv:2404.16706); McMahan, Xu, Zhang 2024 (arXiv:2408.08868).
    """

    name = "blt"
    label = "correlated (BLT) Gaussian"


class Banded(Correlated):
    """Banded Toeplitz noise, whose bands are narrower than the separation.

    Source: Choquette-Choo et al. 2023 (arXiv:2306.08153).
    """

    name = "banded"
    label = "correlated (banded) Gaussian"


class BandedInverseRoot(Correlated):
    """Noise by the first coefficients of the inverse square root.

    Source: Kalinin, McKenna, Upadhyay, Lampert 2025 (arXiv:2505.12128).
    """

    name = "banded_inverse_root"
    label = "correlated (banded inverse square root) Gaussian"


class Tree(Correlated):
    """Noise on dyadic intervals of rounds, without restart: the reference.

    Source: Kairouz et al. 2021 (arXiv:2103.00039).
    """

    name = TREE
    label = "tree-correlated Gaussian"

    def planned(self, rounds: int, min_separation: int, participations: int) -> StreamPlan:
        check_length(rounds, participations)
        return StreamPlan(TREE, rounds)

    def mean(self, opened: Opened, state: bytes) -> tuple[Updates, bytes]:
        assert self.plan is not None
        if opened.places is not None:
            raise ValueError(
                'noise.kind = "tree" needs a payload in which everything travels in every round; '
                'use "blt"'
            )
        begin = tree_stream.TreeState.begin(self.plan.rounds, len(opened.total))
        noisy, after = tree_stream.release(
            tree_stream.TreeState.from_bytes(state[_SALT:]) if state else begin,
            opened.in_model_units / opened.clip_ratio,
            round=opened.round,
            rounds=self.plan.rounds,
            sensitivity=sensitivity(self.plan, self.min_separation, self.participations),
            clip_norm=opened.sensitivity / opened.clip_ratio,
            noise_multiplier=opened.noise_multiplier,
            bits=opened.bits,
        )
        return _mean(noisy, opened), _salted(after.to_bytes(), opened)

    def spread(self, round: int) -> float:
        """Return the stddev of the step from one prefix sum to the next."""
        # Nodes of the prefix that are new, and those that went: bits of round + 1 and round.
        return math.sqrt(((round + 1) ^ round).bit_count())
