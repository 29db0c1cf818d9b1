"""From a run to a bundle: convert, compare, measure, write; whole or not at all.

Legend: V words, k suggestions, d coordinates of the payload.
"""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pfl_lm.export import bundle as names
from pfl_lm.export import card, test_vectors
from pfl_lm.export.bundle import Bundle, read_index, write_index, write_zip
from pfl_lm.export.config import ExportConfig
from pfl_lm.export.cost import RuntimeCost, measure_cost
from pfl_lm.export.formats.registry import ExportedFile, convert, format_of, open_file
from pfl_lm.export.forward import padded
from pfl_lm.export.graphs.personal import PersonalPlan, personal_step, plain, whitening
from pfl_lm.export.graphs.predict import predict_graph
from pfl_lm.export.graphs.train_artifact import first_step, first_task, train_graph, write_weights
from pfl_lm.export.ngram import files as ngram
from pfl_lm.export.parity import HeldOutText, Parity, Reading, compare, read, read_trained
from pfl_lm.export.quantise.calibration_text import calibration_windows
from pfl_lm.export.quantise.gptq import fitted_layers
from pfl_lm.export.quantise.grids import INT4
from pfl_lm.export.quantise.word_tables import layers_of
from pfl_lm.export.signature import ExportGraph
from pfl_lm.export.source import Source
from pfl_lm.export.trained import TrainedModel
from pfl_lm.export.verify import verify_bundle
from pfl_lm.export.vocabulary import BlockList, write_vocabulary
from pfl_lm.files import folder_atomically, move_new, scratch_beside
from pfl_lm.models.models import longest_text
from pfl_lm.models.own_words import OwnWordsRule
from pfl_lm.run.folder import write_json
from pfl_lm.run.progress import ProgressListener
from pfl_lm.text.tokenizer import Tokenizer
from pfl_lm.version import __version__

CALIBRATION_TEXTS = 1024  # invented, for the fit of four bits
BEST = 5  # suggestions: three are shown, and some may be words that the app leaves out


@dataclass(frozen=True)
class MeasuredFile:
    """One file with its figures: a line of the table, an entry of the index."""

    file: ExportedFile
    parity: Parity | None = None
    cost: RuntimeCost | None = None
    not_run: str = ""

    def entry(self) -> dict[str, Any]:
        return self.file.as_dict() | {
            "path": f"{names.GRAPHS}/{self.file.name}",
            "least_runtime": format_of(self.file.format).least_runtime,
            "parity": None if self.parity is None else self.parity.as_dict(),
            "cost": None if self.cost is None else self.cost.as_dict(),
            "not_run": self.not_run,
        }


@dataclass(frozen=True)
class _Work:
    """What the parts of an export share."""

    folder: Path
    source: Source
    config: ExportConfig
    text: HeldOutText
    listener: ProgressListener
    blocked: BlockList
    plan: PersonalPlan
    rows: list[MeasuredFile] = field(default_factory=list)

    @property
    def trained(self) -> TrainedModel:
        return TrainedModel(self.source.model, self.blocked.ids)

    @property
    def graphs(self) -> Path:
        return self.folder / names.GRAPHS


def export(
    source: Source,
    output: Path,
    config: ExportConfig,
    text: HeldOutText,
    listener: ProgressListener | None = None,
) -> list[MeasuredFile]:
    """Write the bundle of a run: a zip if ``output`` ends in .zip, else a folder.

    Raises:
        ValueError: ``output`` exists, a precision or a toolchain refuses the model, or a file
            agrees with torch less often than the bar asks. Nothing is kept then, nor if the process
            is interrupted; what a process that was killed outright left is removed by the next
            export to the same place.
    """
    output, listener = Path(output), listener or ProgressListener()
    if os.path.lexists(output):
        raise ValueError(f"{output} exists already; remove it or choose another destination")
    _check_width(source, config)
    if output.suffix != ".zip":
        with folder_atomically(output) as folder:
            return _write(folder, source, config, text.fitting(), listener)
    with scratch_beside(output) as scratch:
        (folder := scratch / "unpacked").mkdir()
        rows = _write(folder, source, config, text.fitting(), listener)
        write_zip(folder, scratch / output.name)
        move_new(scratch / output.name, output)
    return rows


def _check_width(source: Source, config: ExportConfig) -> None:
    """Refuse four bits for a model whose rows do not divide into groups; others are padded."""
    precisions = {precision for _, precision in config.predictors()}
    width = padded(source.model).spec.embedding_dim
    if "int4" in precisions and width % INT4.group:
        raise ValueError(
            f"--precisions int4: this {source.model.spec.kind} has model.embedding_dim = {width}, "
            f"and int4 needs a multiple of {INT4.group}; leave int4 out of --precisions, or train "
            "a model of such a width"
        )


