"""Fifty rounds on real chat with the protocol and 20% dropout: the ideal functionality's model?

    python -m benchmarks.secagg_run [--rounds 50] [--cohort 40] [--dropout 0.2] [--rotate]

Runs ``simulations/chat_partial.toml`` twice, smaller, with seeded noise that every device draws
itself: once through every message of the protocol, once through the ideal functionality with the
same survivors. Prints the SHA-256 of both models, and whether both ledgers say the same.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from pfl_lm.dp.ledger import verify
from pfl_lm.files import sha256_of
from pfl_lm.native.tuning import tune
from pfl_lm.recipes import load
from pfl_lm.run.folder import RunFolder
from pfl_lm.run.progress import ProgressListener
from pfl_lm.run.scenario import EvaluationConfig, Scenario
from pfl_lm.run.simulate import simulate

RECIPE = Path(__file__).resolve().parents[1] / "simulations" / "chat_partial.toml"


class Tenths(ProgressListener):
    """Prints a line every tenth round."""

    def say(self, line: str) -> None:
        print(line, flush=True)

    def round_done(self, entry: dict[str, Any], rounds: int) -> None:
        if (entry["round"] + 1) % 10 == 0:
            print(f"  round {entry['round'] + 1}: {entry['seconds']:.1f} s", flush=True)


def scenario_of(options: argparse.Namespace) -> Scenario:
    found = load(Scenario, RECIPE)
    return replace(
        found,
        rounds=options.rounds,
        cohort=options.cohort,
        dropout=options.dropout,
        rotate=options.rotate,
        reproducible=True,
        separate_noise=True,
        population=replace(found.population, public_text=None),
        payload=replace(found.payload, rows=500),
        training=replace(found.training, max_tokens=100),
        evaluation=EvaluationConfig(every=0, users=10, final_users=10),
    )


def describe(run: RunFolder, seconds: float) -> None:
    entries = verify(run.ledger_path)
    rounds = [entry for entry in entries if entry["kind"] == "round"]
    said, metrics = run.manifest()["secure_aggregation"], run.metrics()
    graph = said["simulated"]
    traffic = [m for m in metrics if m["kind"] == "round"][-1]
    print(f"{said['ran']}: {seconds:.0f} s, {len(rounds)} rounds opened of {len(metrics)}")
    print(f"  k = {graph['neighbours']}, t = {graph['threshold']}, ring {said['ring']}")
    print(f"  reports {min(r['reports'] for r in rounds)} to {max(r['reports'] for r in rounds)}")
    print(
        f"  a device sends {traffic['upload_bytes']:,} and receives {traffic['download_bytes']:,}"
    )
    print(f"  model.pt {sha256_of(run.model_path)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--cohort", type=int, default=40)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--rotate", action="store_true")
    options = parser.parse_args()
    tune()
    scenario, runs = scenario_of(options), []
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("protocol", "ideal"):
            started = time.monotonic()
            chosen = replace(scenario, secure_aggregation=kind)
            runs.append(simulate(chosen, Path(folder) / kind, Tenths()))
            describe(runs[-1], time.monotonic() - started)
        models = {sha256_of(run.model_path) for run in runs}
        ledgers = [verify(run.ledger_path)[1:] for run in runs]
        same = len(models) == 1 and ledgers[0] == ledgers[1]
    print("same model, same ledger" if same else "DIFFERENT")
    raise SystemExit(not same)


if __name__ == "__main__":
    main()
