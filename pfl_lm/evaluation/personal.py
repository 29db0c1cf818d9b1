"""What a phone gains by adapting the model to its own user; nothing leaves it.

Each held-out user's text is cut in two. The phone trains a small payload of its own on the first
part (its biases, its LoRA factors, the side branch), and both models are measured on the second.
How often it hurts is as much of an answer as how much it helps on average.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from pfl_lm.devices.local_training import LocalTraining
from pfl_lm.devices.task import Task
from pfl_lm.devices.training import train
from pfl_lm.evaluation.evaluate import ModelScorer, measure_windows
from pfl_lm.evaluation.held_out import choose_users
from pfl_lm.evaluation.interfaces import HeldOut, TokenizerLike
from pfl_lm.evaluation.keystrokes import Completions
from pfl_lm.evaluation.measures import Evaluation, Tally
from pfl_lm.evaluation.vocabulary import Vocabulary
from pfl_lm.models.models import ModelSpec, Parameters, roles
from pfl_lm.payload.choice import choose
from pfl_lm.payload.layout import Payload, gather, scatter_add
from pfl_lm.payload.plan import PayloadPlan
from pfl_lm.text.population import windows

_LEAST_TOKENS = 40  # of a user: fewer say nothing about either half


@dataclass(frozen=True)
class Gain:
    """The shared model beside everybody's own, on the second part of each user's text.

    Attributes:
        shared, personal: figures of both.
        nats: float64[U], what each user gains: nats per token, negative where adapting hurts.
        coordinates: numbers that each phone trains for itself.
    """

    shared: Evaluation
    personal: Evaluation
    nats: np.ndarray
    coordinates: int

    @classmethod
    def between(cls, shared: Tally, personal: Tally, coordinates: int) -> Gain:
        """Compare two measurements of the same text.

        Raises:
            ValueError: nothing was measured.
        """
        counted = shared.per_user("predictions") > 0
        gained = shared.per_user("nats") - personal.per_user("nats")
        nats = gained[counted] / shared.per_user("predictions")[counted]
        return cls(shared.evaluation(), personal.evaluation(), nats, coordinates)

    @property
    def hurt(self) -> float:
        """Share of the users for whom the shared model was the better one."""
        return float((self.nats < 0).mean())


def personal_gain(
    spec: ModelSpec,
    parameters: Parameters,
    population: HeldOut,
    split: str,
    tokenizer: TokenizerLike,
    plan: PayloadPlan,
    training: LocalTraining,
    *,
    max_users: int | None = None,
    max_tokens_per_user: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Gain:
    """Adapt and measure, user by user.

    Args:
        plan: what a phone trains for itself; it never travels.
        training: how; its ``window`` is that of the measurement, too.
        max_users: of those with enough text; drawn as by ``evaluate``.

    Raises:
        ValueError: the plan does not fit the model, or nobody wrote enough.
    """
    users = choose_users(population.users(split), split, max_users, seed)
    payload = choose(plan, roles(spec), tokenizer.unigram, tokenizer.specials, seed, 0)
    vocabulary = Vocabulary.of(tokenizer)
    completions = Completions.of(tokenizer.words, vocabulary.never_suggested)
    shared, personal = Tally(len(users), vocabulary), Tally(len(users), vocabulary)
    for place, user in enumerate(users.tolist()):
        text = population.tokens(split, user)[:max_tokens_per_user]
        if len(text) >= _LEAST_TOKENS:
            first, second = text[: len(text) // 2], text[len(text) // 2 :]
            own = _adapted(spec, parameters, payload, first, training, tokenizer, seed, user)
            held_out = windows(second, training.window)
            owners = np.full(len(held_out), place)
            with torch.inference_mode():
                for model, tally in ((parameters, shared), (own, personal)):
                    scorer = ModelScorer(spec, model)
                    measure_windows(scorer, owners, held_out, vocabulary, completions, tally)
        if progress:
            progress(place + 1, len(users))
    return Gain.between(shared, personal, payload.dim)


def _adapted(
    spec: ModelSpec,
    parameters: Parameters,
    payload: Payload,
    text: np.ndarray,
    training: LocalTraining,
    tokenizer: TokenizerLike,
    seed: int,
    user: int,
) -> Parameters:
    """Return the model as one phone has it after training on its user's text."""
    values, unigram = gather(parameters, payload), np.asarray(tokenizer.unigram)
    task = Task(spec, parameters, payload, values, training, unigram, seed, round=0)
    updates, _ = train(task, [windows(text, training.window)], [user])
    travelling = {segment.name for segment in payload.segments}
    adapted = {n: v.clone() if n in travelling else v for n, v in parameters.items()}
    scatter_add(adapted, payload, updates[0])
    return adapted
