"""A round's local training for the phone: its graph, its weights, and a step to test it with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import TypeAdapter, ValidationError

from pfl_lm.devices.batches import LocalTraining
from pfl_lm.export.bundle import WEIGHTS
from pfl_lm.export.local_step import train_step
from pfl_lm.export.on_device import OnDevice
from pfl_lm.export.ports import Arrays, Graph
from pfl_lm.export.source import Source
from pfl_lm.language.models import roles
from pfl_lm.language.tokenizer import Tokenizer
from pfl_lm.model_file import Model
from pfl_lm.payload import Payload, PayloadPlan, choose, gather
from pfl_lm.streams import stream


@dataclass(frozen=True)
class Lessons:
    """How devices train in the rounds of a run, as its manifest states it.

    Attributes:
        payload: that of round 0; the graph depends on its layout, not on its words.
    """

    model: Model
    payload: Payload
    training: LocalTraining
    unigram: np.ndarray
    seed: int

    @classmethod
    def of(cls, source: Source) -> Lessons:
        """Read the manifest; raises ValueError if it describes no training of this version."""
        seed = source.at("scenario", "seed") or 0
        plan = _built(PayloadPlan, source.at("scenario", "payload") or {})
        words = source.tokenizer
        payload = choose(plan, roles(source.model.spec), words.unigram, words.specials, seed, 0)
        training = _built(LocalTraining, source.at("scenario", "training"))
        return cls(source.model, payload, training, words.unigram, seed)

    def first_step(self, graph: Graph) -> Arrays:
        """Return what the graph is given in a device's first step, on words drawn at random.

        The words repeat, lie inside and outside the payload's rows where it has some, and one
        window ends early: what a conversion could get wrong shows in loss or gradient.
        """
        given: list[Arrays] = []

        def record(**inputs: np.ndarray) -> Arrays:
            given.append(inputs)
            return {"loss": np.zeros(1), "gradient": np.zeros(self.payload.dim, np.float32)}

        device = OnDevice(
            record, graph.interface, self.model.spec, self.model.parameters, self.payload,
            self.training, self.unigram, self.seed, 0,
        )  # fmt: skip
        values = np.asarray(gather(self.model.parameters, self.payload), np.float32)
        device.train(values, self._invented_windows(), 0)
        return given[0]

    def _invented_windows(self) -> np.ndarray:
        """Draw two windows, int64[2, T + 1]."""
        random, length = stream(self.seed, "test vectors of train_step"), self.training.window + 1
        words = random.choice(len(self.unigram), (2, length), p=self.unigram).astype(np.int64)
        rows = np.zeros(0, np.int64) if self.payload.rows is None else self.payload.rows
        others = np.setdiff1d(np.arange(len(self.unigram)), rows)
        if len(rows) and len(others):
            words[:, ::2] = random.choice(rows, words[:, ::2].shape)
            words[:, 1::2] = random.choice(others, words[:, 1::2].shape)
        words[:, 0], words[words == Tokenizer.pad_id] = Tokenizer.bos_id, Tokenizer.eos_id
        words[1, 1:] = words[0, :-1]
        words[1, length - length // 3 :] = Tokenizer.pad_id
        return words


def train_graph(lessons: Lessons, lookup: str) -> Graph:
    """Trace ``train_step`` for one batch of the run's devices.

    Args:
        lookup: ``index`` or ``one_hot``, whichever the format's runtime can take.
    """
    form: Literal["index", "one_hot"] = "index" if lookup == "index" else "one_hot"
    training = lessons.training
    return train_step(
        lessons.model.spec, lessons.payload, training, training.batch_size, lookup=form
    )


def write_weights(folder: Path, model: Model) -> dict[str, Any]:
    """Write every parameter, float32 little-endian, one after the other; return where each lies.

    A round's broadcast then brings the payload's new values, and the app puts them in place.
    """
    lies, offset = {}, 0
    with (folder / WEIGHTS).open("wb") as file:
        for name, value in model.parameters.items():
            content = value.detach().numpy().astype("<f4").tobytes()
            lies[name] = {"offset": offset, "shape": list(value.shape)}
            offset += file.write(content)
    return lies


def _built(kind: type[Any], content: Any) -> Any:
    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(
            f"manifest.json describes no {kind.__name__} of this version ({where}: "
            f"{first['msg']}); export with --no-train"
        ) from error
