"""A side branch beside a frozen model: hidden vectors gain up · relu(down · x) of the present word.

Its two narrow matrices learn while everything else stays as it is, and their gradient never goes
through the model: no state of the past is kept for it, which is what training a recurrent model
on a small phone is short of.

Legend: K devices, D width of a word's row, P width of hidden vectors, r width of the path.

Source: the light residual of TinyTL, Cai et al. 2020 (arXiv:2007.11622), section 3.2, with a
narrow inner width in place of its lower resolution; biases beside it, section 3.1, are the
payload's ``dense = "biases_side_branch"``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pfl_lm.models import dense
from pfl_lm.models.spec import ModelSpec, Role


def roles(spec: ModelSpec) -> dict[str, Role]:
    """Name the path's matrices, down (r, D) and up (P, r); none where the width is 0."""
    if not spec.side_branch:
        return {}
    return {
        "side_branch.down": Role("side_branch", (spec.side_branch, spec.embedding_dim)),
        "side_branch.up": Role("side_branch", (spec.output_dim, spec.side_branch)),
    }


def add(
    spec: ModelSpec, weights: Mapping[str, Tensor], vectors: Tensor, embedded: Tensor
) -> Tensor:
    """Return the hidden vectors (K, …, P) with the path's part for the words (K, …, D)."""
    if not spec.side_branch:
        return vectors
    rows = embedded.flatten(1, -2)  # (K, N, D)
    narrow = torch.relu(dense.apply(rows, dense.layer(weights, "side_branch.down", None)))
    wide = dense.apply(narrow, dense.layer(weights, "side_branch.up", None))
    return vectors + wide.view(vectors.shape)
