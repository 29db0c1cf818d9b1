"""Models of the user's own, known by a name in this process.

A recipe selects from what exists; Python makes more of it exist. ``register`` gives a body a name,
and ``ModelSpec(kind="module", module=name)`` is then a model like any other, in this process.
``pfl_lm.interop.torch_module.adopt`` does it for a `torch.nn.Module`.
"""

from __future__ import annotations

from pfl_lm.models.body import Body
from pfl_lm.models.spec import ModelSpec

_BODIES: dict[str, Body] = {}


def register(name: str, body: Body) -> None:
    """Make a body known; the same name again replaces it."""
    _BODIES[name] = body


def registered(spec: ModelSpec) -> Body:
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
