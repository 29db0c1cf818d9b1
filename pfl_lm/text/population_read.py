"""The first pass of a build: inputs are read, encoded, and spilled by user, in parallel or not."""

from __future__ import annotations

import math
import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfl_lm.text.as_typed import AsTyped
from pfl_lm.text.population import HELD_OUT, SPLITS
from pfl_lm.text.population_tally import Tally
from pfl_lm.text.population_write import (
    LONGEST_NAME,
    Spill,
    message_bytes,
    token_dtype,
    typed_bytes,
)
from pfl_lm.text.readers import read_messages
from pfl_lm.text.records import Malformed, Message, Record, read_record, user_digest
from pfl_lm.text.tokenizer import Tokenizer

_POLL_SECONDS = 0.2

Progress = Callable[[int, int], None]  # bytes read, bytes in all


@dataclass(frozen=True)
class Input:
    """One file or folder of text, or records that another library reads.

    Args:
        path: the file or folder; or the name of what ``records`` come from.
        split: of all its users; None where records state it, or users are split by their digest.
        records: read once, in place of the file.
    """

    path: Path
    split: str | None = None
    records: Iterable[Record] | None = None


@dataclass(frozen=True)
class BuildOptions:
    """How text becomes a population.

    Args:
        name: of the population, for reports.
        fractions: of users in train, validation and test, for inputs without a split.
        split_key: keys the digest of user ids. The same key puts a user in the same split again;
            a secret key stops a person who holds the store from testing guesses of ids.
        keep_user_ids: also store the ids as they are, for debugging.
        keep_unknown_words: also store, by user, the words that the vocabulary lacks, and how often
            each was typed: what a phone has at hand when it is asked for new words.
        user_field, text_field: keys or columns; see ``readers.read_messages``.
        max_malformed: share of records that may be unreadable.
        workers: processes that read and encode.
    """

    name: str = "population"
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    split_key: str = "pfl_lm"
    keep_user_ids: bool = False
    keep_unknown_words: bool = False
    user_field: str = "user"
    text_field: str = "text"
    max_malformed: float = 0.001
    workers: int = 1

    def __post_init__(self) -> None:
        shares = self.fractions
        if not all(map(math.isfinite, shares)) or min(shares) < 0 or abs(sum(shares) - 1) > 1e-9:
            raise ValueError(
                f"split = {','.join(f'{share:g}' for share in shares)}; expected three fractions "
                "for train, validation and test that sum to 1"
            )
        if not 0 <= self.max_malformed < 1:
            raise ValueError(f"max_malformed = {self.max_malformed} is no share in [0, 1)")
        if self.workers < 1:
            raise ValueError(f"workers = {self.workers} must be at least 1")
        if not 1 <= len(self.split_key.encode()) <= 64:
            raise ValueError("split_key must have 1 to 64 bytes")


@dataclass(frozen=True)
class Work:
    """What every worker needs to know."""

    options: BuildOptions
    tokenizer: Tokenizer
    spill_folder: Path
    buckets: int


def read_inputs(
    inputs: Sequence[Input], work: Work, progress: Progress, total: int
) -> Iterator[Tally]:
    """Read the inputs, here or in worker processes, and report bytes read on the way."""
    workers = min(work.options.workers, len(inputs))
    if workers == 1 or any(item.records is not None for item in inputs):
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


def _read_input(index: int, item: Input, work: Work, advance: Callable[[int], None]) -> Tally:
    """Read one input, encode it, and spill every message by user."""
    tally, options, encode = Tally(), work.options, work.tokenizer.encode
    typed = AsTyped(work.tokenizer).codes
    unknown = work.tokenizer.unknown_words if options.keep_unknown_words else lambda text: []
    code = token_dtype(work.tokenizer.vocabulary_size).typecode
    bounds = (options.fractions[0], options.fractions[0] + options.fractions[1])
    previous, digest, drawn, kept = "", b"", 0, b""
    with Spill(work.spill_folder, index, work.buckets) as spill:
        for record in _records(item, options, advance):
            tally.records += 1
            if isinstance(record, Malformed):
                tally.note(record, item.path)
                continue
            if record.user != previous:
                previous = record.user
                digest, draw = user_digest(previous, options.split_key)
                drawn = (draw >= bounds[0]) + (draw >= bounds[1])
                kept = _kept(previous) if options.keep_user_ids else b""
            stated = item.split or record.split
            tally.stated_splits += record.split is not None
            if ids := encode(record.text):
                split = drawn if stated is None else SPLITS.index(stated)
                how = typed_bytes(typed(record.text)) if SPLITS[split] in HELD_OUT else b""
                spill.add(digest, split, kept, message_bytes(code, ids), unknown(record.text), how)
            else:
                tally.without_words += 1
    if not tally.records:
        raise ValueError(
            f"{item.path} holds no record, so no message with a word in it; leave it out"
        )
    return tally


def _records(
    item: Input, options: BuildOptions, advance: Callable[[int], None]
) -> Iterator[Record]:
    """Yield the records of one input; those of another library are held to the same rule."""
    if item.records is None:
        yield from read_messages(item.path, options.user_field, options.text_field, advance)
        return
    for number, record in enumerate(item.records, 1):
        if isinstance(record, Message):
            advance(len(record.text))
            yield read_record(record.user, record.text, str(item.path), number, split=record.split)
        else:
            yield record


def _kept(user: str) -> bytes:
    encoded = user.encode(errors="surrogatepass")
    if len(encoded) > LONGEST_NAME:
        raise ValueError(f"user {user[:20]}…: an id to be kept has at most {LONGEST_NAME:,} bytes")
    return encoded


def _poll(results: Any, tick: Callable[[], None]) -> Tally:
    """Wait for the next result, ticking meanwhile."""
    while True:
        try:
            result: Tally = results.next(timeout=_POLL_SECONDS)
            return result
        except multiprocessing.TimeoutError:
            tick()


_worker: tuple[Work, Any]


def _start_worker(work: Work, counter: Any) -> None:
    """Prepare a worker process; the parent handles Ctrl-C and a closed terminal for all."""
    global _worker
    for name in (signal.SIGINT, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    _worker = (work, counter)


def _work_on(numbered: tuple[int, Input]) -> Tally:
    work, counter = _worker

    def advance(count: int) -> None:
        with counter.get_lock():
            counter.value += count

    return _read_input(*numbered, work, advance)
