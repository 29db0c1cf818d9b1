"""Public text that a training does not read: how well its model predicts it.

Trainings that differ in their seed alone may differ by several percent, for a vocabulary of two
languages more than for one. Public text tells which model to keep, and costs nobody any ε.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pfl_lm.evaluation.evaluate import ModelScorer, evaluate
from pfl_lm.evaluation.measures import Evaluation
from pfl_lm.models.file import Model
from pfl_lm.run.pretrain_recipe import Pretraining
from pfl_lm.text.population import PopulationStore
from pfl_lm.text.tokenizer import Tokenizer


def open_held_out(recipe: Pretraining, folders: Sequence[Path]) -> list[PopulationStore]:
    """Open stores of public text that a recipe's training does not read.

    Raises:
        ValueError: a folder holds no store, the text of users, text of another vocabulary, or the
            text that the recipe reads.
    """
    if not folders:
        return []
    read = PopulationStore.open(recipe.text)
    stores = [PopulationStore.open(folder) for folder in folders]
    for store in stores:
        store.require_public()
        store.require_vocabulary(read.tokenizer_digest, f"{read.folder}")
        if store.reads_as(read):
            raise ValueError(
                f"--held-out {store.folder} is the text that the recipe reads; name text that it "
                "does not read"
            )
    return stores


def measure(recipe: Pretraining, model: Model, store: PopulationStore) -> Evaluation:
    """Return how well a trained model predicts a store's text, in the recipe's windows."""
    scorer, tokenizer = ModelScorer(model.spec, model.parameters), Tokenizer.open(recipe.tokenizer)
    return evaluate(scorer, store, "train", tokenizer, recipe.window)
