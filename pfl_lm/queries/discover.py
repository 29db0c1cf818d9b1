"""`pfl-lm words discover`: from a store's users to a list of words that the ledger paid for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pfl_lm.dp.ledger import Ledger
from pfl_lm.dp.policy import Policy
from pfl_lm.dp.sampler.arrays import Doubles
from pfl_lm.files import sha256_of
from pfl_lm.phones.fleet import Fleet
from pfl_lm.queries import prefix_tree, word_list
from pfl_lm.queries.ask import QuerySession, ask
from pfl_lm.queries.fleet import invite, say_fleet
from pfl_lm.queries.folder import QuestionFolder
from pfl_lm.queries.found import WORDS_FILE, FoundWord, write_words
from pfl_lm.queries.manifest import describe, ticks
from pfl_lm.queries.people import AskedPeople, account_of
from pfl_lm.queries.query import Query
from pfl_lm.queries.word_list import OwnWords
from pfl_lm.run.availability import Cohort
from pfl_lm.run.folder import digest_of
from pfl_lm.run.progress import ProgressListener
from pfl_lm.run.same_people import say_charged_elsewhere
from pfl_lm.secagg.rounds import Kind
from pfl_lm.text.population import PopulationStore
from pfl_lm.text.tokenizer import Tokenizer
from pfl_lm.validate import at_least, below_one, positive, within


@dataclass(frozen=True)
class WordsQuestion:
    """What is asked, and of whom.

    Args:
        domain: ``closed``: words of a public list; ``open``: any word, down a prefix tree.
        entries: the most words that one device names in a round.
        candidates: words of the public list that are asked for (closed).
        candidates_from: the public list; None: wordfreq's.
        cells: the most cells of a round (open).
        false_positives: expected number of listed words that nobody named, at most.
        denied: words that are never asked for.
        cohort: users asked in a round; None: as many as the policy's report goal and separation
            allow.
        aggregation: how the answers are summed.
        dropout: share of the users asked who fall silent, before any of their messages.
        fleet: the users' phones; they decide who answers, in place of a dropout.
        seed: None: a secret one, erased at the end; a number makes the outcome repeatable.
    """

    domain: Literal["closed", "open"] = "closed"
    entries: int = 20
    candidates: int = 100_000
    candidates_from: Path | None = None
    cells: int = 1 << 18
    false_positives: float = 0.02
    denied: frozenset[str] = frozenset()
    cohort: int | None = None
    aggregation: Kind = "ideal"
    dropout: float = 0.0
    seed: int | None = None
    fleet: Fleet | None = None

    def __post_init__(self) -> None:
        at_least(1, entries=self.entries, cohort=self.cohort, candidates=self.candidates)
        within(1, 1 << 22, cells=self.cells, candidates=self.candidates)
        positive(false_positives=self.false_positives)
        below_one(dropout=self.dropout)


Ask = Callable[..., Doubles]  # as ``queries.ask.ask``
Words = word_list.WordList | prefix_tree.Tree  # what is known, in the closed and the open domain


def first_question(question: WordsQuestion, session: QuerySession, tokenizer: Tokenizer) -> Words:
    """Return what is asked first; everything that can be wrong with a question shows here.

    Raises:
        ValueError: a list that cannot be read or has no word to ask for, or too few cells.
    """
    words = _nothing_known(question, session.policy.rounds, tokenizer)
    session.check(words.query(session.policy.noise.min_dim))
    return words


def _nothing_known(question: WordsQuestion, rounds: int, tokenizer: Tokenizer) -> Words:
    entries, false_positives = question.entries, question.false_positives
    if question.domain == "closed":
        listed = word_list.candidates(
            tokenizer, question.candidates, question.candidates_from, question.denied
        )
        return word_list.WordList(tuple(listed), min(entries, len(listed)), false_positives)
    letters = prefix_tree.alphabet(tokenizer)
    return prefix_tree.Tree(
        prefix_tree.TreePlan(rounds, entries, question.cells, false_positives, letters)
    )


def find_words(
    question: WordsQuestion,
    session: QuerySession,
    start: Words,
    own: Sequence[OwnWords],
    ledger: Ledger,
    listener: ProgressListener | None = None,
    ask: Ask = ask,
) -> list[FoundWord]:
    """Ask users for words that a vocabulary lacks.

    Args:
        start: as :func:`first_question` returns it.
        own: by user, the words of the device that the vocabulary lacks, most used first.
        ledger: is debited for every round before its sum is looked at.
        ask: puts one query to users; a benchmark may sum faster.

    Raises:
        ValueError: the policy does not pay for the rounds, or asks users too often.
    """
    listener = listener or ProgressListener()
    words, clock = start, 0.0
    while not words.over:
        query = words.query(session.policy.noise.min_dim)
        listener.say(f"asking {session.cohort:,} users for {words.say(query)}")
        cohort = invite(session, query, words.round, clock)
        say_fleet(cohort, listener)
        words = _next_round(question, session, words, query, cohort, own, ledger, listener, ask)
        clock = cohort.closed
    return list(words.found.values())


def _next_round(
    question: WordsQuestion,
    session: QuerySession,
    words: Words,
    query: Query,
    cohort: Cohort,
    own: Sequence[OwnWords],
    ledger: Ledger,
    listener: ProgressListener,
    ask: Ask,
) -> Words:
    """Ask one round, and learn from its sum."""
    cell_of = {label: cell for cell, label in enumerate(query.labels)}
    if cohort.silent is not None:
        ask = partial(ask, silent=cohort.silent)
    sums = ask(
        session, query, words.round, cohort.invited.tolist(),
        lambda user: words.answer(own[user], cell_of, question.denied),
        ledger, ticks(listener),
    )  # fmt: skip
    after = words.descend(query, sums, session.deviation(query))
    listener.say(after.so_far())
    return after


def discover(
    question: WordsQuestion,
    store: PopulationStore,
    tokenizer: Tokenizer,
    policy: Policy,
    path: Path,
    listener: ProgressListener | None = None,
    resume: bool = False,
    ledgers: Path | None = None,
) -> list[FoundWord]:
    """Ask a store's train users for new words and write the folder ``path``.

    Args:
        resume: go on with a question that was interrupted: it is asked again under the same seed,
            which gives the same sums to the byte, so nothing new is released and the ledger counts
            each round once.
        ledgers: folder of the ledger of these users, which training debits too; by default
            ``ledgers`` beside the store.

    Guarantees:
        The ledger holds what each round cost before its sum is looked at, and names the finished
        list by its digest. A killed discovery never asks again with other noise: without the seed
        it refuses to go on.

    Raises:
        BudgetSpent: the question would exceed what is left of these users' total.
        ValueError: store, tokenizer and policy do not fit together, the folder is in use or holds
            something else, or the policy does not pay for the question.
    """
    listener = listener or ProgressListener()
    store.require_vocabulary(tokenizer.digest, "the question names")
    folder = QuestionFolder(Path(path), WORDS_FILE)
    session = QuerySession.of(
        policy, store.users("train"), question.cohort, question.aggregation, question.dropout,
        question.fleet,
    )  # fmt: skip
    start = first_question(question, session, tokenizer)
    own = [most_used_first(words) for words in store.unknown_words("train")]
    described = describe("words", WORDS_FILE, plain_question(question), session, store, policy)
    asked = described | about(tokenizer)
    account = account_of(store, "train", question.seed, ledgers)
    say_charged_elsewhere(store, "train", account, listener)
    with AskedPeople(account, "words") as people:
        ledger, session = folder.open(asked, session, people, question.seed, resume, listener)
        with ledger:
            paid = partial(ask, check=people.check)
            words = find_words(question, session, start, own, ledger, listener, paid)
            write_words(folder.result_path, words)
            folder.finish(ledger, people)
    return words


def most_used_first(counts: dict[str, int]) -> list[str]:
    """Return a device's words in the order in which it names them; ties by the alphabet."""
    return sorted(counts, key=lambda word: (-counts[word], word))


def plain_question(question: WordsQuestion) -> dict[str, Any]:
    """Return the question as its manifest has it: files and lists by their digests."""
    listed = question.candidates_from
    return {
        **asdict(question),
        "candidates_from": None if listed is None else sha256_of(listed),
        "denied": digest_of(sorted(question.denied)),
        "norm": 1.0,
    }


def about(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return what a manifest says of the vocabulary that lacks the words."""
    return {"tokenizer": {"digest": tokenizer.digest, "vocabulary_size": tokenizer.vocabulary_size}}
