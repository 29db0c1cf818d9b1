"""From text by user, in any order, to a population store, in memory that the text does not fill.

Two passes. Inputs are read and encoded, in parallel, and every message goes to a spill file chosen
by the digest of its user. Then each spill file is grouped by user and appended to the store. Users
end up ordered by digest, so the result does not depend on workers or on how the text was grouped.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pfl_lm.files import folder_atomically
from pfl_lm.text.population import SPLITS
from pfl_lm.text.population_read import BuildOptions, Input, Progress, Work, read_inputs
from pfl_lm.text.population_tally import Tally
from pfl_lm.text.population_write import StoreWriter, group_by_user
from pfl_lm.text.readers import format_of, text_files
from pfl_lm.text.tokenizer import Tokenizer

_BUCKET_BYTES = 1 << 25  # of input, as it lies on disk, per spill bucket
_BUCKETS_OF_STREAMS = 1024  # where nobody knows how much will come


def build_population(
    inputs: Sequence[Input],
    tokenizer: Tokenizer,
    destination: Path,
    options: BuildOptions | None = None,
    progress: Progress | None = None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Build the store; return its profile, as ``PopulationStore.describe`` would.

    Args:
        notes: what a reader of the profile should know of the inputs.

    Raises:
        ValueError: an input is missing, empty, damaged, named twice or of unknown format, more
            records are malformed than allowed, a user is in two splits, no text is left, or
            ``destination`` exists.
    """
    options = options or BuildOptions()
    total = _check(inputs)
    with folder_atomically(destination) as folder:
        streams = any(item.records is not None for item in inputs)
        buckets = _BUCKETS_OF_STREAMS if streams else min(1024, 1 + total // _BUCKET_BYTES)
        work = Work(options, tokenizer, folder / "spill", buckets)
        work.spill_folder.mkdir()
        tally = Tally()
        for part in read_inputs(inputs, work, progress or (lambda done, total: None), total):
            tally.add(part)
        tally.refuse_malformed(options.max_malformed)
        keep = options.keep_user_ids, options.keep_unknown_words
        with StoreWriter(folder, tokenizer, *keep, keep_typed=True) as writer:
            for user in group_by_user(work.spill_folder, len(inputs), work.buckets):
                writer.add(user)
        work.spill_folder.rmdir()
        return writer.finish(options.name, _provenance(inputs, options, tally, notes))


def _check(inputs: Sequence[Input]) -> int:
    """Refuse what cannot be read before anything is written; return the bytes to read."""
    if not inputs:
        raise ValueError("no input: name at least one file or folder")
    total = 0
    seen: set[Path] = set()
    for item in inputs:
        if item.split is not None and item.split not in SPLITS:
            raise ValueError(f"split = {item.split!r}; expected one of {', '.join(SPLITS)}")
        if item.records is not None:
            continue
        if not item.path.exists():
            raise ValueError(f"{item.path} does not exist")
        if not item.path.is_dir():
            format_of(item.path)
        if item.path.resolve() in seen:
            raise ValueError(
                f"{item.path} is named twice: every message in it would count twice, or its users "
                "be in two splits; a user belongs to one split"
            )
        seen.add(item.path.resolve())
        files = text_files(item.path) if item.path.is_dir() else [item.path]
        total += sum(file.stat().st_size for file in files)
    return total


def _provenance(
    inputs: Sequence[Input], options: BuildOptions, tally: Tally, notes: Sequence[str]
) -> dict[str, Any]:
    otherwise = "as its records state" if tally.stated_splits else "by user digest"
    return {
        "inputs": [
            {"file": "/".join(item.path.parts[-2:]), "split": item.split or otherwise}
            for item in inputs
        ],
        "notes": list(notes),
        "fractions": list(options.fractions),
        "records": tally.records,
        "messages_without_words": tally.without_words,
        "malformed": tally.malformed,
        "malformed_examples": tally.examples,
    }
