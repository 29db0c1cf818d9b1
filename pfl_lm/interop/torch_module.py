"""A `torch.nn.Module` of the user's own as a model of pfl_lm.

    spec = adopt(my_model, "my_gru", embedding="words", output="head")
    simulate(Scenario(model=spec, …), …)

The module maps words int64 (B, T) to scores (B, T, V); inside it, an `nn.Embedding` reads words
and an `nn.Linear` scores them. These two become the word tables, so that partial payloads,
sampled losses and evaluation work on them; everything between is called as it is.

Legend: K devices, B windows, T words of a window, V words in all, D width of an embedding row, P
of a hidden vector.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pfl_lm.models.body import Body
from pfl_lm.models.models import scores
from pfl_lm.models.spec import ModelSpec, Parameters, Role
from pfl_lm.models.user_models import register

_PREFIX = "module."
_PROBE = (2, 5)  # windows and words on which an adopted module is compared with itself
_AGREEMENT = 1e-4
_UNSEEN = 1e-3  # of what a word does to its own place: more reaches where it must not
_ROUNDING = 1e-6  # of the largest score

Layer = TypeVar("Layer", bound=nn.Module)


def adopt(module: nn.Module, name: str, embedding: str, output: str) -> ModelSpec:
    """Make a module known under ``name`` and return the spec that selects it.

    The module itself is copied and left as it is. Its copy runs in evaluation mode: dropout is
    off, since its coins would not come from the run's streams.

    Args:
        embedding: name, as in `named_modules`, of the `nn.Embedding` that reads the words.
        output: of the `nn.Linear` that scores them; it may share the embedding's weight.

    Raises:
        ValueError: these are not such layers, a parameter is not float32, or the module does
            more with the words than look them up and more with the hidden vectors than score
            them, so that its scores are not those of the adopted model. Also where a score
            depends on later words, on another window, or on an earlier call: such a model reads
            the word that it predicts, or carries one user's text into another user's update.
    """
    reads, writes = _layer(module, embedding, nn.Embedding), _layer(module, output, nn.Linear)
    if reads.max_norm is not None or reads.scale_grad_by_freq:
        raise ValueError(f"{embedding}: max_norm and scale_grad_by_freq must be off")
    adopted = _Adopted(module, embedding, output, reads, writes)
    spec = ModelSpec(
        kind="module",
        vocabulary_size=reads.num_embeddings,
        embedding_dim=reads.embedding_dim,
        projection_dim=writes.in_features,
        tied=writes.weight is reads.weight,
        output_bias=writes.bias is not None,
        module=name,
    )
    _compare(module, spec, adopted)
    register(name, adopted)
    return spec


class _Adopted(Body):
    """A module without its word tables."""

    def __init__(
        self, module: nn.Module, embedding: str, output: str, reads: nn.Embedding, writes: nn.Linear
    ) -> None:
        self._tables = {"embedding": reads.weight, "output": writes.weight}
        if writes.bias is not None:
            self._tables["output_bias"] = writes.bias
        self._body = copy.deepcopy(module).eval()
        self._body.set_submodule(embedding, nn.Identity())  # takes rows where it took words
        self._body.set_submodule(output, nn.Identity())
        self._own = dict(self._body.named_parameters())
        for name, tensor in {**self._own, **self._tables}.items():
            if tensor.dtype != torch.float32:
                raise ValueError(f"{name} is {tensor.dtype}; call .float() on the module first")

    def roles(self, spec: ModelSpec) -> dict[str, Role]:
        return {
            _PREFIX + name: Role("dense" if tensor.dim() > 1 else "bias", tuple(tensor.shape))
            for name, tensor in self._own.items()
        }

    def start(self, spec: ModelSpec) -> Parameters:
        tables = {n: t for n, t in self._tables.items() if n != "output" or not spec.tied}
        own = {_PREFIX + name: tensor for name, tensor in self._own.items()}
        return {name: tensor.detach().clone() for name, tensor in {**tables, **own}.items()}

    def hidden(self, spec: ModelSpec, weights: Mapping[str, Tensor], embedded: Tensor) -> Tensor:
        """Call the module once where all devices hold the same weights, else once for each.

        A batched call over devices (`torch.vmap`) is no faster on a processor, and recurrent
        layers refuse it.
        """
        held = {name: weights[_PREFIX + name].to(embedded.dtype) for name in self._own}
        apart = {name for name, tensor in self._own.items() if held[name].dim() > tensor.dim()}
        if not apart:
            return self._call(held, embedded.flatten(0, 1)).unflatten(0, embedded.shape[:2])
        rows = []
        for device, own in enumerate(embedded):
            mine = {n: held[n][device] if n in apart else held[n] for n in held}
            rows.append(self._call(mine, own))
        return torch.stack(rows)  # (K, B, T, P)

    def _call(self, weights: Parameters, embedded: Tensor) -> Tensor:
        vectors: Tensor = functional_call(self._body, weights, (embedded,))
        return vectors


def _layer(module: nn.Module, name: str, kind: type[Layer]) -> Layer:
    try:
        layer = module.get_submodule(name)
    except AttributeError as error:
        known = ", ".join(n for n, part in module.named_modules() if type(part) is kind)
        raise ValueError(f"the module has no {name!r}; its {kind.__name__}: {known}") from error
    if type(layer) is not kind:
        raise ValueError(f"{name} is a {type(layer).__name__}; expected a {kind.__name__}")
    return layer


@torch.no_grad()
def _compare(module: nn.Module, spec: ModelSpec, adopted: _Adopted) -> None:
    """Refuse a module whose scores, on words drawn at random, are not those of its parts."""
    words = torch.randint(
        spec.vocabulary_size, _PROBE, generator=torch.Generator().manual_seed(0)
    )  # (B, T)
    weights, expected = adopted.start(spec), copy.deepcopy(module).eval()(words)
    needed = (*_PROBE, spec.vocabulary_size)
    if not isinstance(expected, Tensor) or expected.shape != needed:
        raise ValueError(f"the module must map words {_PROBE} to scores {needed} and nothing else")
    vectors = _Vectors(spec, adopted)
    try:
        actual = scores(spec, weights, vectors(words).flatten(0, 1)).view(needed)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            "the module uses words for more than reading their rows, or hidden vectors for more "
            f"than scoring: {error}"
        ) from error
    difference = float((actual - expected).abs().max())
    if not difference <= _AGREEMENT * max(1.0, float(expected.abs().max())):
        raise ValueError(
            f"scores of the parts and of the module differ by {difference:.2g}: it does more "
            "between words and rows, or between hidden vectors and scores, than its two layers do"
        )
    _check_what_it_sees(vectors, words)


class _Vectors:
    """The hidden vectors of an adopted module: words int64 (B, T) → float32 (B, T, P)."""

    def __init__(self, spec: ModelSpec, adopted: _Adopted) -> None:
        self._spec, self._adopted, self._weights = spec, adopted, adopted.start(spec)

    def __call__(self, words: Tensor) -> Tensor:
        rows = self._weights["embedding"][words].unsqueeze(0)
        return self._adopted.hidden(self._spec, self._weights, rows)[0]


def _check_what_it_sees(vectors: _Vectors, words: Tensor) -> None:
    """Refuse a module whose vectors depend on anything but a window's words so far.

    Other words are put in one place, and the vectors that must not know of it are compared. The
    windows of several devices are one batch, so a module that mixes windows mixes users.

    Args:
        words: int64 (B, T), all different from the words one further on in the vocabulary.
    """
    first = vectors(words)
    others = (words + 1) % len(vectors._weights["embedding"])
    vectors(others)
    noise = _ROUNDING * float(first.abs().max())

    def reaches(changed: Tensor, where: tuple[slice, slice], own: tuple[slice, slice]) -> bool:
        moved = (vectors(torch.where(changed, others, words)) - first).abs()
        effect = float(moved[own].max())
        return not float(moved[where].max()) <= max(_UNSEEN * effect, noise)

    every, nothing = slice(None), torch.zeros_like(words, dtype=torch.bool)
    if reaches(nothing, (every, every), (every, every)):
        raise ValueError(
            "the module keeps something from one call to the next, such as a state: another user's "
            "text would reach this user's update. Begin every call anew"
        )
    for window in range(len(words)):
        changed = nothing.clone()
        changed[window] = True
        here, rest = slice(window, window + 1), slice(1 - window, 2 - window)
        if reaches(changed, (rest, every), (here, every)):
            raise ValueError(
                "the module mixes windows: what one user typed would reach another user's update. "
                "A layer that takes the words first and the windows second, as torch's recurrent "
                "layers and attention do, needs batch_first=True"
            )
    for place in range(1, words.shape[1]):
        changed = nothing.clone()
        changed[:, place] = True
        if reaches(changed, (every, slice(place)), (every, slice(place, None))):
            raise ValueError(
                "the module looks ahead: its scores depend on the words that they predict. Leave "
                "out bidirectional=True, mask attention, and pad convolutions on the left alone"
            )
