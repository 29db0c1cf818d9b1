"""Users and their text as token ids: a folder opened by memory map, never loaded whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from pfl_lm.files import sha256_of

SPLITS = ("train", "validation", "test")
HELD_OUT = SPLITS[1:]
PROFILE_FILE = "population.json"
PAD_ID, UNK_ID, BOS_ID, EOS_ID = range(4)
USER_DIGEST_BYTES = 16
USERS, PUBLIC_TEXT = "users", "public text"  # what a store holds


class TokenDtype(NamedTuple):
    """How ids are stored: numpy's name, and the same for ``array``."""

    numpy: str
    typecode: str


TYPED = TokenDtype("<u2", "H")  # the codes of ``as_typed``


class Population(Protocol):
    """Users whose text is trained on: the store below, or the invented ones of ``synthetic``."""

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


def users_digest(profile: dict[str, Any]) -> str:
    """Return the SHA-256 of who is in each split of a store, whatever they wrote.

    Manifests are published, so no digest of the users' text may stand in them: with it, somebody
    who knows all other users' text could test a guess at one user's.
    """
    return _digest_of({n: d for n, d in profile["files"].items() if n.endswith(".users")})


def public_digest(profile: dict[str, Any]) -> str:
    """Return the SHA-256 of a store of public text."""
    return _digest_of(profile["files"])


