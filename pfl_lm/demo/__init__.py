"""The embedded demonstration: the real main job on invented users, so that nothing is fetched.

Invented public text in English gives the first model; people of other topics and habits than
those who wrote it then teach it theirs, under a policy of ε = 2.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pfl_lm.files import folder_atomically
from pfl_lm.models.file import save_model
from pfl_lm.recipes import load
from pfl_lm.run.pretrain import pretrain
from pfl_lm.run.pretrain_recipe import Pretraining
from pfl_lm.run.progress import ProgressListener
from pfl_lm.run.scenario import Scenario
from pfl_lm.run.setup import invented
from pfl_lm.text.synthetic.population import write_public_store

RECIPE = Path(__file__).parent / "scenario.toml"


def prepare(folder: Path, listener: ProgressListener) -> Scenario:
    """Write the demonstration's public text and first model, all or none; return its scenario.

    Args:
        folder: where tokenizer, public text and ``start.pt`` go; it must not exist.
        listener: follows the pretraining.
    """
    scenario = load(Scenario, RECIPE)
    tokenizer, population = invented(scenario)
    with folder_atomically(folder) as new:
        tokenizer.save(new / "tokenizer")
        write_public_store(population, new / "public")
        recipe = Pretraining(
            tokenizer=new / "tokenizer",
            text=new / "public",
            text_is="public",
            model=replace(scenario.model, lora=None),
            epochs=1,
            batch_size=32,
            learning_rate=5e-3,
            candidates=512,
        )
        save_model(new / "start.pt", pretrain(recipe, listener))
    return replace(scenario, start=(folder / "start.pt").resolve())
