"""apple/pfl-research on the fixed workloads; runs in an environment of its own (`.env-pfl`).

Its own benchmark's choices: PyTorchModel, SimulatedBackend, FederatedAveraging, an in-memory
Dataset, and the Gaussian mechanism applied centrally.

    .env-pfl/bin/python -m torch.distributed.run --standalone --nproc_per_node=2 \
        benchmarks/peer_pfl.py --work W1 --threads 1

Prints one JSON line: CPU seconds (all processes) and wall seconds of each counted round.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from pathlib import Path

import numpy as np
import torch

if not hasattr(torch.distributed, "reduce_op"):  # pfl 0.6 names what torch 2.9 removed
    torch.distributed.reduce_op = torch.distributed.ReduceOp  # type: ignore[assignment]

from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByUser
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from pfl.privacy import CentrallyAppliedPrivacyMechanism, GaussianMechanism
from torch_models import LSTM, Transformer, build, loss_of
from workloads import BATCH, CLIP, NOISE, RATE, open_work


class _Loss(torch.nn.Module):
    """What pfl asks of a model beside its layers."""

    def loss(self, x, y, eval=False):
        self.eval() if eval else self.train()
        return loss_of(self, x.long(), y.long())

    @torch.no_grad()
    def metrics(self, x, y, eval=False):
        return {"loss": Weighted(self.loss(x, y, eval).item(), 1)}


class PflLSTM(_Loss, LSTM):
    pass


class PflTransformer(_Loss, Transformer):
    pass


class Laps(TrainingProcessCallback):
    """Seconds of each round, on the wall and in this process's CPU."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def _now(self) -> None:
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())

    def on_train_begin(self, *, model):
        self._now()
        return Metrics()

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        self._now()
        return False, Metrics()


def run(arguments: argparse.Namespace) -> Laps:
    work = open_work(arguments.work, arguments.folder)
    tokens = work.pop("tokens")
    model = build(work)
    model.__class__ = PflTransformer if arguments.work == "W3" else PflLSTM
    held = PyTorchModel(
        model=model,
        local_optimizer_create=torch.optim.SGD,
        central_optimizer=torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1.0),
        amp_dtype=torch.bfloat16 if arguments.bf16 else None,
    )

    def device(user: int) -> Dataset:
        own = tokens[user % len(tokens)]
        return Dataset(
            raw_data=[own[:, :-1], own[:, 1:]],
            user_id=str(user),
            train_kwargs={"eval": False},
            eval_kwargs={"eval": True},
        )

    users = itertools.count()
    data = FederatedDataset(device, lambda: next(users))
    private = CentrallyAppliedPrivacyMechanism(GaussianMechanism(CLIP, NOISE))
    laps = Laps()
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=1 + arguments.rounds,
            evaluation_frequency=10**6,
            train_cohort_size=arguments.cohort,
            val_cohort_size=0,
        ),
        backend=SimulatedBackend(
            training_data=data, val_data=data, postprocessors=[WeightByUser(), private]
        ),
        model=held,
        model_train_params=NNTrainHyperParams(
            local_learning_rate=RATE, local_num_epochs=1, local_batch_size=BATCH
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=64),
        callbacks=[laps],
    )
    return laps


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", choices=("W1", "W2", "W3"), required=True)
    parser.add_argument("--folder", type=Path, default=Path("data/benchmarks"))
    parser.add_argument("--cohort", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bf16", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    np.random.seed(0)
    laps = run(arguments)
    cpu = torch.tensor(np.diff(laps.cpu))
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(cpu)
    if int(os.environ.get("RANK", "0")) == 0:
        figures = {"cpu": cpu[1:].tolist(), "wall": np.diff(laps.wall)[1:].tolist()}
        print("RESULT " + json.dumps(figures | {"cohort": arguments.cohort}), flush=True)


if __name__ == "__main__":
    main()
