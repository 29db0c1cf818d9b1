"""Central training: all text in one place, no devices and no privacy.

For the first model, from PUBLIC text; and, as the ceiling that a federated run is compared with,
from pooled private text, which says so in the model file.

Legend: B windows of a batch, T tokens of a window, P width of the hidden vectors.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pfl_lm.interrupts import interruptible
from pfl_lm.models.file import Model, load_model
from pfl_lm.models.models import (
    ModelSpec,
    Parameters,
    chunks,
    hidden_of,
    initialise,
    roles,
    scores,
)
from pfl_lm.models.spec import differences
from pfl_lm.run.pretrain_checkpoint import PretrainCheckpoint
from pfl_lm.run.pretrain_recipe import Pretraining
from pfl_lm.run.pretrain_step import Trainer
from pfl_lm.run.pretrain_text import Passes, always, batches, passes_of, steps_of
from pfl_lm.run.progress import ProgressListener
from pfl_lm.text.mixture import Mixture
from pfl_lm.text.population import PopulationStore
from pfl_lm.text.tokenizer import Tokenizer

NORMALISING_WINDOWS = 200


class Diverged(ValueError):
    """Training whose loss is not finite: nothing of it is worth keeping."""


def pretrain(
    recipe: Pretraining,
    listener: ProgressListener = ProgressListener(),  # noqa: B008
    checkpoint: PretrainCheckpoint | None = None,
    mixture: Mixture | None = None,
) -> Model:
    """Train a model centrally.

    Args:
        recipe: what to do.
        listener: told of every step.
        checkpoint: where training keeps how far it is, and what it goes on from; the model has
            the same bytes with one and without. Its caller erases it once the model is written.
        mixture: chooses the public text that is read, in as many steps as all of it would take;
            the model then says what choosing has cost.

    Raises:
        ValueError: tokenizer, text and model do not fit together, the text is too short, the
            checkpoint is that of another training, the loss is not finite, or the mixture is of
            another text, or of private text, or the recipe states ``max_tokens`` beside it.
    """
    tokenizer = Tokenizer.open(recipe.tokenizer)
    store = PopulationStore.open(recipe.text)
    check_fit(recipe.model, tokenizer, store)
    if recipe.text_is == "public":
        store.require_public()
    parameters, votes = _start(recipe, tokenizer)
    passes = passes_of(recipe, store)
    words = passes(0)
    steps = steps_of(recipe, len(words))
    if mixture is not None:
        words, votes = _chosen(recipe, store, mixture), mixture.added_to(votes)
        passes = always(words)
        checkpoint = checkpoint and replace(checkpoint, mixture=mixture.digest)
    trainer = Trainer(recipe, parameters, tokenizer.unigram, steps)
    _train(trainer, passes, listener, checkpoint)
    for value in parameters.values():
        value.requires_grad_(False)
        value.grad = None
    normalise(recipe.model, parameters, _windows(words, recipe.window, NORMALISING_WINDOWS))
    origin = {
        "kind": recipe.text_is,
        "text": store.name,
        "tokenizer_digest": tokenizer.digest,
        **({"votes": votes} if votes else {}),
    }
    return Model(recipe.model, parameters, origin)


def _chosen(recipe: Pretraining, store: PopulationStore, mixture: Mixture) -> np.ndarray:
    """Return the text that a mixture chooses; ValueError where the text is private."""
    if recipe.text_is != "public":
        raise ValueError('--mixture chooses public text, and the recipe says text_is = "private"')
    if recipe.max_tokens is not None:
        raise ValueError("--mixture chooses passages, and max_tokens pieces; leave one out")
    return mixture.choose(store)


def _train(
    trainer: Trainer,
    passes: Passes,
    listener: ProgressListener,
    checkpoint: PretrainCheckpoint | None,
) -> None:
    """Take the steps that are left; an interrupt comes between two steps, and loses none."""
    recipe, adam, parameters = trainer.recipe, trainer.adam, trainer.parameters
    taken, save = 0, lambda step, now: None
    if checkpoint is not None:
        taken = checkpoint.load(recipe, adam, parameters)
        save = checkpoint.saver(recipe, adam, parameters)
    trainer.schedule.last_epoch = taken
    try:
        for step, batch in batches(recipe, passes, trainer.steps, taken):
            with interruptible() as hold:
                hold()
                loss, taken = trainer.step(step, batch), step + 1
            if not math.isfinite(loss):
                raise Diverged(f"step {taken}: the loss is {loss}; lower learning_rate")
            save(taken, False)
            listener.step_done(taken, trainer.steps, loss)
    except BaseException as error:
        if taken and not isinstance(error, Diverged):
            save(taken, True)
        raise


def normalise(spec: ModelSpec, parameters: Parameters, windows: np.ndarray) -> None:
    """Shift the output bias so that scores are log-probabilities on average, in place.

    A softmax does not see the shift. Noise-contrastive estimation does: it takes scores for
    log-probabilities, and a model whose log-partition is far from 0 would spend its first rounds,
    and their privacy, on nothing but that.

    Args:
        windows: int64[n, T], text over which the log-partition is averaged.
    """
    if not spec.output_bias:
        return
    vectors = hidden_of(spec, parameters, windows).flatten(0, 1)  # (n·T, P)
    partitions = [
        torch.logsumexp(scores(spec, parameters, vectors[rows]), 1)
        for rows in chunks(spec, len(vectors))
    ]
    parameters["output_bias"] -= torch.cat(partitions).mean()


def check_fit(spec: ModelSpec, tokenizer: Tokenizer, store: PopulationStore) -> None:
    """Raise ValueError unless model, tokenizer and text speak of the same vocabulary."""
    if spec.vocabulary_size != tokenizer.vocabulary_size:
        raise ValueError(
            f"model.vocabulary_size = {spec.vocabulary_size}, but the tokenizer has "
            f"{tokenizer.vocabulary_size} words; make them equal"
        )
    store.require_vocabulary(tokenizer.digest, "the recipe names")


def _start(recipe: Pretraining, tokenizer: Tokenizer) -> tuple[Parameters, list[dict[str, Any]]]:
    """Return the first parameters, and the votes that chose the text that they know."""
    first = initialise(recipe.model, recipe.seed, tokenizer.unigram)
    if recipe.trunk is not None:
        model = _open_start(recipe, "trunk", recipe.trunk)
        dense = {name for name, role in roles(recipe.model).items() if role.kind != "rows"}
        taken = {name: model.parameters[name] for name in dense}
        return first | taken, list(model.origin.get("votes", []))
    if recipe.start is None:
        return first, []
    model = _open_start(recipe, "start", recipe.start)
    if model.origin.get("tokenizer_digest") != tokenizer.digest:
        raise ValueError(
            f"start: {recipe.start} was trained with another tokenizer; trunk takes its layers"
        )
    return model.parameters, list(model.origin.get("votes", []))


def _open_start(recipe: Pretraining, key: str, path: Path) -> Model:
    """Open the model that a training goes on from, if its layers and its text fit the recipe's."""
    model = load_model(path)
    words = recipe.model.vocabulary_size if key == "trunk" else model.spec.vocabulary_size
    spec = replace(model.spec, vocabulary_size=words)
    if spec != recipe.model:
        raise ValueError(
            f"{key}: {path} holds another model than [model] describes: "
            f"{differences(spec, recipe.model)}"
        )
    if recipe.text_is == "public" and model.origin.get("kind") != "public":
        raise ValueError(
            f'{key}: {path} knows text that is not public; say text_is = "private", or start from '
            "a model of public text"
        )
    return model


def _windows(words: np.ndarray, length: int, count: int) -> np.ndarray:
    """Return ``count`` windows, int64[count, length], spread evenly over a text."""
    starts = np.linspace(0, len(words) - length, count).astype(np.int64)
    return words[starts[:, None] + np.arange(length)].astype(np.int64)
