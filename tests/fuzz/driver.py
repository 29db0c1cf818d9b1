"""Runs targets on mutated inputs, without end; whoever asks decides when it is enough."""

from __future__ import annotations

import hashlib
import random
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz import arguments, files, frames, http
from tests.fuzz.mutation import mutated
from tests.fuzz.targets import Target


@dataclass(frozen=True)
class Finding:
    """An input after which a target raised what it must not."""

    target: str
    data: bytes
    raised: str

    def keep(self, folder: Path) -> str:
        """Write the input and the traceback; return a line for the screen."""
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{self.target.replace(' ', '-')}.{hashlib.sha256(self.data).hexdigest()[:8]}"
        (folder / name).write_bytes(self.data)
        (folder / f"{name}.txt").write_text(self.raised, encoding="utf-8")
        return f"{folder / name}: {self.raised.splitlines()[-1][:200]}"


@contextmanager
def opened_targets(folder: Path) -> Iterator[list[Target]]:
    """Open every target; servers run for as long as the block lasts.

    Args:
        folder: for files; new.
    """
    with ExitStack() as opened:
        targets = [*frames.targets(), *files.targets(folder / "files")]
        targets += [opened.enter_context(make()) for make in http.TARGETS]
        yield [*targets, arguments.target(folder / "arguments")]


def attempts(target: Target, seed: int) -> Iterator[Finding | None]:
    """Try one input after another: the seeds themselves, then mutations of them."""
    draw = random.Random(f"{target.name} {seed}")
    seeds = list(target.seeds)
    for data in seeds:
        yield attempt(target, data)
    while True:
        yield attempt(target, mutated(draw.choice(seeds), seeds, draw))


def attempt(target: Target, data: bytes) -> Finding | None:
    """Try one input."""
    try:
        target.attempt(data)
    except target.allowed:
        return None
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return Finding(target.name, data, traceback.format_exc())
    return None
