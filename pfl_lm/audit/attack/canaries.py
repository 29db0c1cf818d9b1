"""Canaries: invented devices that send a vector of their own through the run's own rounds.

Half of them take part, by a fair coin each; the attacker sees what every round released, knows
every canary's vector, and guesses the coins. All other devices send nothing: the guarantee must
hold against an attacker who knows what they sent, so nothing is lost by leaving it out.

A simulation sums fewer reports than the deployment, with less noise; a canary is scaled down by
the same factor, so that it stands to the noise as a full clip does in the deployment.

Legend: m canaries, R rounds, S coordinates on which canaries live.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pfl_lm.audit.attack.scores import Scores
from pfl_lm.audit.mechanism.harness import probed_round, rounds_of
from pfl_lm.payload.layout import Payload, gather
from pfl_lm.run.context import RunContext, choose_payload
from pfl_lm.streams import stream

_MOST_COORDINATES = 1 << 14
_FEWEST_COORDINATES = 64


class TooFewCoordinates(ValueError):
    """A run whose rounds have no room for canaries; the message says how few coordinates."""


@dataclass(frozen=True)
class Canaries:
    """Who takes part, when, and with which vector.

    Attributes:
        first: number of the first of R rounds: the run's own, drawn at random where it has more.
        coins: bool[m], whether a canary takes part at all.
        invited: bool[R, m], in which rounds it is invited (takes part, if its coin says so).
        scheduled: bool[m], invited in one round that the attacker knows; the others are invited
            as the policy says, and the attacker does not know when.
        directions: float32[m, S], unit vectors of random signs.
        coordinates: int64[R, S], where in each round's payload these live.
    """

    first: int
    coins: np.ndarray
    invited: np.ndarray
    scheduled: np.ndarray
    directions: np.ndarray
    coordinates: np.ndarray

    @property
    def can_be_told_apart(self) -> bool:
        """Whether of each kind, scheduled and sampled, some take part and some do not."""
        kinds = (self.coins[self.scheduled], self.coins[~self.scheduled])
        return all(coins.any() and not coins.all() for coins in kinds)


@dataclass(frozen=True)
class Seen:
    """What the attacker measured, in units of a canary's own length.

    Attributes:
        responses: float64[R, m], each round's sum along each canary's direction: 1 plus noise
            where it took part, noise alone where it did not.
        norms: float64[R], length of each round's sum on the canaries' coordinates.
        final: float64[m], cosine between a canary's direction and what moved in the final model.
    """

    responses: np.ndarray
    norms: np.ndarray
    final: np.ndarray

    @property
    def cosines(self) -> np.ndarray:
        """Between every round's sum and every direction, float64[R, m]; 0 of an empty sum."""
        return self.responses / np.where(self.norms > 0, self.norms, np.inf)[:, None]


