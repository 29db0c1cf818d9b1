"""One round of the run's own code with chosen updates: what an attacker in the lab would do.

``simulate.run_round`` runs as it is, doctored or not; only its ends are injected: who is invited,
and what the devices computed from their text. Everything else is the code under audit: clip,
rounding, noise, secure sum, decoding, the ledger's entry, the step of the model.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import numpy as np

from pfl_lm.devices.task import Task
from pfl_lm.devices.trace import Trace
from pfl_lm.dp.grid import Grid
from pfl_lm.dp.mechanisms import MECHANISMS, Mechanism
from pfl_lm.dp.noise import NoiseShare
from pfl_lm.payload.layout import Payload
from pfl_lm.run.availability import Cohort
from pfl_lm.run.context import RunContext, choose_payload
from pfl_lm.run.deployment import Deployment
from pfl_lm.run.privacy import RunPrivacy
from pfl_lm.run.recorder import RoundRecorder
from pfl_lm.run.round import Release, protect_updates
from pfl_lm.run.simulate import Ends, run_round, train_cohort
from pfl_lm.secagg.config import LEAST_COHORT
from pfl_lm.secagg.noise import NoisePlan
from pfl_lm.server.state import Broadcast, ServerState, open_round

Updates = Callable[[Sequence[int], int], np.ndarray]
"""(users, d) → float32[K, d]: what each device's training would have returned."""


@dataclass(frozen=True)
class Opened:
    """What a probed round released.

    Attributes:
        total: float64[d], the mean times its divisor: the noisy sum, in model units.
        recorded: the ledger's entry.
        payload: which coordinates travelled.
        unit: a clip norm of the round, as the noise on ``total`` counts it.
    """

    total: np.ndarray
    recorded: dict[str, Any]
    payload: Payload
    unit: float


class _ProbeLedger:
    """Takes the place of a ledger; a probe is no round of the run."""

    def __init__(self) -> None:
        self.rounds: list[dict[str, Any]] = []

    def entries(self) -> list[dict[str, Any]]:
        return []

    def record(self, entry: dict[str, Any]) -> str:
        raise ValueError(f"a probed round was not opened: {entry}")

    def record_round(self, round: int, entry: dict[str, Any], **_: Any) -> str:
        self.rounds.append({**entry, "round": round})
        return ""


class ProbeRecorder(RoundRecorder):
    """Holds what a probed round released and recorded."""

    def __init__(self) -> None:
        self._probed = _ProbeLedger()
        self._means: list[np.ndarray] = []
        super().__init__(self._probed)  # type: ignore[arg-type]

    def keep(self, round: int, released: Release) -> None:
        self._means.append(released.mean.copy())

    @property
    def has_opened(self) -> bool:
        """Whether a sum was opened, recorded and released."""
        return bool(self._means)

    def opened(self, context: RunContext) -> Opened:
        """Return what the one round that was recorded released."""
        (recorded,), (mean,) = self._probed.rounds, self._means
        privacy = context.privacy.at_clip(recorded["clip_norm"])
        update, _ = privacy.decoded(mean)
        total = update.astype(np.float64) * recorded["divisor"]
        unit = privacy.clip_norm / privacy.update_weight
        return Opened(total, recorded, choose_payload(context, recorded["round"]), unit)


class _WithoutDeviceNoise(RunPrivacy):
    """A run's privacy, but for the noise that its devices add."""

    def device_share(self, grid: Grid, cohort: int) -> NoiseShare | None:
        return None


def without_device_noise(privacy: RunPrivacy) -> RunPrivacy:
    """Let devices add no noise, so that what they submit is what they move the sum by.

    The policy's grid, clip and indicators stay as they are.
    """
    return _WithoutDeviceNoise(**_fields_of(privacy))


class _WithoutNoise(RunPrivacy):
    """A run's privacy, but for all its noise; grid, clip, indicators and groups stay."""

    @property
    def mechanism(self) -> Mechanism:
        return MECHANISMS["none"]

    def noise_levels(self, cohort: int) -> tuple[int, int]:
        return 0, 1

    def noise_plan(self, grid: Grid, cohort: int) -> NoisePlan | None:
        return None


def without_noise(privacy: RunPrivacy) -> RunPrivacy:
    """Let neither devices nor server add noise; every other line of the code runs as it does."""
    return _WithoutNoise(**_fields_of(privacy))


def _fields_of(privacy: RunPrivacy) -> dict[str, Any]:
    return {field.name: getattr(privacy, field.name) for field in fields(privacy)}


def everybody_reports(context: RunContext) -> RunContext:
    """Return the run context without simulated dropout: every device asked sends its report.

    Where a round has public groups, none is left out of the mean: that is computed from released
    sums, and the sums are what is tested.
    """
    scenario = replace(context.scenario, dropout=0.0, fleet=None, trimmed_groups=0)
    return replace(context, scenario=scenario, fleet=None)


def at_one_clip(context: RunContext) -> RunContext:
    """Return the run context with a fixed clip norm.

    In clip norms a round's updates and noise are the same at every clip norm, and no device tells
    by an indicator whether its update is short.
    """
    policy = context.privacy.policy
    if policy is None or policy.clipping is None:
        return context
    privacy = replace(context.privacy, deployment=Deployment(replace(policy, clipping=None)))
    return replace(context, privacy=privacy)


def of_silent_devices(context: RunContext) -> RunContext:
    """Return the run context in which rounds of silent devices release noise and nothing else.

    A rotation spreads an indicator over all coordinates, where rounding it adds to the noise: then
    the clip norm is fixed, at the same noise.
    """
    return at_one_clip(context) if context.privacy.rotate else context


