"""The one protocol by which long work tells how far it is."""

from __future__ import annotations

from typing import Any


class ProgressListener:
    """Follows long work; a method that a listener does not override does nothing."""

    def say(self, line: str) -> None:
        """Hear one line that a person should read."""

    def step_done(self, step: int, steps: int, loss: float) -> None:
        """Hear that ``step`` of ``steps`` of pretraining is done, and its loss."""

    def round_done(self, entry: dict[str, Any], rounds: int) -> None:
        """Hear that a round is over: its line of the metrics, and how many rounds there are."""

    def evaluated(self, entry: dict[str, Any]) -> None:
        """Hear of an evaluation: its line of the metrics."""

    def ngram_written(self, stated: dict[str, Any]) -> None:
        """Take what an export states of the n-gram that it wrote."""

    def row(self, row: Any) -> None:
        """Hear of a row of a table that is being written."""


class Listeners(ProgressListener):
    """Tells several listeners, one after the other."""

    def __init__(self, *listeners: ProgressListener) -> None:
        self._listeners = listeners

    def say(self, line: str) -> None:
        for listener in self._listeners:
            listener.say(line)

    def step_done(self, step: int, steps: int, loss: float) -> None:
        for listener in self._listeners:
            listener.step_done(step, steps, loss)

    def round_done(self, entry: dict[str, Any], rounds: int) -> None:
        for listener in self._listeners:
            listener.round_done(entry, rounds)

    def evaluated(self, entry: dict[str, Any]) -> None:
        for listener in self._listeners:
            listener.evaluated(entry)

    def row(self, row: Any) -> None:
        for listener in self._listeners:
            listener.row(row)
