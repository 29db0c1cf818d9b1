"""Settings of a process for this machine: threads, memory that is kept, torch's fastest products.

Nothing here changes what is computed. An entry point calls :func:`tune` once, before the first
product; importing the package changes nothing.
"""

from __future__ import annotations

import ctypes
import os
import platform
from dataclasses import dataclass
from pathlib import Path

# mallopt parameters of glibc's <malloc.h>.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


@dataclass(frozen=True)
class Tuning:
    """What :func:`tune` did."""

    threads: int
    memory_kept: bool
    products: str  # "torch's default" or "oneDNN"


def tune(threads: int | None = None, keep: bool = True) -> Tuning:
    """Set the number of threads of one process and choose the fast paths.

    Args:
        threads: None takes ``OMP_NUM_THREADS``, else half of the processors: threads wait for
            each other after every small product, so one busy neighbour on a core that all of
            them need costs more than the other half of the cores brings.
        keep: whether the process trains and keeps freed memory (``keep_memory``). A server does
            not: it gives back what the messages of thousands of devices took.

    Two processes of one thread train faster than one process of two: the products of local
    training are too small to be worth splitting.
    """
    import torch

    if threads is None and "OMP_NUM_THREADS" not in os.environ:
        threads = max(1, (os.cpu_count() or 1) // 2)
    if threads is not None:
        torch.set_num_threads(threads)
    products = "oneDNN" if use_onednn() else "torch's default"
    return Tuning(torch.get_num_threads(), keep and keep_memory(), products)


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


def give_memory_back() -> bool:
    """Ask the C library to hand free memory to the kernel; return whether some was.

    What thousands of messages took lies free between what stays, in pieces that glibc keeps.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    return bool(ctypes.CDLL(None).malloc_trim(0))


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


def cpu_flags() -> set[str]:
    """Words of the first processor's entry in /proc/cpuinfo; empty where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="ignore")
    except OSError:
        return set()
    return set(text.split("\n\n", 1)[0].split())
