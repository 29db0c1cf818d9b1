"""Users and their text as token ids: a folder opened by memory map, never loaded whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

SPLITS = ("train", "validation", "test")
PROFILE_FILE = "population.json"
PAD_ID, UNK_ID, BOS_ID, EOS_ID = range(4)
USER_DIGEST_BYTES = 16


class Population(Protocol):
    """Whoever's text is trained on: the store below, or the invented users of ``synthetic``."""

    @property
    def name(self) -> str:
        """What reports call it."""

    @property
    def vocabulary_size(self) -> int:
        """V; every token is below it."""

    @property
    def tokenizer_digest(self) -> str:
        """Digest of the tokenizer that the tokens are ids of."""

    def users(self, split: str) -> int:
        """Return how many users ``split`` has."""

    def tokens(self, split: str, user: int) -> np.ndarray:
        """Return int32[n], user's text ``<s> w w </s> <s> …`` in the order it was written."""


def windows(tokens: np.ndarray, length: int, limit: int | None = None) -> np.ndarray:
    """Cut one user's stream into training windows.

    Consecutive windows overlap by one token, so every token but the first is predicted exactly
    once; the last window is filled up with ``<pad>`` (id 0).

    Args:
        tokens: int[m], a stream.
        length: T, predicted tokens per window.
        limit: at most so many tokens of the stream are used.

    Returns:
        int64[n, T+1] with n = ⌈(m − 1) / T⌉; n = 0 for a stream without anything to predict.

    Raises:
        ValueError: ``length`` or ``limit`` below 1.
    """
    if length < 1 or (limit is not None and limit < 1):
        raise ValueError(f"length = {length} and limit = {limit} must be at least 1")
    used = tokens[:limit]
    count = -(-(len(used) - 1) // length)
    if count <= 0:
        return np.zeros((0, length + 1), dtype=np.int64)
    padded = np.full(count * length + 1, PAD_ID, dtype=np.int64)
    padded[: len(used)] = used
    strided = np.lib.stride_tricks.sliding_window_view(padded, length + 1)[::length]
    return strided.copy()  # (n, T+1)


class PopulationStore:
    """A population that ``pfl-lm population build`` wrote.

    The folder holds ``population.json`` and, for each split, ``<split>.tokens`` (uint16 or
    uint32, all streams one after another), ``<split>.offsets`` (int64[users+1]) and
    ``<split>.users`` (16 bytes a user: the keyed digest of the id, by which users are ordered).
    Opening maps the files; a user costs one slice.

    Attributes:
        profile: what ``population.json`` says: provenance, counts, distributions.
    """

    def __init__(self, folder: Path, profile: dict[str, Any]) -> None:
        """Map the files of ``folder``; call ``open``."""
        self.folder = folder
        self.profile = profile
        self.name: str = profile["name"]
        self.vocabulary_size: int = profile["vocabulary_size"]
        self.tokenizer_digest: str = profile["tokenizer_digest"]
        self._users = {split: int(profile["splits"][split]["users"]) for split in SPLITS}
        self._offsets = {s: self._map(f"{s}.offsets", "<i8", self._users[s] + 1) for s in SPLITS}
        self._tokens = {
            s: self._map(f"{s}.tokens", profile["dtype"], profile["splits"][s]["tokens"])
            for s in SPLITS
        }

    @classmethod
    def open(cls, folder: Path) -> PopulationStore:
        """Open a store.

        Raises:
            ValueError: the folder holds no finished store, or its files have the wrong size.
        """
        folder = Path(folder)
        if not (folder / PROFILE_FILE).is_file():
            raise ValueError(
                f"{folder} holds no population ({PROFILE_FILE} is absent); "
                "`pfl-lm population build` writes one"
            )
        try:
            return cls(folder, json.loads((folder / PROFILE_FILE).read_text(encoding="utf-8")))
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{folder}: {PROFILE_FILE} is damaged; build it anew") from error

    def users(self, split: str) -> int:
        """Return how many users ``split`` has."""
        return self._users[_known(split)]

    def tokens(self, split: str, user: int) -> np.ndarray:
        """Return int32[n], one user's stream; IndexError beyond the last user."""
        offsets = self._offsets[_known(split)]
        if not 0 <= user < self._users[split]:
            raise IndexError(f"user {user}: {split} has {self._users[split]} users")
        return self._tokens[split][offsets[user] : offsets[user + 1]].astype(np.int32)

    def stream(self, split: str) -> np.ndarray:
        """Return all streams of a split one after another, unsigned[n], mapped and read-only."""
        return self._tokens[_known(split)]

    def lengths(self, split: str) -> np.ndarray:
        """Return int64[users], tokens per user."""
        return np.diff(self._offsets[_known(split)])

    def user_digest(self, split: str, user: int) -> bytes:
        """Return the 16 bytes that stand for a user's id (``user_digest`` in population_build)."""
        table = self._map(f"{_known(split)}.users", "V16", self._users[split])
        return bytes(table[user])

    def user_ids(self, split: str) -> Iterator[str]:
        """Yield the ids as they were, if the store was built to keep them; else ValueError."""
        path = self.folder / f"{_known(split)}.ids"
        if not path.is_file():
            raise ValueError(f"{self.folder} was built without --keep-user-ids")
        with path.open(encoding="utf-8") as file:
            yield from map(json.loads, file)

    def describe(self) -> dict[str, Any]:
        """Return the profile: counts, distributions per user, provenance."""
        return self.profile

    def _map(self, name: str, dtype: str, count: int) -> np.ndarray:
        path = self.folder / name
        expected = count * np.dtype(dtype).itemsize
        if not path.is_file() or path.stat().st_size != expected:
            raise ValueError(f"{path} is absent or not {expected:,} bytes long; build it anew")
        if count == 0:  # an empty file cannot be mapped
            return np.zeros(0, dtype=dtype)
        return np.memmap(path, dtype=dtype, mode="r", shape=(count,))


def _known(split: str) -> str:
    if split not in SPLITS:
        raise ValueError(f"split = {split!r}; expected one of {', '.join(SPLITS)}")
    return split
