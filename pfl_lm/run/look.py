"""What a run can know of itself before its first round is paid for.

    foresee    noise against the bound and against what devices teach, from a probe on PUBLIC text
    judge      a line for each thing that is odd; a refusal where no device could be heard

The probe trains a few devices on public pseudo-users with the scenario's own settings. No private
text is read for it, so it costs no ε and a deployment could do the same; without public text there
is no probe.

Legend: K devices of the probe, d coordinates of the payload, T rounds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from pfl_lm.devices.training import train
from pfl_lm.numbers import duration, format_epsilon, percent, significant
from pfl_lm.run.aggregation import silent_devices
from pfl_lm.run.context import RunContext, choose_payload
from pfl_lm.run.idle_keys import idle_keys
from pfl_lm.run.privacy import RunPrivacy
from pfl_lm.run.trimmed import noise_ratio
from pfl_lm.run.update_length import is_long, is_short
from pfl_lm.server.state import ServerState, open_round
from pfl_lm.text.population import windows

PROBED = 8  # public pseudo-users
_ALL_CLIPPED = 0.95  # share of the probed updates


class Refused(ValueError):
    """A run that was refused before its first round: it could have learnt nothing."""


@dataclass(frozen=True)
class Probe:
    """What devices with public text would report before the first round.

    Attributes:
        devices: K.
        median_norm: ℓ2 norm of an update before it is clipped.
        clipped: share of the updates that are shortened to ``clip_norm``.
        signal: ℓ2 norm of what clipped updates have in common: √ of the mean product of two.
        seconds: of a processor, of one device's training here.
    """

    devices: int
    median_norm: float
    clipped: float
    signal: float
    seconds: float


@dataclass(frozen=True)
class Foresight:
    """Noise and signal of a run before it begins.

    Attributes:
        noise_norm: expected ℓ2 norm of the noise in the mean of a round.
        clip_norm: no mean update can be longer; where it follows the updates, what it comes to.
        moves: whether the clip norm follows the updates.
        reports: of devices that do not fall silent.
        least_reports: which open a sum.
        idle: sentences on keys of the scenario that change nothing.
        epsilon: of the policy against everyone, once deployed; None: ∞.
        probe: None where there is no public text.
    """

    noise_norm: float
    clip_norm: float
    rounds: int
    cohort: int
    epsilon: float | None
    probe: Probe | None
    moves: bool = False
    reports: int = 0
    least_reports: int = 0
    idle: tuple[str, ...] = ()

    @property
    def drowned(self) -> bool:
        """Whether noise outweighs all that could be learnt: updates of full length, all alike.

        After T rounds independent noise has gone √T times its norm, and a model that every device
        drew the same way at most T times ``clip_norm``.
        """
        return self.noise_norm > self.clip_norm * math.sqrt(self.rounds)

    @property
    def doubtful(self) -> bool:
        """The same for what the devices of the probe have in common."""
        signal = 0.0 if self.probe is None else self.probe.signal
        return 0 < signal * math.sqrt(self.rounds) < self.noise_norm


def foresee(context: RunContext) -> Foresight:
    """Compute a run's noise, and probe what devices would report, before the first round."""
    scenario, privacy, probe = context.scenario, context.privacy, _probe(context)
    guarantee = privacy.guarantee
    if probe is not None:
        clip = _clip_to_come(privacy, probe.median_norm)
        context = replace(context, privacy=privacy.at_clip(clip))
    return Foresight(
        noise_in_mean(context),
        context.privacy.clip_norm,
        scenario.rounds,
        scenario.cohort,
        None if guarantee is None else guarantee.epsilon_server,
        probe,
        privacy.clipping is not None,
        scenario.cohort - silent_devices(scenario.dropout, scenario.cohort),
        privacy.least_reports,
        tuple(idle_keys(scenario)),
    )


def _clip_to_come(privacy: RunPrivacy, median_norm: float) -> float:
    """Return the clip norm, or where it is led to by updates of this median norm."""
    if (rule := privacy.clipping) is None:
        return privacy.clip_norm
    return min(max(median_norm, rule.lowest), rule.highest)


