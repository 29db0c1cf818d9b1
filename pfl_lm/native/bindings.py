"""The functions and structs of each C file of this folder, as ctypes calls them.

A struct here and in C must agree field by field. Each library exports the sizes of its structs, and
:func:`bind` refuses a library whose sizes differ; a test compares the names of the fields.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from ctypes import POINTER, Structure, c_double, c_float, c_int, c_int64, c_long, c_void_p
from types import MappingProxyType
from typing import Any, NamedTuple

TOGETHER = 8  # vectors that packed.c adds in one pass
LAYERS, NORMS = 4, 2  # of a transformer's block

Fields = Iterator[tuple[str, Any]]


def _each(kind: Any, names: str) -> Fields:
    return ((name, kind) for name in names.split())


class Dense(Structure):
    """``dense`` of layer.h: a dense layer of K devices, with or without factors."""

    _fields_ = (
        *_each(c_long, "outputs inputs rank"),
        *_each(c_void_p, "weight a b"),
        *_each(c_long, "weight_device_stride a_device_stride b_device_stride"),
        ("inner", c_void_p),
        ("scale", c_float),
        ("low", c_long),
    )


class Norm(Structure):
    """``norm`` of block.c."""

    _fields_ = (
        *_each(c_void_p, "gain bias"),
        *_each(c_long, "gain_device_stride bias_device_stride"),
        *_each(c_void_p, "d_gain d_bias"),
    )


class Layer(Structure):
    """``layer`` of block.c."""

    _fields_ = (
        ("d", Dense),
        ("bias", c_void_p),
        ("bias_device_stride", c_long),
        *_each(c_void_p, "d_weight d_bias d_a d_b"),
    )


class Block(Structure):
    """``block`` of block.c."""

    _fields_ = (
        *_each(c_long, "devices windows length width inner heads gelu"),
        ("layers", Layer * LAYERS),
        ("norms", Norm * NORMS),
        *_each(c_void_p, "cos sin x y projected mixed middle hidden dy dx"),
    )


class Recurrence(Structure):
    """``recurrence`` of recurrence.c."""

    _fields_ = (
        *_each(c_long, "devices steps windows cells gates kept rests"),
        *_each(Dense, "recurrent project"),
        *_each(c_void_p, "sums states c tanh_c outputs d_states d_sums dr dc"),
    )


class Softmax(Structure):
    """``softmax`` of softmax.c."""

    _fields_ = (
        *_each(c_long, "rows words width kept low"),
        *_each(c_void_p, "columns table bias shift scratch"),
    )


class TopWords(Structure):
    """``top_words`` of top_words.c."""

    _fields_ = (
        *_each(c_long, "rows words width"),
        *_each(c_void_p, "columns table bias silent total best best_words"),
    )


class Table(Structure):
    """``table`` of candidates.c: rows that K devices hold, some of their own."""

    _fields_ = (
        ("width", c_long),
        *_each(c_void_p, "frozen now into"),
        *_each(c_long, "now_device_stride into_device_stride"),
        ("slots", c_void_p),
    )


class Candidates(Structure):
    """``candidates`` of candidates.c."""

    _fields_ = (
        *_each(c_long, "rows count width"),
        *_each(Table, "scoring bias"),
        *_each(c_void_p, "vectors targets weight words log_weight inclusion centre centre_bias"),
        ("rate", c_float),
        *_each(c_void_p, "loss gradient"),
    )


class PackedSum(Structure):
    """``packed_sum`` of packed.c."""

    _fields_ = (
        ("total", c_void_p),
        ("packed", c_void_p * TOGETHER),
        *_each(c_int, "width bits subtract"),
    )


class Binding(NamedTuple):
    """What a library offers: its functions' result and argument types, its structs by C name."""

    functions: Mapping[str, tuple[Any, ...]]
    structs: Mapping[str, type[Structure]] = MappingProxyType({})


_DEVICES = (c_long, c_long)  # the first and the end of a range of devices
_OPERAND = (c_void_p, c_long, c_long)  # a matrix and its two strides
_INTEGERS = (c_int, c_void_p)  # bytes of each, 4 or 8, and where they lie
_ALIAS = (c_void_p, c_int, c_void_p)  # a table's entries, low bits, places left to the rest

