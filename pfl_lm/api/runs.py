"""A run, for programs and notebooks: simulated or opened, looked at, evaluated, exported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pfl_lm.devices.processor import ProcessorName, open_processor
from pfl_lm.distributed import ALONE, Ranks
from pfl_lm.distributed.processes import launch
from pfl_lm.evaluation.evaluate import ModelScorer, evaluate
from pfl_lm.evaluation.measures import Evaluation
from pfl_lm.interop.tff_sum import external_aggregator
from pfl_lm.interop.tracking import tracked
from pfl_lm.models.file import Model
from pfl_lm.native.tuning import tune
from pfl_lm.report.page import write_report
from pfl_lm.run import simulate as rounds
from pfl_lm.run.evaluation_file import read_evaluation
from pfl_lm.run.folder import RunFolder
from pfl_lm.run.held_out import open_people
from pfl_lm.run.look import foresee, judge
from pfl_lm.run.manifest_file import Manifest, RecordedGuarantee
from pfl_lm.run.progress import ProgressListener
from pfl_lm.run.scenario import Scenario
from pfl_lm.run.trained import load_trained
from pfl_lm.validate import one_of, whole

if TYPE_CHECKING:
    import pyarrow

WINDOW = 20  # where a manifest states none


def simulate(
    scenario: Scenario,
    folder: Path | str,
    *,
    workers: int = 1,
    resume: bool = False,
    overwrite: bool = False,
    anyway: bool = False,
    listener: ProgressListener | None = None,
    track: Sequence[str] = (),
    processor: ProcessorName = "cpu",
) -> Run:
    """Train a model with simulated devices, evaluate it, and write the run's folder and page.

    Args:
        folder: of the run; new, or with ``resume`` that of an interrupted run.
        workers: processes that share the devices of a round. Model and ledger have the same bytes
            for any number. With more than one, a script needs the guard ``if __name__ ==
            "__main__"``, and the listener is told in another process.
        overwrite: delete an earlier run in that folder, once this one is known to be sound.
        anyway: run also where noise outweighs all that there is to learn.
        listener: told of every round and evaluation, and of what a run foresees.
        track: ``mlflow``, ``wandb`` or both: where the figures of ``metrics.jsonl`` are logged,
            too. Those of people's text carry no noise: no ε covers them.
        processor: where devices train; ``"cuda"``: on a graphics card, whose updates are the
            processor's to float32's rounding.

    Raises:
        ValueError: the scenario cannot be run, its noise outweighs all there is to learn, the
            folder exists, a round would exceed the policy's budget, the model diverges, or an
            argument is out of its range.

    >>> import pfl_lm, tempfile
    >>> project = pfl_lm.new_project(tempfile.mkdtemp())
    >>> small = {"rounds": 2, "cohort": 4, "population.users": 60, "evaluation.final_users": 3}
    >>> scenario = pfl_lm.load_scenario(project / "scenario.toml", small)
    >>> run = pfl_lm.simulate(scenario, project / "runs" / "first")
    >>> run.guarantee.epsilon <= 2.0
    True
    >>> run.metrics.num_rows
    2
    >>> len(run.suggest("how are"))
    3
    """
    if not isinstance(scenario, Scenario):
        raise ValueError("scenario: pass what pfl_lm.load_scenario returns")
    if resume and overwrite:
        raise ValueError("resume goes on with a run and overwrite deletes it: choose one")
    whole(1, workers=workers)
    _flags(resume=resume, overwrite=overwrite, anyway=anyway)
    if processor not in get_args(ProcessorName):
        one_of(get_args(ProcessorName), processor=str(processor))
    if isinstance(listener, type):
        raise ValueError(f"listener = {listener!r} is a class: pass an object of it")
    work = partial(
        _simulate,
        scenario=scenario,
        folder=Path(folder),
        listener=listener or ProgressListener(),
        resume=resume,
        overwrite=overwrite,
        anyway=anyway,
        track=_names(track),
        processor=processor,
    )
    if workers == 1:
        work(ALONE)
    else:
        launch(workers, work)
    run = Run(Path(folder))
    run.report()
    return run


def open_run(folder: Path | str) -> Run:
    """Open the folder of a run, finished or going.

    Raises:
        ValueError: no run lies there.

    >>> import pfl_lm
    >>> pfl_lm.open_run("no/such/run")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: no/such/run is not a run folder: ...
    """
    RunFolder.open(Path(folder))
    return Run(Path(folder))


@dataclass(frozen=True)
class Run:
    """A run's folder and what can be asked of it; a notebook shows its headline and a curve."""

    folder: Path

    @cached_property
    def manifest(self) -> Manifest:
        """What the run said of itself as it began."""
        return Manifest.read(RunFolder.open(self.folder))

    @property
    def guarantee(self) -> RecordedGuarantee | None:
        """What follows from the run's policy, once deployed; None without a policy, ε = ∞."""
        return self.manifest.guarantee

    @property
    def statements(self) -> dict[str, str]:
        """What is guaranteed of this very model, and what its training only simulates."""
        stated = self.manifest.statements
        return {"guaranteed": stated.guaranteed, "simulated": stated.simulated}

    @property
    def rounds(self) -> list[dict[str, Any]]:
        """The figures of every round: loss, reports, norms, bytes, ε so far."""
        return self._lines("round")

    @property
    def validations(self) -> list[dict[str, Any]]:
        """The evaluations on validation users while the run went on."""
        return self._lines("evaluation")

    @property
    def metrics(self) -> pyarrow.Table:
        """The figures of every round as a table; ``.to_pandas()`` makes a data frame of it."""
        import pyarrow

        return pyarrow.Table.from_pylist(self.rounds)

    @property
    def evaluation(self) -> dict[str, Any]:
        """The final figures on test users, with the baselines; empty before the run's end."""
        return read_evaluation(RunFolder(self.folder).evaluation_path)

    @property
    def model(self) -> Model:
        """What has been trained so far."""
        return load_trained(self.folder)[0]

    def evaluate(
        self,
        *,
        split: str = "test",
        users: int | None = None,
        population: Path | str | None = None,
        tokenizer: Path | str | None = None,
    ) -> Evaluation:
        """Measure the model on held-out users.

        Args:
            split: ``validation`` or ``test``.
            users: how many, drawn at random; None: all.
            population, tokenizer: folders; the run's own where they are absent.

        Raises:
            ValueError: the users' text or the vocabulary is not found, or fits another model.
        """
        if split not in ("validation", "test"):
            raise ValueError(f"split = {split!r}: held-out users are in validation and test")
        if users is not None:
            whole(1, users=users)
        model, manifest = load_trained(self.folder)
        store = None if population is None else Path(population)
        words = None if tokenizer is None else Path(tokenizer)
        people = open_people(model, manifest, self.folder, store, words)
        return evaluate(
            ModelScorer(model.spec, model.parameters),
            people.population,
            split,
            people.tokenizer,
            manifest.scenario.window or WINDOW,
            max_users=users,
        )

    def suggest(self, text: str, count: int = 3) -> list[str]:
        """Return the words that a keyboard would suggest after a text.

        Raises:
            ValueError: ``text`` is none, or ``count`` is below 1.
        """
        from pfl_lm.api.suggesting import opened

        if not isinstance(text, str):
            raise ValueError(f"text = {text!r} is refused: expected a str")
        whole(1, count=count)
        with opened(self.folder) as suggester:
            return [word for word, _ in suggester.offer(text, count).words]

    def export(
        self,
        output: Path | str,
        *,
        formats: Sequence[str] = ("onnx",),
        precisions: Sequence[str] = ("fp32", "int8"),
        tokenizer: Path | str | None = None,
    ) -> Path:
        """Write the run as a bundle for phones; each format of graphs needs its extra.

        ``arpa`` and ``aosp`` among ``formats`` add the model as an n-gram.

        Raises:
            ValueError: a toolchain is missing, the run has not ended, or a file falls short of the
                torch model.
        """
        from pfl_lm.export.build import export
        from pfl_lm.export.config import ExportConfig
        from pfl_lm.export.parity import HeldOutText
        from pfl_lm.export.source import open_source

        source = open_source(self.folder, None if tokenizer is None else Path(tokenizer))
        people = open_people(source.model, source.manifest, self.folder)
        text = HeldOutText(
            "held-out users", people.population, source.tokenizer, "validation", source.window
        )
        export(source, Path(output), ExportConfig(_names(formats), _names(precisions)), text)
        return Path(output)

    def report(self) -> Path:
        """Write the run's page and return its path."""
        return write_report(self.folder)

    def _repr_html_(self) -> str:
        from pfl_lm.api.notebook import show_run

        return show_run(self.folder)

    def _lines(self, kind: str) -> list[dict[str, Any]]:
        from pfl_lm.report.source import read_run

        run = read_run(RunFolder.open(self.folder))
        return run.rounds if kind == "round" else run.evaluations


def _flags(**fields: object) -> None:
    """Raise ValueError unless each field is true or false; "no" would be true."""
    for name, value in fields.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name} = {value!r} is refused: expected True or False")


def _names(names: Sequence[str]) -> tuple[str, ...]:
    """Return names; a text alone is one, not as many as it has letters."""
    return (names,) if isinstance(names, str) else tuple(names)


def _simulate(
    ranks: Ranks,
    scenario: Scenario,
    folder: Path,
    listener: ProgressListener,
    resume: bool,
    overwrite: bool,
    anyway: bool,
    track: tuple[str, ...],
    processor: ProcessorName,
) -> None:
    """Simulate as one of the processes, or alone."""
    tune(1)  # threads split sums, and so change their bits
    external = external_aggregator(scenario.aggregator)
    with tracked(track if ranks.is_first else (), folder, listener) as told:
        rounds.simulate(
            scenario,
            folder,
            told,
            resume,
            overwrite,
            ranks,
            external,
            before=lambda context: judge(foresee(context), anyway, told.say),
            processor=open_processor(processor, ranks.rank),
        )
