"""The whole suite: every positive and every negative vector of this version."""

from __future__ import annotations

from functools import cache

from pfl_lm.conformance.accepted import positive
from pfl_lm.conformance.refused import negative
from pfl_lm.conformance.vectors import Vector


@cache
def suite() -> tuple[Vector, ...]:
    """Make the vectors, the same in every process: positive ones first."""
    accepted = tuple(positive())
    return (*accepted, *negative(accepted))
