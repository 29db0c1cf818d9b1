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
import traceback
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as tree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from pfl_lm.devices.local_training import LocalTraining
from tests.devices.test_training import PLANS, run, setting, spec_of, text_of

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
