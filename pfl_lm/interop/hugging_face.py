"""A population from a Hugging Face `datasets.Dataset` that has a column for the user."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pfl_lm.text.population import SPLITS
from pfl_lm.text.population_build import Input
from pfl_lm.text.records import Record, brief, read_record
from pfl_lm.text.tables import columns


def open_splits(
    name: str,
    user_field: str = "user",
    text_field: str = "text",
    part: str | None = None,
    cache: Path | None = None,
) -> list[Input]:
    """Open a data set and return one input for each of its splits.

    Users of `train`, `validation` and `test` stay there; those of any other split are divided by
    their digest. So are all users where one split is read, and where somebody is in two of them:
    most data sets divide messages, and a user belongs to one split.

    Args:
        name: a folder that `save_to_disk` wrote, or what `datasets.load_dataset` takes.
        part: one split of it; None: all of them.

    Raises:
        ValueError: the library is not installed, or the data set cannot be opened or read.
    """
    try:
        import datasets
    except ImportError as error:
        raise ValueError("Hugging Face datasets is missing; run `pip install datasets`") from error
    try:
        if Path(name).is_dir() and any(Path(name).glob("*.json")):
            opened = datasets.load_from_disk(name)
        else:
            opened = datasets.load_dataset(name, cache_dir=None if cache is None else str(cache))
    except LookupError as error:
        raise ValueError(f"{name} cannot be opened: it has no rows, or is damaged") from error
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise ValueError(f"{name} cannot be opened: {brief(error)}") from error
    parts = opened if isinstance(opened, dict) else {"all": opened}
    if part is not None and part not in parts:
        raise ValueError(f"{name} has no split {part!r}; its splits are {', '.join(parts)}")
    keeps = part is None and len(parts) > 1 and _apart(parts, user_field)
    return [
        Input(
            Path(f"{name} [{split}]"),
            split if keeps and split in SPLITS else None,
            records_of(rows, user_field, text_field, f"{name} [{split}]"),
        )
        for split, rows in parts.items()
        if part in (None, split)
    ]


def _apart(parts: Mapping[str, Any], user_field: str) -> bool:
    """Tell whether nobody is in two splits; True where a column is absent, which is said later."""
    seen: set[Any] = set()
    for rows in parts.values():
        if user_field not in (rows.column_names or ()):
            return True
        try:
            users = {user for user in rows.unique(user_field) if user is not None}
        except (TypeError, NotImplementedError):  # lists and the like, which are no ids
            return True
        if seen & users:
            return False
        seen |= users
    return True


def records_of(
    rows: Any, user_field: str = "user", text_field: str = "text", name: str = "the data set"
) -> Iterator[Record]:
    """Yield the rows of a `datasets.Dataset` as messages, or as malformed with their number.

    Raises:
        ValueError: a column is missing, or the rows cannot be read.
    """
    columns(name, rows.column_names or (), user_field, text_field)
    try:
        for number, row in enumerate(rows.select_columns([user_field, text_field]), 1):
            yield read_record(
                row[user_field], row[text_field], name, number, (user_field, text_field)
            )
    except (LookupError, TypeError, RuntimeError, UnicodeDecodeError) as error:
        raise ValueError(f"{name} cannot be read: {brief(error)}") from error