def probe_round(context: RunContext, number: int, users: Sequence[int], updates: Updates) -> Opened:
    """Run round ``number`` with these users and these updates, and return what it released.

    Raises:
        ValueError: the round was not opened (too few users).
    """
    recorder = ProbeRecorder()
    state = ServerState(number, context.start.parameters)
    run_round(context, state, recorder, ends=ends_of(users, updates))
    return recorder.opened(context)


def repeated_round(context: RunContext, number: int) -> str | None:
    """Run a round with its own users and their text; return the digest of what it released.

    None where it opened no sum.
    """
    recorder = ProbeRecorder()
    try:
        run_round(context, ServerState(number, context.start.parameters), recorder)
    except ValueError:  # a probe has no ledger for an abandoned round
        return None
    if not recorder.has_opened:
        return None
    digest: str | None = recorder.opened(context).recorded["released"]
    return digest


def rounds_of(
    context: RunContext,
    first: int,
    count: int,
    users_of: Callable[[int], np.ndarray],
    updates_of: Callable[[int, Sequence[int], int], np.ndarray],
) -> Iterator[tuple[Opened, ServerState]]:
    """Run rounds in a row, the model moving as in the run; yield what each released and left.

    Args:
        first: number of the first round; places count from 0.
        users_of, updates_of: by place, who sends and what.
    """
    state = ServerState(first, context.start.parameters)
    for place in range(count):
        recorder, ends = ProbeRecorder(), ends_of(users_of(place), partial(updates_of, place))
        state, _ = run_round(context, state, recorder, ends=ends)
        yield recorder.opened(context), state


def encoded(
    context: RunContext, number: int, users: Sequence[int], updates: Updates
) -> Iterator[np.ndarray]:
    """Yield what devices submit, integers[K, d], group by group, in order of ``users``' groups."""
    state = ServerState(number, context.start.parameters)
    broadcast = open_round(state, choose_payload(context, number))
    ends = ends_of(users, updates)
    cohort = ends.invite(context, broadcast, 0.0)
    present = list(range(len(cohort)))
    for group in train_cohort(context, state, broadcast, cohort, present, ends=ends):
        vectors, _ = protect_updates(
            context.privacy, group.updates.numpy(), broadcast, group.users, len(cohort)
        )
        yield vectors


def ends_of(users: Sequence[int] | np.ndarray, updates: Updates) -> Ends:
    """Return a round's ends: these users come, and their training returns these updates."""

    def invite(context: RunContext, broadcast: Broadcast, clock: float) -> Cohort:
        return Cohort(np.asarray(users, dtype=np.int64), closed=clock)

    def train(task: Task, _: Any, users: list[int]) -> tuple[np.ndarray, list[Trace]]:
        values = np.ascontiguousarray(updates(users, task.payload.dim), dtype=np.float32)
        return values, [Trace(user, 0.0, _words_of(user), 1, 0.0) for user in users]

    def text_of(context: RunContext, user: int, round: int) -> np.ndarray:
        return np.zeros((_words_of(user), 2), dtype=np.int64)

    return Ends(invite, text_of, train)


def _words_of(user: int) -> int:
    """Return how many words a probed device has typed: they differ, so that weights would show."""
    return 1 + user % 3


def quiet_recorder() -> RoundRecorder:
    """Return a recorder for rounds that are no rounds of a run."""
    return ProbeRecorder()


def places(context: RunContext, count: int | None = None) -> range:
    """Return the users of a probed round: a cohort, or ``count`` of them."""
    return range(count or context.privacy.cohort)


def zeros(users: Sequence[int], dim: int) -> np.ndarray:
    """Return updates of devices that learnt nothing."""
    return np.zeros((len(users), dim), np.float32)


def probed_round(context: RunContext, count: int = 1) -> int:
    """Draw the first of ``count`` consecutive rounds of the run itself, at random.

    Code that behaves in other rounds than the run's would pass a probe of those; and nobody can
    prepare it for rounds that are drawn as the audit begins.
    """
    return secrets.randbelow(max(1, context.scenario.rounds - count + 1))


def most_probed(context: RunContext, count: int) -> int:
    """Return how many of ``count`` rounds can be probed: of a stream no more than planned."""
    policy, mechanism = context.privacy.policy, context.privacy.mechanism
    return min(count, policy.rounds) if policy is not None and mechanism.stateful else count


def dim_of(context: RunContext, number: int) -> int:
    """Return how many coordinates travel in a round."""
    return int(choose_payload(context, number).dim)


def lengthened(context: RunContext, number: int) -> float:
    """Return by how much rounding lengthens the updates that a server's noise is made for.

    A stream is made for the longest of any round: rounding lengthens few coordinates by more.
    """
    payload, privacy = choose_payload(context, number), context.privacy
    grid = privacy.grid(payload.dim)
    if privacy.mechanism.stateful:
        grid = replace(grid, dim=max(1, privacy.summed_dim(payload.fewest)))
    return grid.norm_bound / (grid.scale * grid.clip_norm)


def fewest(context: RunContext) -> int:
    """Return the fewest reports that are opened, of a small cohort no less than half."""
    privacy = context.privacy
    least = privacy.opens_from(privacy.cohort)
    if privacy.groups > 1:
        least = privacy.groups * max(least, LEAST_COHORT)
    return max(least, math.ceil(privacy.cohort / 2))
