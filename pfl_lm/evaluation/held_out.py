"""Which held-out users are measured, and their text in batches of windows.

Shapes: n windows of a batch, T window.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from pfl_lm.evaluation.interfaces import HeldOut, HeldOutAsTyped
from pfl_lm.streams import stream
from pfl_lm.text.population import windows as windows_of

BATCH = 32_768  # predictions whose states are held at once
Batch = tuple[np.ndarray, np.ndarray, np.ndarray]


def choose_users(users: int, split: str, max_users: int | None, seed: int) -> np.ndarray:
    """Draw the held-out users to measure on, sorted: int64[n].

    Raises:
        ValueError: there are none.
    """
    if not users:
        raise ValueError(f"split {split!r} has no users; evaluation needs held-out users")
    if max_users is None or max_users >= users:
        return np.arange(users)
    if max_users < 1:
        raise ValueError(f"max_users = {max_users} must be at least 1")
    return np.sort(stream(seed, "held-out users", split).choice(users, max_users, replace=False))


def batches(
    population: HeldOut,
    split: str,
    users: Iterable[tuple[int, int]],
    length: int,
    limit: int | None,
) -> Iterator[Batch]:
    """Yield (place int64[n], windows int64[n, T + 1], codes) of users given as (place, user).

    Codes are those of ``text.as_typed``, shaped as the windows; 0 where nobody knows.
    """
    most = max(1, BATCH // length)
    held: list[Batch] = []
    for place, user in users:
        tokens = windows_of(population.tokens(split, user), length, limit)
        codes = _codes(population, split, user, length, limit, tokens)
        for start in range(0, len(tokens), most):
            piece = tokens[start : start + most]
            owners = np.full(len(piece), place, dtype=np.int64)
            held.append((owners, piece, codes[start : start + most]))
            if sum(len(owners) for owners, _, _ in held) * length >= BATCH:
                yield _joined(held)
                held = []
    if held:
        yield _joined(held)


def _joined(held: list[Batch]) -> Batch:
    owners, tokens, codes = (np.concatenate(parts) for parts in zip(*held, strict=True))
    return owners, tokens, codes


def _codes(
    population: HeldOut, split: str, user: int, length: int, limit: int | None, tokens: np.ndarray
) -> np.ndarray:
    """Return how a user typed, cut as their text is; 0 where the population does not say."""
    typed = population.typed(split, user) if isinstance(population, HeldOutAsTyped) else None
    return np.zeros_like(tokens) if typed is None else windows_of(typed, length, limit)
