"""A round's local training for the phone: its graph, its weights, and a step to test it with."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from pfl_lm.devices.local_training import LocalTraining
from pfl_lm.devices.task import Task
from pfl_lm.export.bundle import WEIGHTS
from pfl_lm.export.graphs.on_device import OnDevice
from pfl_lm.export.graphs.train_step import train_step
from pfl_lm.export.signature import Arrays, ExportGraph
from pfl_lm.export.source import Source
from pfl_lm.models.file import Model
from pfl_lm.models.models import roles
from pfl_lm.payload.choice import choose
from pfl_lm.payload.layout import gather
from pfl_lm.payload.plan import PayloadPlan
from pfl_lm.recipes import from_plain
from pfl_lm.streams import stream
from pfl_lm.text.tokenizer import Tokenizer


def first_task(source: Source) -> Task:
    """Return what round 0 of a run asked of its devices, as its manifest states it.

    A graph depends on the layout of the round's payload, not on its words.

    Raises:
        ValueError: the manifest describes no training of this version.
    """
    model, words = source.model, source.tokenizer
    seed, where = source.manifest.scenario.seed, source.folder.manifest_path
    remedy = "export with --no-train"
    plan = from_plain(PayloadPlan, source.manifest.scenario.payload, where, remedy)
    payload = choose(plan, roles(model.spec), words.unigram, words.specials, seed, 0)
    training = from_plain(LocalTraining, source.manifest.scenario.training, where, remedy)
    values = np.asarray(gather(model.parameters, payload), np.float32)
    return Task(model.spec, model.parameters, payload, values, training, words.unigram, seed, 0)


def first_step(task: Task, graph: ExportGraph) -> Arrays:
    """Return what the graph is given in a device's first step, on words drawn at random.

    The words repeat, lie inside and outside the payload's rows where it has some, and one window
    ends early: what a conversion could get wrong shows in loss or gradient.
    """
    given: list[Arrays] = []

    def record(**inputs: np.ndarray) -> Arrays:
        given.append(inputs)
        return {"loss": np.zeros(1), "gradient": np.zeros(task.payload.dim, np.float32)}

    OnDevice(record, graph.signature, task).train(_invented_windows(task), 0)
    return given[0]


def _invented_windows(task: Task) -> np.ndarray:
    """Draw two windows, int64[2, T + 1]."""
    random, length = stream(task.seed, "test vectors of train_step"), task.training.window + 1
    words = random.choice(len(task.unigram), (2, length), p=task.unigram).astype(np.int64)
    rows = np.zeros(0, np.int64) if task.payload.rows is None else task.payload.rows
    others = np.setdiff1d(np.arange(len(task.unigram)), rows)
    if len(rows) and len(others):
        words[:, ::2] = random.choice(rows, words[:, ::2].shape)
        words[:, 1::2] = random.choice(others, words[:, 1::2].shape)
    words[:, 0], words[words == Tokenizer.pad_id] = Tokenizer.bos_id, Tokenizer.eos_id
    words[1, 1:] = words[0, :-1]
    words[1, length - length // 3 :] = Tokenizer.pad_id
    return words


def train_graph(task: Task, lookup: str) -> ExportGraph:
    """Trace ``train_step`` for one batch of the run's devices.

    Args:
        lookup: ``index`` or ``one_hot``, whichever the format's runtime can take.
    """
    form: Literal["index", "one_hot"] = "index" if lookup == "index" else "one_hot"
    training = task.training
    return train_step(task.spec, task.payload, training, training.batch_size, lookup=form)


def write_weights(folder: Path, model: Model) -> dict[str, Any]:
    """Write every parameter, float32 little-endian, one after the other; return where each lies.

    A round's broadcast then brings the payload's new values, and the app puts them in place.
    """
    places, offset = {}, 0
    with (folder / WEIGHTS).open("wb") as file:
        for name, value in model.parameters.items():
            content = value.detach().numpy().astype("<f4").tobytes()
            places[name] = {"offset": offset, "shape": list(value.shape)}
            offset += file.write(content)
    return places
