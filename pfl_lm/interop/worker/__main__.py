"""The process that runs tensorflow-federated for the core: arrays in, arrays out.

Started as ``python pfl_lm/interop/worker`` by another Python than the core's, so it imports its
neighbours and nothing of pfl_lm. Requests come on standard input and are answered, in order, on
standard output; everything that TFF prints goes to standard error, which the core has made a file.
The end of standard input ends it, and with it the executor that TFF starts and leaves behind.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from typing import Any

import frames

Answer = tuple[Any, dict[str, Any]]


def main() -> None:
    """Answer requests until there are no more."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what TFF prints must not end up between two messages
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    faulthandler.register(signal.SIGUSR1)  # tells in the log where a worker is that hangs
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the core's to handle
    try:
        while (request := frames.receive(sys.stdin.buffer)) is not None:
            try:
                for head, arrays in _answer(*request):
                    frames.send(answers, {"more": True, "body": head}, arrays)
                frames.send(answers, {"more": False})
            except Exception as error:
                traceback.print_exc()
                reason = f"{type(error).__name__}: {error}"
                frames.send(answers, {"more": False, "error": reason})
    finally:
        _end()


def _answer(head: dict[str, Any], arrays: dict[str, Any]) -> Iterator[Answer]:
    """Do what a request asks; import what it needs when it needs it."""
    task, options = head["task"], head["options"]
    if task == "versions":
        import tensorflow
        import tensorflow_federated

        yield {"tff": tensorflow_federated.__version__, "tensorflow": tensorflow.__version__}, {}
    elif task == "mean":
        import sums

        yield {}, {"mean": sums.mean(arrays["vectors"], **options)}
    elif task == "federated_averaging":
        import fedavg

        yield {}, fedavg.one_round(arrays, **options)
    elif task == "clients":
        import clients

        yield from ((batch, {}) for batch in clients.read(**options))
    else:
        raise ValueError(f"no such task: {task!r}")


def _end() -> None:
    """End TFF's executors and leave at once: its threads wait for them and would stay."""
    if "runtime" in sys.modules:
        sys.modules["runtime"].end_executors()
    os._exit(0)


if __name__ == "__main__":
    main()
