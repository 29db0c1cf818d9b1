"""Next-word models as pure functions of a frozen spec and a dict of named tensors.

A model is ``scores(hidden(embed(words)))``. Everything between the word tables takes K devices at
once, each weight either shared by all of them (its own shape) or held per device (K leading).

Legend: K devices, B windows, T tokens of a window, V words, D width of an embedding row, P width
of the hidden vectors (P = D where the tables are tied), n rows of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from pfl_lm.models import lora, side_branch, user_models
from pfl_lm.models.body import Body
from pfl_lm.models.recurrent import FORMS, Recurrent
from pfl_lm.models.spec import LoraSpec, ModelSpec, Parameters, Role
from pfl_lm.models.transformer import Transformer
from pfl_lm.streams import stream

__all__ = [
    "LoraSpec",
    "ModelSpec",
    "Parameters",
    "Role",
    "body_of",
    "chunks",
    "hidden",
    "hidden_of",
    "initialise",
    "longest_text",
    "merge",
    "roles",
    "scores",
    "size",
]


_FAMILIES: dict[str, Body] = {
    **dict.fromkeys(FORMS, Recurrent()),
    "transformer": Transformer(),
}


def body_of(spec: ModelSpec) -> Body:
    """Return the family of a spec's model.

    Raises:
        ValueError: a model of the user's own that this process does not know.
    """
    return user_models.registered(spec) if spec.module else _FAMILIES[spec.kind]


def roles(spec: ModelSpec) -> dict[str, Role]:
    """Name every parameter with its role and shape, in the order in which payloads lay them out."""
    named = {"embedding": Role("rows", (spec.vocabulary_size, spec.embedding_dim))}
    if not spec.tied:
        named["output"] = Role("rows", (spec.vocabulary_size, spec.output_dim))
    if spec.output_bias:
        named["output_bias"] = Role("rows", (spec.vocabulary_size,))
    body = body_of(spec).roles(spec)
    named |= body | side_branch.roles(spec)
    if spec.lora is not None:
        named |= lora.factors(spec.lora, body)
    return named


def longest_text(spec: ModelSpec) -> int | None:
    """Return how many ids the model reads at once, ``<s>`` among them; None: any number.

    Of a longer text only its last ids can be read.
    """
    return spec.context if body_of(spec).in_blocks else None


def size(spec: ModelSpec) -> int:
    """Count the model's coordinates."""
    return sum(int(np.prod(role.shape)) for role in roles(spec).values())


def initialise(spec: ModelSpec, seed: int, unigram: np.ndarray | None = None) -> Parameters:
    """Draw the starting parameters, float32, each from its own stream.

    Args:
        unigram: float64[V] public word probabilities. With them the output bias starts at
            log p, so that an untrained model already predicts the public unigram and its scores
            start out normalised, which noise-contrastive estimation relies on.

    A model of the user's own starts from the values that it came with.
    """
    given = body_of(spec).start(spec)
    if given is not None:
        return given
    parameters: Parameters = {}
    for name, role in roles(spec).items():
        values = _start(spec, name, role, stream(seed, "initialise", name))
        parameters[name] = torch.from_numpy(values.astype(np.float32))
    if unigram is not None and spec.output_bias:
        parameters["output_bias"] = torch.from_numpy(np.log(unigram).astype(np.float32))
    return parameters


def hidden(spec: ModelSpec, weights: Mapping[str, Tensor], embedded: Tensor) -> Tensor:
    """Run the model between its tables: embedded words (K, B, T, D) → (K, B, T, P).

    Args:
        weights: every dense parameter, bias and LoRA factor by name, each shared by the K
            devices or per device (K leading). Word tables may be among them; they are not read.
    """
    vectors = body_of(spec).hidden(spec, weights, embedded)
    return side_branch.add(spec, weights, vectors, embedded)


@torch.no_grad()
def hidden_of(spec: ModelSpec, parameters: Parameters, windows: np.ndarray) -> Tensor:
    """Hidden vectors of whole windows under one model: int64[n, T] words → (n, T, P)."""
    words = torch.as_tensor(np.ascontiguousarray(windows), dtype=torch.int64)
    embedded = parameters["embedding"][words]  # (n, T, D)
    return hidden(spec, parameters, embedded.unsqueeze(0))[0]


@torch.no_grad()
def scores(spec: ModelSpec, parameters: Parameters, vectors: Tensor) -> Tensor:
    """Score all words for a chunk of hidden vectors: (n, P) → logits (n, V).

    The caller chooses n, so that (all tokens, V) never exists; see :func:`chunks`.
    """
    table = parameters[spec.output_table]
    if not spec.output_bias:
        return vectors @ table.mT
    return torch.addmm(parameters["output_bias"], vectors, table.mT)


def chunks(spec: ModelSpec, rows: int, budget_bytes: int = 64 << 20) -> Iterator[slice]:
    """Cut ``rows`` hidden vectors into slices whose scores fit ``budget_bytes`` (float32)."""
    count = max(1, budget_bytes // (4 * spec.vocabulary_size))
    return (slice(start, min(start + count, rows)) for start in range(0, rows, count))


def merge(spec: ModelSpec, parameters: Parameters) -> tuple[ModelSpec, Parameters]:
    """Fold LoRA factors into the weights; the model computes the same without them."""
    if spec.lora is None:
        return spec, parameters
    return replace(spec, lora=None), lora.merge(spec.lora, parameters)


def _start(spec: ModelSpec, name: str, role: Role, draw: np.random.Generator) -> np.ndarray:
    """Initial values: tables narrow uniform, matrices Glorot uniform, gains 1, biases 0."""
    if role.kind == "lora_b" or name in ("output_bias", "side_branch.up"):
        return np.zeros(role.shape)
    if role.kind == "bias":
        return body_of(spec).start_bias(spec, name, role.shape)
    if name.endswith("_gain"):
        return np.ones(role.shape)
    if role.kind == "rows" or name == "positions":
        return draw.uniform(-0.05, 0.05, role.shape)
    if role.kind == "lora_a":
        bound = np.sqrt(3.0 / role.shape[1])  # unit variance of A x for unit-variance x
        return draw.uniform(-bound, bound, role.shape)
    bound = np.sqrt(6.0 / sum(role.shape))
    return draw.uniform(-bound, bound, role.shape)
