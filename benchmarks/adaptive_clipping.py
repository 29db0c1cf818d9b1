"""A clip norm that follows the updates, begun ten times off, against clip norms that stay.

    python -m benchmarks.adaptive_clipping [--clip 1.5] [--keep FOLDER] [--only adaptive:15 …]

The demo's scenario and policy. One line a run: fixed clip norms of ``--clip`` times 0.1, 0.33, 1,
3.3 and 10, and adaptive ones that begin at 0.1, 1 and 10 times it. Perplexity and recall are those
of the demo's test users. "noise ÷ signal" is that of a round's mean: its noise's norm ÷ √(the
mean's norm² − noise²), the median of the last third of the rounds. Runs are kept in ``--keep``; one
that is there is not trained again.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from pfl_lm.demo import RECIPE, prepare
from pfl_lm.native.tuning import tune
from pfl_lm.recipes import load
from pfl_lm.run.folder import RunFolder, read_json
from pfl_lm.run.progress import ProgressListener
from pfl_lm.run.scenario import Scenario
from pfl_lm.run.simulate import simulate

FIXED, ADAPTIVE = (0.1, 1 / 3, 1.0, 10 / 3, 10.0), (0.1, 1.0, 10.0)
TABLE = "clipping = { lowest = 1e-3, highest = 1e3 }\n"


def main() -> None:
    """Print the table of RESULTS.md."""
    arguments = _arguments()
    tune(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.keep or temporary)
        scenario = _scenario(folder)
        print("| clip norm | begins at | perplexity | top-3 | clipped | noise ÷ signal | ends at |")
        print("|---|---|---|---|---|---|---|", flush=True)
        for kind, clip in _lines(arguments):
            policy = folder / f"{kind}.toml"
            plain = (RECIPE.parent / "policy.toml").read_text(encoding="utf-8")
            policy.write_text(plain + (TABLE if kind == "adaptive" else ""), encoding="utf-8")
            run = RunFolder(folder / f"{kind}_{clip:.3g}")
            if not run.evaluation_path.is_file():
                line = replace(scenario, policy=policy, clip_norm=clip)
                simulate(line, run.path, ProgressListener(), overwrite=run.path.exists())
            print(_row(kind, clip, run), flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clip", type=float, default=1.5, help="about the median update norm")
    parser.add_argument("--keep", help="folder of the runs, new or from an earlier call")
    parser.add_argument("--only", nargs="*", help="lines such as adaptive:15 or fixed:0.5")
    return parser.parse_args()


def _lines(arguments: argparse.Namespace) -> Iterator[tuple[str, float]]:
    if arguments.only:
        for line in arguments.only:
            kind, clip = line.split(":")
            yield kind, float(clip)
        return
    for kind, factors in (("fixed", FIXED), ("adaptive", ADAPTIVE)):
        for factor in factors:
            yield kind, factor * arguments.clip


def _scenario(folder: Path) -> Scenario:
    """Return the demo's scenario from its pretrained start, which is made where it is missing."""
    start = folder / "demo" / "start.pt"
    scenario = load(Scenario, RECIPE)
    if not start.is_file():
        prepare(folder / "demo", ProgressListener())
    evaluation = replace(scenario.evaluation, every=0)
    return replace(scenario, start=start.resolve(), evaluation=evaluation)


def _row(kind: str, clip: float, run: RunFolder) -> str:
    rows = read_json(run.evaluation_path)["rows"]
    model = next(row for row in rows if row["name"] == "federated model")
    rounds: list[dict[str, Any]] = [e for e in run.metrics() if e["kind"] == "round"]
    last = rounds[-max(1, len(rounds) // 3) :]
    ratio = median(
        e["noise_norm"] / math.sqrt(max(e["mean_norm"] ** 2 - e["noise_norm"] ** 2, 1e-12))
        for e in last
    )
    clipped = sum(e["clipped_share"] for e in last) / len(last)
    return (
        f"| {kind} | {clip:.3g} | {model['perplexity']:.2f} | {100 * model['top3']:.1f}% | "
        f"{100 * clipped:.0f}% | {ratio:.2f} | {last[-1].get('clip_norm', clip):.3g} |"
    )


if __name__ == "__main__":
    main()
