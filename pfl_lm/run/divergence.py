"""Training that diverged: said where it first shows, and ended before another round is spent."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from pfl_lm.numbers import significant
from pfl_lm.recipes import from_plain
from pfl_lm.run.context import RunContext
from pfl_lm.run.look import noise_in_mean
from pfl_lm.server.state import ServerState

_LARGEST_LOSS = 700.0  # float64 has no e^710
_EXPLODED = 10.0  # times the loss of guessing, or of the first round
_REMEDY = (
    "training diverged. What was spent is in the ledger; lower training.learning_rate or "
    "server.learning_rate, and start again in another folder"
)


class Diverged(ValueError):
    """A run that was stopped because its model is lost; the message names what to turn."""


def require_finite(state: ServerState) -> None:
    """Refuse to go on with a model that holds NaN or ∞.

    Raises:
        Diverged: naming the parameter and the rounds before.
    """
    for name, value in state.parameters.items():
        if not bool(torch.isfinite(value).all()):
            raise Diverged(
                f"after {state.round} rounds {name} holds numbers that are not finite: {_REMEDY}"
            )


class LossWatch:
    """Hears the figures of every round, and says once that devices diverged."""

    def __init__(self, context: RunContext, say: Callable[[str], None]) -> None:
        self._context, self._say, self._said = context, say, False
        self._first: float | None = None

    def take_up(self, metrics: Iterable[dict[str, Any]]) -> None:
        """Take up an interrupted run, whose rounds were heard before.

        Args:
            metrics: the run's lines so far.

        Raises:
            Diverged: its last round says so; another one would be spent for nothing.
            ValueError: a round's line lacks a figure.
        """
        rounds = [_round_heard(line) for line in metrics if line["kind"] == "round"]
        losses = [line["loss"] for line in rounds if line["loss"] is not None]
        self._first = losses[0] if losses else None
        self._said = any(line["diverged_devices"] for line in rounds)
        if rounds:
            self.check(rounds[-1])

    def check(self, entry: dict[str, Any]) -> None:
        """Check a round's line of the metrics.

        Raises:
            Diverged: every device that trained diverged, or the loss has exploded.
        """
        diverged, trained = entry["diverged_devices"], entry["trained_devices"]
        if diverged and diverged == trained:
            raise Diverged(
                f"round {entry['round'] + 1}: no device has a finite perplexity any more, training "
                f"diverged: {_turn(self._context)}. What was spent is in the ledger; start again "
                "in another folder"
            )
        if diverged and not self._said:
            self._said = True
            self._say(
                f"round {entry['round'] + 1}: training diverged on some devices, whose perplexity "
                "is not finite; training.learning_rate may be too high. Later rounds do not say it"
            )
        self._first = entry["loss"] if self._first is None else self._first
        check_loss(self._context, entry["round"], entry["loss"], self._first)


@dataclass(frozen=True)
class _RoundHeard:
    """What a round's line of the metrics tells the watch."""

    round: int
    trained_devices: int
    diverged_devices: int
    loss: float | None


def _round_heard(line: dict[str, Any]) -> dict[str, Any]:
    source = f"the metrics' line of round {line['round'] + 1}"
    remedy = "put the run's metrics back, or start again in another folder"
    return asdict(from_plain(_RoundHeard, line, source, remedy, known_keys_only=False))


def has_diverged(loss: float) -> bool:
    """Whether a loss, in nats a word, is one that no model with a finite perplexity has."""
    return not loss < _LARGEST_LOSS


def check_loss(context: RunContext, round: int, loss: float | None, first: float | None) -> None:
    """Stop a run whose training loss is no number, or far above that of guessing.

    Args:
        loss: of the round; None: nobody trained.
        first: of the run's first round.

    Raises:
        Diverged: naming the settings to turn. The round is recorded already, and stays spent.
    """
    if loss is None:
        return
    most = _EXPLODED * max(math.log(context.spec.vocabulary_size), first or 0.0)
    if math.isfinite(loss) and loss <= most:
        return
    raise Diverged(
        f"round {round + 1}: the training loss is {significant(loss)}, the model has diverged; "
        f"{_turn(context)}. The {round + 1} rounds so far are recorded and stay spent"
    )


def _turn(context: RunContext) -> str:
    """Say which settings to turn: noise that is longer than all updates, or too high a rate."""
    scenario, noise = context.scenario, noise_in_mean(context)
    if noise > scenario.clip_norm:
        return (
            f"the noise in a mean ({significant(noise)}) is longer than clip_norm "
            f"({significant(scenario.clip_norm)}): raise report_goal and cohort, send fewer "
            "coordinates, or lower server.learning_rate"
        )
    return (
        f"lower server.learning_rate ({scenario.server.learning_rate:g}) or "
        f"training.learning_rate ({scenario.training.learning_rate:g}), or set "
        "training.gradient_clip"
    )
