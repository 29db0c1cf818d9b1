"""What can go wrong in secure aggregation.

    SecaggError (ValueError)
    ├── TooFewReports     the sum stays closed: fewer reports than the threshold
    ├── TooFewAnswers     the masks cannot be removed, or no quorum confirmed: the sum stays closed
    ├── WrongState        a call or a message that the current phase does not take
    ├── MalformedMessage  bytes that are not a message of this protocol
    └── Refused           a well-formed message that breaks a rule: somebody cheats or is broken

No text of an error carries a share, a seed, a mask or an entry of a vector.
"""

from __future__ import annotations


class SecaggError(ValueError):
    """Anything that secure aggregation refuses."""


class TooFewReports(SecaggError):
    """Fewer reports than the threshold: the round is abandoned and its sum never opened."""

    def __init__(self, reports: int, threshold: int) -> None:
        self.reports = reports
        self.threshold = threshold
        super().__init__(
            f"{reports} reports arrived and the threshold is {threshold}: the sum stays closed; "
            "invite a larger cohort or wait longer"
        )

    def __reduce__(self) -> tuple[type, tuple[int, int]]:
        return type(self), (self.reports, self.threshold)


class TooFewAnswers(SecaggError):
    """Too few devices confirmed or answered for the masks to be removed: the sum stays closed."""


class WrongState(SecaggError):
    """A call or a message that the current phase does not take."""


class MalformedMessage(SecaggError):
    """Bytes that are not a message of this protocol."""


class Refused(SecaggError):
    """A well-formed message that breaks a rule of the protocol."""
