"""The compiled loops of the privacy path, told once how to take their arguments.

None where there is no compiler: numpy's definitions beside each call give the same numbers.
"""

from __future__ import annotations

import ctypes

from pfl_lm import native

_POINTER, _SIZE, _DOUBLE, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double, ctypes.c_int
_ALIAS = (_POINTER, _INT, _POINTER)  # entries, low bits, what is left
_ENCODE = {
    "sum_of_squares": (_DOUBLE, _POINTER, _SIZE),
    "round_at_random": (
        *(_DOUBLE, _POINTER, _DOUBLE, _SIZE, _POINTER, *_ALIAS, _POINTER, _INT, _POINTER),
    ),
    "add_samples": (_SIZE, _SIZE, _POINTER, *_ALIAS, _POINTER),
}
_BOUNDARIES = {
    "add_magnitudes": (
        *(_SIZE, _POINTER, _POINTER, _SIZE, _POINTER, _SIZE, _POINTER, _INT),
        *(_SIZE, _POINTER, _POINTER),
    ),
}
_REJECTION = {
    "propose": (_SIZE, _SIZE, _POINTER, _POINTER, _INT, ctypes.c_uint32, _POINTER, _POINTER),
}


def encode() -> ctypes.CDLL | None:
    """Norms, rounding and samples: ``native/encode.c``."""
    return native.functions("encode", **_ENCODE)


def boundaries() -> ctypes.CDLL | None:
    """Inverting cumulative distributions: ``native/boundaries.c``."""
    return native.functions("boundaries", **_BOUNDARIES)


def rejection() -> ctypes.CDLL | None:
    """Proposals for wide discrete Gaussians: ``native/rejection.c``."""
    return native.functions("rejection", **_REJECTION)
