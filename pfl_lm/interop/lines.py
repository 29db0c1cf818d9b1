"""Messages of any origin into a population store.

They go to JSON lines beside the destination and from there the way that all text goes
(``population_build``): same splits, same checks, same bounded memory.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, NamedTuple

from pfl_lm.language.population_build import BuildOptions, Input, Progress, build_population
from pfl_lm.language.tokenizer import Tokenizer


class Line(NamedTuple):
    """One message of one user; ``split`` is None where users are split by their digest."""

    split: str | None
    user: str
    text: str


def build_from_lines(
    source: str,
    lines: Iterable[Line],
    tokenizer: Tokenizer,
    destination: Path,
    options: BuildOptions,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Build a population store from messages as they come; return its profile."""
    destination = Path(destination)
    if destination.exists():
        raise ValueError(f"{destination} exists; remove it or choose another folder")
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".import_", dir=destination.parent) as folder:
        spilled = Path(folder) / source
        spilled.mkdir()
        inputs = _spill(lines, spilled)
        options = replace(options, user_field="user", text_field="text")
        return build_population(inputs, tokenizer, destination, options, progress)


def _spill(lines: Iterable[Line], folder: Path) -> list[Input]:
    """Write messages to one file of JSON lines per split."""
    files: dict[str | None, IO[str]] = {}
    with ExitStack() as stack:
        for split, user, text in lines:
            if split not in files:
                path = folder / f"{split or 'all'}.jsonl"
                files[split] = stack.enter_context(path.open("w", encoding="utf-8"))
            files[split].write(json.dumps({"user": user, "text": text}) + "\n")
    return [Input(folder / f"{split or 'all'}.jsonl", split) for split in files]
