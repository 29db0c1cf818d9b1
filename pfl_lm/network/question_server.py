"""The server that asks devices a question, with the service and the store of training."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pfl_lm.dp.ledger import Ledger
from pfl_lm.dp.policy import Policy
from pfl_lm.models.file import Model
from pfl_lm.native.tuning import give_memory_back
from pfl_lm.network import requirements
from pfl_lm.network.front_ends.group import FrontEnds
from pfl_lm.network.front_ends.port import make_room
from pfl_lm.network.listener import Listener
from pfl_lm.network.question_rounds import Content, QuestionServer, ask_round, recover
from pfl_lm.network.question_task import QuestionTask, first_round, session_for
from pfl_lm.network.recovery import open_store
from pfl_lm.network.server import Serving, doors
from pfl_lm.network.task_config import policy_digest
from pfl_lm.queries.ask import QuerySession
from pfl_lm.queries.comparison import Measured, measure
from pfl_lm.queries.discover import WordsQuestion, about, first_question, plain_question
from pfl_lm.queries.folder import QuestionFolder
from pfl_lm.queries.found import WORDS_FILE, FoundWord, write_words
from pfl_lm.queries.groups import noise_factor
from pfl_lm.queries.launch import RESULT_FILE, check_models, plain_comparison, result_of
from pfl_lm.queries.launch_rule import Decision, LaunchQuestion, decide, plan
from pfl_lm.queries.manifest import describe_served
from pfl_lm.queries.people import AskedPeople
from pfl_lm.queries.stated import Asked, plan_of, purpose_of
from pfl_lm.queries.two_models import TwoModels
from pfl_lm.run.folder import write_json
from pfl_lm.run.progress import ProgressListener
from pfl_lm.text.tokenizer import Tokenizer

log = logging.getLogger("pfl_lm.network")


def serve_words(
    question: WordsQuestion,
    tokenizer: Tokenizer,
    policy: Policy,
    path: Path,
    serving: Serving,
    listener: ProgressListener,
    resume: bool = False,
) -> list[FoundWord]:
    """Ask the devices that call for words that a vocabulary lacks; write the folder ``path``.

    A round that opens no sum is followed by another that asks the same, as long as the policy pays
    for rounds.

    Args:
        path: the question's folder, as ``queries.discover`` writes it, with ``rounds.sqlite``
            in place of the secret seed.
        serving: how devices call; a trial may have few devices, or noise from ``question.seed``.
        resume: go on with a question whose server was stopped or killed.

    Raises:
        BudgetSpent: the devices' total does not cover the question: nobody is asked.
        ValueError: as ``discover``; the question promises less than its policy and is no trial;
            other devices are enrolled than when it began; the address is taken; or no round opened
            a sum.
    """
    session = _session(policy, question.cohort, serving)
    start = first_question(question, session, tokenizer)
    asking = _Asking(start, tokenizer, policy, session, question.seed, question.denied)
    words: list[FoundWord] = []

    def write(path: Path, known: Asked) -> None:
        assert not isinstance(known, TwoModels)
        words.extend(known.found.values())
        write_words(path, words)

    folder = QuestionFolder(Path(path), WORDS_FILE)
    _serve(asking, plain_question(question), folder, write, serving, listener, resume)
    return words


def serve_comparison(
    question: LaunchQuestion,
    current: Model,
    candidate: Model,
    tokenizer: Tokenizer,
    policy: Policy,
    path: Path,
    serving: Serving,
    listener: ProgressListener,
    resume: bool = False,
) -> tuple[Decision, Measured]:
    """Let the devices that call compare two models, and decide by the rule.

    Args:
        question: its ``split`` says nothing here: each device has its own user's text.
        path, serving, resume: as for :func:`serve_words`.

    Raises:
        BudgetSpent, ValueError: as :func:`serve_words`, or models that do not fit together.
    """
    check_models(current, candidate, tokenizer)
    session = _session(policy, question.cohort, serving)
    groups = question.groups(policy)
    start = TwoModels((current, candidate), question.tokens_per_user, question.window, groups)
    query = start.query(session.policy.noise.min_dim)
    session.check(query)
    deviation = session.deviation(query)
    on_sums = deviation * noise_factor(len(groups))
    rule = plan(question, session.cohort, on_sums, groups)
    listener.say(rule)
    labels = "each device states its own" if groups else None
    plain = plain_comparison(question, rule, query, current, candidate, groups, labels)
    asking = _Asking(start, tokenizer, policy, session, question.seed)
    decided: list[tuple[Decision, Measured]] = []

    def write(path: Path, known: Asked) -> None:
        assert isinstance(known, TwoModels)
        assert known.sums is not None
        measured = measure(known.sums, deviation, groups)
        decided.append((decide(question, measured, on_sums), measured))
        write_json(path, result_of(*decided[0]))

    folder = QuestionFolder(Path(path), RESULT_FILE)
    _serve(asking, plain, folder, write, serving, listener, resume)
    return decided[0]


@dataclass(frozen=True)
class _Asking:
    """What is asked, and under which policy.

    Attributes:
        start: what is known before the first round.
        policy: as stated; a trial's session restates it.
        seed: of reproducible noise; None: each device draws its own.
        denied: words that are passed over.
    """

    start: Asked
    tokenizer: Tokenizer
    policy: Policy
    session: QuerySession
    seed: int | None
    denied: frozenset[str] = frozenset()

    def task(self, trial: bool) -> QuestionTask:
        """Return what devices are told, but for the run's id, and the cohorts' seed it gives."""
        return QuestionTask(
            run="",
            trial=trial,
            question=plan_of(self.start),
            cohort=self.session.cohort,
            rounds=self.session.policy.rounds,
            seed=self.seed or 0,
            reproducible=self.seed is not None,
            enrolled=self.session.population,
            tokenizer=self.tokenizer.digest,
            policy=policy_digest(self.policy),
        )


def _session(policy: Policy, cohort: int | None, serving: Serving) -> QuerySession:
    serving.keys.check_server()
    return session_for(policy, len(serving.keys.enrolled()), cohort, serving.trial)


def _serve(
    asking: _Asking,
    plain: Mapping[str, Any],
    folder: QuestionFolder,
    write: Callable[[Path, Asked], None],
    serving: Serving,
    listener: ProgressListener,
    resume: bool,
) -> None:
    """Ask all rounds that are left, write the result, and record the end.

    Args:
        plain: the question as plain values, for the manifest.
        write: writes the result of what is known in the end.
    """
    policy, identities = asking.policy, serving.keys.enrolled()
    task = asking.task(serving.trial)
    serving.require_free_addresses()
    if not serving.trial:
        task.check_run(policy)
        query = asking.start.query(policy.noise.min_dim)
        requirements.check_round(policy, first_round(asking.session, query))
    kind = purpose_of(task.question)
    described = describe_served(
        kind, folder.result, plain, asking.session, identities, policy, serving.trial
    )
    manifest = described | about(asking.tokenizer)
    account = None if serving.trial else serving.keys.account(serving.ledgers)
    with ExitStack() as opened:
        people = opened.enter_context(AskedPeople(account, kind, "a trial"))
        ledger = folder.open_served(manifest, asking.session, people, resume, listener)
        opened.enter_context(ledger)
        store = open_store(folder.path / "rounds.sqlite", ledger, identities)
        opened.enter_context(closing(store))
        seed = int(store.run, 16) if asking.seed is None else asking.seed
        task = replace(task, run=store.run, seed=seed)
        session, content = task.session(policy), Content()
        known, number = recover(session, asking.start, ledger, store)
        _, mailbox, door = doors(serving, store, content, task.text(), asking.start.most_cells)
        server = QuestionServer(
            session, task, asking.denied, ledger, people, store, mailbox,
            serving.limits, serving.keys.authority(), content, listener, serving.reached,
        )  # fmt: skip
        known = asyncio.run(_ask_all(server, door, known, number, serving))
        write(folder.result_path, known)
        folder.finish(ledger, people)


async def _ask_all(
    server: QuestionServer, door: Listener | FrontEnds, asked: Asked, number: int, serving: Serving
) -> Asked:
    """Answer devices and ask the rounds that are left, as long as the policy pays for them.

    Raises:
        ValueError: no round opened a sum.
    """
    session, mailbox = server.session, server.mailbox
    privacy = session.privacy(asked.query(session.policy.noise.min_dim))
    present = min(session.population, serving.present or session.cohort)
    least = min(present, max(3, privacy.least_reports))
    make_room(present, serving.front_ends)
    port = await door.start()
    log.info("listening on port %d for %d devices", port, session.population)
    try:
        while not asked.over and number < server.task.rounds:
            await mailbox.presence.gather(present, least)
            asked = await ask_round(server, asked, number)
            await asyncio.to_thread(give_memory_back)
            number += 1
        await mailbox.finish(f"the question is over after {number} rounds")
    finally:
        await door.stop(grace=1.0)
    if not asked.round:
        raise ValueError(_no_sum(server.ledger))
    return asked


def _no_sum(ledger: Ledger) -> str:
    """Say what a question without a sum has cost, and who can still be asked."""
    spent = any(entry["kind"] == "round" for entry in ledger.entries())
    return (
        "no round opened a sum, and the policy pays for no further one: "
        + ("what was spent stays spent" if spent else "the devices' budget lost nothing")
        + "; ask again in another folder. A device that reported has written the round down: it "
        "answers another question only within a total of its own (`pfl-lm device run --total`)"
    )
