"""How a model is trained centrally: what a pretraining file states."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pfl_lm.models.spec import ModelSpec
from pfl_lm.validate import at_least, below_one, positive


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
        trunk: a model file of another vocabulary, such as a related language's: training begins
            with its layers between the two tables of words; the words begin as they do without.
        epochs: passes over the text.
        max_tokens: how much of each user's text a pass reads at most: so many tokens in a row, from
            a place that every pass draws. Users then weigh as in an evaluation of so many tokens
            of each, however much some of them wrote. None: all text of all users.
        window, batch_size: T and B.
        learning_rate: Adam's, after a warm-up of 2% of the steps, falling to 0 along a cosine.
        loss: ``softmax``, or ``sampled`` with some words per step instead of all.
        candidates: those words, drawn from the tokenizer's public unigram, for ``sampled``.
        gradient_clip: ℓ2 bound on the gradient of the dense part.
        self_normalise: weight α of the penalty α (log Z)² on the log-partition, with
            ``loss = "sampled"``: scores become log-probabilities in every context, which
            noise-contrastive estimation on the devices takes them for (Devlin et al. 2014,
            "Fast and robust neural network joint models", section 2.4).
        description: one line for people.
        seed: of the first weights, the order of the text and the candidates.
    """

    tokenizer: Path
    text: Path
    text_is: Literal["public", "private"]
    model: ModelSpec
    description: str = ""
    start: Path | None = None
    trunk: Path | None = None
    epochs: float = 1.0
    max_tokens: int | None = None
    window: int = 20
    batch_size: int = 64
    learning_rate: float = 2e-3
    loss: Literal["softmax", "sampled"] = "sampled"
    candidates: int = 2048
    gradient_clip: float = 1.0
    self_normalise: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        positive(
            epochs=self.epochs,
            window=self.window,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            candidates=self.candidates,
            gradient_clip=self.gradient_clip,
        )
        at_least(1, max_tokens=self.max_tokens)
        below_one(self_normalise=self.self_normalise)
        if self.self_normalise and self.loss != "sampled":
            raise ValueError('self_normalise needs loss = "sampled"')
        if self.start and self.trunk:
            raise ValueError("start and trunk: a model goes on from one of them; leave one out")
