"""Speed and memory of text: reading, encoding, counting words, building a store, opening it.

    python -m benchmarks.population [--users 20000] [--workers 1]
    python -m benchmarks.population --tokenizer FOLDER --input train.jsonl.gz --input …
    python -m benchmarks.population --tokenizer FOLDER --input … --megabytes 1000

With ``--megabytes`` the inputs are repeated under new user ids until they fill so much; one message
in 32 gets two letters more, so that new words never end. Without inputs the text is invented, so
that the figures need nothing but the package. Speeds are per second of one core's time, which a
busy machine hardly changes. Peak memory is that of the process that builds or counts alone,
measured in a process of its own (Linux).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from itertools import chain, count
from pathlib import Path
from random import Random
from typing import Any

from pfl_lm.text.population import PopulationStore
from pfl_lm.text.population_build import BuildOptions, Input, build_population
from pfl_lm.text.readers import read_messages, read_texts
from pfl_lm.text.records import Message
from pfl_lm.text.synthetic.population import SyntheticPopulation, synthetic_tokenizer
from pfl_lm.text.tokenizer import Tokenizer
from pfl_lm.text.word_counts import count_texts

ENCODED_MESSAGES = 100_000


def invent_text(path: Path, users: int) -> None:
    """Write invented users as JSON lines, message by message."""
    people = SyntheticPopulation({"train": users})
    tokenizer = synthetic_tokenizer(people.vocabulary_size)
    with path.open("w") as file:
        for user in range(users):
            words = tokenizer.decode(people.tokens("train", user).tolist()).split()
            for start in range(0, len(words), 12):
                row = {"user": str(user), "text": " ".join(words[start : start + 12])}
                file.write(json.dumps(row) + "\n")


def grow_text(path: Path, inputs: list[Path], megabytes: int) -> None:
    """Repeat text by user under new ids, with new words, as JSON lines of so many bytes."""
    random, letters = Random(0), "abcdefghijklmnopqrstuvwxyz"
    written = 0
    with path.open("w") as file:
        for copy in count():
            for record in chain.from_iterable(map(read_messages, inputs)):
                if not isinstance(record, Message):
                    continue
                text = record.text
                if random.random() < 1 / 32:
                    at = random.randrange(len(text) + 1)
                    text = text[:at] + "".join(random.choices(letters, k=2)) + text[at:]
                row = {"user": f"{record.user}-{copy}", "text": text}
                written += file.write(json.dumps(row) + "\n")
                if written >= megabytes * 10**6:
                    return


def peak_memory_bytes() -> int:
    """Return this process's peak; ``ru_maxrss`` would count what its parent had before exec."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def measure_encoding(tokenizer: Tokenizer, path: Path) -> None:
    texts = []
    for record in read_messages(path):
        if isinstance(record, Message):
            texts.append(record.text)
        if len(texts) == ENCODED_MESSAGES:
            break
    began = time.process_time()
    words = sum(len(ids) for ids in tokenizer.encode_batch(texts))
    seconds = time.process_time() - began
    print(f"encode      {words / seconds / 1e6:.2f} million words/s on one core")


def measure_reading(path: Path) -> None:
    began = time.process_time()
    for _ in read_messages(path):
        pass
    _say("read", path, time.process_time() - began)


def measure_counting(path: Path, tokenizer: Tokenizer) -> None:
    began = time.process_time()
    counts = count_texts(read_texts(path), tokenizer.normalisation)
    _say("count", path, time.process_time() - began)
    print(f"            {len(counts):,} words; peak memory {peak_memory_bytes() >> 20} MiB")


def _say(what: str, path: Path, seconds: float) -> None:
    speed = path.stat().st_size / seconds / 1e6
    print(f"{what:<12}{seconds:.1f} CPU s, {speed:.1f} MB/s on one core", flush=True)


def measure_building(inputs: list[Path], tokenizer: Tokenizer, store: Path, workers: int) -> None:
    began, processor = time.perf_counter(), time.process_time()
    options = BuildOptions(workers=workers, max_malformed=0.01)
    profile = build_population([Input(path) for path in inputs], tokenizer, store, options)
    seconds = time.perf_counter() - began
    rows = profile["splits"].values()
    users, messages, words = (sum(row[n] for row in rows) for n in ("users", "messages", "words"))
    print(
        f"build       {users:,} users, {messages:,} messages, {words:,} words: {seconds:.1f} s, "
        f"{messages / seconds:,.0f} messages/s; peak memory {peak_memory_bytes() >> 20} MiB"
    )
    if workers == len(inputs) == 1:
        _say("", inputs[0], time.process_time() - processor)


def measure_opening(store: Path) -> None:
    began = time.perf_counter()
    PopulationStore.open(store).tokens("train", 0)
    print(f"open        {(time.perf_counter() - began) * 1e3:.1f} ms")


def measure_inventing() -> None:
    for users in (10**4, 10**8):
        people = SyntheticPopulation({"train": users})
        people.tokens("train", 0)
        began = time.process_time()
        tokens = sum(len(people.tokens("train", users - 1 - i)) for i in range(1000))
        seconds = time.process_time() - began
        print(
            f"invent      {seconds:.2f} ms a user of {tokens / 1000:.0f} tokens, of {users:,}; "
            f"peak memory {peak_memory_bytes() >> 20} MiB"
        )


def measure_alone(measure: Callable[..., None], *arguments: Any) -> None:
    """Measure in a process of its own, whose peak memory is nobody else's."""
    process = multiprocessing.get_context("spawn").Process(target=measure, args=arguments)
    process.start()
    process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--megabytes", type=int, help="grow the inputs to so much")
    parser.add_argument("--input", type=Path, action="append", dest="inputs")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        if chosen.inputs:
            inputs, tokenizer = chosen.inputs, Tokenizer.open(chosen.tokenizer)
            if chosen.megabytes:
                inputs = [Path(folder) / "text.jsonl"]
                grow_text(inputs[0], chosen.inputs, chosen.megabytes)
        else:
            inputs, tokenizer = [Path(folder) / "text.jsonl"], synthetic_tokenizer(30_000)
            invent_text(inputs[0], chosen.users)
        measure_encoding(tokenizer, inputs[0])
        measure_reading(inputs[0])
        measure_alone(measure_counting, inputs[0], tokenizer)
        measure_alone(measure_building, inputs, tokenizer, store, chosen.workers)
        measure_opening(store)
        measure_inventing()


if __name__ == "__main__":
    main()