def _write(
    folder: Path,
    source: Source,
    config: ExportConfig,
    text: HeldOutText,
    listener: ProgressListener,
) -> list[MeasuredFile]:
    blocked = BlockList.read(config.block_list, source.tokenizer)
    if blocked.phrases:
        listener.say(
            f"the block list has {len(blocked.phrases):,} entries of several words, such as "
            f"{blocked.phrases[0]!r}: single words are blocked, phrases are not"
        )
    plan = PersonalPlan().of(source.model)
    work = _Work(folder, source, config, text, listener, blocked, plan)
    work.graphs.mkdir()
    vocabulary = write_vocabulary(folder, source.tokenizer, blocked)
    graph, train = _graph(work, "fp32"), config.train and bool(config.graph_formats)
    if config.graph_formats:
        _predictors(work, graph)
    vectors = _vectors(work, graph)
    if train:
        vectors["train_step"] = _training(work)
    model = {"spec": asdict(source.model.spec), "suggestions": BEST, "initial_state": "zeros"}
    model["own_words"] = asdict(OwnWordsRule())
    model["weights"] = write_weights(folder, source.model) if train else None
    if config.personal and "onnx" in config.formats:
        model["personal"], vectors["personal_step"] = _personal(work)
    if config.ngram_formats:
        model["ngram"], vectors["ngram"] = _ngram(work)
    write_json(folder / names.VECTORS, vectors)
    card.write_provenance(folder, source)
    stated = {
        "name": source.name,
        "pfl_lm": __version__,
        "run": source.identity,
        "model": model,
        "vocabulary": vocabulary,
        "graphs": [row.entry() for row in work.rows],
        "limits": card.limits(source, blocked),
    }
    card.write_card(folder, source, stated, text)
    write_index(folder, stated)
    listener.say("verifying what was written")
    failed = [f for f in verify_bundle(Bundle(folder, read_index(folder))) if f.holds is False]
    if failed:
        listed = "; ".join(f"{finding.name}: {finding.says}" for finding in failed)
        raise ValueError(f"nothing was kept; what was written does not hold: {listed}")
    return work.rows


def _predictors(work: _Work, graph: ExportGraph) -> None:
    """Convert ``predict`` into every format and precision; compare and measure each."""
    work.listener.say("reading held-out text with the torch model")
    reference = read_trained(work.trained, work.text)
    if not math.isfinite(reference.evaluation.perplexity):
        raise ValueError(
            "nothing was kept; the model's perplexity on held-out text is not finite: its training "
            "diverged, train it again at a lower rate"
        )
    rounded = {name: _graph(work, name) for name in work.config.precisions if layers_of(name)}
    for format, precision in work.config.predictors():
        work.listener.say(f"{format} {precision}")
        file = convert(rounded.get(precision, graph), format, precision, work.graphs)
        row = _measured(work, graph, file, reference)
        work.rows.append(row)
        work.listener.row(row)
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


def _bar(work: _Work, row: MeasuredFile) -> float:
    return work.config.bar(row.file.precision)


def _graph(work: _Work, precision: str) -> ExportGraph:
    """Return ``predict`` of the model with its tables as the precision holds them."""
    model, layers = work.source.model, layers_of(precision)
    if precision == "int4":
        work.listener.say("fitting four bits on text that the model invents")
        layers = fitted_layers(model, calibration_windows(plain(model), CALIBRATION_TEXTS))
    return predict_graph(
        model,
        best=BEST,
        blocked=work.blocked.ids,
        adapter_rank=work.plan.rank if work.config.personal else 0,
        layers=layers,
    )


def _measured(
    work: _Work, graph: ExportGraph, file: ExportedFile, reference: Reading
) -> MeasuredFile:
    known = format_of(file.format)
    if remedy := known.runtime_missing():
        return MeasuredFile(file, not_run=remedy)
    runner = open_file(work.graphs, file)
    parity = compare(read(runner, file.signature, graph.start, work.text), reference)
    cost = measure_cost(work.graphs, file)
    return MeasuredFile(
        file, parity, cost, "" if known.runs else "interpreted here, its runtime not run"
    )


def _vectors(work: _Work, graph: ExportGraph) -> dict[str, Any]:
    texts = test_vectors.invent_texts(
        work.source.tokenizer, frozenset(work.blocked.ids), longest_text(work.source.model.spec)
    )
    runs = {
        row.file.name: open_file(work.graphs, row.file)
        for row in work.rows
        if not format_of(row.file.format).runtime_missing()
    }
    mask = test_vectors.PrefixMask(work.source.tokenizer)
    return {
        "schema": names.SCHEMA,
        "tokenizer": test_vectors.text_vectors(work.source.tokenizer, texts),
        "own_words": test_vectors.own_words_vectors(texts, work.source.tokenizer.vocabulary_size),
        "predict": test_vectors.predict_vectors(texts, work.trained, graph, runs, mask),
    }


def _training(work: _Work) -> dict[str, Any]:
    """Export a step of local training in every format; return its test vectors."""
    task = first_task(work.source)
    vectors: dict[str, Any] = {}
    for name in work.config.graph_formats:
        work.listener.say(f"{name} train_step")
        graph = train_graph(task, format_of(name).lookup)
        work.rows.append(MeasuredFile(convert(graph, name, "fp32", work.graphs)))
        vectors = vectors or test_vectors.graph_vectors(graph, first_step(task, graph), work.folder)
    return vectors


def _personal(work: _Work) -> tuple[dict[str, Any], dict[str, Any]]:
    """Export what a keyboard learns with; return its plan and its test vectors."""
    work.listener.say("onnx personal_step")
    model, plan = plain(work.source.model), work.plan
    down = whitening(model, plan.rank)
    (work.folder / names.PERSONAL).write_bytes(down.astype("<f4").tobytes())
    graph = personal_step(model, plan, down)
    work.rows.append(MeasuredFile(convert(graph, "onnx", "fp32", work.graphs)))
    words = np.zeros(graph.inputs[1].shape, np.int32)
    message = (Tokenizer.bos_id, *range(model.spec.vocabulary_size)[-2:], Tokenizer.eos_id)
    words[0, : len(message)] = message[: words.shape[1]]
    vectors = test_vectors.graph_vectors(graph, graph.start | {"windows": words}, work.folder)
    return plan.describe(model.spec.output_dim), vectors


def _ngram(work: _Work) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write the model as an n-gram; return what the index and the test vectors say."""
    stated, vectors = ngram.write_ngram(
        work.folder, work.source, work.config.ngram_formats, work.config.ngram, work.blocked,
        work.text, work.listener,
    )  # fmt: skip
    work.listener.ngram_written(stated)
    return stated, vectors
