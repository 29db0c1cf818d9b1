"""`pfl-lm simulate` and `pfl-lm demo`: train with simulated devices, and watch it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pfl_lm.scenario import Scenario

Output = Annotated[Path, typer.Option("--output", "-o", help="Folder of the run.")]
Overwrite = Annotated[bool, typer.Option(help="Delete an earlier run in that folder first.")]


def simulate(
    recipe: Annotated[Path, typer.Argument(metavar="SCENARIO", help="simulations/*.toml")],
    output: Output,
    resume: Annotated[bool, typer.Option(help="Go on where that run was interrupted.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Train a model with simulated devices under a privacy policy.

    The run folder receives manifest, ledger, metrics, checkpoints, the trained model, its
    evaluation on held-out users, and the report page. A run that was killed goes on with --resume;
    what it had spent stays spent.
    """
    from pfl_lm.recipes import load
    from pfl_lm.scenario import Scenario

    if resume and overwrite:
        raise ValueError("--resume goes on with a run and --overwrite deletes it: choose one")
    scenario = load(Scenario, recipe)
    if not resume:
        _clear(output, overwrite)
    _run(scenario, output, resume=resume)


def demo(
    output: Output = Path("runs/demo"),
    overwrite: Overwrite = False,
) -> None:
    """Run the main job in a few minutes on an embedded population of invented users."""
    from pfl_lm.cli.progress import StepBar
    from pfl_lm.demo import prepare

    start = output.with_name(f"{output.name}.start")
    _clear(output, overwrite)
    if start.exists():
        shutil.rmtree(start)
    with StepBar("pretraining on public text") as bar:
        scenario = prepare(start, bar.update)
    _run(scenario, output, resume=False)


def _clear(output: Path, overwrite: bool) -> None:
    """Make sure that the run's folder is free; what is no run is never deleted."""
    from pfl_lm.runs import RunFolder

    if not output.exists() or not any(output.iterdir()):
        return
    if not overwrite:
        raise ValueError(f"--output {output} is not empty; choose another folder or --overwrite")
    RunFolder.open(output)
    shutil.rmtree(output)


def _run(scenario: Scenario, output: Path, resume: bool) -> None:
    """Simulate, then write the report; one screen tells what came out."""
    from pfl_lm.cli.progress import RunScreen
    from pfl_lm.report.page import write_report
    from pfl_lm.simulate import simulate

    with RunScreen(scenario.description or output.name) as screen:
        folder = simulate(scenario, output, resume=resume, watch=screen)
        page = write_report(folder.path)
    screen.summary(folder, page)
