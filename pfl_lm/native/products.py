"""Matrix products of ``products.c`` on torch's tensors: K devices in a call.

Legend: K devices, N rows of a device, I input width, O output width.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from pfl_lm import native
from pfl_lm.native import bindings


def supports(*tensors: Tensor | None) -> bool:
    """Whether the kernels take these tensors: float32, on the CPU, with one thread."""
    return (
        all(x.dtype == torch.float32 and x.device.type == "cpu" for x in tensors if x is not None)
        and torch.get_num_threads() == 1
        and native.load("products") is not None
    )


def takes(matrix: Tensor, *tensors: Tensor | None) -> bool:
    """:func:`supports`, of the matrix of a product too: it may be in bfloat16 if that is faster."""
    low = matrix.dtype == torch.bfloat16 and has_bfloat16()
    return supports(*tensors, None if low else matrix)


def takes_factors(matrix: Tensor, *tensors: Tensor | None) -> bool:
    """:func:`takes`, of the kernel that makes a layer's products with its factors too."""
    return takes(matrix, *tensors) and native.load("factored") is not None


def has_bfloat16() -> bool:
    """Whether the kernels multiply bfloat16 by the processor: AVX512_BF16, or tiles (AMX_BF16).

    Without it they compute the same from float32's products, slower than those.
    """
    library = native.load("products")
    return library is not None and bool(library.has_bfloat16())


def has_tiles() -> bool:
    """Whether the kernels multiply bfloat16 by the processor's tiles (Intel AMX)."""
    library = native.load("products")
    return library is not None and bool(library.has_tiles())


def supports_contiguous(library: str, *tensors: Tensor | None) -> bool:
    """:func:`supports`, for kernels of another ``library`` too, which take contiguous tensors."""
    return (
        supports(*tensors)
        and all(x.is_contiguous() for x in tensors if x is not None)
        and native.load(library) is not None
    )


def address(tensor: Tensor | None) -> int | None:
    """Where a tensor's numbers begin, as ctypes takes a pointer."""
    return None if tensor is None else tensor.data_ptr()


def device_stride(tensor: Tensor, dims: int) -> int:
    """Floats from one device's part to the next one's; 0 where all devices hold the same."""
    return tensor.stride(0) if tensor.dim() == dims and len(tensor) > 1 else 0


def pack(matrix: Tensor) -> Tensor:
    """Lay (I, O), float32 or bfloat16, out in panels, the right operand of products to come."""
    matrix, low = _plain(matrix), matrix.dtype == torch.bfloat16
    packed = torch.empty(_call("packed_size", *matrix.shape, low))
    where = matrix.data_ptr(), *matrix.stride()
    _call("pack_matrix", *matrix.shape, *where, low, packed.data_ptr())
    return packed


def times(
    x: Tensor, matrix: Tensor, bias: Tensor | None = None, into: Tensor | None = None
) -> Tensor:
    """Return x (K, N, I) times matrix (I, O) or (K, I, O), plus bias (O,) or (K, O).

    Args:
        matrix: float32, or bfloat16: x is then rounded to it, and sums are float32.
        into: (K, N, O), rows contiguous: the product is added to it instead.
    """
    x, matrix = _in_rows(x), _plain(matrix)
    devices, rows, depth = x.shape
    columns = matrix.shape[-1]
    y = x.new_empty(devices, rows, columns) if into is None else into
    bias = None if bias is None else _in_rows(bias)
    _check(
        _call(
            "multiply_devices",
            *(devices, rows, columns, depth),
            *(x.data_ptr(), *x.stride()[:2]),
            *(matrix.data_ptr(), device_stride(matrix, 3), *matrix.stride()[-2:]),
            matrix.dtype == torch.bfloat16,
            *((None, 0) if bias is None else (bias.data_ptr(), device_stride(bias, 2))),
            *(y.data_ptr(), *y.stride()[:2], into is not None),
        )
    )
    return y


