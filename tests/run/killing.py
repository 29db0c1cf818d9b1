"""A run that is killed as by kill -9, before or after any durable write of a round."""

from __future__ import annotations

import os
import signal

from pfl_lm.dp.ledger import Ledger
from pfl_lm.run import recorder, simulate
from pfl_lm.run.noise_state import NoiseStates

# Where a run is killed: before and after every durable write of a round.
POINTS = {
    "state": (NoiseStates, "save"),
    "record": (Ledger, "record_round"),
    "step": (simulate, "step"),
    "figures": (recorder.RunRecorder, "round_done"),
    "checkpoint": (recorder, "save_checkpoint"),
}
# Each file of a state by itself, where a state has parts.
WRITE = "write"
# The evaluation after the last round, before the model is written.
END = "end"


def killed(work, point: str, when: str, calls: int) -> None:
    """Run in a process of its own, which kills itself at the given call of a function."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
        return
    try:  # the child never goes on with the tests, whatever it raises
        others = {WRITE: (NoiseStates, "_write"), END: (simulate, "final_evaluation")}
        owner, name = (POINTS | others)[point]
        action, seen = getattr(owner, name), [0]

        def dying(*arguments, **more):
            seen[0] += 1
            if seen[0] == calls and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            result = action(*arguments, **more)
            if seen[0] == calls:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(owner, name, dying)
        work()
    finally:
        os._exit(1)