def _probe(context: RunContext) -> Probe | None:
    if context.public is None:
        return None
    training, parameters = context.scenario.training, dict(context.start.parameters)
    limit = None if training.max_tokens is None else training.max_tokens + 1
    population, split = context.public.population, context.public.split
    devices = min(PROBED, population.users(split))
    texts = [windows(population.tokens(split, u), training.window, limit) for u in range(devices)]
    broadcast = open_round(ServerState(0, parameters), choose_payload(context, 0))
    task, numbers = context.task(broadcast, parameters), list(range(devices))
    train(task, texts[:1], numbers[:1])  # loads, compiles and tunes what is done once
    began = time.process_time()
    updates, traces = train(task, texts, numbers)
    seconds = (time.process_time() - began) / max(1, devices)
    norms = np.array([trace.update_norm for trace in traces])
    bound = _clip_to_come(context.privacy, float(np.median(norms)))
    clipped = updates * np.minimum(1.0, bound / np.maximum(norms, 1e-30))[:, None]
    shortened = float((norms > bound).mean())
    return Probe(devices, float(np.median(norms)), shortened, _common(clipped), seconds)


def _common(updates: np.ndarray) -> float:
    """Return √ of the mean product of two different updates, float32[K, d]; 0 where negative.

    The square of the mean's norm would count what each device alone brings, too.
    """
    count = len(updates)
    if count < 2:
        return 0.0
    wide = updates.astype(np.float64)
    total = float(np.square(wide.sum(axis=0)).sum() - np.square(wide).sum())
    return math.sqrt(max(0.0, total / (count * (count - 1))))


def judge(foresight: Foresight, anyway: bool, say: Callable[[str], None]) -> None:
    """Say what is to come and what is odd.

    Args:
        anyway: warn where the run would be refused.
        say: told each line.

    Raises:
        Refused: noise outweighs all that could be learnt, and ``anyway`` is not set.
    """
    for line in foresight.idle:
        say(f"warning: {line}")
    say(_to_come(foresight))
    if foresight.drowned:
        problem = (
            f"the noise in a round's mean has norm {significant(foresight.noise_norm)}, "
            f"clip_norm is {significant(foresight.clip_norm)}: over {foresight.rounds} rounds "
            "noise outweighs all that devices could teach. Raise the policy's report_goal (and "
            "cohort) or ε, send fewer coordinates (payload.rows, lora), or run more rounds"
        )
        if not anyway:
            raise Refused(f"{problem}; --anyway runs it all the same")
        say(f"warning: {problem}")
    elif foresight.doubtful and foresight.probe is not None:
        say(
            f"warning: what devices have in common has norm {significant(foresight.probe.signal)}, "
            f"the noise {significant(foresight.noise_norm)}: over {foresight.rounds} rounds noise "
            "outweighs it. A larger report_goal, fewer coordinates (payload.rows, lora) or more "
            "rounds help"
        )
    if foresight.reports < foresight.least_reports:
        say(
            f"warning: dropout leaves {foresight.reports} of {foresight.cohort} devices, and a sum "
            f"opens with {foresight.least_reports} reports: most rounds will be lost. Lower "
            "dropout, or choose a policy that tolerates more (noise.tolerated_dropout)"
        )
    for line in _of_the_clip(foresight):
        say(f"warning: {line}")


def _to_come(foresight: Foresight) -> str:
    parts = [f"ε to come {format_epsilon(foresight.epsilon)}"]
    if foresight.noise_norm:
        parts.append(
            f"noise {significant(foresight.noise_norm)} in a mean of at most "
            f"{significant(foresight.clip_norm)}"
        )
    if (probe := foresight.probe) is not None:
        work = probe.seconds * foresight.cohort * foresight.rounds
        parts.append(f"{percent(probe.clipped, 0)} of {probe.devices} probed updates clipped")
        parts.append(f"about {duration(work)} of training on one processor")
    return "Before the first round, from public text: " + "; ".join(parts)


def _of_the_clip(foresight: Foresight) -> list[str]:
    probe, bound = foresight.probe, foresight.clip_norm
    if probe is None or not foresight.noise_norm or foresight.moves:
        return []
    updates = f"updates of norm {significant(probe.median_norm)}"
    if probe.clipped >= _ALL_CLIPPED and is_long(probe.median_norm, bound):
        line = f"{updates} are all clipped to {significant(bound)}: raise clip_norm (the noise "
        return [line + "grows with it), or lower training.learning_rate"]
    if is_short(probe.median_norm, bound):
        line = f"{updates} are far below clip_norm = {significant(bound)}, and the noise is made "
        return [line + "for the longest: lower clip_norm, or raise training.learning_rate"]
    return []


def noise_in_mean(context: RunContext) -> float:
    """Return the expected ℓ2 norm of the noise in the mean of a round."""
    privacy = context.privacy
    deviation = privacy.sum_multiplier * privacy.clip_norm / privacy.update_weight / privacy.cohort
    deviation *= noise_ratio(privacy.groups, context.trimmed_groups)
    return float(deviation * math.sqrt(choose_payload(context, 0).dim))
