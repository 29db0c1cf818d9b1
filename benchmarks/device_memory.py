"""Peak training memory of one device, measured, and the predictor's error; or its fit anew.

    python -m benchmarks.device_memory [--torch] [--fit] [--work recurrent|transformer]

Each setting is measured in a process of its own (``phones.memory.measure_memory``), with the C
kernels or, with ``--torch``, without them. ``--fit`` prints the table ``WORK``, or
``WORK_IN_TORCH``, of ``pfl_lm/phones/memory.py``: non-negative least squares of what is measured,
relative to the peak.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from pfl_lm.devices.local_training import LocalTraining
from pfl_lm.models.models import LoraSpec, ModelSpec, roles
from pfl_lm.payload.choice import choose
from pfl_lm.payload.plan import PayloadPlan
from pfl_lm.phones import memory

CIFG = ModelSpec("cifg_lstm", 10_000, 96, hidden_dim=256)
SMALL = ModelSpec("transformer", 10_000, 128, layers=2, heads=4, feedforward_dim=512)
MODELS = {
    "recurrent": (
        CIFG,
        replace(CIFG, hidden_dim=512),
        replace(CIFG, vocabulary_size=30_000, layers=2),
        replace(CIFG, kind="lstm", embedding_dim=64),
    ),
    "transformer": (
        SMALL,
        replace(SMALL, layers=4, feedforward_dim=256),
        replace(SMALL, vocabulary_size=30_000, embedding_dim=256),
    ),
}
LOCAL = LocalTraining(1.0, batch_size=8, loss="sampled")
SETTINGS = (
    (PayloadPlan(), replace(LOCAL, loss="softmax")),
    (PayloadPlan(rows=2000, dense="lora"), LOCAL),
    (PayloadPlan(rows=2000, dense="lora"), replace(LOCAL, batch_size=16, gradient_clip=1.0)),
    (PayloadPlan(rows="none", dense="biases"), replace(LOCAL, negatives=256)),
    (PayloadPlan(rows=1000, dense="all"), replace(LOCAL, loss="nce", window=30)),
)
APART = (
    (PayloadPlan(), replace(LOCAL, loss="softmax")),
    (PayloadPlan(rows=2000, dense="lora"), replace(LOCAL, batch_size=16, gradient_clip=1.0)),
    (PayloadPlan(rows="none", dense="biases"), replace(LOCAL, negatives=256, segment_length=2)),
)
FORWARD = (
    (PayloadPlan(rows=2000, dense="lora"), LOCAL),
    (PayloadPlan(rows=1000, dense="all"), replace(LOCAL, batch_size=16, negatives=256)),
    (PayloadPlan(), replace(LOCAL, batch_size=4, loss="softmax", window=30)),
)

# features, measured, predicted, bytes that are counted and not fitted
Row = tuple[np.ndarray, memory.Memory, memory.Memory, int]


def settings(family: str) -> Iterator[tuple[ModelSpec, PayloadPlan, LocalTraining]]:
    pairs = [(plan, training) for plan, training in SETTINGS]
    for negatives in (64, 512):
        pairs.append(
            (PayloadPlan(rows="none", dense="side_branch"), replace(LOCAL, negatives=negatives))
        )
    for kind in ("recomputed", "truncated") if family == "recurrent" else ("recomputed",):
        pairs += [(plan, replace(training, activations=kind)) for plan, training in APART]
    for plan, training in FORWARD:
        pairs.append((replace(plan, directions=64), replace(training, method="zeroth_order")))
        pairs.append((plan, replace(training, method="forward_only")))
    for spec in MODELS[family]:
        for plan, training in pairs:
            factors = LoraSpec(8) if plan.dense == "lora" else None
            side_branch = 32 if plan.dense == "side_branch" else 0
            yield replace(spec, lora=factors, side_branch=side_branch), plan, training


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--torch", action="store_true")
    parser.add_argument("--work", nargs="+", choices=MODELS, default=list(MODELS))
    chosen = parser.parse_args()
    compiled, found = not chosen.torch, dict[str, list[Row]]()
    for family in chosen.work:
        for spec, plan, training in settings(family):
            measured = memory.measure_memory(spec, plan, training, compiled=compiled)
            payload = choose(plan, roles(spec), memory.unigram_of(spec), memory.SPECIALS, 0, 0)
            predicted = memory.predict_memory(spec, payload, training, compiled)
            sizes = np.asarray(memory.features(spec, payload, training))
            kind = memory.kind_of(spec, payload, training)
            counted = memory.centre_bytes(spec, payload, training)
            found.setdefault(kind, []).append((sizes, measured, predicted, counted))
            error = predicted.peak_bytes / measured.peak_bytes - 1
            work = predicted.work_bytes / measured.work_bytes - 1
            print(
                f"{kind:30} V={spec.vocabulary_size:6} rows={plan.rows!s:5} {plan.dense:7} "
                f"{measured.peak_bytes / 1e6:7.2f} MB, work {measured.work_bytes / 1e6:6.2f}: "
                f"predicted {error:+.1%} (work {work:+.0%})",
                flush=True,
            )
    print_worst(found)
    if chosen.fit:
        for kind, rows in found.items():
            print(f'    "{kind}": {fit(rows)},')


def print_worst(found: dict[str, list[Row]]) -> None:
    """Print the largest error of the predicted peak, and of its work, for each kind of step."""
    print("| steps | settings | worst error of the peak | of the work |")
    print("|---|---|---|---|")
    for kind, rows in found.items():
        peak = max((p.peak_bytes / m.peak_bytes - 1 for _, m, p, _ in rows), key=abs)
        work = max((p.work_bytes / m.work_bytes - 1 for _, m, p, _ in rows), key=abs)
        print(f"| {kind} | {len(rows)} | {peak:+.1%} | {work:+.0%} |")


def fit(rows: list[Row]) -> tuple[float, ...]:
    from scipy.optimize import nnls

    weight = np.asarray([1 / measured.peak_bytes for _, measured, *_ in rows])
    sizes = np.stack([size for size, *_ in rows])
    work = np.asarray([measured.work_bytes - counted for _, measured, _, counted in rows])
    found, _ = nnls(sizes * weight[:, None], work * weight)
    return tuple(round(float(value), 3) for value in found)


if __name__ == "__main__":
    main()
