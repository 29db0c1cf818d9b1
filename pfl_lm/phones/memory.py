"""How much memory training takes on a phone: measured by torch's own accounting, and predicted.

Three parts add up: the model as it lies on the phone; what travels (received, trained and, with a
bound on the gradient, its gradient); and the work of a step, in which the training methods differ.
``measure_memory`` runs one device (K = 1) in a process of its own and reads the allocator's
events; ``predict_memory`` counts, for a fleet that asks thousands of times.

What a step holds depends on its implementation: the C kernels make again in the backward pass what
torch's operations keep. So both are fitted. A fleet is told the kernels' need, whether or not the
machine that simulates it has a compiler.
"""

from __future__ import annotations

import multiprocessing
import os
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pfl_lm.devices.local_training import LocalTraining
from pfl_lm.models.lora import is_layer
from pfl_lm.models.models import ModelSpec, body_of, initialise, roles
from pfl_lm.models.quantised import bytes_of
from pfl_lm.native.tuning import cpu_flags
from pfl_lm.payload.choice import choose
from pfl_lm.payload.layout import Payload, gather
from pfl_lm.payload.plan import PayloadPlan
from pfl_lm.phones.flops import passes_through, scored_words
from pfl_lm.phones.method_costs import METHOD_COSTS

SPECIALS = (0, 1, 2, 3)

# How often each of ``features`` is held at the peak: fitted by benchmarks/device_memory.py.
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
# The same for torch's own operations, which every machine has.
WORK_IN_TORCH: dict[str, tuple[float, ...]] = {
    "recurrent, kept": (3.301, 0.0, 0.921, 0.551, 0.0, 0.0, 0.461, 4.335),
    "recurrent, passed by": (1.188, 0.0, 0.305, 0.0, 0.0, 0.0, 0.0, 4.135),
    "recurrent, recomputed": (5.172, 10.366, 0.855, 0.0, 0.0, 0.686, 1.756, 3.729),
    "recurrent, truncated": (4.564, 9.494, 0.912, 0.0, 0.0, 0.57, 1.89, 0.137),
    "recurrent, zeroth_order": (0.147, 0.0, 0.14, 0.004, 0.0, 3.24, 0.0, 1.744),
    "recurrent, forward_only": (6.954, 0.0, 0.158, 0.0, 0.0, 1.255, 0.517, 4.829),
    "transformer, kept": (2.054, 6.162, 0.976, 0.223, 2.942, 1.115, 0.141, 10.678),
    "transformer, passed by": (0.903, 0.0, 0.0, 0.0, 0.0, 6.267, 0.0, 0.0),
    "transformer, recomputed": (3.843, 0.804, 0.861, 0.204, 0.0, 3.013, 0.818, 9.606),
    "transformer, zeroth_order": (2.483, 2.008, 0.97, 0.006, 0.0, 2.301, 0.0, 0.0),
    "transformer, forward_only": (5.06, 1.644, 1.241, 0.013, 0.0, 5.748, 0.0, 0.0),
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


def measure_memory(
    spec: ModelSpec,
    plan: PayloadPlan,
    training: LocalTraining,
    tokens: int = 400,
    compiled: bool = True,
) -> Memory:
    """Train one device in a process of its own and return the peak of what torch allocated.

    What the C kernels allocate for the time of a call (packed weights, the rows they are at) is
    not counted.

    Args:
        plan: of the payload; rows are drawn for round 0.
        tokens: target tokens of the device's text.
        compiled: train with the C kernels, if this machine has a compiler; False: without.

    Raises:
        RuntimeError: the process died.
    """
    with _fresh().Pool(1, initializer=_quiet) as pool:
        allocated = pool.apply(_allocated, (spec, plan, training, tokens, compiled))
    payload = _payload(spec, plan)
    held, ours = METHOD_COSTS[training.method].held_bytes(payload, training)
    return Memory(bytes_of(roles(spec), training.weight_bits), held + ours, allocated - held)


def predict_memory(
    spec: ModelSpec, payload: Payload, training: LocalTraining, compiled: bool = True
) -> Memory:
    """Say what ``measure_memory`` would find, within a tenth, without training anything.

    Args:
        compiled: by the C kernels, on whatever machine this is asked; False: by torch alone.
    """
    weights = (WORK if compiled else WORK_IN_TORCH)[kind_of(spec, payload, training)]
    work = sum(w * f for w, f in zip(weights, features(spec, payload, training), strict=True))
    work += centre_bytes(spec, payload, training)
    model = bytes_of(roles(spec), training.weight_bits)
    held = METHOD_COSTS[training.method].held_bytes(payload, training)
    return Memory(model, sum(held), round(work))


def features(spec: ModelSpec, payload: Payload, training: LocalTraining) -> tuple[float, ...]:
    """Return the sizes, in bytes, that the work of a step is made of.

    Gates or the inner rows of the feed-forward part; rows as wide as a word; scores; rows of the
    scored words; attention; places of words among the payload's rows; gradients of matrices.

    Only what exists at once counts: a segment of words, one window, or one block, where they are
    taken apart.
    """
    cost = METHOD_COSTS[training.method]
    rows, scored_rows, blocks = cost.words_at_once(spec, payload, training)
    scored = scored_words(spec, payload, training)
    width = spec.embedding_dim
    body = body_of(spec)
    inner = blocks * body.inner_dim(spec)
    square = blocks * body.heads(spec) * rows * training.window
    travels = {segment.name for segment in payload.segments}
    matrices = sum(
        role.shape[0] * role.shape[1]
        for name, role in roles(spec).items()
        if name in travels and is_layer(name, role)
    )
    words = spec.vocabulary_size if payload.rows is not None else 0
    text = training.window * cost.texts_at_once(body.in_blocks, training)
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


def centre_bytes(spec: ModelSpec, payload: Payload, training: LocalTraining) -> int:
    """Return bytes of the candidates' rows that a method keeps as they were before a step."""
    scored = scored_words(spec, payload, training)
    return METHOD_COSTS[training.method].centre_bytes(spec, payload, training, scored)


def kind_of(spec: ModelSpec, payload: Payload, training: LocalTraining) -> str:
    """Which row of ``WORK`` holds.

    Raises:
        ValueError: a model of the user's own, of which nothing is known here.
    """
    if spec.module:
        raise ValueError(
            'the memory of a model of kind = "module" is not predicted; run it without a fleet'
        )
    row = METHOD_COSTS[training.method].fitted_row(training, passes_through(payload))
    return f"{body_of(spec).family}, {row}"


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


def _allocated(
    spec: ModelSpec, plan: PayloadPlan, training: LocalTraining, tokens: int, compiled: bool
) -> int:
    """Return the peak of bytes that torch held during one device's training, less its start."""
    _set_kernels(compiled)
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


def _set_kernels(compiled: bool) -> None:
    """Choose this process' kernels before it loads any: none, or those of 8 lanes.

    Kernels of 16 lanes (AVX-512) pad the rows of an exact softmax to twice as many, and so take up
    to an eighth more than a phone's. With 8 lanes every machine measures the same.
    """
    if not compiled:
        os.environ["PFL_LM_NATIVE"] = "0"
    elif "avx512f" in cpu_flags():
        options = (os.environ.get("PFL_LM_CFLAGS", ""), "-mno-avx512f")
        os.environ["PFL_LM_CFLAGS"] = " ".join(options)


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
