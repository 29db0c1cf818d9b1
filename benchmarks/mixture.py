"""What does public text that phones chose bring a first model? The table of RESULTS.

    python -m benchmarks.mixture POPULATION TOKENIZER PUBLIC MIXTURE [--epochs 0.25] [--seeds 2]

MIXTURE is a folder that `pfl-lm mixture ask` wrote, of clusters of PUBLIC. The recipe (shipped:
pretrain_30k) trains on PUBLIC with and without it, in equally many steps, and each model is
measured on the same held-out users of POPULATION. `--keep 0` is the plain training.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from pfl_lm.evaluation.evaluate import Evaluation, ModelScorer, evaluate
from pfl_lm.native.tuning import tune
from pfl_lm.queries.mixture import open_mixture
from pfl_lm.recipes import load
from pfl_lm.run.pretrain import pretrain
from pfl_lm.run.pretrain_recipe import Pretraining
from pfl_lm.run.pretrain_text import steps_of
from pfl_lm.text.population import PopulationStore
from pfl_lm.text.tokenizer import Tokenizer


def measure(recipe: Pretraining, keep: float, chosen: argparse.Namespace) -> Evaluation:
    """Train once and measure once."""
    model = pretrain(recipe, mixture=open_mixture(chosen.mixture, keep) if keep else None)
    return evaluate(
        ModelScorer(model.spec, model.parameters),
        PopulationStore.open(chosen.population),
        chosen.split,
        Tokenizer.open(chosen.tokenizer),
        recipe.window,
        max_users=chosen.users,
        max_tokens_per_user=400,
        seed=1,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    for name in ("population", "tokenizer", "public", "mixture"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--recipe", type=Path, default=Path("pretrain_30k"))
    parser.add_argument("--epochs", type=float, default=0.25)
    parser.add_argument("--keep", type=float, nargs="*", default=[0.0, 0.25])
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--split", default="validation", choices=("validation", "test"))
    parser.add_argument("--users", type=int, default=1_000)
    chosen = parser.parse_args()
    tune()
    recipe = replace(
        load(Pretraining, chosen.recipe), tokenizer=chosen.tokenizer, text=chosen.public,
        epochs=chosen.epochs,
    )  # fmt: skip
    steps = steps_of(recipe, len(PopulationStore.open(chosen.public).stream("train")))
    tokens = steps * recipe.batch_size * recipe.window
    print(f"{tokens:,} tokens of pretraining; {chosen.users:,} {chosen.split} users", flush=True)
    print("| public text | seed | perplexity | … known words | top-1 | top-3 | keystrokes saved |")
    print("|---|---|---|---|---|---|---|")
    found: dict[float, list[float]] = {}
    for keep in chosen.keep:
        for seed in chosen.seeds:
            began = time.process_time()
            f = measure(replace(recipe, seed=seed), keep, chosen)
            found.setdefault(keep, []).append(f.perplexity)
            name = f"the {keep:.1%} most like theirs" if keep else "as it comes"
            print(
                f"| {name} | {seed} | {f.perplexity:.1f} | {f.perplexity_known:.1f} | "
                f"{f.top1:.1%} | {f.top3:.1%} | {f.keystrokes_saved:.1%} | "
                f"{time.process_time() - began:.0f} s",
                flush=True,
            )
    for keep, values in found.items():
        mean = float(np.mean(values))
        gain = f", {mean / float(np.mean(found[0.0])) - 1:+.1%}" if keep and 0.0 in found else ""
        print(f"keep {keep:g}: mean {mean:.1f}{gain}")


if __name__ == "__main__":
    main()
