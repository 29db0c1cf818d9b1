"""`pfl-lm simulate` and `pfl-lm demo`: train with simulated devices, and watch it."""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pfl_lm.cli.bounds import number
from pfl_lm.cli.outputs import Ledgers, destination
from pfl_lm.cli.recipes import ScenarioPath, Settings, read
from pfl_lm.cli.tracking import Track

if TYPE_CHECKING:
    from pfl_lm.distributed import Ranks
    from pfl_lm.run.scenario import Scenario


class ProcessorKind(StrEnum):
    """Where devices train."""

    cpu = "cpu"
    cuda = "cuda"


Output = Annotated[Path, destination("Folder to write the run into.")]
Overwrite = Annotated[bool, typer.Option(help="Delete an earlier run in that folder, then start.")]
Workers = Annotated[
    int | None,
    number(
        1,
        1024,
        "Processes to train with, one thread each [one for each processor, as far as a "
        "round gives them work].",
    ),
]

OnProcessor = Annotated[
    ProcessorKind,
    typer.Option(
        "--processor",
        help="Where devices train. cuda: on a graphics card, in one process unless --workers says "
        "otherwise; updates then equal the processor's to rounding, not to the bit.",
    ),
]

DEVICES_PER_WORKER = 16  # of a round; a process trains about as many at once


@dataclass(frozen=True)
class Request:
    """What a call of the verb asks beside its scenario, in the words of its options."""

    output: Path
    resume: bool = False
    overwrite: bool = False
    ledgers: Path | None = None
    anyway: bool = False
    track: tuple[str, ...] = ()
    processor: ProcessorKind = ProcessorKind.cpu


def simulate(
    recipe: ScenarioPath,
    output: Output,
    resume: Annotated[
        bool, typer.Option(help="Continue an interrupted run after its last recorded round.")
    ] = False,
    overwrite: Overwrite = False,
    workers: Workers = None,
    ledgers: Ledgers = None,
    settings: Settings = None,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Run also where noise outweighs all there is to learn.")
    ] = False,
    track: Track = None,
    processor: OnProcessor = ProcessorKind.cpu,
) -> None:
    """Train a model with simulated devices under a privacy policy.

    The verb writes a run folder: manifest, ledger, metrics, checkpoints, the trained model, its
    evaluation on held-out users, and the report page.

    `--resume` continues a run that was interrupted or killed. Privacy budget that the run has
    spent stays spent, and the model keeps what each recorded round taught it.

    A run at less than the policy's scale stands alone and may be repeated. At the policy's own
    scale, over a store's users and without seeded noise, each round is debited to the ledger of
    these users too (`pfl-lm privacy population`): all runs and questions on them share one
    budget, and `--overwrite` does not delete their rounds.

    Several machines share one run through torchrun, in a network that nobody else reaches. Model
    and ledger have the same bytes for any number of processes (in folders of one name, which the
    ledger states).

    Before the first round the run looks at itself: its noise, the updates of a few devices with
    public text, the time to come. It refuses what cannot learn (`--anyway` runs it all the same).
    It stops where the training loss shows that the model has diverged.
    """
    from pfl_lm.run.scenario import Scenario

    if resume and overwrite:
        raise ValueError("--resume goes on with a run and --overwrite deletes it: choose one")
    scenario = read(Scenario, recipe, settings)
    trackers = tuple(track or ())
    request = Request(output, resume, overwrite, ledgers, anyway, trackers, processor)
    earlier = b"" if resume else _beginning(output)
    try:
        _run(scenario, request, workers)
    except KeyboardInterrupt:
        if _beginning(output) != earlier:  # else the rounds there are an earlier run's
            _say_what_is_kept(scenario, output)
        raise


def speaks() -> bool:
    """Whether this process speaks for its run: of torchrun's processes only rank 0 does."""
    from pfl_lm.distributed.torchrun import launched

    return not launched() or os.environ.get("RANK", "0") == "0"


def _beginning(output: Path) -> bytes:
    """Return the first line of the ledger in a folder; empty where there is none."""
    from pfl_lm.run.folder import RunFolder

    try:
        with RunFolder(output).ledger_path.open("rb") as ledger:
            return ledger.readline()
    except OSError:
        return b""


