"""A population store as other libraries' files: TFF's SQLite client data, LEAF's JSON.

What is written is the text of users, as far as the vocabulary holds it, in readable form.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pfl_lm.files import folder_atomically, write_atomically
from pfl_lm.text.leaf import SPLIT_KEY
from pfl_lm.text.population import BOS_ID, EOS_ID, SPLITS, PopulationStore
from pfl_lm.text.tokenizer import Tokenizer

TEXT_FIELD = "tokens"  # the name that TFF's StackOverflow has for it


class User(NamedTuple):
    """One user's messages as text."""

    name: str
    messages: list[str]


def users_of(store: PopulationStore, split: str, tokenizer: Tokenizer) -> Iterator[User]:
    """Yield a split's users; by their ids where the store keeps them, else by their digests.

    Raises:
        ValueError: the store was built with another tokenizer.
    """
    store.require_vocabulary(tokenizer.digest, "the one that was named")
    kept = (store.folder / f"{split}.ids").is_file()
    names = store.user_ids(split) if kept else None
    for user in range(store.users(split)):
        tokens = store.tokens(split, user)
        name = next(names) if names is not None else store.user_digest(split, user).hex()
        yield User(name, [tokenizer.decode(ids.tolist()) for ids in messages_of(tokens)])


def messages_of(tokens: np.ndarray) -> list[np.ndarray]:
    """Cut one user's stream int32[n] into messages, without their ``<s>`` and ``</s>``."""
    starts = np.flatnonzero(tokens == BOS_ID)
    return [part[(part != BOS_ID) & (part != EOS_ID)] for part in np.split(tokens, starts[1:])]


def export_sqlite(store: PopulationStore, tokenizer: Tokenizer, destination: Path) -> int:
    """Write the file that ``tff.simulation.datasets.SqlClientData`` opens; return its examples.

    One example a message, a `tf.train.Example` with the feature ``tokens``. The split names are
    ours: train, validation, test.
    """
    destination = _new(destination)
    written = 0
    with (
        write_atomically(destination, new=True) as temporary,
        closing(sqlite3.connect(temporary)) as file,
    ):
        file.executescript(
            "CREATE TABLE examples (split_name TEXT NOT NULL, client_id TEXT NOT NULL,"
            " serialized_example_proto BLOB NOT NULL);"
            "CREATE TABLE client_metadata (client_id TEXT NOT NULL, split_name TEXT NOT NULL,"
            " num_examples INTEGER NOT NULL);"
        )
        for split in SPLITS:
            for name, messages in users_of(store, split, tokenizer):
                rows = [(split, name, example(TEXT_FIELD, text)) for text in messages]
                file.executemany("INSERT INTO examples VALUES (?, ?, ?)", rows)
                file.execute(
                    "INSERT INTO client_metadata VALUES (?, ?, ?)", (name, split, len(rows))
                )
                written += len(rows)
        file.execute("CREATE INDEX by_client ON examples (client_id, split_name)")
        file.commit()
    return written


def example(feature: str, text: str) -> bytes:
    """Encode a `tf.train.Example` with one feature, a list of one string.

    Source: tensorflow/core/example/example.proto and feature.proto; every field on the way is
    number 1 and length-delimited, but for the map's value, which is number 2.
    """
    values = _field(1, _field(1, text.encode()))  # Feature{bytes_list: BytesList{value}}
    entry = _field(1, feature.encode()) + _field(2, values)
    return _field(1, _field(1, entry))  # Example{features: Features{feature: entry}}


def export_leaf(store: PopulationStore, tokenizer: Tokenizer, destination: Path) -> int:
    """Write a folder with LEAF's files, one a split; return the number of samples.

    ``x`` is a message, ``y`` the words to be predicted: the message without its first word, and
    its end. Each file states its split, which `population import` keeps.
    """
    written = 0
    with folder_atomically(_new(destination)) as folder:
        for split in SPLITS:
            counts: list[int] = []
            names: list[str] = []
            path = folder / split / "data.json"
            path.parent.mkdir()
            with path.open("w", encoding="utf-8") as file:
                file.write('{"user_data": {')
                for number, (name, messages) in enumerate(users_of(store, split, tokenizer)):
                    targets = [" ".join([*text.split()[1:], "</s>"]) for text in messages]
                    data = json.dumps({"x": messages, "y": targets}, ensure_ascii=False)
                    file.write(f"{', ' if number else ''}{json.dumps(name)}: {data}")
                    names.append(name)
                    counts.append(len(messages))
                rest = {"users": names, "num_samples": counts, SPLIT_KEY: split}
                file.write("}, " + json.dumps(rest, ensure_ascii=False)[1:] + "\n")
            written += sum(counts)
    return written


def _new(destination: Path) -> Path:
    destination = Path(destination)
    if destination.exists():
        raise ValueError(f"{destination} exists; remove it or choose another name")
    return destination


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited field of a protocol buffer."""
    length, size = len(content), bytearray()
    while length > 127:
        size.append(length & 127 | 128)
        length >>= 7
    size.append(length)
    return bytes([number << 3 | 2, *size]) + content
