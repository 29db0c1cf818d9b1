"""Over draws of the payload, the mean of a travelling row's gradient is the exact softmax's.

Each path trains one device for one step, on the same text and model, under 60 draws of the rows.
For groups of words, what came into the rows that travelled is compared with what comes into the
same rows when every row travels: the difference, along the exact gradient and summed over a group,
has mean zero. Two-sided t-intervals for all groups at once (Bonferroni), at a level of 10⁻⁴. With
the hidden vector's weights 1 / π in the rows as well, the same comparison must fail.

Four words that always travel hold most of the probability and no other word holds much, so that the
bias of a ratio (``devices/output``) is below what the intervals can see.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from pfl_lm import native
from pfl_lm.devices import candidates as compiled
from pfl_lm.devices import output
from pfl_lm.devices.local_training import LocalTraining
from pfl_lm.devices.task import Task
from pfl_lm.devices.training import train
from pfl_lm.export.graphs.train_step import train_step
from pfl_lm.models import losses, models
from pfl_lm.models.models import ModelSpec
from pfl_lm.payload.choice import choose
from pfl_lm.payload.layout import Payload, gather
from pfl_lm.payload.plan import PayloadPlan
from tests.export.graph_training import train_by

V, D, T, DRAWS = 1000, 8, 6, 60
SPECIALS = (0, 1, 2, 3)
_FREQUENCY = np.arange(V - 4, 0, -1) + V
UNIGRAM = np.concatenate([np.full(4, 0.95 / 4), 0.05 * _FREQUENCY / _FREQUENCY.sum()])
WINDOWS = np.random.default_rng(1).integers(4, V, (4, T + 1))
GROUPS = {
    "specials": np.arange(V) < 4,
    "typed": np.isin(np.arange(V), WINDOWS),
    "frequent": np.arange(V) < V // 2,
    "rare": np.arange(V) >= V // 2,
}  # the last two: words that were not typed
for _name in ("frequent", "rare"):
    GROUPS[_name] &= ~(GROUPS["typed"] | GROUPS["specials"])
RATE = 100.0  # of one step: an update is −100 gradients, large beside the rounding of the values
STEP = LocalTraining(RATE, batch_size=4, window=T)
SAMPLED = replace(STEP, loss="sampled", negatives=120)
CIFG = ModelSpec("cifg_lstm", V, D, hidden_dim=10)
UNTIED = ModelSpec("lstm", V, D, layers=2, hidden_dim=10, tied=False)
TRANSFORMER = ModelSpec("transformer", V, D, layers=2, heads=2, feedforward_dim=12, context=T)
UNIFORM, FREQUENT = (PayloadPlan(rows=250, dense="none", draw=d) for d in ("uniform", "unigram"))

PATHS: dict[str, tuple[ModelSpec, PayloadPlan, LocalTraining]] = {
    "softmax over the rows": (CIFG, UNIFORM, STEP),
    "softmax over the rows, frequent": (CIFG, FREQUENT, STEP),
    "sampled": (CIFG, FREQUENT, SAMPLED),
    "untied": (UNTIED, UNIFORM, SAMPLED),
    "transformer": (TRANSFORMER, UNIFORM, SAMPLED),
    "recomputed": (CIFG, UNIFORM, replace(SAMPLED, activations="recomputed")),
    "truncated": (CIFG, UNIFORM, replace(SAMPLED, activations="truncated", segment_length=3)),
    "transformer, recomputed": (TRANSFORMER, UNIFORM, replace(SAMPLED, activations="recomputed")),
    "gradient bound": (CIFG, UNIFORM, replace(STEP, gradient_clip=1e6)),
    "forward only": (UNTIED, UNIFORM, replace(SAMPLED, method="forward_only")),
    "nce": (UNTIED, UNIFORM, replace(STEP, loss="nce", negatives=10**6)),
}
Train = Callable[..., tuple[np.ndarray, list]]


def start(spec: ModelSpec, shrink: float = 1.0) -> models.Parameters:
    """A model that predicts the unigram, but for what its small random tables add."""
    parameters = models.initialise(spec, 0, UNIGRAM)
    parameters[spec.output_table] *= shrink
    return parameters


def gradients(
    spec: ModelSpec, payload: Payload, training: LocalTraining, parameters: models.Parameters,
    by: Train = train,
) -> dict[str, np.ndarray]:  # fmt: skip
    """What one step of a device adds to each row, over all V words; NaN where none travels."""
    values = gather(parameters, payload)
    task = Task(spec, parameters, payload, values, training, UNIGRAM, 5, payload.round)
    views = payload.views(by(task, [WINDOWS], [3])[0][0] / -training.learning_rate)
    found = {}
    for name, rows in views.items():
        found[name] = np.full((V, *rows.shape[1:]), np.nan)
        found[name][slice(None) if payload.rows is None else payload.rows] = rows
    return found


def largest_score(
    spec: ModelSpec, plan: PayloadPlan, training: LocalTraining, by: Train = train
) -> float:
    """How far the worst group's mean is from 0, in units of its interval's half width."""
    parameters = start(spec, 0.1 if training.loss == "nce" else 1.0)
    everything = choose(PayloadPlan(dense="none"), models.roles(spec), UNIGRAM, SPECIALS, 7, 0)
    exact = gradients(spec, everything, replace(training, loss="softmax"), parameters)
    if training.method == "forward_only" or training.loss == "nce":
        # The one moves no row as an input; the other's hidden vectors have another weighting.
        del exact["embedding"]
    sums: dict[tuple[str, str], list[float]] = {}
    sizes: dict[tuple[str, str], list[float]] = {}
    for number in range(DRAWS):
        payload = choose(plan, models.roles(spec), UNIGRAM, SPECIALS, 7, number)
        found = gradients(spec, payload, training, parameters, by)
        for name, rows in exact.items():
            along = rows.reshape(V, -1)
            size = np.maximum(np.linalg.norm(along, axis=1), 1e-30)
            error = ((found[name] - rows).reshape(V, -1) * along).sum(1) / size
            for group, words in GROUPS.items():
                here = words & np.isfinite(error)
                sums.setdefault((name, group), []).append(error[here].sum())
                sizes.setdefault((name, group), []).append(size[here].sum())
    critical = stats.t.ppf(1 - 1e-4 / (2 * len(sums)), DRAWS - 1)
    return max(
        abs(np.mean(sample))
        # Float32, and ν = 10⁶ instead of ∞, move a mean by parts in a million of the gradient.
        / (critical * stats.sem(sample) + 1e-5 * np.mean(sizes[key]))
        for key, sample in sums.items()
        if np.mean(sizes[key]) > 1e-9  # untied, words that were not typed get no input gradient
    )


def uncorrected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let rows have the slopes that the hidden vectors have."""
    drawn = losses.draw_for_softmax

    def draw(*args) -> losses.Candidates:
        found = drawn(*args)
        whole = None if found.inclusion is None else np.ones_like(found.inclusion)
        return replace(found, inclusion=whole)

    monkeypatch.setattr(losses, "draw_for_softmax", draw)


