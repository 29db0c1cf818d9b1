"""tensorflow-federated in a process and an environment of its own; the core never imports it.

`make tff` builds the environment (Python 3.11; tensorflow-federated 0.87.0 exists for 3.9 to 3.11
and agrees with no other part of pfl_lm about numpy). A ``Worker`` is that Python, running
`pfl_lm/interop/worker`, with a pipe to it and one from it.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from pfl_lm.interop.worker.frames import receive, send

PYTHON_VARIABLE = "PFL_LM_TFF_PYTHON"
VERSION = "0.87.0"
_FOLDER = ".env-tff"
_PACKAGE = Path(__file__).resolve().parents[1]
_PATIENCE = 10  # seconds for the worker to end by itself
_PROBE = (
    "import json, sys, importlib.metadata as m, importlib.util as u;"
    "there = u.find_spec('tensorflow_federated') is not None;"
    "print(json.dumps([sys.version_info[:2], m.version('tensorflow_federated') if there else '']))"
)

Arrays = dict[str, np.ndarray]


class TffMissing(ValueError):
    """There is no Python that has tensorflow-federated; the message says how to get one."""


class TffFailed(ValueError):
    """The worker refused a request or ended; the message says why and where its log is."""


def find_python() -> Path:
    """Return the Python that has tensorflow-federated.

    The variable ``PFL_LM_TFF_PYTHON`` names it; without it, `.env-tff` of the working directory
    or of this checkout, which `make tff` builds.

    Raises:
        TffMissing: none is there, or it is the wrong one.
    """
    stated = os.environ.get(PYTHON_VARIABLE)
    candidates = [folder / _FOLDER / "bin" / "python" for folder in (Path.cwd(), _PACKAGE.parent)]
    if stated:
        candidates = [Path(stated)]
    for python in candidates:
        if python.is_file():
            _check(python)
            return python
    where = f"{PYTHON_VARIABLE} = {stated}: no such file" if stated else f"there is no {_FOLDER}"
    raise TffMissing(f"{where}; {_remedy()}")


def _remedy() -> str:
    return (
        "run `make tff` in a checkout of pfl_lm (it needs Python 3.11), or name a Python that has "
        f"tensorflow-federated {VERSION} in {PYTHON_VARIABLE}"
    )


def _check(python: Path) -> None:
    """Refuse a Python that cannot run the worker, before anything is started."""
    try:
        answer = subprocess.run(
            [python, "-I", "-c", _PROBE], capture_output=True, text=True, timeout=300, check=True
        ).stdout
        version, installed = json.loads(answer)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise TffMissing(f"{python} is no Python that runs ({error}); {_remedy()}") from error
    if tuple(version) > (3, 11) or tuple(version) < (3, 9):
        name = ".".join(map(str, version))
        raise TffMissing(f"{python} is Python {name}; {_remedy()}")
    if installed != VERSION:
        version = f"tensorflow-federated {installed}" if installed else "no tensorflow-federated"
        raise TffMissing(f"{python} has {version}; {_remedy()}")


@functools.cache
def shared_worker() -> Worker:
    """Return this process's one worker, started when it is first needed, ended at exit."""
    worker = Worker()
    atexit.register(worker.close)
    return worker


class Worker:
    """A running worker. Use it as a context, or ``close`` it: it holds processes.

    Args:
        python: see ``find_python``.
        log: file for everything that TFF prints; by default a temporary one, which is kept where
            a request failed.
        threads: for TFF's computations.

    Guarantees:
        Its processes end with it: when it is closed, and when the core dies.
    """

    def __init__(
        self, python: Path | None = None, log: Path | None = None, threads: int | None = None
    ) -> None:
        python = python or find_python()
        self._temporary = log is None
        if log is None:
            handle, name = tempfile.mkstemp(prefix="pfl_lm_tff_", suffix=".log")
            os.close(handle)
            log = Path(name)
        self.log = log
        count = str(threads or os.cpu_count() or 1)
        environment = os.environ | {
            "TF_NUM_INTRAOP_THREADS": count,
            "TF_NUM_INTEROP_THREADS": count,
            "CUDA_VISIBLE_DEVICES": "",
        }
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [python, "-I", _PACKAGE / "interop" / "worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env=environment,
                start_new_session=True,  # a group that can be ended as a whole, and alone
            )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def call(
        self, task: str, arrays: Mapping[str, np.ndarray] | None = None, **options: Any
    ) -> tuple[Any, Arrays]:
        """Ask for one task and return the one answer: its head and its arrays.

        Raises:
            TffFailed: the task failed, or the worker ended.
        """
        answers = list(self.stream(task, arrays, **options))
        assert len(answers) == 1, f"{len(answers)} answers to {task}"
        return answers[0]

    def stream(
        self, task: str, arrays: Mapping[str, np.ndarray] | None = None, **options: Any
    ) -> Iterator[tuple[Any, Arrays]]:
        """Ask for one task and yield its answers as they come; take them all before the next."""
        pipes = self._process
        assert pipes.stdin is not None
        assert pipes.stdout is not None
        try:
            send(pipes.stdin, {"task": task, "options": options}, arrays)
            while (answer := receive(pipes.stdout)) is not None:
                head, answered = answer
                if "error" in head:
                    raise self._failed(f"tensorflow-federated refused {task}: {head['error']}")
                if not head["more"]:
                    return
                yield head["body"], answered
        except (OSError, EOFError) as error:
            raise self._failed(f"tensorflow-federated ended during {task} ({error})") from error
        raise self._failed(f"tensorflow-federated ended during {task}")

    def close(self) -> None:
        """End the worker and whatever it started."""
        with suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_PATIENCE)
        with suppress(ProcessLookupError):  # TFF's executor may outlive the worker
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        if self._temporary:
            self.log.unlink(missing_ok=True)

    def _failed(self, reason: str) -> TffFailed:
        self._temporary = False  # the log is what explains it
        return TffFailed(f"{reason}; its log is {self.log}")
