"""Models of the user's own: what runs between the word tables, known by a name.

A recipe selects from what exists; Python makes more of it exist. ``register`` gives a body a name,
and ``ModelSpec(kind="module", module=name)`` is then a model like any other, in this process.
``pfl_lm.interop.torch_module.adopt`` does it for a `torch.nn.Module`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from pfl_lm.language.spec import ModelSpec, Parameters, Role


class Body(Protocol):
    """What a model is between its tables, and the values that it starts from."""

    def roles(self, spec: ModelSpec) -> dict[str, Role]:
        """Name the parameters between embedding and output, in order, with their shapes."""

    def start(self, spec: ModelSpec) -> Parameters:
        """Return every parameter's first value, float32, the tables among them."""

    def hidden(self, spec: ModelSpec, weights: Mapping[str, Tensor], embedded: Tensor) -> Tensor:
        """As :func:`pfl_lm.language.models.hidden`: (K, B, T, D) → (K, B, T, P)."""


_BODIES: dict[str, Body] = {}


def register(name: str, body: Body) -> None:
    """Make a body known; the same name again replaces it."""
    _BODIES[name] = body


def body_of(spec: ModelSpec) -> Body:
    """Return the body that a spec names.

    Raises:
        ValueError: this process knows none of that name.
    """
    if spec.module not in _BODIES:
        raise ValueError(
            f"model module = {spec.module!r} is not known in this process; make it so in Python, "
            "with pfl_lm.interop.torch_module.adopt, before it is used"
        )
    return _BODIES[spec.module]
