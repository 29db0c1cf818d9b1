"""What a round costs as the work grows: CPU seconds and memory by population, cohort, words, rows.

    python -m benchmarks.scale [--axis cohort] [--rounds 3] [--plot runs/scale.html]

Invented users cost no storage, so the population may be anything. Every point is measured in a
process of its own; peak memory is that process's, seconds are CPU seconds per round. ``growth`` is
the power of the axis with which the seconds rise from the row before: 1 is linear, 0 is not at all.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pfl_lm.run.scenario import Scenario

MIDDLE = {"users": 1_000_000, "cohort": 50, "vocabulary": 30_000, "rows": 2000}
AXES = {
    "users": (10_000, 100_000, 1_000_000, 10_000_000, 100_000_000),
    "cohort": (10, 100, 1000, 10_000),
    "vocabulary": (10_000, 30_000, 100_000, 200_000),
    "rows": (500, 2000, 8000, 30_000),
}
LONG = 1000  # devices of a round that warms itself up; more are measured once

Points = list[tuple[int, dict[str, float]]]


def main() -> None:
    """Measure each axis around the same middle and print one table for each."""
    arguments = _arguments()
    if arguments.point:
        print(json.dumps(measure(json.loads(arguments.point), arguments.rounds)))
        return
    measured: dict[str, Points] = {}
    for axis, values in AXES.items():
        if arguments.axis not in (None, axis):
            continue
        print(f"\n| {axis} | CPU s per round | growth | peak MB |\n|---|---|---|---|", flush=True)
        points = measured[axis] = []
        for value in values:
            points.append((value, in_own_process({**MIDDLE, axis: value}, arguments.rounds)))
            print(row(points), flush=True)
    if arguments.plot:
        plot(measured, arguments.plot)


def row(points: Points) -> str:
    """Return the last point as a row of the table."""
    value, found = points[-1]
    growth = "–"
    for (before, earlier), (after, later) in pairwise(points[-2:]):
        power = math.log(later["seconds"] / earlier["seconds"]) / math.log(after / before)
        growth = f"{power:.2f}"
    return f"| {value:,} | {found['seconds']:.2f} | {growth} | {found['peak_bytes'] / 1e6:,.0f} |"


def plot(measured: dict[str, Points], path: Path) -> None:
    """Draw seconds and memory over every axis, both logarithmic, into a page."""
    from pfl_lm.pages import charts

    drawn = []
    for axis, points in measured.items():
        xs = [math.log10(value) for value, _ in points]
        for name, unit in (("seconds", 1.0), ("peak_bytes", 1e6)):
            line = charts.Series(name, xs, [found[name] / unit for _, found in points])
            label = "CPU seconds per round" if name == "seconds" else "peak MB"
            chart = charts.line_chart(
                [line], x_label=axis, y_label=label, log=True, format_x=lambda x: f"{10**x:,.0f}"
            )
            drawn.append(f"<figure><figcaption>{label} by {axis}</figcaption>{chart}</figure>")
    style = (Path(charts.__file__).parent / "theme.css").read_text(encoding="utf-8")
    path.parent.mkdir(parents=True, exist_ok=True)
    html = f"<!doctype html><meta charset=utf-8><style>{style}</style><main>{''.join(drawn)}</main>"
    path.write_text(html, encoding="utf-8")
    print(f"\nplotted in {path}")


def in_own_process(point: dict[str, int], rounds: int) -> dict[str, float]:
    """Measure one point where nothing else has allocated."""
    command = [sys.executable, "-m", "benchmarks.scale", "--point", json.dumps(point)]
    command += ["--rounds", str(rounds)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def measure(point: dict[str, int], rounds: int) -> dict[str, float]:
    """Run some rounds of the demonstration's scenario at one point, after one to warm up."""
    from pfl_lm.dp.ledger import Ledger
    from pfl_lm.native.tuning import tune
    from pfl_lm.run.recorder import RoundRecorder
    from pfl_lm.run.setup import open_run
    from pfl_lm.run.simulate import run_round
    from pfl_lm.server.state import ServerState

    tune(1)
    folder = Path(tempfile.mkdtemp())
    context = open_run(demonstration(point, folder))
    genesis = {"run": "scale", "policy_digest": "none"}
    with Ledger.create(folder / "ledger.jsonl", genesis) as ledger:
        state, long = ServerState(0, context.start.parameters), point["cohort"] >= LONG
        if not long:
            state, _ = run_round(context, state, RoundRecorder(ledger))
        rounds = 1 if long else rounds
        started = time.process_time()
        for _ in range(rounds):
            state, _ = run_round(context, state, RoundRecorder(ledger))
        seconds = (time.process_time() - started) / rounds
    shutil.rmtree(folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": seconds, "peak_bytes": peak}


def demonstration(point: dict[str, int], folder: Path) -> Scenario:
    """Return the demonstration's scenario at one point; its policy is written into a folder."""
    from pfl_lm.demo import RECIPE
    from pfl_lm.recipes import load
    from pfl_lm.run.scenario import Scenario

    scenario = load(Scenario, RECIPE)
    assert scenario.policy is not None
    policy = folder / "policy.toml"  # with a report goal that the largest cohort does not exceed
    text = scenario.policy.read_text(encoding="utf-8")
    policy.write_text(text.replace("report_goal   = 5_000", "report_goal = 10_000"))
    rows: int | Literal["all"] = "all" if point["rows"] == point["vocabulary"] else point["rows"]
    return replace(
        scenario,
        policy=policy,
        cohort=point["cohort"],
        population=replace(scenario.population, users=point["users"]),
        model=replace(scenario.model, vocabulary_size=point["vocabulary"]),
        payload=replace(scenario.payload, rows=rows),
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--axis", choices=tuple(AXES))
    parser.add_argument("--plot", type=Path, help="a page to write")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
