"""apple/pfl-research on a population and a model of ours; `python -m benchmarks.outcome` runs it.

It runs in pfl's own environment and follows pfl's own language-model benchmark (apple/pfl-research,
benchmarks/lm): FederatedAveraging, SGD on the devices, Adam at the server with a warm-up, whole
updates clipped, central Gaussian noise by its accountant for ε at a larger cohort ("noise cohort").

Reads one .npz file: `tokens` and `offsets` of the users' texts, and the first parameters. Writes
another with the trained parameters, and prints one JSON line: seconds, bytes, noise.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

if not hasattr(torch.distributed, "reduce_op"):  # pfl 0.6 names what torch 2.9 removed
    torch.distributed.reduce_op = torch.distributed.ReduceOp  # type: ignore[assignment]

from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByUser
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from pfl.privacy import (
    CentrallyAppliedPrivacyMechanism,
    GaussianMechanism,
    NormClippingOnly,
    PLDPrivacyAccountant,
)
from torch_models import CIFG

PAD = 0


class PflCIFG(CIFG):
    """The model with what pfl asks of one beside its layers."""

    def loss(self, x, y, eval=False):
        self.eval() if eval else self.train()
        return F.cross_entropy(self(x).flatten(0, 1), y.flatten(), ignore_index=PAD)

    @torch.no_grad()
    def metrics(self, x, y, eval=False):
        return {"loss": Weighted(self.loss(x, y, eval).item(), 1)}


class Progress(TrainingProcessCallback):
    """One line every ten rounds, since an hour may pass."""

    def __init__(self, rounds: int) -> None:
        self.rounds, self.began = rounds, time.perf_counter()

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        if central_iteration % 10 == 9:
            seconds = time.perf_counter() - self.began
            print(f"round {central_iteration + 1} of {self.rounds}, {seconds:.0f} s", flush=True)
        return False, Metrics()


def mechanism(arguments: argparse.Namespace):
    """Clip and noise, as pfl's `gaussian_moments_accountant`; without ε the clip alone."""
    if not np.isfinite(arguments.epsilon):
        return NormClippingOnly(2, arguments.clip)
    accountant = PLDPrivacyAccountant(
        num_compositions=arguments.rounds,
        sampling_probability=arguments.reports / arguments.population,
        mechanism="gaussian",
        epsilon=arguments.epsilon,
        delta=arguments.delta,
        noise_scale=arguments.cohort / arguments.reports,
    )
    return GaussianMechanism.from_privacy_accountant(accountant, arguments.clip)


def users_of(held: dict[str, np.ndarray], arguments: argparse.Namespace) -> FederatedDataset:
    """The population: a user's dataset holds words and the words that follow, int64[n, T]."""
    tokens, offsets = held["tokens"], held["offsets"]

    def device(user: int) -> Dataset:
        text = tokens[offsets[user] : offsets[user + 1]][: arguments.max_tokens + 1]
        rows = max(1, -(-(len(text) - 1) // arguments.window))
        padded = np.full(rows * arguments.window + 1, PAD, np.int64)
        padded[: len(text)] = text
        strided = np.lib.stride_tricks.sliding_window_view(padded, arguments.window + 1)
        cut = torch.from_numpy(strided[:: arguments.window].copy())
        return Dataset(
            raw_data=[cut[:, :-1], cut[:, 1:]],
            user_id=str(user),
            train_kwargs={"eval": False},
            eval_kwargs={"eval": True},
        )

    return FederatedDataset(device, get_user_sampler("random", list(range(len(offsets) - 1))))


def train(arguments: argparse.Namespace) -> tuple[CIFG, float]:
    """Return the trained model and the noise on a round's sum, in clip norms of one device."""
    with np.load(arguments.input) as file:
        held = dict(file)
    model = PflCIFG(held)
    own = list(model.parameters())
    optimizer = torch.optim.Adam(own, arguments.rate, eps=arguments.adaptivity, betas=(0.9, 0.99))
    warm = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / max(1, arguments.warm_up))
    )
    noise = mechanism(arguments)
    people = users_of(held, arguments)
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=arguments.rounds,
            evaluation_frequency=10**6,
            train_cohort_size=arguments.cohort,
            val_cohort_size=0,
        ),
        backend=SimulatedBackend(
            training_data=people,
            val_data=people,
            postprocessors=[WeightByUser(), CentrallyAppliedPrivacyMechanism(noise)],
        ),
        model=PyTorchModel(
            model=model,
            local_optimizer_create=torch.optim.SGD,
            central_optimizer=optimizer,
            central_learning_rate_scheduler=warm,
        ),
        model_train_params=NNTrainHyperParams(
            local_learning_rate=arguments.local_rate,
            local_num_epochs=1,
            local_batch_size=arguments.local_batch,
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=64),
        callbacks=[Progress(arguments.rounds)],
    )
    return model, float(getattr(noise, "relative_noise_stddev", 0.0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("input", type=Path)
    parser.add_argument("output", type=Path)
    for name in ("rounds", "cohort", "reports", "population", "window", "max-tokens", "seed"):
        parser.add_argument(f"--{name}", type=int, required=True)
    for name in ("epsilon", "delta", "clip", "rate", "adaptivity", "local-rate"):
        parser.add_argument(f"--{name}", type=float, required=True)
    parser.add_argument("--local-batch", type=int, required=True)
    parser.add_argument("--warm-up", type=int, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    np.random.seed(arguments.seed)
    wall, cpu = time.perf_counter(), time.process_time()
    model, noise = train(arguments)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    trained = {name: value.detach().numpy() for name, value in model.by_name.items()}
    np.savez(arguments.output, **trained)
    sent = sum(value.nbytes for value in trained.values())
    found = {"wall": wall, "cpu": cpu, "bytes": sent, "noise": noise}
    print("RESULT " + json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
