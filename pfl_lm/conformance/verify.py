"""Hold an implementation's answers, over standard input and output, against the vectors."""

from __future__ import annotations

import json
import queue
import shlex
import subprocess
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO, Any

from pfl_lm.conformance.vectors import Vector

_SHOWN = 160  # characters of an answer in a message
_FAILED_STARTS = 3  # processes that end in a row before the implementation is given up


@dataclass(frozen=True)
class Result:
    """What an implementation made of one vector; ``problem`` is None where it conforms."""

    vector: Vector
    problem: str | None = None
    unsupported: bool = False

    @property
    def conforms(self) -> bool:
        return self.problem is None and not self.unsupported


def verify(command: str, vectors: Iterable[Vector], timeout: float) -> Iterator[Result]:
    """Ask a foreign implementation for every vector, one after the other.

    A process that ends or lets the time pass is stopped, and another one is started for the next
    vector.

    Args:
        command: starts the implementation: one JSON request a line in, one answer a line out.
        timeout: seconds for each answer.

    Raises:
        ValueError: no such program, or three processes in a row ended without an answer.
    """
    process, failed = None, 0
    try:
        for vector in vectors:
            process = process or Implementation(command)
            try:
                given = process.ask(vector, timeout)
            except Unanswered as missing:
                process.stop()
                failed, process = failed + missing.ended, None
                yield Result(vector, str(missing))
                if failed == _FAILED_STARTS:
                    raise ValueError(
                        f"{command!r} ended {failed} times in a row without an answer; last: "
                        f"{missing}"
                    ) from None
                continue
            failed = 0
            yield compare(vector, given)
    finally:
        if process is not None:
            process.stop()


def compare(vector: Vector, given: Any) -> Result:
    """Hold one answer against the vector's."""
    if not isinstance(given, dict):
        return Result(vector, f"the answer is no JSON object: {_short(given)}")
    if "unsupported" in given:
        return Result(vector, unsupported=True)
    field = "output" if vector.positive else "refused"
    if field in given and _same(given[field], vector.answer[field]):
        return Result(vector)
    got = {name: given[name] for name in ("output", "refused", "message") if name in given}
    return Result(vector, f"expected {_short(vector.answer)}, got {_short(got)}")


def _same(given: Any, expected: Any) -> bool:
    """Equality that, unlike Python's, tells true from 1; JSON has one kind of number."""
    if isinstance(expected, dict):
        return (
            isinstance(given, dict)
            and given.keys() == expected.keys()
            and all(_same(given[name], value) for name, value in expected.items())
        )
    if isinstance(expected, list | tuple):
        return (
            isinstance(given, list)
            and len(given) == len(expected)
            and all(map(_same, given, expected))
        )
    if isinstance(expected, bool) or isinstance(given, bool):
        return given is expected
    return bool(given == expected)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}… ({len(text):,} characters)"


class Unanswered(Exception):
    """A vector that got no answer; ``ended`` tells that the process is gone."""

    def __init__(self, reason: str, ended: bool) -> None:
        super().__init__(reason)
        self.ended = ended


class Implementation:
    """A running process that answers vectors.

    Raises:
        ValueError: the command cannot be started.
    """

    def __init__(self, command: str) -> None:
        pipes: dict[str, Any] = {
            "stdin": subprocess.PIPE,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
        }
        try:
            words = shlex.split(command)
            if not words:
                raise ValueError("no program is named")
            self._process = subprocess.Popen(words, text=True, encoding="utf-8", **pipes)
        except (OSError, ValueError) as error:
            raise ValueError(f"{command!r} cannot be started: {error}") from None
        self._lines: queue.Queue[str] = queue.Queue()
        self._complaints: list[str] = []
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._follow(self._process.stdout, self._lines.put, end="")
        self._errors = self._follow(self._process.stderr, self._complain, end=None)

    def _complain(self, line: str) -> None:
        self._complaints = [*self._complaints[-19:], line]

    def _follow(self, stream: IO[str], take: Any, end: str | None) -> threading.Thread:
        """Hand over a stream's lines from a thread of its own, and ``end`` after the last."""

        def read() -> None:
            for line in stream:
                take(line)
            if end is not None:
                take(end)

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        return thread

    def ask(self, vector: Vector, timeout: float) -> Any:
        """Send one request and wait for its answer.

        Raises:
            Unanswered: the process ended, was too slow, or wrote something that is no JSON.
        """
        request = json.dumps({"kind": vector.kind, "inputs": vector.inputs})
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(request + "\n")
            self._process.stdin.flush()
            line = self._lines.get(timeout=timeout)
        except queue.Empty:
            raise Unanswered(f"no answer within {timeout:g} s", ended=False) from None
        except OSError:
            line = ""
        if not line:
            raise Unanswered(self._epitaph(), ended=True)
        try:
            return json.loads(line)
        except (ValueError, RecursionError):
            raise Unanswered(f"the answer is no JSON: {_short(line)}", ended=False) from None

    def _epitaph(self) -> str:
        """Say how the process ended, with the last line of its standard error."""
        try:
            status: Any = self._process.wait(5)
        except subprocess.TimeoutExpired:
            return "the program closed its standard output"
        self._errors.join(5)
        said = "".join(self._complaints).strip().splitlines()
        told = f": {said[-1]}" if said else ""
        return f"the program ended with status {status}{told}"

    def stop(self) -> None:
        """End the process; one that does not end by itself is killed."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
            self._process.wait(0.5)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()


def serve(requests: Iterable[str], answers: IO[str]) -> None:
    """Answer requests with the reference, a line for a line.

    Raises:
        ValueError: a line is no request.
    """
    from pfl_lm.conformance.answers import answer

    for line in requests:
        if not line.strip():
            continue
        try:
            request = json.loads(line)
            kind, inputs = request["kind"], request["inputs"]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise ValueError(f"a request has the fields kind and inputs: {_short(line)}") from None
        try:
            given = answer(kind, inputs)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"inputs of kind {kind} are incomplete: {error!r}") from None
        answers.write(json.dumps(given) + "\n")
        answers.flush()
