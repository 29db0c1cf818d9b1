"""A population store as pfl-research's ``FederatedDataset``, for a program written with pfl.

For the environment of pfl: nothing here needs more of pfl_lm than the store itself, which needs
numpy alone (`pip install --no-deps pfl-lm` there).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pfl_lm.text.population import PopulationStore, windows


def federated_dataset(
    folder: Path,
    split: str,
    window: int,
    user_sampler: Callable[[], int] | None = None,
    max_tokens: int | None = None,
    as_tensors: bool = True,
) -> Any:
    """Open one split of a store as a ``pfl.data.FederatedDataset``.

    A user's dataset holds (words int64[n, T], the words that follow them int64[n, T]), read from
    the store when the user is drawn.

    Args:
        folder: a folder that `pfl-lm population build` wrote.
        window: T, predicted words of a row.
        user_sampler: returns the number of the next user; by default uniform, as
            ``pfl.data.sampling`` draws them.
        max_tokens: predicted words of a user that count; None: all.
        as_tensors: torch tensors, as pfl's torch models take them; else numpy arrays.
    """
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.sampling import get_user_sampler

    store = PopulationStore.open(folder)
    limit = None if max_tokens is None else max_tokens + 1

    def of(user: int) -> Any:
        cut = windows(store.tokens(split, user), window, limit)  # int64 (n, T + 1)
        pair = tuple(np.ascontiguousarray(part) for part in (cut[:, :-1], cut[:, 1:]))
        return (_tensors if as_tensors else Dataset)(pair, str(user))

    users = list(range(store.users(split)))
    return FederatedDataset(of, user_sampler or get_user_sampler("random", users))


def _tensors(arrays: tuple[np.ndarray, ...], user: str) -> Any:
    import torch
    from pfl.data.pytorch import PyTorchTensorDataset

    return PyTorchTensorDataset(tuple(torch.from_numpy(array) for array in arrays), user)
