"""The embedded demonstration: the real main job on invented users, so that nothing is fetched.

Public text of an invented language gives the first model; people of other topics and habits than
those who wrote it then teach it theirs, under a policy of ε = 2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pfl_lm.central import Pretraining, pretrain
from pfl_lm.language.synthetic import write_public_store
from pfl_lm.model_file import save_model
from pfl_lm.recipes import load
from pfl_lm.scenario import Scenario
from pfl_lm.world import invented

RECIPE = Path(__file__).parent / "scenario.toml"


def prepare(folder: Path, watch: Callable[[int, int, float], None]) -> Scenario:
    """Write the demonstration's public text and first model; return the scenario to run.

    Args:
        folder: where tokenizer, public text and ``start.pt`` go; it must not exist.
        watch: follows the pretraining: (step, steps, loss).
    """
    scenario = load(Scenario, RECIPE)
    tokenizer, population = invented(scenario)
    tokenizer.save(folder / "tokenizer")
    write_public_store(population, folder / "public")
    recipe = Pretraining(
        tokenizer=folder / "tokenizer",
        text=folder / "public",
        text_is="public",
        model=replace(scenario.model, lora=None),
        epochs=1,
        batch_size=32,
        learning_rate=5e-3,
        candidates=512,
    )
    save_model(folder / "start.pt", pretrain(recipe, watch))
    return replace(scenario, start=(folder / "start.pt").resolve())
