"""What one keyboard may learn of its owner alone: a small adapter and a bias for each word.

Beside federated training, which teaches the model that everybody shares, a keyboard can adapt to
its owner on the spot. The model stays as it is: its hidden vector h becomes h + up · down · h, and
each word's score gets a bias, both inputs of ``predict``. The graph here gives their gradient.

Legend: R rank of the adapter, P width of the hidden vectors, V words, T predicted tokens.

Source: low-rank adaptation, Hu et al. 2021 (arXiv:2106.09685), here at the last layer alone.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pfl_lm.export import trunk
from pfl_lm.export.local_step import gradient_graph
from pfl_lm.export.ports import Graph, Port
from pfl_lm.language.models import merge
from pfl_lm.language.tokenizer import Tokenizer
from pfl_lm.model_file import Model

IGNORED = (Tokenizer.pad_id, Tokenizer.unk_id, Tokenizer.bos_id)  # nothing to learn as a target


@dataclass(frozen=True)
class PersonalPlan:
    """How a keyboard learns from a message: some steps of gradient descent, and no more.

    Args:
        rank: R; 0: biases only.
        window: T; longer messages are cut.
        steps: steps for each message.
        adapter_rate, bias_rate: learning rates.
        clip: bound on the norm of the adapter's gradient.
        most_bias: no word's bias goes beyond, either way.
        messages: how many messages are remembered.
        seed: of ``down``, drawn uniformly within ±√(3 / P) as the page does.
    """

    rank: int = 4
    window: int = 16
    steps: int = 3
    adapter_rate: float = 0.3
    bias_rate: float = 2.0
    clip: float = 1.0
    most_bias: float = 3.0
    messages: int = 50
    seed: int = 1

    def describe(self, width: int) -> dict[str, Any]:
        """Return what the page needs; ``adapter`` is how many values come before the biases."""
        return asdict(self) | {"width": width, "adapter": 2 * self.rank * width}


def personal_step(model: Model, plan: PersonalPlan) -> Graph:
    """Trace the loss of a message and its gradient by what the keyboard learns.

    Inputs: ``values`` float32[2·R·P + V]: ``down`` (R, P), ``up`` (P, R), ``bias`` (V,);
    ``windows`` int32[1, T + 1], padded at the end with 0. The model is a constant of the graph.
    Outputs: ``loss`` float32[1], ``gradient`` as ``values``.
    """
    model = trunk.padded(Model(*merge(model.spec, model.parameters), model.origin))
    spec, weights = model.spec, {n: v.detach().float() for n, v in model.parameters.items()}
    others = {n: v for n, v in weights.items() if v.dim() == 1 or n == "positions"}
    others |= trunk.turns(spec)
    linear = trunk.linear_of(weights, None)
    table, bias = weights[spec.output_table], weights.get("output_bias")
    width, rank = spec.output_dim, plan.rank

    def loss(values: Tensor, windows: Tensor) -> Tensor:
        embedded = F.embedding(windows[:, :-1], weights["embedding"])  # (1, T, D)
        vectors = trunk.over_windows(spec, linear, others, embedded).flatten(0, 1)  # (T, P)
        down, up, own = values.split([rank * width, rank * width, spec.vocabulary_size])
        inner = vectors @ down.view(rank, width).mT
        adapted = vectors + inner @ up.view(width, rank).mT
        scores = F.linear(adapted, table, bias) + own  # (T, V)
        targets = windows[:, 1:].flatten()
        wanted = torch.stack([targets != i for i in IGNORED]).all(0).to(scores.dtype)
        log_shares = torch.log_softmax(scores, -1)
        of_targets = log_shares.gather(1, targets.long()[:, None]).squeeze(1)
        return -(of_targets * wanted).sum() / wanted.sum().clamp_min(1)

    size = 2 * rank * width + spec.vocabulary_size
    windows = Port("windows", "int32", (1, plan.window + 1))
    start = {
        "values": np.zeros(size, np.float32),
        "windows": np.full(windows.shape, Tokenizer.eos_id, np.int32),
    }
    values = Port("values", "float32", (size,))
    return gradient_graph("personal_step", loss, values, (windows,), start)
