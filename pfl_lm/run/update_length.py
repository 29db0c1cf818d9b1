"""Whether updates are so much longer or shorter than the clip norm that somebody should be told.

One rule for the look before a run (``run/look``) and for the page's advice after it
(``report/advice``).
"""

from __future__ import annotations

_LONG = 4.0  # times clip_norm; up to it, a recipe may well clip every update on purpose
_SHORT = 0.25  # times clip_norm; below it, a lower clip_norm would need less noise


def is_long(norm: float, clip_norm: float) -> bool:
    """Whether an update of ℓ2 norm ``norm`` is cut to less than a quarter of its length."""
    return norm > _LONG * clip_norm


def is_short(norm: float, clip_norm: float) -> bool:
    """Whether an update of ℓ2 norm ``norm`` is shorter than a quarter of the clip norm."""
    return norm < _SHORT * clip_norm
