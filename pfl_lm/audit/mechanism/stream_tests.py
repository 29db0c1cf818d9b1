"""Tests of noise that is correlated between rounds: its covariance, and the rounds of each user.

Legend: T rounds in a row, d coordinates that travel in all of them, n rounds of the run.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from pfl_lm.audit.accounting.streams import (
    coefficients,
    inner_products,
    noise_covariance,
    sensitivity,
    toeplitz,
)
from pfl_lm.audit.findings import Finding
from pfl_lm.audit.mechanism.harness import (
    Opened,
    ProbeRecorder,
    Updates,
    ends_of,
    lengthened,
    places,
    probed_round,
    zeros,
)
from pfl_lm.run import availability
from pfl_lm.run.context import RunContext
from pfl_lm.run.folder import RunFolder
from pfl_lm.run.noise_state import NoiseStates
from pfl_lm.run.round import Release
from pfl_lm.run.simulate import run_round
from pfl_lm.server.state import ServerState

_CORRELATES = "noise correlates as stated"
_ONCE = "a sum counts in its own round alone"
_HOME = "coordinates that stay at home keep their time"
_ROUNDS = 6
_DEVIATIONS = 5.6  # two-sided chance 2e-8, for each of 21 entries of a covariance
_LIKELIER = math.log(1e6)  # times
_FEWEST = 200  # coordinates from which a covariance is estimated
_MOST_ROUNDS = 3_000  # of a run whose users' patterns are replayed one by one


def stream_findings(context: RunContext, stated: Mapping[str, Any] | None) -> list[Finding]:
    """Test a stream of noise and who took part in its rounds; for rotation, the rounds alone.

    Args:
        stated: the stream's numbers as the run's manifest has them; None: those of the code.
    """
    policy, follows = context.privacy.policy, context.privacy.guarantee
    if policy is None or follows is None or policy.participation.kind != "rotation":
        return []
    if follows.stream is None:
        return [separation(context)]
    stream = dict(stated or asdict(follows.stream))
    return [
        separation(context),
        *silent_rounds(context, stream),
        own_rounds(context, stream),
        patterns(context, stream),
    ]


def silent_rounds(context: RunContext, stream: Mapping[str, Any]) -> list[Finding]:
    """Test the noise of rounds in a row in which devices send nothing.

    Half way the state goes through the disk, as where a run is resumed.
    """
    count = min(_ROUNDS, context.scenario.rounds)
    if count < 2:
        text = "One round correlates with nothing."
        return [Finding(_CORRELATES, None, text), Finding(_HOME, None, text)]
    first = probed_round(context, count)
    opened = _rounds_in_a_row(context, first, [zeros] * count)
    return [covariance(context, stream, opened), at_home(context, stream, opened)]


def covariance(context: RunContext, stream: Mapping[str, Any], opened: Sequence[Opened]) -> Finding:
    """Hold the noise of coordinates that always travel against the stated covariance."""
    name, first, count = _CORRELATES, int(opened[0].recorded["round"]), len(opened)
    noise = _common(opened)
    dim = noise.shape[1]
    if dim < _FEWEST:
        return Finding(name, None, f"Only {dim} coordinates travel in {count} rounds in a row.")
    unit = context.privacy.sum_multiplier
    expected = noise_covariance(stream, first, count)
    measured = noise @ noise.T / dim / unit**2
    spread = np.sqrt((expected**2 + np.outer(np.diag(expected), np.diag(expected))) / dim)
    # Rounding to the grid lengthens an update, and the server's noise with it.
    scale = lengthened(context, first) ** 2
    off = np.abs(measured / scale - expected) / spread
    i, j = np.unravel_index(int(np.argmax(off)), off.shape)
    about = (
        f"of rounds {first + int(i)} and {first + int(j)} is {measured[i, j] / scale:.4f}, stated "
        f"{expected[i, j]:.4f} ± {spread[i, j]:.4f} ({dim:,} coordinates, {count} rounds)"
    )
    if off.max() > _DEVIATIONS:
        return Finding(name, False, f"The covariance {about}: this is another stream of noise.")
    return Finding(name, True, f"The covariance that is farthest off, {about}.")


def at_home(context: RunContext, stream: Mapping[str, Any], opened: Sequence[Opened]) -> Finding:
    """Ask in which time the noise of coordinates was correlated that stayed at home in some rounds.

    Of a coordinate with releases in the rounds P the noise is M⁻¹z. Where users come again, M must
    be the rows and columns P of C: a stream that counts a coordinate's own releases there brings a
    user's rounds closer together than ε allows. Where nobody does, M is the first |P| of both. All
    of these have determinant 1, so the likelihood ratio of the other time to the right one is
    exp((|Mz|² − |M′z|²)/2), and above 10⁶ once in a million right streams (Markov's inequality).
    """
    policy = context.privacy.policy
    assert policy is not None
    noise = _where_travelling(opened)
    noise /= context.privacy.sum_multiplier * lengthened(context, int(opened[0].recorded["round"]))
    travels = np.isfinite(noise)
    some = (travels.sum(axis=0) >= 2) & ~travels.all(axis=0)
    if not some.any():
        return Finding(_HOME, None, "No coordinate stays at home in some rounds alone.")
    matrix = toeplitz(coefficients(stream)[: len(opened)])
    in_rounds = in_releases = 0.0  # |Mz|² over all coordinates
    for pattern in np.unique(travels[:, some], axis=1).T:
        rounds, counted = np.flatnonzero(pattern), np.arange(int(pattern.sum()))
        same = noise[np.ix_(rounds, (travels == pattern[:, None]).all(axis=0))]
        in_rounds += float(((matrix[np.ix_(rounds, rounds)] @ same) ** 2).sum())
        in_releases += float(((matrix[np.ix_(counted, counted)] @ same) ** 2).sum())
    likelier = (in_rounds - in_releases) / 2  # logarithm: by how much own releases are
    right, other = "rounds", "their own releases"
    if policy.participations == 1:
        likelier, right, other = -likelier, other, right
    text = (
        f"{np.count_nonzero(some):,} coordinates that stayed at home in some of {len(opened)} "
        "rounds count"
    )
    if likelier > _LIKELIER:
        text += f" {other}, not {right}: that is e^{likelier:.0f} times likelier."
        return Finding(_HOME, False, text)
    return Finding(
        _HOME, True, f"{text} {right}: the other time is e^{likelier:.0f} times as likely."
    )


def own_rounds(context: RunContext, stream: Mapping[str, Any]) -> Finding:
    """Let devices send one update all together, then nothing; later rounds must not show it.

    A stream releases C⁻¹(Cx + z) = x + C⁻¹z. Where a round remembers its sum otherwise than what it
    released, a user moves the stream by another C than the stated one, and later rounds show what
    the two differ by. Silent devices would not tell.
    """
    count = min(_ROUNDS, context.scenario.rounds)
    if count < 2:
        return Finding(_ONCE, None, "No round follows the first.")
    first = probed_round(context, count)
    sent = [_alike(context), *[zeros] * (count - 1)]
    shared = _common(_rounds_in_a_row(context, first, sent))[1:]
    dim, sum_norm = shared.shape[1], len(places(context))
    if not dim:
        return Finding(_ONCE, None, f"No coordinate travels in {count} rounds in a row.")
    variances = np.diag(noise_covariance(stream, first, count))[1:]
    deviations = context.privacy.sum_multiplier * lengthened(context, first) * np.sqrt(variances)
    shown = shared.sum(axis=1) / math.sqrt(dim)  # along the update, in clip norms
    place = int(np.argmax(np.abs(shown) / deviations))
    text = (
        f"After {sum_norm} reports along one direction in round {first}, round "
        f"{first + 1 + place} released {shown[place]:.4f} ± {deviations[place]:.4f} clip norms "
        "along it"
    )
    if abs(shown[place]) > _DEVIATIONS * deviations[place]:
        return Finding(_ONCE, False, f"{text}: the stream remembers another sum than it released.")
    return Finding(_ONCE, True, f"{text}, the most of {count - 1} rounds of silence.")


def _alike(context: RunContext) -> Updates:
    """Return updates that are all the same: of the clip norm, equal in every coordinate."""
    norm = context.privacy.clip_norm

    def updates(users: Sequence[int], dim: int) -> np.ndarray:
        return np.full((len(users), dim), norm / math.sqrt(dim), np.float32)

    return updates


class _StateRecorder(ProbeRecorder):
    """Makes the state of the noise durable, as a run does."""

    def __init__(self, states: NoiseStates) -> None:
        super().__init__()
        self._states = states

    def keep(self, round: int, released: Release) -> None:
        super().keep(round, released)
        self._states.save(round + 1, released.noise_state)


def _rounds_in_a_row(context: RunContext, first: int, sent: Sequence[Updates]) -> list[Opened]:
    """Run rounds whose devices send these updates; half way the state is read from the disk."""
    opened: list[Opened] = []
    state = ServerState(first, context.start.parameters)
    with tempfile.TemporaryDirectory() as folder:
        states = NoiseStates(RunFolder(Path(folder)))
        for place, updates in enumerate(sent):
            if place == len(sent) // 2:
                kept = states.before(state.round, [one.recorded for one in opened])
                state = replace(state, noise_state=kept)
            recorder = _StateRecorder(states)
            state, _ = run_round(context, state, recorder, ends=ends_of(places(context), updates))
            opened.append(recorder.opened(context))
    return opened


def _where_travelling(opened: Sequence[Opened]) -> np.ndarray:
    """Return the noise of all coordinates that ever travel: float64[T, D]; nan at home."""
    noise = np.full((len(opened), opened[0].payload.reach), np.nan)
    for row, one in zip(noise, opened, strict=True):
        row[slice(None) if one.payload.places is None else one.payload.places] = (
            one.total / one.unit
        )
    return noise


def _common(opened: Sequence[Opened]) -> np.ndarray:
    """Return the noise of the coordinates that travel in every round: float64[T, d], in units.

    Where the clip norm moves, a stream correlates in units of each round's.
    """
    where = [
        np.arange(one.total.size) if one.payload.places is None else one.payload.places
        for one in opened
    ]
    shared = where[0]
    for other in where[1:]:
        shared = np.intersect1d(shared, other)
    rows = [
        one.total[np.searchsorted(own, shared)] / one.unit
        for one, own in zip(opened, where, strict=True)
    ]
    return np.array(rows)


def separation(context: RunContext) -> Finding:
    """Replay who is invited, and look for a user whose rounds lie closer than the policy says.

    In a simulation of too few users: closer than these allow.
    """
    name, policy = "users keep their separation", context.privacy.policy
    assert policy is not None
    least = min(policy.least_separation, context.privacy.rule.min_separation)
    rounds, users = _participations(context)
    same = users[1:] == users[:-1]
    gaps = (rounds[1:] - rounds[:-1])[same]
    close = int((gaps < least).sum())
    if close:
        text = (
            f"{close} times a user was invited again after {int(gaps.min())} rounds, where "
            f"{least} is the least: ε counts fewer participations than there were."
        )
        return Finding(name, False, text)
    text = (
        f"In {context.scenario.rounds:,} rounds nobody was invited again before {least} rounds "
        "had passed"
    )
    if least < policy.least_separation:
        text += f", all that so few users allow; the policy's {policy.least_separation} cannot be "
        return Finding(name, None, text + "tested.")
    return Finding(name, True, text + ".")


def _participations(context: RunContext) -> tuple[np.ndarray, np.ndarray]:
    """Return all (round, user) pairs, by user and round: int64[m], int64[m]."""
    rule, seed = context.privacy.rule, context.scenario.seed
    cohorts = [availability.rules.cohort(rule, seed, r) for r in range(context.scenario.rounds)]
    users = np.concatenate(cohorts)
    rounds = np.repeat(np.arange(len(cohorts)), [len(cohort) for cohort in cohorts])
    order = np.lexsort((rounds, users))
    return rounds[order], users[order]


def patterns(context: RunContext, stream: Mapping[str, Any]) -> Finding:
    """Compute how far each user's own rounds move the stream, against the policy's sensitivity."""
    name, policy = "nobody moves the stream further than stated", context.privacy.policy
    assert policy is not None
    if stream["rounds"] > _MOST_ROUNDS:
        text = f"More than {_MOST_ROUNDS:,} rounds: users' patterns were not replayed one by one."
        return Finding(name, None, text)
    apart = policy.participation.min_separation or 1
    most = sensitivity(stream, apart, policy.participations)
    rounds, users = _participations(context)
    furthest = _furthest(inner_products(stream), rounds, users)
    right = furthest <= most * (1 + 1e-9)
    text = (
        f"By the rounds that each of {len(np.unique(users)):,} users was invited to, one moves the "
        f"stream by at most {furthest:.4f} clip norms; {most:.4f} follow from the policy"
    )
    if not right and context.privacy.rule.min_separation < policy.least_separation:
        return Finding(name, None, f"{text}: so few users come again sooner than the policy's.")
    text += "." if right else ": somebody took part more often than is accounted for."
    return Finding(name, bool(right), text)


def _furthest(gram: np.ndarray, rounds: np.ndarray, users: np.ndarray) -> float:
    """Return the largest ‖Σ C[:, r]‖ over the users' rounds r, sorted by user; gram is CᵀC."""
    _, owner = np.unique(users, return_inverse=True)
    squares = np.bincount(owner, gram[rounds, rounds])
    for lag in range(1, len(rounds)):
        pairs = np.flatnonzero(users[lag:] == users[:-lag])
        if not len(pairs):
            break
        inner = gram[rounds[pairs], rounds[pairs + lag]]
        squares += 2 * np.bincount(owner[pairs], inner, minlength=len(squares))
    return math.sqrt(float(squares.max()))
