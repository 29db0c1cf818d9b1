"""Public text as a store, for pretraining and for the public baselines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from pfl_lm.files import folder_atomically
from pfl_lm.text.population_write import StoreWriter, message_bytes, token_dtype
from pfl_lm.text.readers import first_row_has, read_texts
from pfl_lm.text.tokenizer import Tokenizer

_LINES_PER_USER = 1000


def public_tokens(
    paths: Sequence[Path],
    tokenizer: Tokenizer,
    destination: Path,
    text_field: str = "text",
    turns: int | None = None,
) -> dict[str, Any]:
    """Encode public text (.txt or .jsonl) into a store for pretraining; return its profile.

    Public text has no users: every 1,000 lines in a row make one user of the train split, whose
    digest is the running number, so that order is kept. ``PopulationStore.stream("train")`` is
    the whole text as one mapped array.

    Args:
        turns: take so many lines of each file in turn, until all have ended; None: file by file.
            A model of two languages learns so that a language goes on from message to message, and
            that it may change.

    Raises:
        ValueError: unreadable text, none at all, or ``destination`` exists.
    """
    paths = [Path(path) for path in paths]
    for path in paths:
        if not path.exists():
            raise ValueError(f"{path} does not exist")
    code = token_dtype(tokenizer.vocabulary_size).typecode
    with folder_atomically(destination) as folder:
        with StoreWriter(folder, tokenizer) as writer:
            messages: list[bytes] = []
            is_empty = True
            for text in _in_turn([read_texts(path, text_field) for path in paths], turns):
                if ids := tokenizer.encode(text):
                    is_empty = False
                    messages.append(message_bytes(code, ids))
                if len(messages) == _LINES_PER_USER:
                    writer.add_public(messages)
                    messages = []
            if is_empty:
                named = ", ".join(map(str, paths))
                raise ValueError(f"{named}: the public text holds no message")
            if messages:
                writer.add_public(messages)
        provenance = {"inputs": [{"file": path.name, "public": True} for path in paths]}
        return writer.finish("public text", provenance)


def naming_users(paths: Sequence[Path], user_field: str = "user") -> Iterator[str]:
    """Yield a sentence for each file of public text whose first row names a user."""
    for path in paths:
        if first_row_has(path, user_field):
            yield (
                f"{path.name} has a field {user_field!r}, and public text has no users: is it "
                "published, and none of the people whom the policy protects wrote it?"
            )


def _in_turn(files: Sequence[Iterator[str]], lines: int | None) -> Iterator[str]:
    """Yield so many lines of each file in turn; None: all of the first, then of the next."""
    if lines is None:
        yield from chain.from_iterable(files)
        return
    left = list(files)
    while left:
        for file in list(left):
            part = list(islice(file, lines))
            yield from part
            if len(part) < lines:
                left.remove(file)
