"""What correlated noise costs the server: seconds a round, memory, bytes on the disk. For RESULTS.

    python -m benchmarks.correlated_noise simulations/chat_partial.toml --noise banded --rounds 150

Sums of zeros, with a scenario's payloads, get their noise and the state is saved as in a run, where
nobody takes part twice. `--separation` lets users come back.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from pfl_lm.api.scenarios import load_scenario
from pfl_lm.dp.mechanisms import Opened
from pfl_lm.dp.policy import Noise, Participation, Policy
from pfl_lm.dp.sampler.random_bits import secure_bits
from pfl_lm.run.context import choose_payload
from pfl_lm.run.folder import RunFolder
from pfl_lm.run.noise_state import NoiseStates
from pfl_lm.run.setup import open_run


def resident() -> int:
    """Return the megabytes that the process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() >> 20


def main() -> None:
    """Time the rounds and print a line for every tenth of them, and the peak."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("scenario", type=Path)
    parser.add_argument("--noise", default="banded")
    parser.add_argument("--rounds", type=int, default=150)
    parser.add_argument("--separation", type=int, default=0, help="0: nobody comes back")
    parser.add_argument("--stop", type=int, default=10_000, help="end after this round")
    row = parser.parse_args()
    context = open_run(load_scenario(row.scenario, {"policy": None, "server.average": None}))
    policy = Policy(
        *("user", "zero_out", 2.0, 1e-6, 1_000_000, 5_000, row.rounds),
        Participation("rotation", row.separation or row.rounds),
        Noise("server", row.noise),
    )
    mechanism, state = policy.mechanism, b""
    before, peak = resident(), 0
    with tempfile.TemporaryDirectory() as path:
        states = NoiseStates(RunFolder(Path(path)))
        for round in range(min(row.rounds, row.stop)):
            payload = choose_payload(context, round)
            grid = context.privacy.grid(payload.dim)
            total = np.zeros(payload.dim, np.int64)
            places, began, cpu = payload.places, time.perf_counter(), time.process_time()
            opened = Opened(total, grid, 100, 2.0, secure_bits(), round, places, size=payload.reach)
            _, state = mechanism.mean(opened, state)
            drawn, used = time.perf_counter() - began, time.process_time() - cpu
            states.save(round + 1, state)
            saved = time.perf_counter() - began - drawn
            files = sum(file.stat().st_size for file in (Path(path) / "noise").iterdir())
            if (round + 1) % max(1, row.rounds // 10) == 0 or round < 3:
                print(
                    f"round {round}: {payload.dim:,} of {payload.reach:,} coordinates; mean "
                    f"{drawn:.2f} s ({used:.2f} s of a core), save {saved:.2f} s; holds "
                    f"{resident() - before:,} MB; {files >> 20:,} MB on the disk",
                    flush=True,
                )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(f"peak {peak:,} MB, of which {before:,} before the first round")


if __name__ == "__main__":
    main()
