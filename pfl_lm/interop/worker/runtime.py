"""TFF's executors: processes that it starts and leaves behind."""

from __future__ import annotations

import functools

import psutil
import tensorflow_federated as tff


@functools.lru_cache(maxsize=1)
def use(kind: str) -> None:
    """Run what follows on TFF's ``native`` runtime, or on its ``test`` one.

    The runtime that plays secure aggregation is the test runtime; there is no other. The former
    executor is ended first: TFF itself would ask it to end, and wait for ever.
    """
    end_executors()
    if kind == "native":
        tff.backends.native.set_sync_local_cpp_execution_context()
    else:
        tff.backends.test.set_sync_test_cpp_execution_context()


def end_executors() -> None:
    """End the processes that TFF started; they would outlive this one."""
    for child in psutil.Process().children(recursive=True):
        child.kill()
