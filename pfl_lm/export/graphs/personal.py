"""What one keyboard may learn of its owner alone: a small adapter and a bias for each word.

Beside federated training, which teaches the model that everybody shares, a keyboard can adapt to
its owner on the spot. The model stays as it is: its hidden vector h becomes h + up · down · h, and
each word's score gets a bias, both inputs of ``predict``. The graph here gives their gradient.
``down`` is fixed and whitens the hidden vectors, so that what is learnt in one context stays away
from the others: with a random one, six messages cost a fifth of the suggestions everywhere else.

Legend: R rank of the adapter, P width of the hidden vectors, V words, T predicted tokens.

Source: training only the second of two low-rank factors, Sun et al. 2024 (arXiv:2403.12313).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pfl_lm.export import forward
from pfl_lm.export.graphs.train_step import gradient_graph
from pfl_lm.export.quantise.calibration_text import calibration_windows
from pfl_lm.export.signature import ExportGraph, TensorSpec
from pfl_lm.models.file import Model
from pfl_lm.models.models import hidden_of, longest_text, merge
from pfl_lm.text.tokenizer import Tokenizer

IGNORED = (Tokenizer.pad_id, Tokenizer.unk_id, Tokenizer.bos_id)  # nothing to learn as a target


@dataclass(frozen=True)
class PersonalPlan:
    """How a keyboard learns from a message: some steps of gradient descent, and no more.

    Args:
        rank: R; P − 1 where the model has no room for as many.
        window: T; a longer message is learnt in pieces. Fewer where the model reads fewer ids.
        steps: steps for each message.
        adapter_rate, bias_rate: learning rates.
        clip: bound on the norm of the adapter's gradient.
        most_bias: no word's bias goes beyond, either way.
        messages: how many messages are remembered.
    """

    rank: int = 128
    window: int = 12
    steps: int = 5
    adapter_rate: float = 3.0
    bias_rate: float = 0.3
    clip: float = 10.0
    most_bias: float = 1.0
    messages: int = 50

    def describe(self, width: int) -> dict[str, Any]:
        """Return what the page needs; ``adapter`` is how many values come before the biases."""
        return asdict(self) | {"width": width, "adapter": self.rank * width}

    def of(self, model: Model) -> PersonalPlan:
        """Return this plan with a rank and a window that the model has room for."""
        rank = min(self.rank, model.spec.output_dim - 1)
        window = min(self.window, longest_text(model.spec) or self.window)
        return replace(self, rank=rank, window=window)


def plain(model: Model) -> Model:
    """Return the model as ``predict`` holds it: factors merged, widths padded."""
    return forward.padded(Model(*merge(model.spec, model.parameters), model.origin))


def personal_step(model: Model, plan: PersonalPlan, down: np.ndarray) -> ExportGraph:
    """Trace the loss of a message and its gradient by what the keyboard learns.

    Inputs: ``values`` float32[P·R + V]: ``up`` (P, R) and ``bias`` (V,); ``windows``
    int32[1, T + 1], padded at the end with 0. The model and ``down`` are constants of the graph.
    Outputs: ``loss`` float32[1], ``gradient`` as ``values``.

    Args:
        model: as :func:`plain` returns it.
        down: float32[R, P], see :func:`whitening`.
    """
    spec, parameters = model.spec, model.parameters
    forward.check_reads_all(spec)
    weights = {name: value.detach().float() for name, value in parameters.items()}
    others = {n: v for n, v in weights.items() if v.dim() == 1 or n == "positions"}
    others |= forward.turns(spec)
    linear = forward.linear_of(weights, None)
    table, bias = weights[spec.output_table], weights.get("output_bias")
    fixed, sizes = torch.from_numpy(down), (down.size, spec.vocabulary_size)

    def loss(values: Tensor, windows: Tensor) -> Tensor:
        embedded = F.embedding(windows[:, :-1], weights["embedding"])  # (1, T, D)
        vectors = forward.over_windows(spec, linear, others, embedded).flatten(0, 1)  # (T, P)
        up, own = values.split(sizes)
        adapted = vectors + (vectors @ fixed.mT) @ up.view(down.shape[::-1]).mT
        logits = F.linear(adapted, table, bias) + own  # (T, V)
        targets = windows[:, 1:].flatten()
        wanted = torch.stack([targets != i for i in IGNORED]).all(0).to(logits.dtype)
        log_shares = torch.log_softmax(logits, -1)
        of_targets = log_shares.gather(1, targets.long()[:, None]).squeeze(1)
        return -(of_targets * wanted).sum() / wanted.sum().clamp_min(1)

    values = TensorSpec("values", "float32", (sum(sizes),))
    windows = TensorSpec("windows", "int32", (1, plan.window + 1))
    start = {
        "values": np.zeros(values.shape, np.float32),
        "windows": np.full(windows.shape, Tokenizer.eos_id, np.int32),
    }
    return gradient_graph("personal_step", loss, values, (windows,), start)


def whitening(model: Model, rank: int) -> np.ndarray:
    """Return ``down``, float32[R, P]: the main directions of the hidden vectors, at equal size.

    The mean vector is projected out: what all contexts share teaches nothing about one of them.
    The vectors are those of texts that the model itself invents, so nobody's text is read.
    """
    words = calibration_windows(model)
    vectors = hidden_of(model.spec, model.parameters, words).flatten(0, 1).double().numpy()
    mean = vectors.mean(0)
    mean /= np.linalg.norm(mean) or 1.0
    projection = np.eye(len(mean)) - np.outer(mean, mean)
    variances, directions = np.linalg.eigh(projection @ np.cov(vectors.T) @ projection)
    floor = max(1e-12, 1e-6 * variances[-1])
    scaled = directions[:, -rank:] / np.sqrt(np.maximum(variances[-rank:], floor) * rank)
    return np.ascontiguousarray(scaled.T, dtype=np.float32)
