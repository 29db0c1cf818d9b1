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
    _run(load(Scenario, recipe), output, resume, overwrite)


def demo(
    output: Output = Path("runs/demo"),
    overwrite: Overwrite = False,
) -> None:
    """Run the main job in a few minutes on an embedded population of invented users."""
    from pfl_lm.cli.progress import StepBar
    from pfl_lm.demo import prepare
    from pfl_lm.resume import check_free
    from pfl_lm.runs import RunFolder

    start = output.with_name(f"{output.name}.start")
    check_free(RunFolder(output), overwrite)
    if start.exists():
        if {path.name for path in start.iterdir()} - {"tokenizer", "public", "start.pt"}:
            raise ValueError(f"{start} holds other files than a demo's; choose another --output")
        shutil.rmtree(start)
    with StepBar("pretraining on public text") as bar:
        scenario = prepare(start, bar.update)
    _run(scenario, output, False, overwrite)


def _run(scenario: Scenario, output: Path, resume: bool, overwrite: bool) -> None:
    """Simulate, then write the report; one screen tells what came out."""
    from pfl_lm.cli.progress import RunScreen
    from pfl_lm.machine import tune
    from pfl_lm.report.page import write_report
    from pfl_lm.simulate import simulate

    tune()
    with RunScreen(scenario.description or output.name) as screen:
        folder = simulate(scenario, output, screen, resume, overwrite)
        page = write_report(folder.path)
    screen.summary(folder, page)
