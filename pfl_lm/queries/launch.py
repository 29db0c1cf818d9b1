"""`pfl-lm launch`: phones compare two models, and a rule that was stated before decides."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy import stats

from pfl_lm.dp.policy import Policy
from pfl_lm.evaluation.evaluate import ModelScorer, measure_users
from pfl_lm.evaluation.interfaces import HeldOut
from pfl_lm.models.file import Model
from pfl_lm.phones.fleet import Fleet
from pfl_lm.queries.ask import QuerySession, ask
from pfl_lm.queries.comparison import (
    PRIMARY,
    RANGES,
    Estimate,
    answer,
    comparison_query,
    error_of,
    estimates,
    users_needed,
)
from pfl_lm.queries.fleet import Work, invite, say_fleet
from pfl_lm.queries.folder import QuestionFolder
from pfl_lm.queries.manifest import describe, ticks
from pfl_lm.queries.people import AskedPeople, account_of
from pfl_lm.run.folder import digest_of, write_json
from pfl_lm.run.progress import ProgressListener
from pfl_lm.secagg.rounds import Kind
from pfl_lm.text.population import PopulationStore
from pfl_lm.text.tokenizer import Tokenizer
from pfl_lm.validate import at_least, below_one, positive, within

RESULT_FILE = "comparison.json"
Verdict = Literal["launch", "do not launch", "not enough phones"]


@dataclass(frozen=True)
class LaunchQuestion:
    """The rule, and whom it asks.

    Args:
        split: whose users compare the models; none of them should have trained either.
        alpha: chance to launch a model that is no better, at most; and to reject one that is
            better by ``gain`` or more.
        gain: mean gain of log-loss, in nats a prediction, that is worth a launch; 0.01 is 1% of
            perplexity.
        power: chance to launch a model that is better by ``gain``, which phones are counted for.
        spread: public guess of how much users differ in this gain, in nats; used before asking.
        tokens_per_user: a phone scores this much of its text at most.
        window: tokens that a model sees at once.
        cohort, aggregation, dropout, seed, fleet: as for any question.
    """

    split: Literal["train", "validation", "test"] = "test"
    alpha: float = 0.05
    gain: float = 0.01
    power: float = 0.9
    spread: float = 0.1
    tokens_per_user: int = 200
    window: int = 20
    cohort: int | None = None
    aggregation: Kind = "ideal"
    dropout: float = 0.0
    seed: int | None = None
    fleet: Fleet | None = None

    def __post_init__(self) -> None:
        within(1e-6, 0.5, alpha=self.alpha)
        within(0.5, 1 - 1e-6, power=self.power)
        positive(gain=self.gain, spread=self.spread)
        at_least(2, tokens_per_user=self.tokens_per_user)
        at_least(1, window=self.window)
        below_one(dropout=self.dropout)


@dataclass(frozen=True)
class Decision:
    """What the rule says.

    Attributes:
        verdict: of the rule.
        reason: in a sentence.
        phones_needed: how many phones tell a gain of ``gain`` with the stated chances, from what
            was measured; None where they suffice or nothing could be measured.
    """

    verdict: Verdict
    reason: str
    phones_needed: int | None = None


def plan(question: LaunchQuestion, users: int, deviation: float) -> str:
    """Say before anybody is asked how often the rule will be wrong."""
    error = error_of(question.spread, users, deviation)
    reach = stats.norm.isf(question.alpha)
    chance = stats.norm.sf(reach - question.gain / error)
    needed = users_needed(question.spread, question.gain, deviation, _deviations(question))
    return (
        f"{users:,} phones: a model that is no better is launched with chance "
        f"{question.alpha:.0%} at most; one that is better by {question.gain:g} nats is launched "
        f"with chance {chance:.0%} and rejected with {question.alpha:.0%} at most, if users differ "
        f"by {question.spread:g} nats. A chance of {question.power:.0%} takes {needed:,} phones."
    )


def decide(
    question: LaunchQuestion, found: Mapping[str, Estimate] | None, deviation: float
) -> Decision:
    """Apply the rule to what was measured.

    | one-sided bound | verdict |
    |---|---|
    | another measure's upper bound at 1 − alpha ÷ 2(M − 1) is below 0 | do not launch |
    | the gain's lower bound at 1 − alpha is above 0 | launch |
    | the gain's upper bound at 1 − alpha ÷ 2 is below ``gain`` | do not launch |
    | else | not enough phones, and how many it would take |

    Guarantees:
        A model whose mean gain is 0 or less is launched with chance at most alpha. One whose gain
        is ``gain`` or more and that is worse by no other measure is rejected with chance at most
        alpha (a union bound over the M bounds). Both as far as the estimates are normal, with an
        error that errs upward.
    """
    if found is None:
        return Decision("not enough phones", "Too few phones have text to measure anything.")
    main, alpha = found[PRIMARY], question.alpha
    for name, other in found.items():
        if name != PRIMARY and other.bound(1 - alpha / (2 * (len(found) - 1))) < 0:
            return Decision("do not launch", f"The candidate is worse by {name}.")
    low, high = main.bound(alpha), main.bound(1 - alpha / 2)
    if low > 0:
        return Decision("launch", f"The candidate gains at least {low:.4f} nats a prediction.")
    if high < question.gain:
        worth = f"{question.gain:g} are worth a launch"
        return Decision("do not launch", f"It gains at most {high:.4f} nats, and {worth}.")
    needed = users_needed(main.spread, question.gain, deviation, _deviations(question))
    text = f"The gain lies between {low:.4f} and {high:.4f} nats: these phones cannot tell."
    return Decision("not enough phones", text, needed)


def _deviations(question: LaunchQuestion) -> float:
    """Standard errors between 0 and the gain at which both stated chances hold."""
    return float(stats.norm.isf(question.alpha) + stats.norm.ppf(question.power))


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
) -> tuple[Decision, dict[str, Estimate] | None]:
    """Let phones compare two models and decide by the rule; write the folder ``path``.

    Args:
        ledgers: folder of the ledger of the split's users; by default ``ledgers`` beside the store.

    Guarantees:
        Those of a discovery of words: the cost is recorded before the sum is looked at, and a
        killed comparison goes on with the same noise or not at all.

    Raises:
        BudgetSpent: the comparison would exceed what is left of these users' total.
        ValueError: models, store, tokenizer and policy do not fit together, or the folder is not
            free.
    """
    listener = listener or ProgressListener()
    if store.tokenizer_digest != tokenizer.digest:
        raise ValueError(f"{store.folder} was built with another tokenizer; build it again")
    check_models(current, candidate, tokenizer)
    folder = QuestionFolder(Path(path), RESULT_FILE)
    users = store.users(question.split)
    session = QuerySession.of(
        policy, users, question.cohort, question.aggregation, question.dropout, question.fleet
    )
    query = comparison_query(session.policy.noise.min_dim)
    session.check(query)
    deviation = session.deviation(query)
    rule = plan(question, session.cohort, deviation)
    listener.say(rule)
    digests = [digest_of(fingerprint(model)) for model in (current, candidate)]
    asked = {
        **asdict(question), "rule": rule, "entries": query.entries, "norm": query.norm,
        "current": digests[0], "candidate": digests[1],
    }  # fmt: skip
    described = describe("comparison", RESULT_FILE, asked, session, store, policy)
    account = account_of(store, question.split, question.seed, ledgers)
    with AskedPeople(account, "comparison") as people:
        ledger, session = folder.open(described, session, people, question.seed, resume, listener)
        with ledger:
            work = scoring((current, candidate), question)
            cohort = invite(session, query, 0, 0.0, work, question.split)
            say_fleet(cohort, listener)
            asks = cohort.invited.tolist()
            gains = differences((current, candidate), store, tokenizer, question, asks, listener)
            sums = ask(
                session, query, 0, asks, lambda user: answer(gains[user]), ledger,
                ticks(listener), people.check, cohort.silent,
            )  # fmt: skip
            found = estimates(sums, deviation)
            decision = decide(question, found, deviation)
            write_json(folder.result_path, result_of(decision, found))
            folder.finish(ledger, people)
    return decision, found


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


def result_of(decision: Decision, found: Mapping[str, Estimate] | None) -> dict[str, Any]:
    """Return verdict and estimates, for the file of the result."""
    measures = {
        name: {**asdict(estimate), "interval_95": list(estimate.interval(0.95))}
        for name, estimate in (found or {}).items()
    }
    return {**asdict(decision), "measures": measures}
