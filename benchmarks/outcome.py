"""What apple/pfl-research reaches on our users, model and ε, beside our runs. For RESULTS.

    python -m benchmarks.outcome simulations/chat_partial.toml -o runs/peer --epsilon 2 \\
        --rate 0.1 --adaptivity 0.01 --local-rate 0.3 --clip 1

Same users, windows, first model, rounds and simulated cohort as the scenario; pfl's own loop,
optimiser and accountant (`peer_pfl_chat.py`). The trained model is written as a model of ours and
measured as `benchmarks.one_epsilon` measures: 1,000 test users, 400 tokens of each, seed 1. With
`--split validation` it is measured on 200 validation users, by whom settings are chosen.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path

import numpy as np
import torch

from benchmarks.simulator import HERE, build_environment
from pfl_lm.api.scenarios import load_scenario
from pfl_lm.evaluation.evaluate import ModelScorer, evaluate
from pfl_lm.models.file import Model, load_model, save_model
from pfl_lm.run.scenario import Scenario
from pfl_lm.text.population import PopulationStore
from pfl_lm.text.tokenizer import Tokenizer

USERS = {"test": 1_000, "validation": 200}
PASSED_ON = (
    "epsilon", "delta", "reports", "population", "clip", "rate", "adaptivity", "local_rate",
    "local_batch", "warm_up", "seed",
)  # fmt: skip


def write_input(scenario: Scenario, start: Model, file: Path) -> None:
    """Write the train users' texts and the first parameters as one .npz file."""
    assert scenario.population.path is not None, "the scenario's population is no store"
    store = PopulationStore.open(scenario.population.path)
    texts = [store.tokens("train", user) for user in range(store.users("train"))]
    arrays = {name: value.numpy() for name, value in start.parameters.items()}
    arrays["tokens"] = np.concatenate(texts).astype(np.int32)
    arrays["offsets"] = np.cumsum([0, *map(len, texts)])
    np.savez(file, **arrays)  # type: ignore[arg-type]  # named arrays, no options


def train(row: argparse.Namespace, scenario: Scenario, folder: Path) -> dict[str, float]:
    """Run the peer; return its seconds, the bytes of an update and its noise."""
    local = scenario.training
    command = [row.pfl_python, HERE / "peer_pfl_chat.py", folder / "in.npz", folder / "out.npz"]
    command += ["--rounds", row.rounds or scenario.rounds, "--cohort", scenario.cohort]
    command += ["--window", local.window, "--max-tokens", local.max_tokens or 10**9]
    for name in PASSED_ON:
        command += ["--" + name.replace("_", "-"), getattr(row, name)]
    done = subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, text=True)
    assert done.stdout is not None
    for line in done.stdout:
        if line.startswith("RESULT "):
            return dict(json.loads(line.removeprefix("RESULT ")))
        print(line, end="", flush=True)
    raise RuntimeError("pfl-research gave no result; its own error stands above")


def measured(row: argparse.Namespace, scenario: Scenario, model: Model) -> str:
    """Return the model's figures as cells of the table."""
    assert scenario.population.path is not None
    assert scenario.tokenizer is not None
    store = PopulationStore.open(scenario.population.path)
    found = evaluate(
        ModelScorer(model.spec, model.parameters),
        store,
        row.split,
        Tokenizer.open(scenario.tokenizer),
        scenario.training.window,
        max_users=USERS[row.split],
        max_tokens_per_user=400,
        seed=1,
    )
    shares = (found.top1, found.top3, found.keystrokes_saved)
    cells = [f"{found.perplexity:.1f}", f"{found.perplexity_known:.1f}"]
    return " | ".join(cells + [f"{share:.1%}" for share in shares])


def arguments() -> argparse.Namespace:
    """Read the command line; defaults are those that pfl publishes for its language model."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("scenario", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--split", choices=tuple(USERS), default="test")
    parser.add_argument("--epsilon", type=float, default=2.0, help="inf: clip, and no noise")
    parser.add_argument("--delta", type=float, default=1e-6)
    parser.add_argument("--reports", type=int, default=5_000)
    parser.add_argument("--population", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, help="the scenario's, where it is not given")
    parser.add_argument("--clip", type=float, default=1.0)
    parser.add_argument("--rate", type=float, default=0.1)
    parser.add_argument("--adaptivity", type=float, default=0.01)
    parser.add_argument("--warm-up", type=int, default=50)
    parser.add_argument("--local-rate", type=float, default=0.3)
    parser.add_argument("--local-batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pfl-python", type=Path, default=HERE.parent / ".env-pfl/bin/python")
    return parser.parse_args()


def main() -> None:
    """Train by pfl-research, measure by ours, print the row."""
    row = arguments()
    if not row.pfl_python.exists():
        build_environment(row.pfl_python)
    scenario = load_scenario(row.scenario)
    assert scenario.start is not None, "the scenario names no first model"
    start = load_model(scenario.start)
    row.output.mkdir(parents=True, exist_ok=True)
    write_input(scenario, start, row.output / "in.npz")
    cost = train(row, scenario, row.output)
    noise = cost["noise"] * row.reports / scenario.cohort  # pfl scales it to the simulated sum
    with np.load(row.output / "out.npz") as trained:
        parameters = {name: torch.from_numpy(trained[name]) for name in trained}
    model = Model(start.spec, parameters, {**start.origin, "kind": "private"})
    save_model(row.output / "model.pt", model)
    print(
        f"| pfl-research | {row.epsilon:g} | {row.rate:g}, {row.adaptivity:g}, {row.local_rate:g}, "
        f"{row.clip:g} | {noise:.3f} | {row.seed} | {measured(row, scenario, model)} | "
        f"{cost['bytes'] / 1e6:.2f} | {cost['cpu']:.0f} |"
    )


if __name__ == "__main__":
    main()
