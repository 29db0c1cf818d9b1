"""The server that asks devices for words, with the service and the store of training."""

from __future__ import annotations

import asyncio
import logging
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

from pfl_lm.dp.policy import Policy
from pfl_lm.network.listener import Listener
from pfl_lm.network.question_rounds import Content, QuestionServer, ask_round, recover
from pfl_lm.network.question_task import QuestionTask, session_for
from pfl_lm.network.recovery import open_store
from pfl_lm.network.server import Serving, doors
from pfl_lm.network.task_config import policy_digest
from pfl_lm.queries.discover import Words, WordsQuestion, about, first_question, plain_question
from pfl_lm.queries.folder import QuestionFolder
from pfl_lm.queries.found import WORDS_FILE, FoundWord, write_words
from pfl_lm.queries.manifest import describe_served
from pfl_lm.queries.people import AskedPeople
from pfl_lm.queries.stated import plan_of
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
    identities = serving.keys.enrolled()
    serving.keys.server_certificate().check_dates()
    session = session_for(policy, len(identities), question.cohort, serving.trial)
    words = first_question(question, session, tokenizer)
    task = QuestionTask(
        run="",
        trial=serving.trial,
        question=plan_of(words),
        cohort=session.cohort,
        rounds=session.policy.rounds,
        seed=question.seed or 0,
        reproducible=question.seed is not None,
        enrolled=len(identities),
        tokenizer=tokenizer.digest,
        policy=policy_digest(policy),
    )
    if not serving.trial:
        task.check_run(policy)
    folder = QuestionFolder(Path(path), WORDS_FILE)
    asked = describe_served(
        "words", WORDS_FILE, plain_question(question), session, identities, policy, serving.trial
    )
    account = None if serving.trial else serving.keys.account(serving.ledgers)
    with ExitStack() as opened:
        people = opened.enter_context(AskedPeople(account, "words", "a trial"))
        begun = asked | about(tokenizer)
        ledger = folder.open_served(begun, session, people, resume, listener)
        opened.enter_context(ledger)
        store = open_store(folder.path / "rounds.sqlite", ledger, identities)
        opened.enter_context(closing(store))
        if question.seed is None:
            task = replace(task, seed=int(store.run, 16))
        task = replace(task, run=store.run)
        known, number = recover(task.session(policy), words, ledger, store)
        content = Content()
        _, mailbox, door = doors(serving, store, content, task, words.most_cells)
        server = QuestionServer(
            task.session(policy), task, question.denied, ledger, people, store, mailbox,
            serving.limits, serving.keys.authority(), content, listener, serving.reached,
        )  # fmt: skip
        known = asyncio.run(_ask_all(server, door, known, number, serving.present))
        write_words(folder.result_path, list(known.found.values()))
        folder.finish(ledger, people)
    return list(known.found.values())


async def _ask_all(
    server: QuestionServer, door: Listener, words: Words, number: int, present: int | None
) -> Words:
    """Answer devices and ask the rounds that are left, as long as the policy pays for them.

    Raises:
        ValueError: no round opened a sum.
    """
    session, mailbox = server.session, server.mailbox
    privacy = session.privacy(words.query(session.policy.noise.min_dim))
    present = min(session.population, present or session.cohort)
    least = min(present, max(3, privacy.least_reports))
    port = await door.start()
    log.info("listening on port %d for %d devices", port, session.population)
    try:
        while not words.over and number < server.task.rounds:
            await mailbox.presence.gather(present, least)
            words = await ask_round(server, words, number)
            number += 1
        await mailbox.finish(f"the question is over after {number} rounds")
    finally:
        await door.stop(grace=1.0)
    if not words.round:
        raise ValueError(
            "no round opened a sum, and the policy pays for no further one: what was spent stays "
            "spent; ask again in another folder"
        )
    return words
