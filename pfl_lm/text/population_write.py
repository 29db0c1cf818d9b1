"""The bytes of a population on disk: spill files on the way, the store at the end."""

from __future__ import annotations

import json
import struct
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from pfl_lm.files import sha256_of
from pfl_lm.text.population import (
    BOS_ID,
    EOS_ID,
    HELD_OUT,
    PROFILE_FILE,
    PUBLIC_TEXT,
    SPLITS,
    TYPED,
    UNK_ID,
    USER_DIGEST_BYTES,
    USERS,
    TokenDtype,
)
from pfl_lm.text.tokenizer import Tokenizer

# digest, split, bytes of the id if kept, bytes of the message, bytes of its unknown words if kept,
# bytes of how it was typed if its user is held out
_RECORD = struct.Struct(f"<{USER_DIGEST_BYTES}sBHIII")
LONGEST_NAME = (1 << 16) - 1
_BUFFER_BYTES = 1 << 25
_QUANTILES = {"p10": 0.1, "median": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


def token_dtype(vocabulary_size: int) -> TokenDtype:
    """Return the smallest of uint16 and uint32 that holds every id."""
    return TokenDtype("<u2", "H") if vocabulary_size <= 1 << 16 else TokenDtype("<u4", "I")


def message_bytes(typecode: str, ids: list[int]) -> bytes:
    """Return one message as it is stored, between ``<s>`` and ``</s>``."""
    return array(typecode, [BOS_ID, *ids, EOS_ID]).tobytes()


def typed_bytes(codes: list[int]) -> bytes:
    """Return how one message was typed: the codes of ``AsTyped``, and none for ``<s>``."""
    return array(TYPED.typecode, [0, *codes]).tobytes()


class UserText(NamedTuple):
    """One user's messages, encoded, in source order.

    ``unknown`` counts the words that the vocabulary lacks, where a store is built to keep them;
    ``typed`` has the codes of ``as_typed``, where it is known how the user typed.
    """

    digest: bytes
    split: int
    name: bytes
    messages: list[bytes]
    unknown: Counter[str] | None = None
    typed: list[bytes] | None = None


class Spill:
    """Messages of one input on their way to disk, in buckets by user digest."""

    def __init__(self, folder: Path, index: int, buckets: int) -> None:
        """``index`` is the input's; ``buckets`` share the digests evenly and in order."""
        self._paths = [folder / _spill_name(index, bucket) for bucket in range(buckets)]
        self._buffers = [bytearray() for _ in range(buckets)]
        self._held = 0

    def __enter__(self) -> Spill:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind is None:
            self._flush()

    def add(
        self,
        digest: bytes,
        split: int,
        name: bytes,
        message: bytes,
        unknown: Sequence[str] = (),
        typed: bytes = b"",
    ) -> None:
        """Take one encoded message, the words that the vocabulary lacks, and how it was typed."""
        bucket = (digest[0] << 8 | digest[1]) * len(self._buffers) >> 16
        words = " ".join(unknown).encode()
        record = _RECORD.pack(digest, split, len(name), len(message), len(words), len(typed))
        record += name + message + words + typed
        self._buffers[bucket] += record
        self._held += len(record)
        if self._held > _BUFFER_BYTES:
            self._flush()

    def _flush(self) -> None:
        for path, buffer in zip(self._paths, self._buffers, strict=True):
            if buffer:
                with path.open("ab") as file:
                    file.write(buffer)
                buffer.clear()
        self._held = 0


def _spill_name(index: int, bucket: int) -> str:
    return f"{bucket:04d}-{index:06d}"


def group_by_user(folder: Path, inputs: int, buckets: int) -> Iterator[UserText]:
    """Yield users by rising digest, each once, and remove the spill files behind.

    Raises:
        ValueError: a user came in files of different splits.
    """
    for bucket in range(buckets):
        users: dict[bytes, UserText] = {}
        for index in range(inputs):
            path = folder / _spill_name(index, bucket)
            if path.is_file():
                _collect(path.read_bytes(), users)
                path.unlink()
        for digest in sorted(users):
            yield users[digest]


def _collect(content: bytes, users: dict[bytes, UserText]) -> None:
    at, end, unpack, size = 0, len(content), _RECORD.unpack_from, _RECORD.size
    while at < end:
        digest, split, name_bytes, message_bytes, unknown_bytes, typed_bytes = unpack(content, at)
        at += size + name_bytes
        user = users.get(digest)
        if user is None:
            name = content[at - name_bytes : at]
            user = users[digest] = UserText(digest, split, name, [], Counter(), [])
        elif user.split != split:
            raise ValueError(
                f"the user with digest {digest.hex()} is in the {SPLITS[user.split]} and in the "
                f"{SPLITS[split]} input; a user belongs to one split: give these files as plain "
                "inputs, which are split by user"
            )
        user.messages.append(content[at : at + message_bytes])
        at += message_bytes
        if unknown_bytes:
            assert user.unknown is not None
            user.unknown.update(content[at : at + unknown_bytes].decode().split(" "))
            at += unknown_bytes
        if typed_bytes:
            assert user.typed is not None
            user.typed.append(content[at : at + typed_bytes])
            at += typed_bytes


class StoreWriter:
    """Appends users to a store's files and keeps the counts that its profile states."""

    def __init__(
        self,
        folder: Path,
        tokenizer: Tokenizer,
        keep_user_ids: bool = False,
        keep_unknown_words: bool = False,
        keep_typed: bool = False,
    ) -> None:
        """Prepare to write into an existing, empty folder.

        Args:
            keep_typed: write how held-out users typed; their ``UserText`` says so.
        """
        self._folder = folder
        self._tokenizer = tokenizer
        self._dtype = token_dtype(tokenizer.vocabulary_size)
        self._keep, self._keep_unknown = keep_user_ids, keep_unknown_words
        self._typed_splits = HELD_OUT if keep_typed else ()
        self._holds = set[str]()
        self._ends = dict.fromkeys(SPLITS, 0)
        # 4 bytes a user each: messages, words, words outside the vocabulary.
        self._counts = {split: (array("I"), array("I"), array("I")) for split in SPLITS}
        # bool (V,), by the rule of an evaluation: marks and numbers are no words, and a word that
        # subwords spell counts once, at its first piece.
        kinds = np.array(tokenizer.kinds)
        first = np.array([word.startswith("▁") for word in tokenizer.words])
        self._is_unknown = (kinds == "subword") & first
        self._is_unknown[UNK_ID] = True
        self._is_word = (kinds == "word") | self._is_unknown

    def __enter__(self) -> StoreWriter:
        self._stack = ExitStack()
        self._files: dict[str, BinaryIO] = {}
        for split in SPLITS:
            typed = split in self._typed_splits
            kept = [("ids", self._keep), ("unknown", self._keep_unknown), ("typed", typed)]
            optional = [part for part, keep in kept if keep]
            for part in ("tokens", "offsets", "users", *optional):
                name = f"{split}.{part}"
                self._files[name] = self._stack.enter_context((self._folder / name).open("wb"))
            self._files[f"{split}.offsets"].write(bytes(8))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def add(self, user: UserText) -> None:
        """Append one user's stream."""
        self._append(user, USERS)

    def _append(self, user: UserText, kind: str) -> None:
        self._holds.add(kind)
        split, content = SPLITS[user.split], b"".join(user.messages)
        ids = np.frombuffer(content, dtype=self._dtype.numpy)
        self._files[f"{split}.tokens"].write(content)
        self._ends[split] += len(ids)
        self._files[f"{split}.offsets"].write(self._ends[split].to_bytes(8, "little"))
        self._files[f"{split}.users"].write(user.digest)
        if self._keep:
            self._files[f"{split}.ids"].write(
                json.dumps(user.name.decode(errors="surrogatepass")).encode() + b"\n"
            )
        if self._keep_unknown:
            counts = dict(sorted((user.unknown or Counter()).items()))
            line = json.dumps(counts, ensure_ascii=False, separators=(",", ":"))
            self._files[f"{split}.unknown"].write(line.encode() + b"\n")
        if split in self._typed_splits:
            self._files[f"{split}.typed"].write(b"".join(user.typed or ()))
        messages, words, unknown = self._counts[split]
        messages.append(len(user.messages))
        words.append(int(self._is_word[ids].sum()))
        unknown.append(int(self._is_unknown[ids].sum()))

    def add_public(self, messages: list[bytes]) -> None:
        """Append lines of public text as the next user of the train split."""
        number = len(self._counts["train"][0])
        digest = number.to_bytes(USER_DIGEST_BYTES, "big")
        self._append(UserText(digest, 0, b"", messages), PUBLIC_TEXT)

    def finish(self, name: str, provenance: dict[str, Any]) -> dict[str, Any]:
        """Write the profile, which makes the folder a store; return it.

        Call it when the files are closed: the profile states their digests, and whether the store
        holds users or public text.

        Raises:
            ValueError: nobody wrote anything.
        """
        if not any(self._ends.values()):
            raise ValueError("the inputs hold no message with a word in it")
        profile = {
            "name": name,
            "holds": PUBLIC_TEXT if self._holds == {PUBLIC_TEXT} else USERS,
            "vocabulary_size": self._tokenizer.vocabulary_size,
            "tokenizer_digest": self._tokenizer.digest,
            "dtype": self._dtype.numpy,
            "splits": {split: self._split_profile(split) for split in SPLITS},
            "per_user": {
                "messages": self._distribution(0),
                "words": self._distribution(1),
            },
            "provenance": provenance,
            "files": {path.name: sha256_of(path) for path in sorted(self._folder.iterdir())},
        }
        content = json.dumps(profile, indent=1, ensure_ascii=False)
        (self._folder / PROFILE_FILE).write_text(content, encoding="utf-8")
        return profile

    def _split_profile(self, split: str) -> dict[str, Any]:
        messages, words, unknown = (np.asarray(counts) for counts in self._counts[split])
        total = int(words.sum(dtype=np.int64))
        return {
            "users": len(messages),
            "messages": int(messages.sum(dtype=np.int64)),
            "words": total,
            "tokens": self._ends[split],
            "oov_rate": int(unknown.sum(dtype=np.int64)) / total if total else 0.0,
        }

    def _distribution(self, which: int) -> dict[str, float]:
        counts = np.concatenate([np.asarray(self._counts[split][which]) for split in SPLITS])
        values = np.quantile(counts, list(_QUANTILES.values()), method="inverted_cdf")
        shown = {name: int(value) for name, value in zip(_QUANTILES, values, strict=True)}
        return {"mean": round(float(counts.mean()), 2), **shown}
