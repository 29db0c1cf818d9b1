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
from pfl_lm.queries import prefix_tree, word_list
from pfl_lm.queries.ask import QuerySession, ask
from pfl_lm.queries.folder import QuestionFolder
from pfl_lm.queries.found import WORDS_FILE, FoundWord, write_words
from pfl_lm.queries.manifest import describe, ticks
from pfl_lm.queries.people import AskedPeople, account_of
from pfl_lm.queries.query import Query
from pfl_lm.queries.word_list import OwnWords
from pfl_lm.run.folder import digest_of
from pfl_lm.run.progress import ProgressListener
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

    def __post_init__(self) -> None:
        at_least(1, entries=self.entries, cohort=self.cohort, candidates=self.candidates)
        within(1, 1 << 22, cells=self.cells, candidates=self.candidates)
        positive(false_positives=self.false_positives)
        below_one(dropout=self.dropout)


Ask = Callable[..., Doubles]  # as ``queries.ask.ask``
Start = Query | prefix_tree.Tree  # of the closed domain, of the open one


def first_question(question: WordsQuestion, session: QuerySession, tokenizer: Tokenizer) -> Start:
    """Return what is asked first; everything that can be wrong with a question shows here.

    Raises:
        ValueError: a list that cannot be read or has no word to ask for, or too few cells.
    """
    least = session.policy.noise.min_dim
    if question.domain == "closed":
        words = word_list.candidates(
            tokenizer, question.candidates, question.candidates_from, question.denied
        )
        query = word_list.word_query(words, question.entries, least)
        session.check(query)
        return query
    letters = prefix_tree.alphabet(tokenizer)
    rounds, false_positives = session.policy.rounds, question.false_positives
    tree = prefix_tree.Tree(
        prefix_tree.TreePlan(rounds, question.entries, question.cells, false_positives, letters)
    )
    session.check(tree.query(least))
    return tree


def find_words(
    question: WordsQuestion,
    session: QuerySession,
    start: Start,
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
    if isinstance(start, prefix_tree.Tree):
        tree = start
        while not tree.over:
            tree = _next_round(question, session, tree, own, ledger, listener, ask)
        return list(tree.found.values())
    query, cell_of = start, {word: cell for cell, word in enumerate(start.labels)}
    listener.say(f"asking {session.cohort:,} users for {len(cell_of):,} words of a public list")
    sums = ask(
        session, query, 0, session.users(0),
        lambda user: word_list.answer(own[user], cell_of, query.entries),
        ledger, ticks(listener),
    )  # fmt: skip
    return word_list.believed(query, sums, session.deviation(query), question.false_positives)


def _next_round(
    question: WordsQuestion,
    session: QuerySession,
    tree: prefix_tree.Tree,
    own: Sequence[OwnWords],
    ledger: Ledger,
    listener: ProgressListener,
    ask: Ask,
) -> prefix_tree.Tree:
    """Ask one round of the open domain, and go down the tree by its sum."""
    query = tree.query(session.policy.noise.min_dim)
    cell_of = {label: cell for cell, label in enumerate(query.labels)}
    listener.say(
        f"round {tree.round + 1} of {tree.plan.rounds}: asking {session.cohort:,} users for "
        f"{query.name}, {len(tree.prefixes):,} beginnings, {len(query.labels):,} cells"
    )
    sums = ask(
        session, query, tree.round, session.users(tree.round),
        lambda user: tree.answer(own[user], cell_of, question.denied),
        ledger, ticks(listener),
    )  # fmt: skip
    after = tree.descend(query, sums, session.deviation(query))
    listener.say(f"{len(after.found):,} words so far")
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
    if store.tokenizer_digest != tokenizer.digest:
        raise ValueError(f"{store.folder} was built with another tokenizer; build it again")
    folder = QuestionFolder(Path(path), WORDS_FILE)
    session = QuerySession.of(
        policy, store.users("train"), question.cohort, question.aggregation, question.dropout
    )
    start = first_question(question, session, tokenizer)
    own = [most_used_first(words) for words in store.unknown_words("train")]
    asked = _asked(question, session, store, tokenizer, policy)
    account = account_of(store, "train", question.seed, ledgers)
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


def _asked(
    question: WordsQuestion,
    session: QuerySession,
    store: PopulationStore,
    tokenizer: Tokenizer,
    stated: Policy,
) -> dict[str, Any]:
    """Describe the question for its manifest."""
    listed = question.candidates_from
    asked = {
        **asdict(question),
        "candidates_from": None if listed is None else sha256_of(listed),
        "denied": digest_of(sorted(question.denied)),
        "norm": 1.0,
    }
    about = {
        "tokenizer": {"digest": tokenizer.digest, "vocabulary_size": tokenizer.vocabulary_size}
    }
    return describe("words", WORDS_FILE, asked, session, store, stated) | about
