"""How much memory training takes on a phone: measured by torch's own accounting, and predicted.

Three parts add up: the model as it lies on the phone; what travels (received, trained and, with a
bound on the gradient, its gradient); and the work of a step, which is what the ways to fit differ
in. ``measure`` runs one device (K = 1) in a process of its own and reads the allocator's events;
``predict`` counts, for a fleet that asks thousands of times.
"""

from __future__ import annotations

import multiprocessing
import os
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pfl_lm.devices.batches import LocalTraining
from pfl_lm.devices.costs import passes_through, scored_words
from pfl_lm.language.lora import is_layer
from pfl_lm.language.low_bit import bytes_of
from pfl_lm.language.models import ModelSpec, initialise, roles
from pfl_lm.payload import Payload, PayloadPlan, choose, gather

SPECIALS = (0, 1, 2, 3)
_PANEL = 32  # rows that the exact softmax lays out side by side, there or not

# How often each of ``features`` is held at the peak: fitted by benchmarks/device_memory.py, with
# compiled loops. Without them gradients of a recurrent model's matrices take up to 9% of the peak.
WORK: dict[str, tuple[float, ...]] = {
    "recurrent, kept": (3.054, 0.0, 1.125, 0.378, 0.0, 0.0, 0.0, 0.74),
    "recurrent, passed by": (1.16, 0.0, 0.125, 0.0, 0.0, 0.0, 0.0, 3.426),
    "recurrent, recomputed": (4.844, 4.191, 1.032, 0.079, 0.0, 1.452, 1.806, 2.129),
    "recurrent, truncated": (4.319, 9.009, 0.877, 0.135, 0.0, 0.669, 1.935, 0.229),
    "recurrent, zeroth_order": (2.95, 0.0, 0.983, 0.018, 0.0, 1.276, 0.0, 0.187),
    "recurrent, forward_only": (8.233, 0.0, 0.715, 0.0, 0.0, 0.967, 0.473, 4.422),
    "transformer, kept": (0.786, 6.243, 1.03, 0.14, 0.0, 0.319, 0.758, 6.059),
    "transformer, passed by": (0.261, 0.0, 0.853, 0.0, 0.0, 2.793, 0.0, 0.0),
    "transformer, recomputed": (0.526, 0.467, 1.267, 0.072, 0.0, 4.134, 0.347, 8.23),
    "transformer, zeroth_order": (0.075, 0.0, 1.18, 0.0, 2.714, 1.233, 0.001, 0.0),
    "transformer, forward_only": (4.438, 0.0, 1.322, 0.004, 0.0, 3.323, 0.111, 0.0),
}


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak of training.

    Attributes:
        model_bytes: the frozen model.
        payload_bytes: received and trained coordinates, and their gradient if it is bounded.
        work_bytes: all else: activations, scores, gradients on their way.
    """

    model_bytes: int
    payload_bytes: int
    work_bytes: int

    @property
    def peak_bytes(self) -> int:
        return self.model_bytes + self.payload_bytes + self.work_bytes


def measure(
    spec: ModelSpec, plan: PayloadPlan, training: LocalTraining, tokens: int = 400
) -> Memory:
    """Train one device in a process of its own and return the peak of what torch allocated.

    What compiled loops set aside for the time of a call (packed weights, the rows they are at) is
    not among it.

    Args:
        plan: of the payload; rows are drawn for round 0.
        tokens: target tokens of the device's text.

    Raises:
        RuntimeError: the process died.
    """
    with _fresh().Pool(1, initializer=_quiet) as pool:
        allocated = pool.apply(_allocated, (spec, plan, training, tokens))
    payload = _payload(spec, plan)
    held, ours = _held_bytes(payload, training)
    return Memory(bytes_of(roles(spec), training.weight_bits), held + ours, allocated - held)


def predict(spec: ModelSpec, payload: Payload, training: LocalTraining) -> Memory:
    """Say what ``measure`` would find, within a tenth, without training anything."""
    kind = kind_of(spec, payload, training)
    weights = WORK[kind]
    work = sum(w * f for w, f in zip(weights, features(spec, payload, training), strict=True))
    model = bytes_of(roles(spec), training.weight_bits)
    return Memory(model, sum(_held_bytes(payload, training)), round(work))


def features(spec: ModelSpec, payload: Payload, training: LocalTraining) -> tuple[float, ...]:
    """Return the sizes, in bytes, that the work of a step is made of.

    Gates or the inner rows of the feed-forward part; rows as wide as a word; scores; rows of the
    scored words; attention; places of words among the payload's rows; gradients of matrices.

    Only what exists at once counts: a stretch of words, one window, or one block, where they are
    taken apart.
    """
    rows, scored_rows, blocks = _at_once(spec, payload, training)
    scored = scored_words(spec, payload, training)
    width = spec.embedding_dim
    recurrent = {"cifg_lstm": 3, "lstm": 4}.get(spec.kind, 0) * spec.hidden_dim
    inner = blocks * (recurrent or spec.feedforward_dim)
    square = 0 if recurrent else blocks * spec.heads * rows * training.window
    travels = {segment.name for segment in payload.segments}
    matrices = sum(
        role.shape[0] * role.shape[1]
        for name, role in roles(spec).items()
        if name in travels and is_layer(name, role)
    )
    words = spec.vocabulary_size if payload.rows is not None else 0
    alone = spec.kind == "transformer" and training.method != "backpropagation"
    text = training.window * (1 if alone else training.batch_size)
    return (
        4.0 * rows * inner,
        4.0 * rows * width * spec.layers,
        4.0 * scored_rows * scored,
        4.0 * scored * spec.output_dim,
        4.0 * square,
        8.0 * words,
        4.0 * matrices,
        4.0 * text * width,
    )


def _at_once(spec: ModelSpec, payload: Payload, training: LocalTraining) -> tuple[int, int, int]:
    """Return for how many words activations, and scores, exist at once, and of how many layers."""
    batch, window = training.batch_size, training.window
    stretch = min(training.stretch, window)
    kept = training.activations == "kept"
    if training.method == "backpropagation":
        words = batch * (window if kept or spec.kind == "transformer" else stretch)
        return words, words, spec.layers if kept or spec.kind != "transformer" else 1
    if spec.kind == "transformer":
        return window, window, 1  # window by window, block by block
    if training.loss == "softmax" and (payload.rows is None or len(payload.rows) == 0):
        return batch, -(-batch // _PANEL) * _PANEL, spec.layers  # one word's scores, in panels
    together = 1 if training.method == "forward_only" else stretch
    return batch, batch * together, spec.layers  # stepped word by word


def kind_of(spec: ModelSpec, payload: Payload, training: LocalTraining) -> str:
    """Which row of ``WORK`` holds.

    Raises:
        ValueError: a model of the user's own, of which nothing is known here.
    """
    if spec.kind == "module":
        raise ValueError(
            'the memory of a model of kind = "module" is not predicted; run it without a fleet'
        )
    family = "transformer" if spec.kind == "transformer" else "recurrent"
    if training.method != "backpropagation":
        return f"{family}, {training.method}"
    return f"{family}, {training.activations if passes_through(payload) else 'passed by'}"


def _fresh() -> Any:
    """Return how to start a process in which nothing has been computed yet.

    Where the system can, it is the copy of one that has only imported torch, with what torch
    itself imports at the first step: seconds sooner.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pfl_lm.devices.training", "torch.profiler", "torch._dynamo"])
    return context


