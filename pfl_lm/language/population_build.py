"""From text by user, in any order, to a population store, in memory that the text does not fill.

Two passes. Inputs are read and encoded, in parallel, and every message goes to a spill file chosen
by the digest of its user. Then each spill file is grouped by user and appended to the store. Users
end up ordered by digest, so the result does not depend on workers or on how the text was grouped.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pfl_lm.files import folder_atomically
from pfl_lm.language.population import SPLITS
from pfl_lm.language.population_write import (
    LONGEST_NAME,
    Spill,
    StoreWriter,
    group_by_user,
    message_bytes,
    token_dtype,
)
from pfl_lm.language.readers import Malformed, format_of, read_messages
from pfl_lm.language.tokenizer import Tokenizer

_EXAMPLES = 3  # malformed records that are shown
_HOPELESS = 1000  # malformed records, if they are the majority, after which reading stops
_BUCKET_BYTES = 1 << 25  # of input, as it lies on disk, per spill bucket
_POLL_SECONDS = 0.2

Progress = Callable[[int, int], None]  # bytes read, bytes in all


@dataclass(frozen=True)
class Input:
    """One file or folder of text; ``split`` is None where users are split by their digest."""

    path: Path
    split: str | None = None


@dataclass(frozen=True)
class BuildOptions:
    """How text becomes a population.

    Args:
        name: of the population, for reports.
        fractions: of users in train, validation and test, for inputs without a split.
        split_key: keys the digest of user ids. The same key puts a user in the same split again;
            a secret one keeps whoever holds the store from testing guesses of ids.
        keep_user_ids: also store the ids as they are, for debugging.
        user_field, text_field: keys or columns; see ``readers.read_messages``.
        max_malformed: share of records that may be unreadable.
        workers: processes that read and encode.
    """

    name: str = "population"
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    split_key: str = "pfl_lm"
    keep_user_ids: bool = False
    user_field: str = "user"
    text_field: str = "text"
    max_malformed: float = 0.001
    workers: int = 1

    def __post_init__(self) -> None:
        if min(self.fractions) < 0 or abs(sum(self.fractions) - 1) > 1e-9:
            raise ValueError(
                f"split = {','.join(f'{f:g}' for f in self.fractions)}; expected three fractions "
                "for train, validation and test that sum to 1"
            )
        if not 0 <= self.max_malformed < 1:
            raise ValueError(f"max_malformed = {self.max_malformed} is no share in [0, 1)")
        if self.workers < 1:
            raise ValueError(f"workers = {self.workers} must be at least 1")
        if not 1 <= len(self.split_key.encode()) <= 64:
            raise ValueError("split_key must have 1 to 64 bytes")


@dataclass
class Tally:
    """What one input held."""

    records: int = 0
    without_words: int = 0
    malformed: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Add the counts of another input."""
        self.records += other.records
        self.without_words += other.without_words
        self.malformed += other.malformed
        self.examples = (self.examples + other.examples)[:_EXAMPLES]


def user_digest(user: str, split_key: str) -> tuple[bytes, float]:
    """Return the 16 bytes that stand for a user id, and the user's draw in [0, 1) for the split."""
    digest = hashlib.blake2b(
        user.encode(errors="surrogatepass"), digest_size=24, key=split_key.encode()
    ).digest()
    return digest[:16], int.from_bytes(digest[16:], "big") / 2**64


