"""Every way of fitting into a phone, trained on real text under the same policy.

    python -m benchmarks.ways simulations/chat_partial.toml [--rounds 40] [--cohort 100]

One line a way: predicted peak of training memory, operations, bytes up, seconds a round on this
machine, and the model's figures on validation users after the rounds, beside those of the model
that training started from.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from pfl_lm.devices.fleet import Fleet
from pfl_lm.fit import cost
from pfl_lm.machine import tune
from pfl_lm.recipes import load
from pfl_lm.scenario import Scenario
from pfl_lm.simulate import simulate
from pfl_lm.ways import WAYS

FLEETS = Path(__file__).resolve().parents[1] / "simulations" / "fleets"

# Steps along one direction of unit length are small: its slope is one part in √n of the gradient.
RATES = {"zeroth order": 20.0, "forward only": 0.3}


class Silent:
    """Follows a run and says nothing."""

    def say(self, line: str) -> None: ...

    def round_done(self, entry: dict[str, Any], rounds: int) -> None: ...

    def evaluated(self, entry: dict[str, Any]) -> None: ...


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenario", type=Path)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--cohort", type=int, default=100)
    parser.add_argument("--users", type=int, default=300)
    parser.add_argument("--only", nargs="+", choices=[way.name for way in WAYS])
    chosen = parser.parse_args()
    tune()
    fleet = load(Fleet, FLEETS / "mixed.toml")
    base = load(Scenario, chosen.scenario)
    base = replace(
        base,
        rounds=chosen.rounds,
        cohort=chosen.cohort,
        population=replace(base.population, public_text=None),  # no baselines are asked for
        evaluation=replace(base.evaluation, every=chosen.rounds, users=chosen.users, final_users=1),
    )
    print("| way | peak MB | GFLOP | up KB | s/round | perplexity | top-3 |")
    print("|---|---|---|---|---|---|---|")
    for way in WAYS:
        if chosen.only and way.name not in chosen.only:
            continue
        scenario = way.apply(base)
        rate = RATES.get(way.name, base.training.learning_rate)
        scenario = replace(scenario, training=replace(scenario.training, learning_rate=rate))
        asked = cost(scenario, fleet)
        print(
            f"| {way.name} | {asked['peak_bytes'] / 1e6:.1f} | {asked['flops'] / 1e9:.2f} | "
            f"{asked['upload_bytes'] / 1e3:,.0f} | {learnt(scenario)} |",
            flush=True,
        )


def learnt(scenario: Scenario) -> str:
    """Train, and return seconds a round and what it did; or why the run was refused."""
    try:
        before, after, seconds = trained(scenario)
    except ValueError as refusal:
        return f"– | refused: {refusal} | –"
    return (
        f"{seconds:.1f} | {before['perplexity']:.1f} → {after['perplexity']:.1f} | "
        f"{before['top3']:.1%} → {after['top3']:.1%}"
    )


def trained(scenario: Scenario) -> tuple[dict[str, Any], dict[str, Any], float]:
    """Run a scenario; return its first and last evaluation, and seconds a round."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        run = simulate(scenario, Path(folder) / "run", Silent())
        entries = [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
    evaluations = [entry for entry in entries if entry["kind"] == "evaluation"]
    spent = time.monotonic() - started
    return evaluations[0], evaluations[-1], spent / scenario.rounds


if __name__ == "__main__":
    main()
