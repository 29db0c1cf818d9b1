"""Central training: all text in one place, no devices and no privacy.

For the first model, from PUBLIC text; and, as the ceiling that a federated run is compared with,
from pooled private text, which says so in the model file.

Legend: B windows of a batch, T tokens of a window, N = B · T, D width of an embedding row, P width
of the hidden vectors, C candidates, V words.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from pfl_lm.language import losses
from pfl_lm.language.models import (
    ModelSpec,
    Parameters,
    chunks,
    hidden,
    hidden_of,
    initialise,
    scores,
)
from pfl_lm.language.population import PAD_ID, PopulationStore
from pfl_lm.language.tokenizer import Tokenizer
from pfl_lm.model_file import Model, load_model
from pfl_lm.streams import stream

Watch = Callable[[int, int, float], None]
NORMALISING_WINDOWS = 200


@dataclass(frozen=True)
class Pretraining:
    """How a model is trained centrally (a recipe in ``simulations/``).

    Attributes:
        tokenizer: folder of the tokenizer.
        text: folder of a population store; its training split is the text.
        text_is: ``public``; or ``private``, which makes the model a ceiling to compare with and
            never a start for one under a guarantee.
        model: what is trained.
        start: a model file to go on from.
        epochs: passes over the text.
        window, batch_size: T and B.
        learning_rate: Adam's, after a warm-up of 2% of the steps, falling to 0 along a cosine.
        loss: ``softmax``, or ``sampled`` with ``candidates`` words per step, drawn from the
            tokenizer's public unigram.
        gradient_clip: ℓ2 bound on the gradient of the dense part.
        self_normalise: weight α of the penalty α (log Z)² on the log-partition, with
            ``loss = "sampled"``: scores become log-probabilities in every context, which
            noise-contrastive estimation on the devices takes them for (Devlin et al. 2014,
            "Fast and robust neural network joint models", section 2.4).
    """

    tokenizer: Path
    text: Path
    text_is: Literal["public", "private"]
    model: ModelSpec
    description: str = ""
    start: Path | None = None
    epochs: float = 1.0
    window: int = 20
    batch_size: int = 64
    learning_rate: float = 2e-3
    loss: Literal["softmax", "sampled"] = "sampled"
    candidates: int = 2048
    gradient_clip: float = 1.0
    self_normalise: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "window", "batch_size", "learning_rate", "candidates",
                     "gradient_clip"):  # fmt: skip
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} = {getattr(self, name)} must be positive")
        if not 0 <= self.self_normalise < 1:
            raise ValueError(f"self_normalise = {self.self_normalise} must be in [0, 1)")
        if self.self_normalise and self.loss != "sampled":
            raise ValueError('self_normalise needs loss = "sampled"')


def pretrain(recipe: Pretraining, watch: Watch = lambda step, steps, loss: None) -> Model:
    """Train a model centrally.

    Args:
        recipe: what to do.
        watch: called after every step with (step, steps, loss).

    Raises:
        ValueError: tokenizer, text and model do not fit together, or the text is too short.
    """
    tokenizer = Tokenizer.open(recipe.tokenizer)
    store = PopulationStore.open(recipe.text)
    check_fit(recipe.model, tokenizer, store)
    parameters = _start(recipe, tokenizer)
    trainer = _Trainer(recipe, parameters, tokenizer.unigram)
    words = store.stream("train")
    for step, batch in enumerate(_batches(recipe, words)):
        watch(step + 1, trainer.steps, trainer.step(step, batch))
    for value in parameters.values():
        value.requires_grad_(False)
        value.grad = None
    normalise(recipe.model, parameters, _windows(words, recipe.window, NORMALISING_WINDOWS))
    origin = {
        "kind": recipe.text_is,
        "text": store.name,
        "tokenizer_digest": tokenizer.digest,
    }
    return Model(recipe.model, parameters, origin)


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
    if store.tokenizer_digest != tokenizer.digest:
        raise ValueError(
            f"{store.name} was built with another tokenizer; build the population again with the "
            "one that the recipe names"
        )


def _start(recipe: Pretraining, tokenizer: Tokenizer) -> Parameters:
    if recipe.start is None:
        return initialise(recipe.model, recipe.seed, tokenizer.unigram)
    model = load_model(recipe.start)
    if model.spec != recipe.model:
        raise ValueError(f"start: {recipe.start} holds another model than [model] describes")
    if model.origin.get("tokenizer_digest") != tokenizer.digest:
        raise ValueError(f"start: {recipe.start} was trained with another tokenizer")
    if recipe.text_is == "public" and model.origin.get("kind") != "public":
        raise ValueError(
            f'start: {recipe.start} knows text that is not public; say text_is = "private", or '
            "start from a model of public text"
        )
    return model.parameters


def _steps(recipe: Pretraining, windows: int) -> int:
    return max(1, int(recipe.epochs * windows / recipe.batch_size))


def _windows(words: np.ndarray, length: int, count: int) -> np.ndarray:
    """Return ``count`` windows, int64[count, length], spread evenly over a text."""
    starts = np.linspace(0, len(words) - length, count).astype(np.int64)
    return words[starts[:, None] + np.arange(length)].astype(np.int64)


def _batches(recipe: Pretraining, words: np.ndarray) -> Iterator[np.ndarray]:
    """Yield int64[B, T + 1], windows of the text in a new order each epoch."""
    count = (len(words) - 1) // recipe.window
    if count < recipe.batch_size:
        raise ValueError(f"text has {len(words)} tokens, less than one batch; bring more text")
    offsets = np.arange(recipe.window + 1)
    order, epoch = np.zeros(0, dtype=np.int64), 0
    for _ in range(_steps(recipe, count)):
        if len(order) < recipe.batch_size:
            shuffled = stream(recipe.seed, "pretrain", epoch).permutation(count)
            order, epoch = np.concatenate([order, shuffled]), epoch + 1
        chosen, order = np.sort(order[: recipe.batch_size]), order[recipe.batch_size :]
        yield words[chosen[:, None] * recipe.window + offsets].astype(np.int64)


class _Trainer:
    """Adam on one model; gradients of the word tables are summed into dense buffers by hand."""

    def __init__(self, recipe: Pretraining, parameters: Parameters, unigram: np.ndarray) -> None:
        words = len(PopulationStore.open(recipe.text).stream("train"))
        self.steps = _steps(recipe, (words - 1) // recipe.window)
        self.recipe, self.parameters, self.unigram = recipe, parameters, unigram
        self.tables = ("embedding", "output", "output_bias")
        self.dense = [value for name, value in parameters.items() if name not in self.tables]
        for value in self.dense:
            value.requires_grad_(True)
        for name in self.tables:
            if name in parameters:
                parameters[name].grad = torch.zeros_like(parameters[name])
        self.adam = torch.optim.Adam(
            parameters.values(), lr=recipe.learning_rate, betas=(0.9, 0.99), fused=True
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.adam, self._rate)

    def _rate(self, step: int) -> float:
        warm = max(1, self.steps // 50)
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.steps)))

    def step(self, number: int, windows: np.ndarray) -> float:
        """Take one step on int64[B, T + 1] and return the mean loss per predicted word."""
        spec, parameters = self.recipe.model, self.parameters
        self._forget_gradients()
        batch = torch.from_numpy(windows)
        inputs, targets = batch[:, :-1], batch[:, 1:].reshape(-1)  # (B, T), (N,)
        embedded = parameters["embedding"][inputs].unsqueeze(0).requires_grad_(True)
        vectors = hidden(spec, parameters, embedded)  # (1, B, T, P)
        valid = (targets != PAD_ID).float()
        weight = valid / valid.sum()  # (N,)
        flat = vectors.detach().reshape(len(targets), -1)
        loss, gradient = self._loss(number, flat, targets, weight)
        vectors.backward(gradient.view_as(vectors))
        assert embedded.grad is not None
        table = parameters["embedding"].grad
        assert table is not None
        table.index_add_(0, inputs.reshape(-1), embedded.grad.reshape(-1, table.shape[1]))
        torch.nn.utils.clip_grad_norm_(self.dense, self.recipe.gradient_clip)
        self.adam.step()
        self.schedule.step()
        return float((loss * weight).sum())

    def _forget_gradients(self) -> None:
        for value in self.parameters.values():
            if value.grad is not None:
                value.grad.zero_()

    def _loss(
        self, number: int, vectors: torch.Tensor, targets: torch.Tensor, weight: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss (N,) and its weighted gradient by the vectors (N, P); tables' gradients added."""
        table = self.parameters[self.recipe.model.output_table]
        bias = self.parameters.get("output_bias")
        into = (table.grad, None if bias is None else bias.grad)
        if self.recipe.loss == "softmax":
            return losses.full_softmax(vectors, table, bias, targets, weight, into)
        words, log_weight = self._candidates(number)
        scores = vectors @ table[words].mT  # (N, C)
        own = (vectors * table[targets]).sum(1)
        if bias is not None:
            scores += bias[words]
            own = own + bias[targets]
        hits = torch.nonzero((targets.unsqueeze(1) == words).view(-1)).squeeze(1)
        loss, d_own, d_scores = losses.sampled_softmax(
            own.unsqueeze(0), scores.unsqueeze(0), log_weight, hits
        )
        if self.recipe.self_normalise:
            # log Z is the loss + the target's score; its gradient is the softmax itself.
            push = 1 + 2 * self.recipe.self_normalise * (loss + own)  # (1, N)
            d_own, d_scores = (d_own + 1) * push - 1, d_scores * push.unsqueeze(-1)
        d_own, d_scores = d_own[0] * weight, d_scores[0] * weight.unsqueeze(1)
        assert into[0] is not None
        into[0].index_add_(0, words, d_scores.mT @ vectors)
        into[0].index_add_(0, targets, d_own.unsqueeze(1) * vectors)
        if into[1] is not None:
            into[1].index_add_(0, words, d_scores.sum(0))
            into[1].index_add_(0, targets, d_own)
        return loss[0], d_scores @ table[words] + d_own.unsqueeze(1) * table[targets]

    def _candidates(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        draw = losses.draw_for_softmax(
            self.recipe.candidates, np.arange(len(self.unigram)), None, self.unigram,
            stream(self.recipe.seed, "candidates", number),
        )  # fmt: skip
        return torch.from_numpy(draw.words), torch.from_numpy(draw.log_weight)
