"""A population from a Hugging Face `datasets.Dataset` that has a column for the user."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pfl_lm.interop.lines import Line
from pfl_lm.language.population import SPLITS


def messages(
    name: str,
    user_field: str = "user",
    text_field: str = "text",
    part: str | None = None,
    cache: Path | None = None,
) -> Iterator[Line]:
    """Open a data set and yield its rows as messages, in order.

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
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} cannot be opened: {error}") from error
    parts = opened if isinstance(opened, dict) else {"all": opened}
    if part is not None and part not in parts:
        raise ValueError(f"{name} has no split {part!r}; its splits are {', '.join(parts)}")
    for split, rows in parts.items():
        if part in (None, split):
            yield from lines_of(rows, user_field, text_field, split if len(parts) > 1 else None)


def lines_of(
    rows: Any, user_field: str = "user", text_field: str = "text", split: str | None = None
) -> Iterator[Line]:
    """Yield the rows of a `datasets.Dataset` as messages.

    Args:
        split: its name. Users of `train`, `validation` and `test` stay there; those of any other
            split are divided by their digest.

    Raises:
        ValueError: a column is missing.
    """
    for column in (user_field, text_field):
        if column not in rows.column_names:
            known = ", ".join(rows.column_names)
            raise ValueError(f"no column {column!r} in the data set; its columns are {known}")
    fixed = split if split in SPLITS else None
    for row in rows.select_columns([user_field, text_field]):
        if row[user_field] is not None and row[text_field] is not None:
            yield Line(fixed, str(row[user_field]), row[text_field])
