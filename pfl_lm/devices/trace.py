"""What only a simulation sees of a device."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Trace:
    """What a simulation records of one device; it never leaves a real one.

    Server code must not import it; a test holds that.

    Args:
        user: whose device.
        loss: mean of the training objective over the device's target tokens, as it trained.
        tokens: target tokens trained on, over all steps.
        steps: local SGD steps.
        update_norm: ℓ2 norm of the update before clipping.
    """

    user: int
    loss: float
    tokens: int
    steps: int
    update_norm: float
