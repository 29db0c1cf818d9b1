"""Why a call is refused; the service says each as a status of gRPC."""

from __future__ import annotations


class NotAdmitted(ValueError):
    """A caller that is not admitted; ``again`` tells whether authenticating again could help."""

    def __init__(self, text: str, again: bool = False) -> None:
        self.again = again
        super().__init__(text)


class TooOften(ValueError):
    """More calls than a device's budget, or a device that is suspended: it must wait."""


class CalledOn(TooOften):
    """A device that called on where it was told to wait: it is suspended from now on."""

    def __init__(self, device: int) -> None:
        self.device = device
        super().__init__(f"device {device} called on where it was told to wait: it is suspended")


class NotNow(ValueError):
    """A message that does not count: this round goes on without its sender."""
