"""What can go wrong in secure aggregation.

    SecaggError (ValueError)
    ├── TooFewReports     the sum stays closed: fewer reports than the threshold
    ├── TooFewAnswers     too few devices confirmed or answered: this server cannot open the sum
    ├── SumLost           the round failed after devices were asked for what removes the masks
    ├── WrongState        a call or a message that the current phase does not take
    ├── MalformedMessage  bytes that are not a message of this protocol
    └── Refused           a well-formed message that breaks a rule: somebody cheats or is broken
        └── WrongShares   the shares that one device dealt do not fit what it committed to

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
    """Too few devices confirmed or answered for the masks to be removed."""


class SumLost(SecaggError):
    """The round failed after the survivors were asked for what removes the masks.

    The server may know the sum all the same: a late answer completes what it has, and a curious
    server does without the check that failed. So the round is paid for like one that was opened.

    Attributes:
        reports: in the sum.
        spoiler: the device, by its place in the cohort, whose shares were wrong or, within one
            process, that refused to answer; None where too few answered.
    """

    def __init__(self, reports: int, reason: str, spoiler: int | None = None) -> None:
        self.reports, self.reason, self.spoiler = reports, reason, spoiler
        super().__init__(
            f"{reason}; the devices were asked for what opens the sum of {reports} reports, so "
            "the round stays paid for"
        )

    def __reduce__(self) -> tuple[type, tuple[int, str, int | None]]:
        return type(self), (self.reports, self.reason, self.spoiler)


class WrongState(SecaggError):
    """A call or a message that the current phase does not take."""


class MalformedMessage(SecaggError):
    """Bytes that are not a message of this protocol."""


class Refused(SecaggError):
    """A well-formed message that breaks a rule of the protocol."""


class WrongShares(Refused):
    """The shares that a device dealt do not give the secret that it committed to."""

    def __init__(self, device: int, reason: str) -> None:
        self.device, self.reason = device, reason
        super().__init__(f"device {device} {reason}")

    def __reduce__(self) -> tuple[type, tuple[int, str]]:
        return type(self), (self.device, self.reason)
