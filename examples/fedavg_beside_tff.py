"""One round of federated averaging in tensorflow-federated and in pfl_lm, side by side.

The same LSTM, the same starting weights, the same users, the same batches in the same order.
TFF's side is `pfl_lm/interop/worker/fedavg.py`, written as TFF's users write it; this is ours.

    make tff
    .venv/bin/python examples/fedavg_beside_tff.py
"""

from __future__ import annotations

import numpy as np
import torch

from pfl_lm.devices.batches import Schedule
from pfl_lm.devices.local_training import LocalTraining
from pfl_lm.devices.task import Task
from pfl_lm.devices.training import train
from pfl_lm.interop.tff import Worker
from pfl_lm.models.models import ModelSpec, Parameters, initialise, roles
from pfl_lm.payload.choice import choose
from pfl_lm.payload.layout import gather
from pfl_lm.payload.plan import PayloadPlan
from pfl_lm.text.population import windows
from pfl_lm.text.synthetic.population import SyntheticPopulation, synthetic_tokenizer

VOCABULARY, CLIENTS, WINDOWS, SEED, ROUND = 500, 6, 8, 3, 0
MODEL = ModelSpec("lstm", VOCABULARY, embedding_dim=24, hidden_dim=48, tied=False)
LOCAL = LocalTraining(learning_rate=2.0, batch_size=4, epochs=1, window=10)
# Our names, and what Keras transposes: its kernels are (inputs, outputs).
KERNELS = ("layer0.input", "layer0.recurrent", "projection", "output")


def users() -> list[np.ndarray]:
    """Six users' text, int64[WINDOWS, T + 1] each."""
    people = SyntheticPopulation(
        {"train": 60, "validation": 1, "test": 1}, VOCABULARY, tokens_per_user=200, seed=SEED
    )
    texts = (people.tokens("train", user) for user in range(60))
    cut = (windows(text, LOCAL.window, WINDOWS * LOCAL.window + 1) for text in texts)
    return [own for own in cut if own.all() and len(own) == WINDOWS][:CLIENTS]  # none padded


def in_pfl_lm(start: Parameters, texts: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Our round: every user trains on the whole model; the mean of what training added."""
    tokenizer = synthetic_tokenizer(VOCABULARY)
    payload = choose(
        PayloadPlan(), roles(MODEL), tokenizer.unigram, tokenizer.specials, SEED, ROUND
    )
    received = gather(start, payload)
    task = Task(MODEL, start, payload, received, LOCAL, tokenizer.unigram, SEED, ROUND)
    updates, _ = train(task, texts, list(range(len(texts))))
    return payload.views(updates.mean(0))


def in_tff(start: Parameters, texts: list[np.ndarray], worker: Worker) -> dict[str, np.ndarray]:
    """TFF's round, in its own process: `build_unweighted_fed_avg`."""
    arrays = {name: _keras(name, tensor.numpy()) for name, tensor in start.items()}
    for client, own in enumerate(texts):
        arrays[f"windows{client}"] = as_taken(own, client)
    _, trained = worker.call(
        "federated_averaging",
        arrays,
        clients=len(texts),
        batch_size=LOCAL.batch_size,
        learning_rate=LOCAL.learning_rate,
    )
    return {name: _keras(name, trained[name]) - start[name].numpy() for name in start}


def as_taken(own: np.ndarray, client: int) -> np.ndarray:
    """A user's windows in the order in which pfl_lm's stream of examples takes them."""
    taken = [
        torch.cat([batch.inputs[0], batch.targets[0, :, -1:]], 1)
        for batch in Schedule([own], LOCAL, SEED, ROUND, [client])
    ]
    return torch.cat(taken).numpy()


def _keras(name: str, values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values.T) if name in KERNELS else values


def compare(worker: Worker) -> tuple[float, float]:
    """Return the largest entry of the update, and the largest difference of the two."""
    start, texts = initialise(MODEL, SEED), users()
    ours, theirs = in_pfl_lm(start, texts), in_tff(start, texts, worker)
    size = max(float(np.abs(ours[name]).max()) for name in ours)
    return size, max(float(np.abs(ours[name] - theirs[name]).max()) for name in ours)


if __name__ == "__main__":
    with Worker() as running:
        largest, difference = compare(running)
    print(f"largest entry of the update {largest:.4f}, largest difference {difference:.1e}")