def build_population(
    inputs: Sequence[Input],
    tokenizer: Tokenizer,
    destination: Path,
    options: BuildOptions | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Build the store; return its profile, as ``PopulationStore.describe`` would.

    Raises:
        ValueError: an input is missing, damaged or of unknown format, more records are malformed
            than allowed, a user is in two splits, no text is left, or ``destination`` exists.
    """
    options = options or BuildOptions()
    total = _check(inputs)
    with folder_atomically(destination) as folder:
        work = _Work(
            options, tokenizer, folder / "spill", buckets=min(1024, 1 + total // _BUCKET_BYTES)
        )
        work.spill_folder.mkdir()
        tally = Tally()
        for part in _read_all(inputs, work, progress or (lambda done, total: None), total):
            tally.add(part)
        _refuse_malformed(tally, options.max_malformed)
        with StoreWriter(folder, tokenizer, options.keep_user_ids) as writer:
            for user in group_by_user(work.spill_folder, len(inputs), work.buckets):
                writer.add(user)
        work.spill_folder.rmdir()
        return writer.finish(options.name, _provenance(inputs, options, tally))


@dataclass(frozen=True)
class _Work:
    """What every worker needs to know."""

    options: BuildOptions
    tokenizer: Tokenizer
    spill_folder: Path
    buckets: int


def _check(inputs: Sequence[Input]) -> int:
    """Refuse what cannot be read before anything is written; return the bytes to read."""
    if not inputs:
        raise ValueError("no input: name at least one file or folder")
    total = 0
    for item in inputs:
        if not item.path.exists():
            raise ValueError(f"{item.path} does not exist")
        if item.split is not None and item.split not in SPLITS:
            raise ValueError(f"split = {item.split!r}; expected one of {', '.join(SPLITS)}")
        files = list(item.path.iterdir()) if item.path.is_dir() else [item.path]
        if not item.path.is_dir():
            format_of(item.path)
        total += sum(file.stat().st_size for file in files)
    return total


def _read_input(index: int, item: Input, work: _Work, advance: Callable[[int], None]) -> Tally:
    """Read one input, encode it, and spill every message by user."""
    tally, options, encode = Tally(), work.options, work.tokenizer.encode
    code = token_dtype(work.tokenizer.vocabulary_size).typecode
    bounds = (options.fractions[0], options.fractions[0] + options.fractions[1])
    fixed = None if item.split is None else SPLITS.index(item.split)
    previous, digest, split, kept = "", b"", 0, b""
    with Spill(work.spill_folder, index, work.buckets) as spill:
        records = read_messages(item.path, options.user_field, options.text_field, advance)
        for record in records:
            tally.records += 1
            if isinstance(record, Malformed):
                _note(tally, record, item.path)
                continue
            if record.user != previous:
                previous = record.user
                digest, draw = user_digest(previous, options.split_key)
                split = fixed if fixed is not None else (draw >= bounds[0]) + (draw >= bounds[1])
                kept = _kept(previous) if options.keep_user_ids else b""
            if ids := encode(record.text):
                spill.add(digest, split, kept, message_bytes(code, ids))
            else:
                tally.without_words += 1
    return tally


def _kept(user: str) -> bytes:
    encoded = user.encode(errors="surrogatepass")
    if len(encoded) > LONGEST_NAME:
        raise ValueError(f"user {user[:20]}…: an id to be kept has at most {LONGEST_NAME:,} bytes")
    return encoded


def _note(tally: Tally, record: Malformed, path: Path) -> None:
    tally.malformed += 1
    if len(tally.examples) < _EXAMPLES:
        tally.examples.append(str(record))
    if tally.malformed >= _HOPELESS and 2 * tally.malformed > tally.records:
        raise ValueError(
            f"{path}: {tally.malformed:,} of the first {tally.records:,} records are malformed: "
            + "; ".join(tally.examples)
        )


def _refuse_malformed(tally: Tally, allowed: float) -> None:
    if tally.malformed > allowed * tally.records:
        share = tally.malformed / tally.records
        raise ValueError(
            f"{tally.malformed:,} of {tally.records:,} records are malformed ({share:.2%}, allowed "
            f"{allowed:.2%}; --max-malformed changes that): " + "; ".join(tally.examples)
        )


def _provenance(inputs: Sequence[Input], options: BuildOptions, tally: Tally) -> dict[str, Any]:
    return {
        "inputs": [
            {"file": "/".join(item.path.parts[-2:]), "split": item.split or "by user digest"}
            for item in inputs
        ],
        "fractions": list(options.fractions),
        "records": tally.records,
        "messages_without_words": tally.without_words,
        "malformed": tally.malformed,
        "malformed_examples": tally.examples,
    }


def _read_all(
    inputs: Sequence[Input], work: _Work, progress: Progress, total: int
) -> Iterator[Tally]:
    """Read the inputs, here or in worker processes, and report bytes read on the way."""
    workers = min(work.options.workers, len(inputs))
    if workers == 1:
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            progress(done, total)

        for index, item in enumerate(inputs):
            yield _read_input(index, item, work, advance)
        return
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    with ExitStack() as stack:
        pool = stack.enter_context(context.Pool(workers, _start_worker, (work, counter)))
        results = pool.imap(_work_on, enumerate(inputs))
        for _ in inputs:
            yield _poll(results, lambda: progress(counter.value, total))


def _poll(results: Any, tick: Callable[[], None]) -> Tally:
    """Wait for the next result, ticking meanwhile."""
    while True:
        try:
            result: Tally = results.next(timeout=_POLL_SECONDS)
            return result
        except multiprocessing.TimeoutError:
            tick()


_worker: tuple[_Work, Any]


def _start_worker(work: _Work, counter: Any) -> None:
    """Prepare a worker process; the parent handles Ctrl-C for all."""
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _worker = (work, counter)


def _work_on(numbered: tuple[int, Input]) -> Tally:
    work, counter = _worker

    def advance(count: int) -> None:
        with counter.get_lock():
            counter.value += count

    return _read_input(*numbered, work, advance)
