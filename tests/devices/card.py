"""A card that is none: tensors that say they are elsewhere, computed by the processor.

    python -m tests.devices.card

Code that reads a tensor of the card without moving it, or mixes it with one that is not there,
fails here as it would on a GPU; numbers are the processor's own. Run as a program, it trains the
same devices here and there, in many settings, and prints each setting's largest difference. It has
a process of its own, because torch takes in new kinds of processors before its first gradient only.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as tree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from pfl_lm.devices.encoding_on_card import clip_and_round
from pfl_lm.devices.local_training import LocalTraining
from pfl_lm.devices.processor import Processor
from pfl_lm.devices.task import Task
from pfl_lm.devices.training import train_tensors
from pfl_lm.dp.grid import Grid
from pfl_lm.dp.sampler.random_bits import reproducible_bits
from pfl_lm.models.file import load_model
from pfl_lm.models.models import ModelSpec
from pfl_lm.run.progress import ProgressListener
from pfl_lm.run.scenario import EvaluationConfig, PopulationConfig, Scenario
from pfl_lm.run.simulate import simulate
from pfl_lm.secagg.ideal import IdealAggregator
from pfl_lm.streams import key
from tests.devices.test_training import PLANS, UNIGRAM, run, setting, spec_of, text_of

NAME = "card"
USERS = [10, 11, 12]
METHODS: tuple[dict[str, Any], ...] = (
    {},
    {"loss": "softmax"},
    {"loss": "nce"},
    {"gradient_clip": 1.0},
    {"activations": "recomputed", "segment_length": 2},
    {"weight_bits": 8},
    {"precision": "bfloat16"},
)


class OnCard(Tensor):
    """A tensor of the card; ``held`` has its numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> OnCard:
        made: OnCard = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(),
            dtype=held.dtype, device=torch.device(NAME, 0), requires_grad=False,
        )  # fmt: skip
        made.held = held
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnCard({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class Card(TorchDispatchMode):
    """While it is open, ``torch.device("card")`` can be computed on."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation where its tensors are; refuse one whose tensors are in two places."""
    given = [x for x in tree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    there = [x for x in given if isinstance(x, OnCard)]
    moves = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
    if there and not moves:
        here = [x for x in given if not isinstance(x, OnCard) and x.dim() > 0]
        if here:
            raise RuntimeError(f"{func}: one tensor is on the card, another is not")
    asked = kwargs.get("device")
    result_there = bool(there) if asked is None else torch.device(asked).type == NAME
    if asked is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    plain_args, plain_kwargs = tree.tree_map_only(OnCard, lambda x: x.held, (args, kwargs))
    found = func(*plain_args, **plain_kwargs)
    known = {id(x.held): x for x in there}

    def wrapped(x: Tensor) -> Tensor:
        return known[id(x)] if id(x) in known else OnCard(x)

    if func is torch.ops.aten.copy_.default:
        return args[0]
    return tree.tree_map_only(Tensor, wrapped, found) if result_there else found


def main() -> None:
    """Print a line of JSON for every setting: its name, and the difference or the error."""
    _setup_privateuseone_for_python_backend(NAME)
    settings = [("cifg_lstm", case, METHODS[0]) for case in PLANS]
    settings += [("cifg_lstm", "rows + lora", changes) for changes in METHODS[1:]]
    settings += [("transformer", case, METHODS[1]) for case in ("everything", "rows + lora")]
    for kind, case, changes in settings:
        print(json.dumps([f"{kind}, {case}, {changes}", _difference(kind, case, changes)]))
    print(json.dumps(["a round", _of_a_round()]))
    for more in (
        {},
        {"rotate": True},
        {"separate_noise": True},
        {"secure_aggregation": "protocol"},
    ):
        print(json.dumps([f"a run, {more}", _of_a_run(**more)]))


def _of_a_round() -> float | str:
    """Train, clip, round and sum there: return the largest difference between two sums, in steps.

    The sum of what the card's updates are when they are clipped and rounded here is the same.
    """
    more, plan = PLANS["rows + lora"]
    spec = spec_of("cifg_lstm", **more)
    local = LocalTraining(learning_rate=0.1, batch_size=2, loss="sampled")
    parameters, payload, values = setting(spec, plan)
    grid = Grid(payload.dim, 0.05, 8.0, 24)

    def total_of(updates: Tensor) -> np.ndarray:
        vectors, _ = clip_and_round(updates, grid, [reproducible_bits(key(user)) for user in USERS])
        summed = IdealAggregator(payload.dim, grid.modulus_bits, threshold=2)
        summed.submit(vectors)
        return summed.close().vector

    with Card():
        there = {name: value.to(NAME) for name, value in parameters.items()}
        task = Task(spec, there, payload, values, local, UNIGRAM, 0, 0)
        updates, _ = train_tensors(task, text_of((2, 0, 1)), USERS)
        assert isinstance(updates, OnCard), "updates stay where they were trained"
        total = total_of(updates)
    return float(np.abs(total - total_of(updates.held)).max())


POLICY = """
unit = "user"
neighboring = "zero_out"
epsilon = 2.0
delta = 1e-7
population = 1_000_000
report_goal = 5_000
rounds = 6
participation = { kind = "rotation", min_separation = 200 }
noise = { at = "device", kind = "skellam", tolerated_dropout = 0.1 }
"""


def _of_a_run(**changes: Any) -> float | str:
    """Simulate here and there: return the models' largest difference."""
    models = []
    with tempfile.TemporaryDirectory() as folder:
        policy = Path(folder) / "policy.toml"
        policy.write_text(POLICY, encoding="utf-8")
        scenario = Scenario(
            PopulationConfig("synthetic", users=200, tokens_per_user=40),
            ModelSpec("cifg_lstm", vocabulary_size=300, embedding_dim=8, hidden_dim=8),
            LocalTraining(0.5, batch_size=4, window=8, max_tokens=64),
            rounds=2, cohort=6, clip_norm=0.5, policy=policy, reproducible=True,
            evaluation=EvaluationConfig(0, users=3, final_users=3, tokens_per_user=30), **changes,
        )  # fmt: skip
        for name, place in (("cpu", nullcontext()), (NAME, Card())):
            processor = Processor(torch.device(name), most=4, own_bytes=1 << 30, work_bytes=1 << 30)
            with place:
                run = simulate(
                    scenario, Path(folder) / name, ProgressListener(), processor=processor
                )
            models.append(load_model(run.model_path).parameters)
    here, there = models
    return max(float((here[name] - there[name]).abs().max()) for name in here)


def _difference(kind: str, case: str, changes: dict[str, Any]) -> float | str:
    """Return the largest difference between updates from here and from the card."""
    more, plan = PLANS[case]
    spec = spec_of(kind, **more)
    local = LocalTraining(**{"learning_rate": 0.1, "batch_size": 2, "loss": "sampled"} | changes)
    parameters, payload, values = setting(spec, plan)
    windows = text_of((2, 0, 1))
    here, _ = run(spec, parameters, payload, values, windows, local, USERS)
    try:
        with Card():
            there = {name: value.to(NAME) for name, value in parameters.items()}
            updates, _ = run(spec, there, payload, values, windows, local, USERS)
    except (RuntimeError, TypeError) as problem:
        where = traceback.extract_tb(problem.__traceback__)
        ours = [f"{f.filename}:{f.lineno}" for f in where if "pfl_lm/" in f.filename]
        return f"{ours[-1] if ours else ''} {problem}"[:300]
    return float(np.abs(updates - here).max())


if __name__ == "__main__":
    main()
    # torch's threads for a card that is written in Python may abort a process that ends by itself.
    sys.stdout.flush()
    os._exit(0)
