"""What a person sees while long work runs: bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from pfl_lm.cli.tables import print_table
from pfl_lm.numbers import format_epsilon, format_perplexity, percent
from pfl_lm.run.folder import RunFolder, read_json, was_opened
from pfl_lm.run.progress import ProgressListener

if TYPE_CHECKING:
    from pfl_lm.export.build import MeasuredFile

LINES = 20  # progress lines that a run prints where there is no terminal


class _Live:
    """A bar that lives as long as its ``with`` block, on a terminal only."""

    _console: Console
    _progress: Progress

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


class _Pace:
    """How long the rest of a work takes, by its pace since its first step was done.

    What comes before that step, such as loading and compiling, is not repeated by the others.
    """

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None

    def left(self, done: int, total: int) -> str:
        """Return ``, M:SS left`` after ``done`` of ``total`` steps; "" at the first call."""
        now = time.monotonic()
        if self._first is None:
            self._first = done, now
        first, began = self._first
        if done == first:
            return ""
        return f", {_duration((now - began) / (done - first) * (total - done))} left"


class StepBar(_Live, ProgressListener):
    """A bar over steps with a smoothed loss."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._console = Console(stderr=True)
        self._progress = _bar(self._console, "loss {task.fields[loss]}")
        self._task = self._progress.add_task(escape(title), loss="–")
        self._loss: float | None = None
        self._pace = _Pace()

    def step_done(self, step: int, steps: int, loss: float) -> None:
        """Show that ``step`` of ``steps`` is done."""
        self._loss = loss if self._loss is None else 0.98 * self._loss + 0.02 * loss
        shown = f"{self._loss:.3f}"
        self._progress.update(self._task, completed=step, total=steps, loss=shown)
        left = self._pace.left(step, steps)
        if not self._console.is_terminal and step % max(1, steps // LINES) == 0:
            self._console.print(
                f"{escape(self._title)}: step {step} of {steps}, loss {shown}{left}"
            )


class ExportProgress(ProgressListener):
    """Prints what an export is at, and keeps the figures of its tables."""

    def __init__(self) -> None:
        self.rows: list[MeasuredFile] = []
        self.ngram: dict[str, Any] = {}

    def say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def ngram_written(self, stated: dict[str, Any]) -> None:
        self.ngram = stated

    def row(self, row: MeasuredFile) -> None:
        self.rows.append(row)


class RunScreen(_Live, ProgressListener):
    """Follows a simulation: one call per round, one per evaluation, a table at the end."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._console = Console(stderr=True)
        self._progress = _bar(
            self._console,
            "loss {task.fields[loss]} · ε {task.fields[epsilon]} · top-3 {task.fields[top3]}",
        )
        self._task = self._progress.add_task("rounds", loss="–", epsilon="–", top3="–")
        self._pace = _Pace()
        self._top3, self._loss, self._unopened = "–", "–", False

    def say(self, line: str) -> None:
        """Print one line above the bar."""
        self._announce()
        self._progress.console.print(line, markup=False)

    def _announce(self) -> None:
        """Print the title, once: before the first line, not before an error that ends it all."""
        title, self._title = self._title, ""
        if title:
            self._progress.console.print(f"[bold]{escape(title)}[/bold]")

    def round_done(self, entry: dict[str, Any], rounds: int) -> None:
        """Show a line of the metrics of kind ``round``."""
        self._announce()
        done = entry["round"] + 1
        left = self._pace.left(done, rounds)
        epsilon = format_epsilon(entry["epsilon"])
        if not was_opened(entry) and not self._unopened:
            self._unopened = True
            self.say(f"round {done} opened no sum: nothing is learnt in such a round")
        if entry.get("loss") is not None:  # else secret, or nobody trained
            self._loss = f"{entry['loss']:.3f}"
        self._progress.update(
            self._task, completed=done, total=rounds, loss=self._loss, epsilon=epsilon
        )
        if not self._console.is_terminal and (done % max(1, rounds // LINES) == 0):
            said = f"loss {self._loss}, ε {epsilon}, top-3 {self._top3}{left}"
            self._console.print(f"round {done} of {rounds}: {said}")

    def evaluated(self, entry: dict[str, Any]) -> None:
        """Show a line of the metrics of kind ``evaluation``."""
        self._top3 = percent(entry["top3"])
        self._progress.update(self._task, top3=self._top3)


class RunLines(ProgressListener):
    """Follows a server's run in its log: one line a round, one an evaluation."""

    def say(self, line: str) -> None:
        logging.getLogger("pfl_lm.network").info("%s", line)

    def round_done(self, entry: dict[str, Any], rounds: int) -> None:
        spent = format_epsilon(entry["epsilon"])
        told = ""
        if "reports" in entry:  # else secret
            told = f"{entry['reports']} of {entry['invited']} reports, {entry['seconds']:.1f} s, "
        done = entry["round"] + 1
        self.say(f"round {entry['round']} is over: {told}ε {spent}; {done} of {rounds} are done")

    def evaluated(self, entry: dict[str, Any]) -> None:
        self.say(
            f"after {entry['round']} rounds: perplexity {format_perplexity(entry['perplexity'])}, "
            f"top-3 {percent(entry['top3'])}"
        )


def summarise(folder: RunFolder, page: Path) -> None:
    """Print what came out of a run, what is promised, and where the page is."""
    console = Console()
    print_table(_comparison(read_json(folder.evaluation_path)), console)
    rounds = [line for line in folder.metrics() if line["kind"] == "round"]
    if unopened := [line["round"] for line in rounds if not was_opened(line)]:
        learnt = "; the model is what it started from" if len(unopened) == len(rounds) else ""
        console.print(
            f"[bold]Opened[/bold]      {len(rounds) - len(unopened)} of {len(rounds)} rounds; the "
            f"others had too few reports, and nothing was learnt in them{learnt}."
        )
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
            format_perplexity(row["perplexity"]),
            *(percent(row[name]) for name in ("top1", "top3", "keystrokes_saved")),
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


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02d}"
