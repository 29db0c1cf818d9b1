"""What a larger model brings, and what it costs a phone: one row of RESULTS a model.

    python -m benchmarks.capacity simulations/pretrain_30k.toml simulations/chat_partial.toml \\
        -o runs/capacity --name "512 cells" --epochs 0.25 --set model.hidden_dim=512

The model is trained on public text, then by the scenario's rounds under its policy; the public
start and the outcome are evaluated on the scenario's test users. `--set` changes both recipes. The
outcome is exported to ONNX in int8 (needs the extra `onnx`) and timed key by key: the median of a
process, the least of three. `--untrained`
prints what a model costs, and trains nothing.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pfl_lm.api.runs import simulate
from pfl_lm.api.scenarios import load_scenario
from pfl_lm.export.cost import measure_cost
from pfl_lm.export.formats.registry import convert
from pfl_lm.export.graphs.predict import predict_graph
from pfl_lm.models.file import Model, load_model, save_model
from pfl_lm.models.models import initialise, roles, size
from pfl_lm.native.tuning import tune
from pfl_lm.payload.choice import choose
from pfl_lm.recipes import load
from pfl_lm.run.evaluation_file import read_evaluation
from pfl_lm.run.folder import RunFolder
from pfl_lm.run.pretrain import pretrain
from pfl_lm.run.pretrain_recipe import Pretraining
from pfl_lm.run.scenario import Scenario

TIMES = 3  # that a file is timed; the least counts, since machines are busy
COSTS = "| model | parameters | coordinates that travel | int8, MB | CPU ms a key |"
FIGURES = " perplexity | top-1 | top-3 | keystrokes saved |"
HEAD = f"{COSTS} before:{FIGURES} after:{FIGURES} CPU s, before | CPU s, rounds |"


def main() -> None:
    """Train, simulate, export and print one row."""
    options = _options()
    tune()
    changed = {key: json.loads(value) for key, value in (s.split("=", 1) for s in options.set)}
    folder = options.output / options.name.replace(" ", "_")
    folder.mkdir(parents=True, exist_ok=True)
    if options.head:
        head = COSTS if options.untrained else HEAD
        print(f"{head}\n|{'---|' * (head.count('|') - 1)}")
    rounds = {} if options.rounds is None else {"rounds": options.rounds}
    scenario = load_scenario(options.scenario, changed | rounds)
    if options.untrained:
        model = Model(scenario.model, initialise(scenario.model, scenario.seed), {})
        print(_costs(options.name, model, scenario, folder), flush=True)
        return
    start, run = folder / "start.pt", folder / "run"
    if not start.exists():
        recipe = load(Pretraining, options.pretraining, changed)
        with _Clock(folder / "seconds_before"):
            save_model(start, pretrain(replace(recipe, epochs=options.epochs)))
    if not (run / "evaluation.json").exists():
        scenario = replace(scenario, start=start.absolute())
        with _Clock(folder / "seconds_of_rounds"):
            simulate(scenario, run, overwrite=run.exists(), anyway=True)
    print(_row(options.name, scenario, folder, run), flush=True)


class _Clock:
    """Writes the processor seconds of its block into a file."""

    def __init__(self, path: Path) -> None:
        self.path, self.began = path, time.process_time()

    def __enter__(self) -> None:
        self.began = time.process_time()

    def __exit__(self, *_: object) -> None:
        self.path.write_text(f"{time.process_time() - self.began:.0f}", encoding="utf-8")


def _costs(name: str, model: Model, scenario: Scenario, folder: Path) -> str:
    """Return the cells that need no training: sizes and the time of a key."""
    spec, words = scenario.model, scenario.model.vocabulary_size
    uniform = np.full(words, 1 / words)
    payload = choose(scenario.payload, roles(spec), uniform, range(4), scenario.seed, 0)
    exported = convert(predict_graph(model), "onnx", "int8", folder)
    timed = [measure_cost(folder, exported) for _ in range(TIMES)]
    least = min((cost.median_cpu_ms for cost in timed if cost is not None), default=float("nan"))
    plain = replace(spec, lora=None)  # factors are merged into the layers before they are exported
    cells = [name, f"{size(plain):,}", f"{payload.dim:,}", f"{exported.bytes / 1e6:.2f}"]
    cells.append(f"{least:.2f}")
    return f"| {' | '.join(cells)} |"


def _row(name: str, scenario: Scenario, folder: Path, run: Path) -> str:
    """Return the row of a model whose run has ended."""
    model = load_model(RunFolder.open(run).model_path)
    trained, start, *_ = read_evaluation(run / "evaluation.json")["rows"]
    seconds = [
        (folder / file).read_text(encoding="utf-8")
        for file in ("seconds_before", "seconds_of_rounds")
    ]
    cells = [*_figures(start), *_figures(trained), *seconds]
    return f"{_costs(name, model, scenario, folder)} {' | '.join(cells)} |"


def _figures(row: dict[str, Any]) -> list[str]:
    shares = (row[key] for key in ("top1", "top3", "keystrokes_saved"))
    return [f"{row['perplexity']:.1f}", *(f"{share:.1%}" for share in shares)]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("pretraining", type=Path)
    parser.add_argument("scenario", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--epochs", type=float, default=0.25, help="Of the public pretraining.")
    parser.add_argument("--rounds", type=int, help="Federated rounds [the scenario's].")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--untrained", action="store_true")
    parser.add_argument("--head", action="store_true", help="Print the table's head, too.")
    return parser.parse_args()


if __name__ == "__main__":
    main()