# Privacy: what clips, rounds, adds noise, rotates, masks and shares.
PRIVACY: Mapping[str, Binding] = {
    "encode": Binding(
        {
            "sum_of_squares": (c_double, c_void_p, c_int64),
            "round_at_random": (
                *(c_double, c_void_p, c_double, c_int64, c_void_p, *_ALIAS),
                *(c_void_p, c_int, *_INTEGERS),
            ),
            "add_samples": (c_int64, c_int64, c_void_p, *_ALIAS, *_INTEGERS),
        }
    ),
    "inversion": Binding(
        {
            "add_magnitudes": (
                *(c_int64, c_void_p, c_void_p, c_int64, c_void_p, c_int64, c_void_p, c_int),
                *(c_int64, *_INTEGERS, c_void_p),
            )
        }
    ),
    "rejection": Binding(
        {
            "propose": (
                *(c_int64, c_int64, c_void_p, c_void_p, c_int, ctypes.c_uint32),
                *(c_void_p, c_void_p),
            )
        }
    ),
    "hadamard": Binding(
        {
            "hadamard": (None, c_void_p, c_int64, c_float),
            "turn_signs": (None, c_void_p, c_void_p, c_int64),
        }
    ),
    "packed": Binding(
        {
            "add_packed": (None, POINTER(PackedSum), c_int64, c_int64, c_int64),
            "pack": (None, c_void_p, c_void_p, c_int, c_int64, c_int),
        },
        {"packed_sum": PackedSum},
    ),
    "field": Binding(
        {
            "evaluate": (None, ctypes.c_char_p, c_int64, c_void_p, c_int64, c_void_p),
            "lagrange": (None, c_void_p, c_int64, c_void_p, c_void_p),
            "combine": (None, c_void_p, c_void_p, c_int64, c_void_p),
        }
    ),
}

# Training and evaluation.
TRAINING: Mapping[str, Binding] = {
    "products": Binding(
        {
            "packed_size": (c_long, c_long, c_long, c_int),
            "has_bfloat16": (c_int,),
            "has_tiles": (c_int,),
            "pack_matrix": (None, c_long, c_long, *_OPERAND, c_int, c_void_p),
            "multiply_devices": (
                *(c_int, *(c_long,) * 4, *_OPERAND, *_OPERAND, c_long, c_int, c_void_p, c_long),
                *(*_OPERAND, c_int),
            ),
            "gradient_devices": (
                *(c_int, *(c_long,) * 4, *_OPERAND, *_OPERAND),
                *(c_int, c_void_p, c_long, c_void_p, c_long, c_float, c_int),
            ),
        }
    ),
    "factored": Binding(
        {
            "through_layer": (
                *(c_int, POINTER(Dense), c_long, c_long, c_int),
                *(c_void_p, c_void_p, c_long, c_void_p),
            )
        },
        {"dense": Dense},
    ),
    "recurrence": Binding(
        {
            "recurrence_forward": (c_int, POINTER(Recurrence), *_DEVICES),
            "recurrence_backward": (c_int, POINTER(Recurrence), *_DEVICES),
        },
        {"recurrence": Recurrence, "dense": Dense},
    ),
    "block": Binding(
        {
            "block_forward": (c_int, POINTER(Block), *_DEVICES),
            "block_backward": (c_int, POINTER(Block), *_DEVICES),
        },
        {"block": Block, "layer": Layer, "norm": Norm, "dense": Dense},
    ),
    "candidates": Binding(
        {
            "slopes_size": (c_long, c_long, c_long),
            "contrast_candidates": (c_int, POINTER(Candidates), c_void_p, *_DEVICES),
        },
        {"candidates": Candidates, "table": Table},
    ),
    "softmax": Binding(
        {
            "scratch_size": (c_long,) * 6,
            "softmax_sums": (None, POINTER(Softmax), c_void_p, c_void_p),
            "softmax_gradients": (None, POINTER(Softmax), *(c_void_p,) * 5),
        },
        {"softmax": Softmax},
    ),
    "top_words": Binding({"rank_words": (None, POINTER(TopWords))}, {"top_words": TopWords}),
}

BINDINGS: Mapping[str, Binding] = {**PRIVACY, **TRAINING}


def bind(library: ctypes.CDLL, binding: Binding) -> None:
    """Declare the types of a library's functions.

    Raises:
        OSError: a function is missing, or a struct has another size in C than here.
    """
    for name, struct in binding.structs.items():
        size = _function(library, f"size_of_{name}", (c_long,))()
        if size != ctypes.sizeof(struct):
            raise OSError(
                f"struct {name} has {size} bytes in C and {ctypes.sizeof(struct)} in bindings.py"
            )
    for name, types in binding.functions.items():
        _function(library, name, types)


def _function(library: ctypes.CDLL, name: str, types: tuple[Any, ...]) -> Any:
    try:
        function = getattr(library, name)
    except AttributeError as error:
        raise OSError(f"the library has no function {name}") from error
    function.restype, function.argtypes = types[0], types[1:]
    return function
