"""How good a run's model is: on validation users as it goes, on test users at the end.

validate           some validation users, while the run goes on
final_evaluation   test users: the model, what it started from, public baselines, each phone
write_results      the final evaluation and the model, on the disk
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pfl_lm.distributed import ALONE, Ranks
from pfl_lm.evaluation.baselines import KneserNeyBigram, UnigramScorer
from pfl_lm.evaluation.evaluate import ModelScorer, Scorer, evaluate
from pfl_lm.evaluation.measures import Evaluation
from pfl_lm.evaluation.suggestions import prompts_of, suggest
from pfl_lm.models.file import Model, save_model
from pfl_lm.models.models import Parameters
from pfl_lm.run.availability import fits, phones_of
from pfl_lm.run.context import RunContext, choose_payload
from pfl_lm.run.folder import RunFolder, write_json
from pfl_lm.server.state import ServerState
from pfl_lm.text.population import Population


def validate(context: RunContext, state: ServerState, ranks: Ranks = ALONE) -> dict[str, Any]:
    """Measure the model on some validation users, as they write by now: a line of the metrics."""
    scorer = ModelScorer(context.spec, state.averaged())
    people = context.people(state.round)
    measured = _measure(context, scorer, people, "validation", ranks).as_dict()
    return {"kind": "evaluation", "round": state.round, "split": "validation", **measured}


def final_evaluation(
    context: RunContext, parameters: Parameters, ranks: Ranks = ALONE
) -> dict[str, Any]:
    """Measure the trained model, what it started from, and public baselines, on test users."""
    people = context.people(context.scenario.rounds)
    floor = getattr(people, "entropy_floor", None)  # of invented users it is known
    return {
        "split": "test",
        "rows": measure_on_test_users(
            context, models_of(context, parameters) | baselines(context), ranks
        ),
        "entropy_floor": None if floor is None else floor("test"),
        "profiles": _by_profile(context, parameters, ranks),
        "suggestions": _suggestions(context, parameters),
    }


def models_of(context: RunContext, parameters: Parameters) -> dict[str, Scorer]:
    """Name the trained model and, where it is not random, the model that the run started from."""
    scorers: dict[str, Scorer] = {"federated model": ModelScorer(context.spec, parameters)}
    if context.start.origin["kind"] != "random":
        label = f"{context.start.origin['kind']} pretraining"
        scorers[label] = ModelScorer(context.spec, context.start.parameters)
    return scorers


def measure_on_test_users(
    context: RunContext, scorers: Mapping[str, Scorer], ranks: Ranks = ALONE
) -> list[dict[str, Any]]:
    """Measure models on the scenario's test users, as they write after its last round."""
    people = context.people(context.scenario.rounds)
    return [
        {"name": name, **_measure(context, scorer, people, "test", ranks).as_dict()}
        for name, scorer in scorers.items()
    ]


def _suggestions(context: RunContext, parameters: Parameters) -> list[dict[str, Any]]:
    """Say what the keyboard suggests after a dozen public texts, before and after the run.

    Guarantees:
        The texts are public and the model is released: this costs no ε (post-processing).
    """

    def words(model: Parameters, text: str) -> list[str]:
        return [word for word, _ in suggest(context.spec, model, context.tokenizer, text)]

    return [
        {
            "text": text,
            "before": words(context.start.parameters, text),
            "after": words(parameters, text),
        }
        for text in prompts_of(context.tokenizer)
    ]


def baselines(context: RunContext) -> dict[str, Scorer]:
    """Fit what a keyboard predicts that learnt nothing from its users."""
    unigram = context.tokenizer.unigram
    if context.public is None:
        return {"public unigram": UnigramScorer(unigram)}
    silent = (context.tokenizer.pad_id, context.tokenizer.bos_id)
    bigram = KneserNeyBigram.fit(context.public.streams(), unigram, silent)
    return {"public unigram": UnigramScorer(unigram), "public bigram": bigram}


def write_results(
    context: RunContext, folder: RunFolder, parameters: Parameters, evaluation: dict[str, Any]
) -> None:
    """Write a run's final evaluation and its model; both can be repeated after a crash."""
    origin = {
        "kind": "federated",
        "text": context.population.name,
        "tokenizer_digest": context.tokenizer.digest,
        "statements": folder.manifest()["statements"],
    }
    write_json(folder.evaluation_path, evaluation)
    save_model(folder.model_path, Model(context.spec, parameters, origin))


def _measure(
    context: RunContext, scorer: Scorer, people: Population, split: str, ranks: Ranks
) -> Evaluation:
    chosen = context.scenario.evaluation
    return evaluate(
        scorer,
        people,
        split,
        context.tokenizer,
        context.scenario.training.window,
        max_users=chosen.users if split == "validation" else chosen.final_users,
        max_tokens_per_user=chosen.tokens_per_user,
        seed=context.scenario.seed,
        ranks=ranks,
    )


@dataclass(frozen=True)
class _Subset:
    """Some users of a population's split."""

    population: Population
    chosen: np.ndarray

    def users(self, split: str) -> int:
        return len(self.chosen)

    def tokens(self, split: str, user: int) -> np.ndarray:
        return self.population.tokens(split, int(self.chosen[user]))


def _by_profile(context: RunContext, parameters: Parameters, ranks: Ranks) -> list[dict[str, Any]]:
    """Measure the model on test users of each class of phone; empty without a fleet.

    How much worse the model is for users whose phones never take part is part of what a scenario
    costs.
    """
    if context.fleet is None:
        return []
    people = context.people(context.scenario.rounds)
    own = phones_of(context, context.fleet, "test", np.arange(people.users("test")))
    payload = choose_payload(context, 0)
    fitting = fits(context, payload, context.privacy.grid(payload.dim))
    chosen, rows = context.scenario.evaluation, []
    for place, (name, profile) in enumerate(context.fleet.profiles.items()):
        users = np.flatnonzero(own.profile == place)[: chosen.final_users]
        row = {"name": name, "share": profile.share, "able": fitting[name], "users": len(users)}
        if len(users):
            measured = evaluate(
                ModelScorer(context.spec, parameters),
                _Subset(people, users),
                "test",
                context.tokenizer,
                context.scenario.training.window,
                max_tokens_per_user=chosen.tokens_per_user,
                ranks=ranks,
            )
            row |= {"perplexity": measured.perplexity, "top3": measured.top3}
        rows.append(row)
    return rows