def _say_what_is_kept(scenario: Scenario, output: Path) -> None:
    from pfl_lm.run.folder import RunFolder

    kept = max(RunFolder(output).checkpoints(), default=0)
    if kept and speaks():
        rounds = f"{output} keeps {kept} of {scenario.rounds} rounds"
        print(f"{rounds}; repeat the command with --resume to continue", file=sys.stderr)


def demo(
    output: Output = Path("runs/demo"),
    overwrite: Overwrite = False,
    workers: Workers = None,
) -> None:
    """Train on invented users in a few minutes, and write the report page.

    The demo needs no data and no network. It pretrains a model on invented public text in English,
    trains it further on 10,000 invented users who write English, under a policy of ε = 2, and
    compares both models on users that neither has seen.
    """
    from pfl_lm.files import sole_writer

    with sole_writer(output):
        scenario = _begin_demo(output, overwrite)
        _run(scenario, Request(output, overwrite=overwrite), workers)


def _begin_demo(output: Path, overwrite: bool) -> Scenario:
    """Write what a demo starts from, beside its run; return its scenario."""
    from pfl_lm.cli.progress import StepBar
    from pfl_lm.demo import prepare
    from pfl_lm.run.folder import RunFolder
    from pfl_lm.run.resume import check_free

    start = output.with_name(f"{output.name}.start")
    if output.is_dir() and any(output.iterdir()) and not overwrite:
        raise ValueError(f"{output} is not empty; choose another --output, or --overwrite")
    check_free(RunFolder(output), overwrite)
    if start.exists():
        if {path.name for path in start.iterdir()} - {"tokenizer", "public", "start.pt"}:
            raise ValueError(f"{start} holds other files than a demo's; choose another --output")
        shutil.rmtree(start)
    with StepBar("pretraining on public text") as bar:
        return prepare(start, bar)


def _run(scenario: Scenario, request: Request, workers: int | None) -> None:
    """Simulate in one process or in several, then write the report and print a summary."""
    from pfl_lm.cli.progress import summarise
    from pfl_lm.distributed import ALONE
    from pfl_lm.distributed.processes import launch
    from pfl_lm.distributed.torchrun import join, launched
    from pfl_lm.report.page import write_report
    from pfl_lm.run.folder import RunFolder

    if launched():
        if workers is not None:
            raise ValueError("torchrun has started the processes already; leave --workers out")
        with join() as ranks:
            _work(ranks, scenario, request)
        if not ranks.is_first:
            return  # rank 0 reports
    else:
        count = workers or (_workers(scenario) if request.processor == "cpu" else 1)
        if count == 1:
            _work(ALONE, scenario, request)
        else:
            launch(count, _work, scenario, request)
    summarise(RunFolder.open(request.output), write_report(request.output))


def _work(ranks: Ranks, scenario: Scenario, request: Request) -> None:
    """Simulate as one of the processes, or alone; rank 0 shows how far the run is."""
    from pfl_lm.cli.errors import tell_of_threads, write_anything
    from pfl_lm.cli.progress import RunScreen
    from pfl_lm.devices.processor import open_processor
    from pfl_lm.interop.tff_sum import external_aggregator
    from pfl_lm.interop.tracking import tracked
    from pfl_lm.native.tuning import tune
    from pfl_lm.run.look import foresee, judge
    from pfl_lm.run.simulate import simulate

    write_anything()
    tell_of_threads()
    # One thread, whatever the number of processes: threads split sums, and so change their bits.
    tune(None if "OMP_NUM_THREADS" in os.environ else 1)
    external = external_aggregator(scenario.aggregator)
    screen = RunScreen(scenario.description or f"run {request.output.name}")
    names = request.track if ranks.is_first else ()
    with (
        screen if ranks.is_first else nullcontext(),
        tracked(names, request.output, screen) as listener,
    ):
        simulate(
            scenario,
            request.output,
            listener,
            request.resume,
            request.overwrite,
            ranks,
            external,
            request.ledgers,
            before=lambda context: judge(foresee(context), request.anyway, screen.say),
            processor=open_processor(request.processor.value, ranks.rank),
        )


def _workers(scenario: Scenario) -> int:
    """Choose how many processes to start: one a processor, as far as a round gives them work."""
    if scenario.secure_aggregation == "protocol" or scenario.aggregator == "tff":
        return 1
    linux = hasattr(os, "sched_getaffinity")
    processors = len(os.sched_getaffinity(0)) if linux else os.cpu_count() or 1
    return max(1, min(processors, scenario.cohort // DEVICES_PER_WORKER))