def place_canaries(context: RunContext, count: int, rounds: int, seed: int) -> Canaries:
    """Draw canaries for a run: fair coins, invitations, random directions.

    Args:
        count: of canaries of each kind, scheduled and sampled, at most; a round holds no more
            scheduled ones than half its cohort.

    Raises:
        TooFewCoordinates: canaries could not be told apart on those that travel in every round.
    """
    generator = stream(seed, "canaries")
    first = probed_round(context, rounds)
    payloads = [choose_payload(context, first + r) for r in range(rounds)]
    coordinates = _lasting(payloads)
    if coordinates.shape[1] < _FEWEST_COORDINATES:
        raise TooFewCoordinates(
            f"{coordinates.shape[1]} coordinates travel in every round; canaries need "
            f"{_FEWEST_COORDINATES} or more"
        )
    known = min(count, rounds * max(1, context.privacy.cohort // 2))
    once = generator.permutation(known) % rounds == np.arange(rounds)[:, None]
    invited = np.hstack([once, _invitations(context, count, rounds, generator)])
    total = len(invited[0])
    signs = generator.integers(0, 2, (total, coordinates.shape[1]), dtype=np.int8)
    directions = (2 * signs - 1).astype(np.float32) / np.float32(np.sqrt(coordinates.shape[1]))
    coins = generator.random(total) < 0.5
    return Canaries(first, coins, invited, np.arange(total) < known, directions, coordinates)


def _lasting(payloads: Sequence[Payload]) -> np.ndarray:
    """Return at most 16,384 places that hold the same coordinate every round: int64[R, S].

    Where fewer than 1,000 do (rows, directions, or layers that take turns), places hold another
    coordinate in each round, which is as good for a sum.
    """
    named = [_whole_segments(payload) for payload in payloads]
    lasting = [name for name in named[0] if all(name in other for other in named)]
    if sum(len(named[0][name]) for name in lasting) < 1000:
        least = min(payload.dim for payload in payloads)
        places = np.tile(np.arange(least), (len(payloads), 1))
    else:
        places = np.stack([np.concatenate([own[name] for name in lasting]) for own in named])
    step = max(1, places.shape[1] // _MOST_COORDINATES)
    return places[:, ::step][:, :_MOST_COORDINATES].astype(np.int64)


def _whole_segments(payload: Payload) -> dict[str, np.ndarray]:
    """Return the places of each parameter that travels whole; none where directions travel."""
    if payload.directions is not None:
        return {}
    return {
        s.name: np.arange(s.offset, s.offset + s.size) for s in payload.segments if s.rows is None
    }


def _invitations(
    context: RunContext, count: int, rounds: int, generator: np.random.Generator
) -> np.ndarray:
    """Draw who is invited when, as the policy says of its deployment: bool[R, ≤ count].

    Beside the scheduled canaries they fill at most the other half of a cohort: a round drops the
    reports beyond its cohort, and what is dropped cannot be attacked. A Poisson cohort has no
    such end.
    """
    policy, rule = context.privacy.policy, context.privacy.rule
    room = max(1, context.privacy.cohort - context.privacy.cohort // 2)
    if policy is not None and policy.participation.min_separation is not None:
        slots = min(policy.participation.min_separation, rounds)
        slot = generator.permutation(min(count, slots * room)) % slots
        return np.arange(rounds)[:, None] % policy.participation.min_separation == slot
    poisson = rule.kind == "poisson"
    own = rule.size_or_rate if poisson else rule.size_or_rate / rule.population
    invited = generator.random((rounds, count)) < (own if policy is None else policy.rate)
    return invited if poisson else invited & (invited.cumsum(axis=1) <= room)


def strength(context: RunContext) -> float:
    """Return a canary's length: a clip in the deployment, at the scale of the simulation."""
    policy = context.privacy.policy
    goal = context.privacy.cohort if policy is None else policy.report_goal
    return context.privacy.clip_norm * context.privacy.cohort / goal


def run_canaries(context: RunContext, canaries: Canaries, length: float) -> Seen:
    """Send the canaries through as many rounds of the run's own code as they were placed for."""
    rounds, count = canaries.invited.shape
    cohort = context.privacy.cohort

    def users_of(place: int) -> np.ndarray:
        present = np.flatnonzero(canaries.invited[place] & canaries.coins)
        fill = max(0, cohort - len(present))
        return np.concatenate([present, count + np.arange(fill)])

    def updates_of(place: int, users: Sequence[int], dim: int) -> np.ndarray:
        updates = np.zeros((len(users), dim), np.float32)
        for row, user in enumerate(users):
            if user < count:
                updates[row, canaries.coordinates[place]] = canaries.directions[user] * length
        return updates

    responses, norms = np.zeros((rounds, count)), np.zeros(rounds)
    with_state = rounds_of(context, canaries.first, rounds, users_of, updates_of)
    state = None
    for place, (opened, after) in enumerate(with_state):
        seen = opened.total[canaries.coordinates[place]]
        responses[place] = canaries.directions @ seen / length
        norms[place] = np.linalg.norm(seen) / length
        state = after
    assert state is not None
    moved = _moved(context, dict(state.parameters), canaries)
    norm = float(np.linalg.norm(moved))
    final = canaries.directions @ moved / norm if norm else np.zeros(count)
    return Seen(responses, norms, final)


def _moved(context: RunContext, parameters: dict[str, object], canaries: Canaries) -> np.ndarray:
    """Return what the final model differs by from the first, on the canaries' coordinates.

    Of directions, its part along each of those of the first round.
    """
    payload = choose_payload(context, canaries.first)
    first = gather(context.start.parameters, payload.whole)
    difference = gather(parameters, payload.whole).astype(np.float64) - first
    if payload.directions is not None:
        difference = payload.directions.project(difference)
    return difference[canaries.coordinates[0]]


def without_noise(context: RunContext) -> RunContext:
    """Return the same run context with the noise off: what the attack can find at best."""
    return replace(context, privacy=context.privacy.without_policy())


def server_scores(canaries: Canaries, seen: Seen) -> Scores:
    """Score scheduled canaries as one who knows in which round each would have taken part."""
    scores = (seen.responses * canaries.invited).sum(axis=0)
    return _told_apart(scores, canaries, canaries.scheduled)


def released_scores(
    canaries: Canaries, seen: Seen, rate: float, noise: np.ndarray | float
) -> Scores:
    """Score sampled canaries as one who sees every model but not who took part.

    The log-likelihood ratio Σ log(1 − q + q·exp((t − ½)/z²)) of a Poisson-sampled Gaussian.
    """
    spread = np.maximum(noise, 1e-2)  # without noise any large response decides
    power = np.clip((seen.responses - 0.5) / spread**2, -700, 700)
    ratios = power if rate >= 1 else np.log1p(rate * np.expm1(power))
    scores = ratios.sum(axis=0)
    return _told_apart(scores, canaries, ~canaries.scheduled)


def final_scores(canaries: Canaries, seen: Seen) -> Scores:
    """Score sampled canaries as one who sees the last model only."""
    return _told_apart(seen.final, canaries, ~canaries.scheduled)


def _told_apart(scores: np.ndarray, canaries: Canaries, kind: np.ndarray) -> Scores:
    return Scores(scores[kind & canaries.coins], scores[kind & ~canaries.coins])