def _digest_of(files: dict[str, str]) -> str:
    lines = (f"{name} {digest}\n" for name, digest in sorted(files.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


class PopulationStore:
    """A population that ``pfl-lm population build`` wrote.

    The folder holds ``population.json`` and, for each split, ``<split>.tokens`` (uint16 or
    uint32, all streams one after another), ``<split>.offsets`` (int64[users+1]) and
    ``<split>.users`` (16 bytes a user: the keyed digest of the id, by which users are ordered);
    for held-out splits ``<split>.typed`` (uint16, a code of ``as_typed`` for each token); and if
    it was built to keep them, ``<split>.ids`` and ``<split>.unknown`` (a line a user: the id as it
    was; the words that the vocabulary lacks, with counts).
    Opening maps the files; a user costs one slice. A split's files are read whole once, when its
    text is first asked for, and compared with the digests of ``population.json``.

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
        self.holds: str = profile["holds"]
        self._digests: dict[str, str] = profile["files"]
        self._checked: set[str] = set()
        self._users = {split: int(profile["splits"][split]["users"]) for split in SPLITS}
        self._offsets = {s: self._map(f"{s}.offsets", "<i8", self._users[s] + 1) for s in SPLITS}
        self._tokens = {
            s: self._map(f"{s}.tokens", profile["dtype"], profile["splits"][s]["tokens"])
            for s in SPLITS
        }
        self._typed = {
            s: self._map(f"{s}.typed", TYPED.numpy, profile["splits"][s]["tokens"])
            for s in HELD_OUT
            if f"{s}.typed" in self._digests
        }

    @classmethod
    def open(cls, folder: Path) -> PopulationStore:
        """Open a store.

        Raises:
            ValueError: the folder holds no finished store, its profile is of another version, or
                its files have the wrong size.
        """
        folder = Path(folder)
        if not (folder / PROFILE_FILE).is_file():
            raise ValueError(
                f"{folder} holds no population ({PROFILE_FILE} is absent); "
                "`pfl-lm population build` writes one"
            )
        try:
            profile = json.loads((folder / PROFILE_FILE).read_text(encoding="utf-8"))
            return cls(folder, profile)
        except _WrongFile:
            raise
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise ValueError(
                f"{folder}: {PROFILE_FILE} is damaged, or of another version; build it anew"
            ) from error

    def check(self, *splits: str) -> None:
        """Compare the files of ``splits`` (all, if none is named) with what was written.

        Raises:
            ValueError: bytes have changed, streams overlap, or a token is beyond the vocabulary.
        """
        for split in splits or SPLITS:
            for path in self._files_of(split):
                if not path.is_file():
                    raise ValueError(f"{path} is absent; build it anew")
                if sha256_of(path) != self._digests.get(path.name):
                    raise ValueError(f"{path} is not what was written: damaged; build it anew")
            offsets, tokens = self._offsets[split], self._tokens[split]
            ends_meet = offsets[0] == 0 and offsets[-1] == len(tokens)
            rising = (np.diff(offsets) >= 0).all()
            if not (ends_meet and rising and tokens.max(initial=0) < self.vocabulary_size):
                raise ValueError(
                    f"{self.folder}: the {split} streams overlap, or hold tokens beyond the "
                    "vocabulary; build it anew"
                )
            self._checked.add(split)

    def require_vocabulary(self, digest: str, whose: str) -> None:
        """Refuse a store whose tokens are ids of another vocabulary.

        Args:
            digest: of the vocabulary that is wanted, ``Tokenizer.digest``.
            whose: what has it, for the message.

        Raises:
            ValueError: the store was built with another one.
        """
        if self.tokenizer_digest != digest:
            raise ValueError(
                f"{self.folder} was built with another tokenizer than {whose}; build it again with "
                "that one"
            )

    def require_public(self) -> None:
        """Raise ValueError if the store holds the text of users, whatever a recipe says of it."""
        if self.holds != PUBLIC_TEXT:
            raise ValueError(
                f"{self.folder} holds the text of users, which is not public; a store of public "
                "text is written by `pfl-lm population public-text`"
            )

    @property
    def digest(self) -> str:
        """SHA-256, in hexadecimal, of who is in the training split, whatever they wrote."""
        return self.digest_of("train")

    def digest_of(self, split: str) -> str:
        """Return the same of a split: it names whose privacy budget is spent."""
        return self._digests[f"{_known(split)}.users"]

    def reads_as(self, other: PopulationStore) -> bool:
        """Whether the training splits of two stores are the same text, token by token."""
        return self._digests["train.tokens"] == other._digests["train.tokens"]

    def users(self, split: str) -> int:
        """Return how many users ``split`` has."""
        return self._users[_known(split)]

    def tokens(self, split: str, user: int) -> np.ndarray:
        """Return int32[n], one user's stream; IndexError beyond the last user."""
        offsets = self._intact(split, self._offsets)
        if not 0 <= user < self._users[split]:
            raise IndexError(f"user {user}: {split} has {self._users[split]} users")
        return self._tokens[split][offsets[user] : offsets[user + 1]].astype(np.int32)

    def typed(self, split: str, user: int) -> np.ndarray | None:
        """Return how a held-out user typed each token of ``tokens``: uint16[n], see ``as_typed``.

        None: the store does not say.
        """
        if split not in self._typed:
            return None
        offsets = self._intact(split, self._offsets)
        return self._typed[split][offsets[user] : offsets[user + 1]]

    def stream(self, split: str) -> np.ndarray:
        """Return all streams of a split one after another, unsigned[n], mapped and read-only."""
        return self._intact(split, self._tokens)

    def lengths(self, split: str) -> np.ndarray:
        """Return int64[users], tokens per user."""
        return np.diff(self._intact(split, self._offsets))

    def user_digest(self, split: str, user: int) -> bytes:
        """Return the 16 bytes that stand for a user's id (``records.user_digest``)."""
        table = self._map(f"{_known(split)}.users", "V16", self._users[split])
        return bytes(table[user])

    def user_ids(self, split: str) -> Iterator[str]:
        """Yield the ids as they were, if the store was built to keep them; else ValueError."""
        path = self.folder / f"{_known(split)}.ids"
        if not path.is_file():
            raise ValueError(f"{self.folder} was built without --keep-user-ids")
        with path.open(encoding="utf-8") as file:
            yield from map(json.loads, file)

    def unknown_words(self, split: str) -> Iterator[dict[str, int]]:
        """Yield, user by user, the words that the vocabulary lacks, and how often each was typed.

        Raises:
            ValueError: the store was built without ``--keep-unknown-words``, or is damaged.
        """
        path = self.folder / f"{_known(split)}.unknown"
        if not path.is_file():
            raise ValueError(
                f"{self.folder} does not keep the words that its vocabulary lacks; build it with "
                "`pfl-lm population build --keep-unknown-words`"
            )
        self._intact(split, self._offsets)
        with path.open(encoding="utf-8") as file:
            yield from map(json.loads, file)

    def describe(self) -> dict[str, Any]:
        """Return the profile: counts, distributions per user, provenance."""
        return self.profile

    def _files_of(self, split: str) -> list[Path]:
        """Return the files of a split: those that were written, and those that are there."""
        names = (f"{split}.{part}" for part in _PARTS)
        paths = (self.folder / name for name in names)
        return [path for path in paths if path.name in self._digests or path.is_file()]

    def _intact(self, split: str, arrays: dict[str, np.ndarray]) -> np.ndarray:
        """Return a split's array, after the check of the split's files."""
        if _known(split) not in self._checked:
            self.check(split)
        return arrays[split]

    def _map(self, name: str, dtype: str, count: int) -> np.ndarray:
        path = self.folder / name
        expected = count * np.dtype(dtype).itemsize
        if not path.is_file() or path.stat().st_size != expected:
            raise _WrongFile(f"{path} is absent or not {expected:,} bytes long; build it anew")
        if count == 0:  # an empty file cannot be mapped
            return np.zeros(0, dtype=dtype)
        return np.memmap(path, dtype=dtype, mode="r", shape=(count,))


_PARTS = ("tokens", "offsets", "users", "typed", "ids", "unknown")


class _WrongFile(ValueError):
    """A file of a store is absent, or has not the size that its profile states."""


def _known(split: str) -> str:
    if split not in SPLITS:
        raise ValueError(f"split = {split!r}; expected one of {', '.join(SPLITS)}")
    return split
