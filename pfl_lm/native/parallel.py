"""C kernels over several devices, on as many threads as torch has; they hold no lock."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


def run_parallel(devices: int, call: Callable[[int, int], int]) -> None:
    """Call ``call(first, end)`` for ranges of devices that together make all of them.

    Raises:
        MemoryError: a call returned anything but 0.
    """
    import torch

    count = min(torch.get_num_threads(), devices)
    ends = [devices * part // max(count, 1) for part in range(count + 1)]
    if count <= 1:
        failed = [call(0, devices)]
    else:
        with ThreadPoolExecutor(count) as pool:
            failed = list(pool.map(call, ends[:-1], ends[1:]))
    if any(failed):
        raise MemoryError("a C kernel could not allocate the memory that it needs")
