"""What one ε against everyone costs on real chat, by kind of noise, cohort and length. For RESULTS.

    python -m benchmarks.one_epsilon simulations/chat_partial.toml -o runs/one_epsilon \\
        --noise device --epsilon 2 --reports 5000 --population 1000000 --rounds 150 --seed 1

A call is one row of the table. It writes the row's policy (rotation: each phone comes back after
population ÷ reports rounds), simulates the scenario under it, evaluates 1,000 test users and prints
the row; a row whose run is there already is only printed. `--noise none` trains without a policy.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pfl_lm.api.runs import open_run, simulate
from pfl_lm.api.scenarios import load_scenario
from pfl_lm.run.evaluation_file import read_evaluation

NOISE = {
    "device": '{ at = "device", kind = "skellam", tolerated_dropout = 0.1 }',
    "blt": '{ at = "server", kind = "blt" }',
    "banded": '{ at = "server", kind = "banded" }',
}
POLICY = """unit = "user"
neighboring = "zero_out"
epsilon = {epsilon}
delta = {delta}
population = {population}
report_goal = {reports}
rounds = {rounds}
participation = {{ kind = "rotation", min_separation = {separation} }}
noise = {noise}
"""


def policy(row: argparse.Namespace) -> str:
    """Return the text of the policy file of a row."""
    text = POLICY.format(
        epsilon=row.epsilon,
        delta=1e-6 if row.population <= 1_000_000 else 0.1 / row.population,
        population=row.population,
        reports=row.reports,
        rounds=row.rounds,
        separation=row.population // row.reports,
        noise=NOISE[row.noise],
    )
    trusted = "" if row.noise == "device" else "accepted_server_epsilon = inf\n"
    return text + trusted


def settings(row: argparse.Namespace) -> dict[str, object]:
    """Return what a row changes of the scenario; long runs cool down over their last quarter."""
    changed: dict[str, object] = {"rounds": row.rounds, "seed": row.seed, "policy": None}
    if row.rounds >= 1_000:
        changed |= {"server.cooldown": 0.25, "evaluation.every": 100}
    for setting in row.set:
        key, _, value = setting.partition("=")
        changed[key] = json.loads(value)
    return changed


def name(row: argparse.Namespace) -> str:
    """Return the name of a row's run."""
    size = "" if row.noise == "none" else f"_{row.epsilon:g}_{row.reports}_of_{row.population}"
    more = "".join(f"_{setting}" for setting in row.set)
    return f"{row.scenario.stem}_{row.noise}{size}_{row.rounds}{more}_{row.seed}"


def line(row: argparse.Namespace, run: Path) -> str:
    """Return the row of the table: what the run cost, and its first model's figures."""
    found = read_evaluation(run / "evaluation.json")["rows"][0]
    kept = open_run(run).guarantee
    cost = "– | ∞ | ∞"
    if kept is not None:
        server = "∞" if kept.epsilon_server is None else f"{kept.epsilon_server:.3g}"
        cost = f"{kept.noise_multiplier:.3f} | {kept.epsilon:.3g} | {server}"
    shares = (found[key] for key in ("top1", "top3", "keystrokes_saved"))
    return (
        f"| {row.noise} | {row.reports:,} of {row.population:,} | {row.rounds:,} | {cost} | "
        f"{row.seed} | {found['perplexity']:.1f} | {found['perplexity_known']:.1f} | "
        + " | ".join(f"{share:.1%}" for share in shares)
        + " |"
    )


def main() -> None:
    """Simulate one row and print it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("scenario", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--noise", choices=[*NOISE, "none"], default="device")
    parser.add_argument("--epsilon", type=float, default=2.0)
    parser.add_argument("--reports", type=int, default=5_000)
    parser.add_argument("--population", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=150)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    row = parser.parse_args()
    run = row.output / name(row)
    if not (run / "evaluation.json").exists():
        row.output.mkdir(parents=True, exist_ok=True)
        changed = settings(row)
        if row.noise != "none":
            written = row.output / f"{run.name}.toml"
            written.write_text(policy(row), encoding="utf-8")
            changed["policy"] = str(written.absolute())
        scenario = load_scenario(row.scenario, changed)
        resume = (run / "manifest.json").exists()
        simulate(scenario, run, workers=row.workers, anyway=True, resume=resume)
    print(line(row, run))


if __name__ == "__main__":
    main()
