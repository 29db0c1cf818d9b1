"""Does a simulation care how many people there are? Time and memory of a round by population.

    python -m benchmarks.scale [--cohorts 10 100] [--rounds 3]

Invented users cost no storage, so the population may be anything. Every point is measured in a
process of its own; peak memory is that process's, seconds are CPU seconds per round.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

POPULATIONS = (10_000, 100_000, 1_000_000, 10_000_000, 100_000_000)


def main() -> None:
    """Measure each axis around the same middle and print one table for each."""
    arguments = _arguments()
    if arguments.point:
        print(json.dumps(measure(json.loads(arguments.point), arguments.rounds)))
        return
    middle = {"users": 1_000_000, "cohort": 50, "vocabulary": 30_000, "rows": 2000}
    axes = {
        "users": POPULATIONS,
        "cohort": (10, 100, 1000),
        "vocabulary": (10_000, 30_000, 100_000, 200_000),
        "rows": (500, 2000, 8000),
    }
    for axis, values in axes.items():
        if arguments.axis in (None, axis):
            print(f"\n| {axis} | CPU s per round | peak MB |\n|---|---|---|", flush=True)
            for value in values:
                found = in_own_process({**middle, axis: value}, arguments.rounds)
                seconds, peak = found["seconds"], found["peak_bytes"] / 1e6
                print(f"| {value:,} | {seconds:.2f} | {peak:,.0f} |", flush=True)


def in_own_process(point: dict[str, int], rounds: int) -> dict[str, float]:
    """Measure one point where nothing else has allocated."""
    command = [sys.executable, "-m", "benchmarks.scale", "--point", json.dumps(point)]
    command += ["--rounds", str(rounds)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def measure(point: dict[str, int], rounds: int) -> dict[str, float]:
    """Run some rounds of the demonstration's scenario at one point; the first one warms up."""
    from pfl_lm.demo import RECIPE
    from pfl_lm.dp.ledger import Ledger
    from pfl_lm.recipes import load
    from pfl_lm.scenario import Scenario
    from pfl_lm.server.state import ServerState
    from pfl_lm.simulate import run_round
    from pfl_lm.world import open_world

    scenario = load(Scenario, RECIPE)
    scenario = replace(
        scenario,
        cohort=point["cohort"],
        population=replace(scenario.population, users=point["users"]),
        model=replace(scenario.model, vocabulary_size=point["vocabulary"]),
        payload=replace(scenario.payload, rows=point["rows"]),
    )
    world = open_world(scenario)
    with tempfile.TemporaryDirectory() as folder:
        genesis = {"run": "scale", "policy_digest": "none"}
        with Ledger.create(Path(folder) / "ledger.jsonl", genesis) as ledger:
            state, _ = run_round(world, ServerState(0, world.start.parameters), ledger)
            started = time.process_time()
            for _ in range(rounds):
                state, _ = run_round(world, state, ledger)
    seconds = (time.process_time() - started) / rounds
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": seconds, "peak_bytes": peak}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--axis", choices=("users", "cohort", "vocabulary", "rows"))
    parser.add_argument("--point", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
