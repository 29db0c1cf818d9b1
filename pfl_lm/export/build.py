"""From a run to a bundle: convert, compare, measure, write; whole or not at all.

Legend: V words, k suggestions, d coordinates of the payload.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pfl_lm import __version__
from pfl_lm.export import bundle as names
from pfl_lm.export import card, vectors
from pfl_lm.export.bundle import Bundle, pack, write_index
from pfl_lm.export.cost import Cost, measure
from pfl_lm.export.formats import FORMATS, ExportedFile, convert, format_of, open_file
from pfl_lm.export.graphs import predict
from pfl_lm.export.invented import invented_windows
from pfl_lm.export.lessons import first_step, first_task, train_graph, write_weights
from pfl_lm.export.parity import HeldOutText, Parity, Reading, compare, read
from pfl_lm.export.personal import PersonalPlan, personal_step, plain, whitening
from pfl_lm.export.ports import Graph
from pfl_lm.export.quantise import fitted_layers
from pfl_lm.export.source import Source
from pfl_lm.export.tables import layers_of
from pfl_lm.export.verify import verify_bundle
from pfl_lm.export.words import BlockList, write_words
from pfl_lm.files import folder_atomically
from pfl_lm.runs import write_json

CALIBRATION_TEXTS = 1024  # invented, for the fit of four bits
BEST = 5  # suggestions: three are shown, and some may be words that the app leaves out


@dataclass(frozen=True)
class Choice:
    """What to export.

    Args:
        formats, precisions: those whose toolchain is missing are refused, not left out.
        block_list: a text file of words never to suggest, or None.
        least_agreement: least share of positions at which a file suggests the same three words as
            torch; by precision, ``int4`` may have a bar of its own.
        train: add the graph of a round's local training, and the model's weights for it.
        personal: add the graph with which a keyboard learns from its owner (ONNX only).
    """

    formats: tuple[str, ...] = tuple(FORMATS)
    precisions: tuple[str, ...] = ("fp32", "int8")
    block_list: Path | None = None
    least_agreement: float = 0.98
    least_agreement_int4: float = 0.90
    train: bool = True
    personal: bool = True

    def __post_init__(self) -> None:
        for name in self.formats:
            if remedy := format_of(name).missing():
                raise ValueError(f"--formats {name}: {remedy}")
        known = {p for name in self.formats for p in format_of(name).precisions}
        for precision in self.precisions:
            if precision not in known:
                raise ValueError(
                    f"--precisions {precision}: must be one of {', '.join(sorted(known))}"
                )
        for bar in (self.least_agreement, self.least_agreement_int4):
            if not 0 <= bar <= 1:
                raise ValueError(f"--least-agreement {bar}: a share between 0 and 1")

    def bar(self, precision: str) -> float:
        return self.least_agreement_int4 if precision == "int4" else self.least_agreement

    def predictors(self) -> list[tuple[str, str]]:
        """Formats and precisions of ``predict``, fp32 first."""
        return [
            (name, precision)
            for name in self.formats
            for precision in self.precisions
            if precision in format_of(name).precisions
        ]


@dataclass(frozen=True)
class Row:
    """One file with its figures: a line of the table, an entry of the index."""

    file: ExportedFile
    parity: Parity | None = None
    cost: Cost | None = None
    not_run: str = ""

    def entry(self) -> dict[str, Any]:
        return self.file.as_dict() | {
            "path": f"{names.GRAPHS}/{self.file.name}",
            "least_runtime": format_of(self.file.format).least_runtime,
            "parity": None if self.parity is None else self.parity.as_dict(),
            "cost": None if self.cost is None else self.cost.as_dict(),
            "not_run": self.not_run,
        }


@dataclass
class Watch:
    """Whoever follows an export."""

    say: Callable[[str], None] = lambda line: None
    row: Callable[[Row], None] = lambda row: None


@dataclass(frozen=True)
class _Work:
    """What the parts of an export share."""

    folder: Path
    source: Source
    choice: Choice
    text: HeldOutText
    watch: Watch
    blocked: BlockList
    plan: PersonalPlan
    rows: list[Row] = field(default_factory=list)

    @property
    def graphs(self) -> Path:
        return self.folder / names.GRAPHS


def export(
    source: Source, output: Path, choice: Choice, text: HeldOutText, watch: Watch | None = None
) -> list[Row]:
    """Write the bundle of a run: a zip if ``output`` ends in .zip, else a folder.

    Raises:
        ValueError: ``output`` exists, a toolchain refuses the model, or a file agrees with torch
            less often than the bar asks. Nothing is kept then, nor if the process is interrupted;
            what a process that was killed outright left is removed by the next export.
    """
    output, watch = Path(output), watch or Watch()
    _sweep(output)
    if output.exists():
        raise ValueError(f"{output} exists already; remove it or choose another destination")
    if output.suffix != ".zip":
        with folder_atomically(output) as folder:
            return _write(folder, source, choice, text.fitting(), watch)
    aside = output.with_name(f".{output.name}.unpacked")
    try:
        with folder_atomically(aside) as folder:
            rows = _write(folder, source, choice, text.fitting(), watch)
        pack(aside, output)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return rows


def _write(
    folder: Path, source: Source, choice: Choice, text: HeldOutText, watch: Watch
) -> list[Row]:
    blocked = BlockList.read(choice.block_list, source.tokenizer)
    plan = PersonalPlan().of(source.model)
    work = _Work(folder, source, choice, text, watch, blocked, plan)
    work.graphs.mkdir()
    words = write_words(folder, source.tokenizer, blocked)
    graph = _graph(work, "fp32")
    _predictors(work, graph)
    told = _vectors(work, graph)
    if choice.train:
        told["train_step"] = _training(work)
    model = {"spec": asdict(source.model.spec), "suggestions": BEST, "initial_state": "zeros"}
    model["weights"] = write_weights(folder, source.model) if choice.train else None
    if choice.personal and "onnx" in choice.formats:
        model["personal"], told["personal_step"] = _personal(work)
    write_json(folder / names.VECTORS, told)
    card.write_provenance(folder, source)
    stated = {
        "name": source.name,
        "pfl_lm": __version__,
        "run": source.identity,
        "model": model,
        "words": words,
        "graphs": [row.entry() for row in work.rows],
        "limits": card.limits(source, blocked),
    }
    card.write_card(folder, source, stated, text)
    index = write_index(folder, stated)
    watch.say("verifying what was written")
    failed = [f for f in verify_bundle(Bundle(folder, index)) if f.holds is False]
    if failed:
        listed = "; ".join(f"{finding.name}: {finding.says}" for finding in failed)
        raise ValueError(f"nothing was kept; what was written does not hold: {listed}")
    return work.rows


def _predictors(work: _Work, graph: Graph) -> None:
    """Convert ``predict`` into every format and precision; compare and measure each."""
    work.watch.say("reading held-out text with the torch model")
    reference = read(graph, graph.interface, graph.start, work.text)
    rounded = {name: _graph(work, name) for name in work.choice.precisions if layers_of(name)}
    for format, precision in work.choice.predictors():
        work.watch.say(f"{format} {precision}")
        file = convert(rounded.get(precision, graph), format, precision, work.graphs)
        row = _measured(work, graph, file, reference)
        work.rows.append(row)
        work.watch.row(row)
    bar = [r for r in work.rows if r.parity and r.parity.top3_agreement < _bar(work, r)]
    if bar:
        listed = ", ".join(
            f"{r.file.name} {r.parity.top3_agreement:.2%} (bar {_bar(work, r):.0%})"
            for r in bar
            if r.parity
        )
        raise ValueError(
            f"nothing was kept; too seldom the three suggestions of the trained model: {listed}"
        )


def _bar(work: _Work, row: Row) -> float:
    return work.choice.bar(row.file.precision)


def _graph(work: _Work, precision: str) -> Graph:
    """Return ``predict`` of the model with its tables as the precision holds them."""
    model, layers = work.source.model, layers_of(precision)
    if precision == "int4":
        work.watch.say("fitting four bits on text that the model invents")
        layers = fitted_layers(model, invented_windows(plain(model), CALIBRATION_TEXTS))
    return predict(
        model,
        best=BEST,
        blocked=work.blocked.ids,
        adapter_rank=work.plan.rank if work.choice.personal else 0,
        layers=layers,
    )


def _measured(work: _Work, graph: Graph, file: ExportedFile, reference: Reading) -> Row:
    known = format_of(file.format)
    if remedy := known.runtime_missing():
        return Row(file, not_run=remedy)
    runner = open_file(work.graphs, file)
    parity = compare(read(runner, file.interface, graph.start, work.text), reference)
    cost = measure(work.graphs, file)
    return Row(file, parity, cost, "" if known.runs else "interpreted here, its runtime not run")


def _vectors(work: _Work, graph: Graph) -> dict[str, Any]:
    texts = vectors.invent_texts(work.source.tokenizer, frozenset(work.blocked.ids))
    runs = {
        row.file.name: open_file(work.graphs, row.file)
        for row in work.rows
        if not format_of(row.file.format).runtime_missing()
    }
    mask = vectors.PrefixMask(work.source.tokenizer)
    return {
        "schema": names.SCHEMA,
        "tokenizer": vectors.text_vectors(work.source.tokenizer, texts),
        "predict": vectors.predict_vectors(texts, graph, runs, mask),
    }


def _training(work: _Work) -> dict[str, Any]:
    """Export a step of local training in every format; return its test vectors."""
    task = first_task(work.source)
    told: dict[str, Any] = {}
    for name in work.choice.formats:
        work.watch.say(f"{name} train_step")
        graph = train_graph(task, format_of(name).lookup)
        work.rows.append(Row(convert(graph, name, "fp32", work.graphs)))
        told = told or vectors.graph_vectors(graph, first_step(task, graph), work.folder)
    return told


def _personal(work: _Work) -> tuple[dict[str, Any], dict[str, Any]]:
    """Export what a keyboard learns with; return its plan and its test vectors."""
    work.watch.say("onnx personal_step")
    model, plan = plain(work.source.model), work.plan
    down = whitening(model, plan.rank)
    (work.folder / names.PERSONAL).write_bytes(down.astype("<f4").tobytes())
    graph = personal_step(model, plan, down)
    work.rows.append(Row(convert(graph, "onnx", "fp32", work.graphs)))
    words = np.zeros(graph.inputs[1].shape, np.int32)
    words[0, :4] = (2, *range(work.source.tokenizer.vocabulary_size)[-2:], 3)
    told = vectors.graph_vectors(graph, graph.start | {"windows": words}, work.folder)
    return plan.describe(model.spec.output_dim), told


def _sweep(output: Path) -> None:
    """Remove what exports to this destination left when their process was killed."""
    for pattern in (f".{output.name}.????????", f".{output.name}.unpacked*"):
        for path in output.parent.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