def _quiet() -> None:
    """Keep the profiler's greetings off the terminal."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _allocated(spec: ModelSpec, plan: PayloadPlan, training: LocalTraining, tokens: int) -> int:
    """Return the peak of bytes that torch held during one device's training, less its start."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from pfl_lm.devices.task import Task
    from pfl_lm.devices.training import train

    torch.set_num_threads(1)
    unigram = unigram_of(spec)
    parameters = initialise(spec, 0, unigram)
    payload = _payload(spec, plan)
    values = gather(parameters, payload)
    count = -(-tokens // training.window)
    text = np.random.default_rng(0).choice(
        spec.vocabulary_size, (count, training.window + 1), p=unigram
    )
    # A phone holds the rounded model itself; the simulation's float32 copy of it is not counted.
    exact = replace(training, weight_bits=None)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        train(Task(spec, parameters, payload, values, exact, unigram, 0, 0), [text], [0])
    return _peak(profiler)


def _peak(profiler: Any) -> int:
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def unigram_of(spec: ModelSpec) -> np.ndarray:
    """Return Zipf's law over the words: text repeats itself as people do."""
    weights = 1.0 / np.arange(1, spec.vocabulary_size + 1)
    return weights / weights.sum()


def _payload(spec: ModelSpec, plan: PayloadPlan) -> Payload:
    return choose(plan, roles(spec), unigram_of(spec), SPECIALS, 0, 0)


def _held_bytes(payload: Payload, training: LocalTraining) -> tuple[int, int]:
    """Return the bytes of what travels: held by torch, and held by numpy, which it does not count.

    Along directions, the coordinates that they move, and a coefficient for each direction.
    """
    if training.method == "zeroth_order":
        return 0, 4 * (payload.whole_dim + payload.dim)
    if training.method == "forward_only":
        return 4 * payload.dim, 8 * payload.dim
    collected = training.gradient_clip is not None or training.activations != "kept"
    copies = 2 if collected else 1
    return 4 * payload.dim * copies, 4 * payload.dim
