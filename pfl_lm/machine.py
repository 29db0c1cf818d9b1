"""This machine's fast paths: memory that is kept, and the fastest matrix product there is.

Nothing here changes what is computed; :func:`tune` is called once by an entry point, before the
first product. A library does not do this to its importer behind their back.
"""

from __future__ import annotations

import ctypes
import os
import platform
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pfl_lm import native

openblas = False  # whether products may go there: like the threads, for the life of a process

# mallopt parameters of glibc's <malloc.h>.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


@dataclass(frozen=True)
class Tuning:
    """What was done, for a run's manifest."""

    threads: int
    memory_kept: bool
    products: str  # "torch's default", "oneDNN", or "OpenBLAS" where it is the faster one
    loops: str  # "compiled" (``native``) or "torch"


def tune(threads: int | None = None) -> Tuning:
    """Set the number of threads of one process and choose the fast paths.

    Args:
        threads: None takes ``OMP_NUM_THREADS``, else half of the processors: threads wait for
            each other after every small product, so one busy neighbour on a core that all of
            them need costs more than the other half of the cores brings.

    Two processes of one thread train faster than one process of two: the products of local
    training are too small to be worth splitting.
    """
    import torch

    if threads is None and "OMP_NUM_THREADS" not in os.environ:
        threads = max(1, (os.cpu_count() or 1) // 2)
    if threads is not None:
        torch.set_num_threads(threads)
    products = "torch's default"
    if use_onednn():
        products = "oneDNN"
    elif use_openblas(torch.get_num_threads()):
        products = "OpenBLAS"
    return Tuning(torch.get_num_threads(), keep_memory(), products, native.loops())


def keep_memory() -> bool:
    """Ask the C library to keep freed memory, whatever its size, for the next allocation.

    By default glibc hands every large block back to the kernel, which must clear each page again
    for the next step's temporaries: up to a tenth of a training step with a large vocabulary.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    wishes = {_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 64 << 20}
    return all(library.mallopt(parameter, value) for parameter, value in wishes.items())


def use_onednn() -> bool:
    """Route float32 products to oneDNN on AMD processors with AVX-512; return whether it was.

    There torch's default, MKL, runs its AVX2 kernels at half of the speed. torch offers the
    route only as a permission to compute in bfloat16, which oneDNN uses on processors that have
    bfloat16 tiles (AMX; no AMD processor does). So the result is checked, and the permission
    withdrawn unless it is float32's.
    """
    import torch

    flags = cpu_flags()
    if "AuthenticAMD" not in flags or "avx512f" not in flags or "amx_tile" in flags:
        return False
    route = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before, route.fp32_precision = route.fp32_precision, "bf16"
    draw = torch.Generator().manual_seed(0)
    left, right = torch.randn(2, 256, 256, generator=draw)
    error = (left @ right - (left.double() @ right.double())).abs().max()
    if error < 1e-4:  # of sums of 256 products: float32's is 2e-5, bfloat16's 0.2
        return True
    route.fp32_precision = before
    return False


def use_openblas(threads: int) -> bool:
    """Take numpy's OpenBLAS for some products on AMD processors without AVX-512; return whether.

    There MKL runs at two thirds of OpenBLAS where it must rearrange what it multiplies: 33 against
    45 GFLOP/s for 16 rows by 2,680 × 670, 50 against 73 for the transposed product of a weight's
    gradient. ``language/dense.py`` knows which products. Not used unless OpenBLAS can be told the
    number of threads.
    """
    global openblas
    flags = cpu_flags()
    openblas = "AuthenticAMD" in flags and "avx512f" not in flags and _set_threads(threads)
    return openblas


def _set_threads(threads: int) -> bool:
    """Tell the OpenBLAS that numpy's wheels carry its number of threads; whether that worked."""
    carried = Path(np.__file__).resolve().parent.parent / "numpy.libs"
    for file in carried.glob("libscipy_openblas64_*"):
        library = ctypes.CDLL(str(file))
        if hasattr(library, "scipy_openblas_set_num_threads64_"):
            library.scipy_openblas_set_num_threads64_(threads)
            return True
    return False


def has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 matrices faster than float32 ones."""
    return bool({"avx512_bf16", "amx_bf16"} & cpu_flags())


def cpu_flags() -> set[str]:
    """Words of the first processor's entry in /proc/cpuinfo; empty where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="ignore")
    except OSError:
        return set()
    return set(text.split("\n\n", 1)[0].split())
