"""Rows for new words in a trained model, without changing what it says of the old ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from pfl_lm.models.file import Model
from pfl_lm.models.models import roles


def grow(
    model: Model,
    old_ids: np.ndarray,
    shares: np.ndarray,
    unk_id: int,
    origin: Mapping[str, Any],
) -> Model:
    """Return the model with a row for each new word.

    A new word starts as a part of ``<unk>``: it has the rows that the model learnt from the
    contexts of all unknown words, and its share of their probability. Training tells new words
    apart from there.

    Args:
        old_ids: int64[V'], for each id of the new vocabulary its id in the old one, or −1.
        shares: float64[V'], what a new word takes of the probability of ``<unk>``, above 0 for
            new ids and summing to less than 1; 0 for old ones.
        unk_id: of ``<unk>``, the same in both.
        origin: what changes in the model's origin: its tokenizer.

    Guarantees:
        In every context every old word but ``<unk>`` keeps its probability, up to float32's
        rounding, and the new words and ``<unk>`` together have what ``<unk>`` had.

    Raises:
        ValueError: a model without ``output_bias``, which cannot give a word a share; shares that
            are not as above.
    """
    if not model.spec.output_bias:
        raise ValueError(
            "output_bias = false: without a bias the new words would each be as likely as all "
            "unknown words together; grow a model that has one"
        )
    new = old_ids < 0
    taken = float(shares[new].sum())
    if not ((shares[new] > 0).all() and not shares[~new].any() and taken < 1):
        raise ValueError("shares must be above 0 for new words, 0 for others, and sum to below 1")
    source = torch.from_numpy(np.where(new, unk_id, old_ids))
    spec = replace(model.spec, vocabulary_size=len(old_ids))
    parameters = {
        name: model.parameters[name][source].clone() if role.kind == "rows" else value
        for name, role in roles(spec).items()
        for value in [model.parameters[name]]
    }
    bias = parameters["output_bias"]
    bias[torch.from_numpy(np.flatnonzero(new))] += torch.from_numpy(np.log(shares[new])).float()
    bias[unk_id] += math.log1p(-taken)
    return Model(spec, parameters, {**model.origin, **origin})
