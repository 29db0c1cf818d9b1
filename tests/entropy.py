"""What the operating system draws, from streams named after the tests.

A test of fresh noise may fail by chance. With CI set, all that a test's process draws is the same
in every run: what passes before a submission passes after it, on any machine. Without CI every
run draws anew. Processes that a test starts by another program draw anew in either case.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random

import pytest


class NamedEntropy:
    """Takes the place of os.urandom; a fork goes on with a stream of its own."""

    def __init__(self) -> None:
        self._forks = 0
        self.begin("before the first test")
        os.register_at_fork(before=self._before_fork, after_in_child=self._after_fork)

    def begin(self, name: str) -> None:
        """Draw from the stream of this name from now on."""
        self._name, self._draws = name, itertools.count()

    def __call__(self, count: int, /) -> bytes:
        return hashlib.shake_256(f"{self._name}: {next(self._draws)}".encode()).digest(count)

    def _before_fork(self) -> None:
        self._forks += 1

    def _after_fork(self) -> None:
        self.begin(f"{self._name}, fork {self._forks}")


class Plugin:
    """Names the stream of every test, before its fixtures draw from it."""

    def __init__(self) -> None:
        self._entropy = NamedEntropy()
        os.urandom = self._entropy
        random._urandom = self._entropy  # type: ignore[attr-defined]  # of SystemRandom and secrets

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        self._entropy.begin(item.nodeid)