@pytest.mark.parametrize("path", PATHS)
def test_the_mean_over_payloads_is_the_exact_softmaxs(path: str, monkeypatch) -> None:
    found = largest_score(*PATHS[path])
    assert found < 1
    if PATHS[path][2].loss == "nce":  # its slopes are not divided by π: multiplying would be wrong
        drawn = losses.draw_for_nce

        def draw(count, words, *rest) -> losses.Candidates:
            noise = drawn(count, words, *rest)
            return replace(noise, inclusion=np.full(len(noise.words), 0.25, np.float32))

        monkeypatch.setattr(losses, "draw_for_nce", draw)
    else:
        uncorrected(monkeypatch)
    wrong = largest_score(*PATHS[path])
    assert wrong > 3


@pytest.mark.parametrize("path", ["softmax over the rows", "sampled"])
def test_the_same_without_kernels(path: str, monkeypatch) -> None:
    monkeypatch.setattr(compiled, "supports", lambda *tensors: False)
    assert largest_score(*PATHS[path]) < 1
    uncorrected(monkeypatch)
    assert largest_score(*PATHS[path]) > 3


@pytest.mark.parametrize("path", ["softmax over the rows", "sampled", "transformer"])
def test_the_same_by_the_exported_graph(path: str, monkeypatch) -> None:
    spec, plan, training = PATHS[path]
    payload = choose(plan, models.roles(spec), UNIGRAM, SPECIALS, 7, 0)
    graph = train_step(spec, payload, training, training.batch_size)
    by = train_by(graph, graph.signature)
    assert largest_score(spec, plan, training, by) < 1
    uncorrected(monkeypatch)
    assert largest_score(spec, plan, training, by) > 3


def test_the_kernels_are_what_is_tested() -> None:
    if native.load("candidates") is None:
        pytest.skip("no C kernels: no compiler, or PFL_LM_NATIVE=0")
    assert compiled.supports(torch.zeros(1, 4, D))


@pytest.mark.parametrize(
    ("spec", "reach"), [(CIFG, 1e-3), (TRANSFORMER, 1e-4)], ids=["recurrent", "transformer"]
)
@pytest.mark.parametrize("loss", ["softmax", "sampled", "nce"])
def test_a_slope_along_a_direction_is_that_of_the_corrected_gradient(
    spec: ModelSpec, reach: float, loss: str, monkeypatch
) -> None:
    """Zeroth order, whose slopes cannot be multiplied by π once they are taken.

    Norms of a transformer bend the loss sharply where embeddings are as small as here.
    """

    spec = replace(spec, vocabulary_size=40)
    unigram, text = np.full(40, 1 / 40), 4 + WINDOWS % 36

    def errors() -> np.ndarray:
        """Slopes less ⟨gradient, direction⟩, beside the slopes' own size; 12 payloads."""
        parameters, found = models.initialise(spec, 0), []
        for number in range(12):
            plan = PayloadPlan(rows=15, dense="none", directions=1)
            payload = choose(plan, models.roles(spec), unigram, SPECIALS, 7, number)
            training = replace(STEP, loss=loss, negatives=12, perturbation=reach)
            whole = payload.whole
            task = Task(
                spec, parameters, whole, gather(parameters, whole), training, unigram, 5, number
            )
            update = train(task, [text], [3])[0][0]
            training = replace(training, method="zeroth_order")
            task = replace(task, payload=payload, values=np.zeros(1, np.float32), training=training)
            slope = train(task, [text], [3])[0][0, 0]
            along = payload.directions.combine(np.ones(1, np.float32))
            found.append((slope - along @ update) / np.linalg.norm(update) * len(along) ** 0.5)
        return np.abs(found)

    assert errors().max() < 0.01
    if loss != "nce":
        monkeypatch.setattr(output.Objective, "centre", lambda *given: None)
        assert errors().max() > 0.1
