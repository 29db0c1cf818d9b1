"""`pfl-lm launch`: phones compare two models, and a rule that was stated before decides."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pfl_lm.dp.policy import Policy
from pfl_lm.evaluation.evaluate import ModelScorer, measure_users
from pfl_lm.evaluation.interfaces import HeldOut
from pfl_lm.models.file import Model
from pfl_lm.queries.ask import QuerySession, ask
from pfl_lm.queries.comparison import (
    RANGES,
    Estimate,
    Measured,
    answer,
    comparison_query,
    measure,
)
from pfl_lm.queries.fleet import Work, invite, say_fleet
from pfl_lm.queries.folder import QuestionFolder
from pfl_lm.queries.groups import noise_factor
from pfl_lm.queries.labels import Labels, phone_labels, read_labels
from pfl_lm.queries.launch_rule import Decision, LaunchQuestion, decide, plan
from pfl_lm.queries.manifest import describe, ticks
from pfl_lm.queries.people import AskedPeople, account_of
from pfl_lm.queries.query import Query
from pfl_lm.run.folder import digest_of, write_json
from pfl_lm.run.progress import ProgressListener
from pfl_lm.run.same_people import say_charged_elsewhere
from pfl_lm.text.population import PopulationStore
from pfl_lm.text.tokenizer import Tokenizer

RESULT_FILE = "comparison.json"


def differences(
    models: Sequence[Model],
    store: HeldOut,
    tokenizer: Tokenizer,
    question: LaunchQuestion,
    users: Sequence[int],
    listener: ProgressListener | None = None,
) -> dict[int, dict[str, float] | None]:
    """Score both models on each user's own text: by user, candidate less current; None: no text.

    Args:
        models: the current one and the candidate.
    """
    listener = listener or ProgressListener()
    asked = np.sort(np.array(users, dtype=np.int64))
    figures: list[list[np.ndarray]] = []
    for name, model in zip(("the current model", "the candidate"), models, strict=True):
        listener.say(f"{len(asked):,} phones score {name} on their own text")
        tally = measure_users(
            ModelScorer(model.spec, model.parameters), store, question.split, asked, tokenizer,
            question.window, question.tokens_per_user,
        )  # fmt: skip
        typed = [np.maximum(tally.per_user(n), 1) for n in ("predictions", "words", "keystrokes")]
        figures.append([
            -tally.per_user("nats") / typed[0],
            tally.per_user("top1") / typed[1],
            tally.per_user("top3") / typed[1],
            tally.per_user("saved") / typed[2],
        ])  # fmt: skip
        has_text = tally.per_user("predictions") > 0
    gains = np.stack(figures[1]) - np.stack(figures[0])  # (M, users)
    return {
        int(user): dict(zip(RANGES, gains[:, place].tolist(), strict=True))
        if has_text[place]
        else None
        for place, user in enumerate(asked)
    }


def compare(
    question: LaunchQuestion,
    current: Model,
    candidate: Model,
    store: PopulationStore,
    tokenizer: Tokenizer,
    policy: Policy,
    path: Path,
    listener: ProgressListener | None = None,
    resume: bool = False,
    ledgers: Path | None = None,
    labels: Path | None = None,
) -> tuple[Decision, Measured]:
    """Let phones compare two models and decide by the rule; write the folder ``path``.

    Args:
        labels: table of users' groups; None: with ``by_group``, the classes of the fleet's phones.
        ledgers: folder of the ledger of the split's users; by default ``ledgers`` beside the store.

    Guarantees:
        Those of a discovery of words: the cost is recorded before the sum is looked at, and a
        killed comparison goes on with the same noise or not at all.

    Raises:
        BudgetSpent: the comparison would exceed what is left of these users' total.
        ValueError: models, store, tokenizer, policy and labels do not fit together, or the folder
            is not free.
    """
    listener = listener or ProgressListener()
    store.require_vocabulary(tokenizer.digest, "the question names")
    check_models(current, candidate, tokenizer)
    folder = QuestionFolder(Path(path), RESULT_FILE)
    users = store.users(question.split)
    session = QuerySession.of(
        policy, users, question.cohort, question.aggregation, question.dropout, question.fleet
    )
    groups = question.groups(policy)
    of_users = _labels_of(groups, labels, session, store, question.split)
    query = comparison_query(session.policy.noise.min_dim, groups)
    session.check(query)
    deviation = session.deviation(query)
    on_sums = deviation * noise_factor(len(groups))
    rule = plan(question, session.cohort, on_sums, groups)
    listener.say(rule)
    asked = plain_comparison(question, rule, query, current, candidate, groups, of_users.source)
    described = describe("comparison", RESULT_FILE, asked, session, store, policy)
    account = account_of(store, question.split, question.seed, ledgers)
    say_charged_elsewhere(store, question.split, account, listener)
    with AskedPeople(account, "comparison") as people:
        ledger, session = folder.open(described, session, people, question.seed, resume, listener)
        with ledger:
            work = scoring((current, candidate), question)
            cohort = invite(session, query, 0, 0.0, work, question.split)
            say_fleet(cohort, listener)
            asks = cohort.invited.tolist()
            gains = differences((current, candidate), store, tokenizer, question, asks, listener)
            places = of_users.places(session, question.split, asks)
            group_of = dict(zip(asks, places, strict=True))
            sums = ask(
                session, query, 0, asks, lambda user: answer(gains[user], group_of[user]), ledger,
                ticks(listener), people.check, cohort.silent,
            )  # fmt: skip
            measured = measure(sums, deviation, groups)
            decision = decide(question, measured, on_sums)
            write_json(folder.result_path, result_of(decision, measured))
            folder.finish(ledger, people)
    return decision, measured


def _labels_of(
    groups: tuple[str, ...],
    table: Path | None,
    session: QuerySession,
    store: PopulationStore,
    split: str,
) -> Labels:
    if not groups:
        return Labels()
    if table is None:
        return phone_labels(groups, session)
    return read_labels(table, groups, store, split)


def plain_comparison(
    question: LaunchQuestion,
    rule: str,
    query: Query,
    current: Model,
    candidate: Model,
    groups: Sequence[str],
    labels: Mapping[str, Any] | str | None,
) -> dict[str, Any]:
    """Return what is asked as plain values, for the manifest.

    Args:
        labels: where devices' groups come from; None without groups.
    """
    return {
        **asdict(question), "rule": rule, "entries": query.entries, "norm": query.norm,
        "current": digest_of(fingerprint(current)), "candidate": digest_of(fingerprint(candidate)),
        "groups": list(groups), "labels": labels,
    }  # fmt: skip


def scoring(models: Sequence[Model], question: LaunchQuestion) -> Work:
    """Return what it takes of a phone to score these models, at most.

    A parameter is in one multiplication and one addition for each token, and four bytes long.
    """
    parameters = sum(value.numel() for m in models for value in m.parameters.values())
    flops = 2.0 * parameters * question.tokens_per_user
    return Work(4 * parameters, flops, 4 * parameters)


def check_models(current: Model, candidate: Model, tokenizer: Tokenizer) -> None:
    """Refuse models of another vocabulary; raises ValueError."""
    for name, model in (("the current model", current), ("the candidate", candidate)):
        if model.origin.get("tokenizer_digest") != tokenizer.digest:
            raise ValueError(
                f"{name} was trained with another vocabulary: models are compared on one"
            )


def fingerprint(model: Model) -> dict[str, str]:
    """Return a digest of each parameter, so that a resumed comparison has the same models."""
    return {
        name: hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()
        for name, value in model.parameters.items()
    }


def result_of(decision: Decision, measured: Measured) -> dict[str, Any]:
    """Return verdict and estimates, for the file of the result."""
    result: dict[str, Any] = {**asdict(decision), "measures": _plain(measured.whole, 0.95)}
    if measured.groups:
        result["groups"] = {
            name: _plain(found, measured.confidence, "interval_95_of_all_groups")
            for name, found in measured.groups.items()
        }
    return result


def _plain(
    found: Mapping[str, Estimate] | None, confidence: float, interval: str = "interval_95"
) -> dict[str, Any]:
    return {
        name: {**asdict(estimate), interval: list(estimate.interval(confidence))}
        for name, estimate in (found or {}).items()
    }
