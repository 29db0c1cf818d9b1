"""What a person sees while long work runs: bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from pfl_lm.runs import RunFolder, read_json

LINES = 20  # progress lines that a run prints where there is no terminal


class _Live:
    """A bar that lives as long as its ``with`` block, on a terminal only."""

    _console: Console
    _progress: Progress

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()


class StepBar(_Live):
    """A bar over steps with a smoothed loss."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._console = Console(stderr=True)
        self._progress = _bar(self._console, "loss {task.fields[loss]:.3f}")
        self._task = self._progress.add_task(escape(title), loss=float("nan"))
        self._loss: float | None = None
        self._started = time.monotonic()

    def update(self, step: int, steps: int, loss: float) -> None:
        """Show that ``step`` of ``steps`` is done."""
        self._loss = loss if self._loss is None else 0.98 * self._loss + 0.02 * loss
        self._progress.update(self._task, completed=step, total=steps, loss=self._loss)
        if not self._console.is_terminal and step % max(1, steps // LINES) == 0:
            left = (time.monotonic() - self._started) / step * (steps - step)
            self._console.print(
                f"{escape(self._title)}: step {step} of {steps}, loss {self._loss:.3f}, "
                f"{_duration(left)} left"
            )


class RunScreen(_Live):
    """Follows a simulation: one call per round, one per evaluation, a table at the end."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._console = Console(stderr=True)
        self._progress = _bar(
            self._console,
            "loss {task.fields[loss]:.3f} · ε {task.fields[epsilon]} · top-3 {task.fields[top3]}",
        )
        self._task = self._progress.add_task("rounds", loss=float("nan"), epsilon="–", top3="–")
        self._started, self._first = time.monotonic(), 0
        self._top3, self._loss = "–", float("nan")

    def __enter__(self) -> Self:
        self._console.print(f"[bold]{escape(self._title)}[/bold]")
        return super().__enter__()

    def say(self, line: str) -> None:
        """Print one line above the bar."""
        self._progress.console.print(line, markup=False)

    def round_done(self, entry: dict[str, Any], rounds: int) -> None:
        """Show a line of the metrics of kind ``round``."""
        done = entry["round"] + 1
        if not self._first:
            self._first = done
        epsilon = _epsilon(entry["epsilon"])
        if entry["loss"] is not None:  # nobody trained in a round that was not begun
            self._loss = entry["loss"]
        self._progress.update(
            self._task, completed=done, total=rounds, loss=self._loss, epsilon=epsilon
        )
        if not self._console.is_terminal and (done % max(1, rounds // LINES) == 0):
            per_round = (time.monotonic() - self._started) / (done - self._first + 1)
            self._console.print(
                f"round {done} of {rounds}: loss {self._loss:.3f}, ε {epsilon}, "
                f"top-3 {self._top3}, {_duration(per_round * (rounds - done))} left"
            )

    def evaluated(self, entry: dict[str, Any]) -> None:
        """Show a line of the metrics of kind ``evaluation``."""
        self._top3 = f"{entry['top3']:.1%}"
        self._progress.update(self._task, top3=self._top3)


def summarise(folder: RunFolder, page: Path) -> None:
    """Print what came out of a run, what is promised, and where the page is."""
    console = Console()
    console.print(_comparison(read_json(folder.evaluation_path)))
    statements = folder.manifest()["statements"]
    console.print(f"[bold]Guaranteed[/bold]  {escape(statements['guaranteed'])}")
    console.print(f"[bold]Simulated[/bold]   {escape(statements['simulated'])}")
    summed = folder.manifest()["secure_aggregation"]
    graph = (summed.get("simulated") or {}).get("statement", "")
    ran = {"protocol": "the protocol SecAgg+, ", "tff": "tensorflow-federated"}.get(
        summed["ran"], "the ideal functionality of SecAgg+, "
    )
    console.print(f"[bold]Summed[/bold]      by {ran}{escape(graph)}")
    console.print(f"[bold]Report[/bold]      {escape(str(page))}", soft_wrap=True)


def _comparison(evaluation: dict[str, Any]) -> Table:
    table = Table(title=f"Held-out users ({evaluation['split']})", title_justify="left")
    table.add_column("model")
    for column in ("perplexity", "top-1", "top-3", "keystrokes saved"):
        table.add_column(column, justify="right")
    for row in evaluation["rows"]:
        table.add_row(
            row["name"],
            f"{row['perplexity']:.1f}",
            f"{row['top1']:.1%}",
            f"{row['top3']:.1%}",
            f"{row['keystrokes_saved']:.1%}",
            style="bold" if row["name"] == "federated model" else "",
        )
    return table


def _bar(console: Console, fields: str) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(fields),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def _epsilon(value: float | None) -> str:
    return "∞" if value is None or value == float("inf") else f"{value:.2f}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02d}"