def describe(
    weight: Tensor, a: Tensor | None, b: Tensor | None, scale: float, inner: Tensor | None
) -> bindings.Dense:
    """Point at a layer y = x Wᵀ + scale · (x Aᵀ) Bᵀ, each device's W, A and Bᵀ in rows.

    Args:
        weight: (O, I) or (K, O, I), float32 or bfloat16.
        a: (R, I) or (K, R, I); None, like ``b`` (O, R) or (K, O, R): no factors.
        inner: (K, N, R), where its narrow middle goes.
    """
    outputs, inputs = weight.shape[-2:]
    held = bindings.Dense(outputs, inputs, weight=weight.data_ptr())
    held.weight_device_stride = device_stride(weight, 3)
    held.low = weight.dtype == torch.bfloat16
    if a is not None and b is not None:
        held.rank, held.scale, held.inner = a.shape[-2], scale, address(inner)
        held.a, held.a_device_stride = a.data_ptr(), device_stride(a, 3)
        held.b, held.b_device_stride = b.data_ptr(), device_stride(b, 3)
    return held


def through_layer(
    x: Tensor,
    weight: Tensor,
    a: Tensor,
    b: Tensor,
    scale: float,
    bias: Tensor | None = None,
    back: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return x Wᵀ + scale · (x Aᵀ) Bᵀ + bias, and scale · x Aᵀ (K, N, R).

    Args:
        x: (K, N, I); where ``back``, (K, N, O), and the results are x W + scale · (x B) A and
            scale · x B.
        weight: (O, I) or (K, O, I), float32 or bfloat16.
        a: (R, I) or (K, R, I).
        b: (O, R) or (K, O, R).
        bias: (O,) or (K, O).
    """
    x = x.contiguous()
    weight, a, b = in_rows(weight), in_rows(a), in_rows(b.mT).mT
    devices, rows, _ = x.shape
    y = x.new_empty(devices, rows, weight.shape[-1] if back else weight.shape[-2])
    inner = x.new_empty(devices, rows, a.shape[-2])
    bias = None if bias is None else _in_rows(bias)
    layer = describe(weight, a, b, scale, inner)
    own_bias = (None, 0) if bias is None else (bias.data_ptr(), device_stride(bias, 2))
    library: Any = native.load("factored")
    _check(
        library.through_layer(
            ctypes.byref(layer), devices, rows, back, x.data_ptr(), *own_bias, y.data_ptr()
        )
    )
    return y, inner


def in_rows(tensor: Tensor, dims: int = 2) -> Tensor:
    """Lay each device's own part, of ``dims`` axes, out row after row, in one piece."""
    rows = tensor.stride(-1) == 1 and (dims == 1 or tensor.stride(-2) == tensor.shape[-1])
    return tensor if rows else tensor.contiguous()


def gradient(
    dy: Tensor,
    x: Tensor,
    into: Tensor | None = None,
    bias: Tensor | None = None,
    rate: float = 1.0,
    low: bool = False,
) -> Tensor:
    """Return dyᵀ x (K, O, I) of dy (K, N, O) and x (K, N, I).

    Args:
        into: (K, O, I), each device's part contiguous: rate · dyᵀ x is added to it instead.
        bias: (K, O), rows contiguous: rate · the sum of dy's rows is added to it.
        low: round dy and x to bfloat16; sums stay float32, those of the bias too.
    """
    dy, x = _in_rows(dy), _in_rows(x)
    devices, rows, outputs = dy.shape
    result = x.new_empty(devices, outputs, x.shape[-1]) if into is None else into
    _check(
        _call(
            "gradient_devices",
            *(devices, rows, outputs, x.shape[-1]),
            *(dy.data_ptr(), *dy.stride()[:2]),
            *(x.data_ptr(), *x.stride()[:2], low),
            *(result.data_ptr(), result.stride(0)),
            *((None, 0) if bias is None else (bias.data_ptr(), bias.stride(0))),
            *(rate, into is not None),
        )
    )
    return result


def _in_rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _plain(matrix: Tensor) -> Tensor:
    """Rows or columns contiguous, as packing asks."""
    return matrix if 1 in matrix.stride()[-2:] else matrix.contiguous()


def _check(failed: int) -> None:
    if failed:
        raise MemoryError("a C kernel could not allocate the memory that it needs")


def _call(name: str, *arguments: float | None) -> int:
    library: Any = native.load("products")
    result: int = getattr(library, name)(*arguments)
    return result
