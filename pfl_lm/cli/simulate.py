"""`pfl-lm simulate` and `pfl-lm demo`: train with simulated devices, and watch it."""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pfl_lm.scenario import Scenario

Output = Annotated[Path, typer.Option("--output", "-o", help="Folder of the run.")]
Overwrite = Annotated[bool, typer.Option(help="Delete an earlier run in that folder first.")]
Workers = Annotated[
    int | None,
    typer.Option(min=1, help="Processes of one thread each; by default as many as have work."),
]

DEVICES_PER_WORKER = 16  # of a round; as many train side by side, so fewer leave a process idle


def simulate(
    recipe: Annotated[Path, typer.Argument(metavar="SCENARIO", help="simulations/*.toml")],
    output: Output,
    resume: Annotated[bool, typer.Option(help="Go on where that run was interrupted.")] = False,
    overwrite: Overwrite = False,
    workers: Workers = None,
) -> None:
    """Train a model with simulated devices under a privacy policy.

    The run folder receives manifest, ledger, metrics, checkpoints, the trained model, its
    evaluation on held-out users, and the report page. A run that was killed goes on with --resume;
    what it had spent stays spent. On several machines, start it by torchrun: the model and the
    ledger are the same bytes however many processes share the work.
    """
    from pfl_lm.recipes import load
    from pfl_lm.scenario import Scenario

    if resume and overwrite:
        raise ValueError("--resume goes on with a run and --overwrite deletes it: choose one")
    scenario = load(Scenario, recipe)
    try:
        _run(scenario, output, resume, overwrite, workers)
    except KeyboardInterrupt:
        _say_what_is_kept(scenario, output)
        raise


def speaks() -> bool:
    """Whether this process speaks for its run: torchrun's others stay silent."""
    return os.environ.get("RANK", "0") == "0"


def _say_what_is_kept(scenario: Scenario, output: Path) -> None:
    from pfl_lm.runs import RunFolder

    kept = max(RunFolder(output).checkpoints(), default=0)
    if kept and speaks():
        rounds = f"{kept} of {scenario.rounds} rounds are kept in {output}"
        print(f"{rounds}; the same command with --resume goes on", file=sys.stderr)


def demo(
    output: Output = Path("runs/demo"),
    overwrite: Overwrite = False,
    workers: Workers = None,
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
    _run(scenario, output, False, overwrite, workers)


def _run(
    scenario: Scenario, output: Path, resume: bool, overwrite: bool, workers: int | None
) -> None:
    """Simulate, in one process or in several, then write the report and tell what came out."""
    from pfl_lm.cli.progress import summarise
    from pfl_lm.ranks import launch, launched
    from pfl_lm.report.page import write_report
    from pfl_lm.runs import RunFolder

    if launched():
        if workers is not None:
            raise ValueError("torchrun has started the processes already; leave --workers out")
        if not _work(scenario, output, resume, overwrite):
            return  # the first rank reports
    else:
        count = workers or _workers(scenario)
        if count == 1:
            _work(scenario, output, resume, overwrite)
        else:
            launch(count, _work, scenario, output, resume, overwrite)
    summarise(RunFolder.open(output), write_report(output))


def _work(scenario: Scenario, output: Path, resume: bool, overwrite: bool) -> bool:
    """Simulate as one of the processes, or alone; return whether this is the first one."""
    from pfl_lm.cli.progress import RunScreen
    from pfl_lm.machine import tune
    from pfl_lm.ranks import join
    from pfl_lm.runs import RunFolder
    from pfl_lm.simulate import simulate

    # One thread, whatever the number of processes: threads split sums, and so change their bits.
    tune(None if "OMP_NUM_THREADS" in os.environ else 1)
    screen = RunScreen(scenario.description or output.name)
    with join() as ranks, screen if ranks.is_first else nullcontext():
        if ranks.restarted and RunFolder(output).manifest_path.exists():
            resume, overwrite = True, False
        simulate(scenario, output, screen, resume, overwrite, ranks)
        return ranks.is_first


def _workers(scenario: Scenario) -> int:
    """Choose how many processes to start: one a processor, as far as a round gives them work."""
    if scenario.secure_aggregation == "protocol" or scenario.aggregator == "tff":
        return 1
    linux = hasattr(os, "sched_getaffinity")
    processors = len(os.sched_getaffinity(0)) if linux else os.cpu_count() or 1
    return max(1, min(processors, scenario.cohort // DEVICES_PER_WORKER))
