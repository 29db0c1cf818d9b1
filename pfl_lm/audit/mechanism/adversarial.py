"""What adversarial devices would send: too much, nothing, no numbers, all on one coordinate."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np


def adversarial_updates(clip_norm: float) -> Callable[[Sequence[int], int], np.ndarray]:
    """Return updates by user: each kind of attack comes again every eight users."""
    clip = np.float32(clip_norm)

    def update_of(user: int, dim: int) -> np.ndarray:
        generator = np.random.default_rng(user)
        kind, row = user % 8, np.zeros(dim, np.float32)
        if kind == 0:
            row[:] = generator.standard_normal(dim, np.float32) * np.float32(1e30)
        elif kind == 1:
            row[user % dim] = np.float32(3e38)
        elif kind == 2:
            row[:] = clip  # far too long, all coordinates alike
        elif kind == 3:
            row[:], row[user % dim] = clip, np.nan
        elif kind == 4:
            row[user % dim] = np.inf if user % 16 < 8 else -np.inf
        elif kind == 5:
            row[:] = np.float32(1e-42)  # subnormal
        elif kind == 6:
            row[:] = generator.standard_normal(dim, np.float32)
            row *= clip / np.linalg.norm(row)  # exactly at the clip
        return row  # kind 7: nothing at all

    return lambda users, dim: np.stack([update_of(user, dim) for user in users])
