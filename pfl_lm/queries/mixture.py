"""Which public text is like theirs? Each phone votes for the clusters nearest to its own text.

It also names its words among the commonest of public text. The clusters tell a person which text
is like theirs, and score other stores. The words decide which passages are: a word says more of
how people write (hello, thanks, anyone) than a cluster of topics does.

Legend: K clusters, W listed words, m clusters that a device names.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pfl_lm.dp.ledger import Ledger
from pfl_lm.dp.policy import Policy
from pfl_lm.dp.sampler.arrays import Doubles
from pfl_lm.queries.ask import QuerySession, ask
from pfl_lm.queries.folder import QuestionFolder
from pfl_lm.queries.manifest import describe, ticks
from pfl_lm.queries.paid import open_paid
from pfl_lm.queries.people import AskedPeople, account_of
from pfl_lm.queries.query import Answer, Query, equal_weights
from pfl_lm.queries.shares import RESULT_FILE, CellShare, read_shares, shares_of, write_shares
from pfl_lm.run.progress import ProgressListener
from pfl_lm.run.same_people import say_charged_elsewhere
from pfl_lm.secagg.rounds import Kind
from pfl_lm.text.clusters import Clusters
from pfl_lm.text.listed_words import MOST_NAMED
from pfl_lm.text.mixture import Mixture
from pfl_lm.text.population import PopulationStore
from pfl_lm.validate import at_least, below_one

CLUSTERS_FOLDER = "clusters"  # the very clusters that were asked for, beside the result
VERB = "mixture ask"
_CLUSTERS = 0.1  # A: of the squared norm; the words have the rest


@dataclass(frozen=True)
class MixtureQuestion:
    """How the phones vote.

    Args:
        entries: m, the most clusters that one device names, beside its words.
        cohort, aggregation, dropout, seed: as for any question.
    """

    entries: int = 1
    cohort: int | None = None
    aggregation: Kind = "ideal"
    dropout: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        at_least(1, entries=self.entries, cohort=self.cohort)
        below_one(dropout=self.dropout)


def mixture_query(clusters: Clusters, entries: int, least_dim: int) -> Query:
    """Return the query: a cell for each cluster, then one for each listed word; norm 1.

    A device fills at most ``entries`` clusters and the cells of ``MOST_NAMED`` words.
    """
    labels = [cluster.label for cluster in clusters.clusters]
    most = min(entries, len(labels)) + min(MOST_NAMED, len(clusters.words.ids))
    labels += [f"word {label}" for label in clusters.words.labels]
    return Query("what public text is like theirs", labels, most, least_dim=least_dim)


def vote(clusters: Clusters, tokens: np.ndarray, entries: int) -> Answer:
    """Return what a device says: √A ÷ √m to each of m clusters, √(1 − A) ÷ √w to each of w words.

    It names the m ≤ ``entries`` clusters that its text is likeliest under, and none under which it
    is less likely than in public text as a whole; and its w most used listed words.

    Guarantees:
        Its norm is at most 1, up to float32's rounding: A for the clusters, 1 − A for the words.
    """
    scores = clusters.scores_of(tokens)
    nearest = np.argsort(-scores, kind="stable")[:entries]
    named = [int(cell) for cell in nearest if scores[cell] > 0]
    words = [len(scores) + place for place in clusters.words.named(tokens)]
    parts = (
        equal_weights(named, math.sqrt(_CLUSTERS)),
        equal_weights(words, math.sqrt(1 - _CLUSTERS)),
    )
    return Answer(
        np.concatenate([part.cells for part in parts]),
        np.concatenate([part.values for part in parts]),
    )


def expected_votes(clusters: Clusters, reports: int, entries: int) -> Doubles:
    """Return what as many passages of public text would say: float64[K + W].

    A cluster's is its share of the first store's tokens, as if each text named ``entries``; of
    another store's it is 0.
    """
    first = np.array([cluster.store == 0 for cluster in clusters.clusters])
    shares = np.where(first, clusters.public_shares(), 0.0)
    both = (
        math.sqrt(_CLUSTERS * entries) * shares,
        math.sqrt(1 - _CLUSTERS) * clusters.words.means,
    )
    return reports * np.concatenate(both)


def ask_for_mixture(
    question: MixtureQuestion,
    clusters: Clusters,
    store: PopulationStore,
    policy: Policy,
    path: Path,
    listener: ProgressListener | None = None,
    resume: bool = False,
    ledgers: Path | None = None,
) -> list[CellShare]:
    """Ask a store's train users which public text is like theirs; write the folder ``path``.

    Args:
        clusters: as ``Clusters.open`` returns them.
        resume: go on with a question that was interrupted, with the same noise.
        ledgers: folder of the ledger of these users; by default ``ledgers`` beside the store.

    Guarantees:
        Those of a discovery of words: the cost is recorded before the sum is looked at, and a
        killed question goes on with the same noise or not at all.

    Raises:
        BudgetSpent: the question would exceed what is left of these users' total.
        ValueError: clusters, store and policy do not fit together, or the folder is not free.
    """
    listener = listener or ProgressListener()
    store.require_vocabulary(clusters.tokenizer_digest, "the clusters")
    folder = QuestionFolder(Path(path), RESULT_FILE)
    session = QuerySession.of(
        policy, store.users("train"), question.cohort, question.aggregation, question.dropout
    )
    query = mixture_query(clusters, question.entries, session.policy.noise.min_dim)
    session.check(query)
    asked = {
        **asdict(question), "entries": query.entries, "nearest": question.entries,
        "norm": query.norm,
        "clusters": clusters.digest, "public_text": list(clusters.stores),
    }  # fmt: skip
    described = describe("mixture", RESULT_FILE, asked, session, store, policy)
    account = account_of(store, "train", question.seed, ledgers)
    say_charged_elsewhere(store, "train", account, listener)
    with AskedPeople(account, "mixture") as people:
        ledger, session = folder.open(described, session, people, question.seed, resume, listener)
        with ledger:
            if not (folder.path / CLUSTERS_FOLDER).exists():
                clusters.save(folder.path / CLUSTERS_FOLDER)
            listener.say(
                f"asking {session.cohort:,} users about {len(clusters.clusters)} clusters and "
                f"{len(clusters.words.ids):,} words of public text"
            )
            sums = ask(
                session, query, 0, session.users(0),
                lambda user: vote(clusters, store.tokens("train", user), question.entries),
                ledger, ticks(listener), people.check,
            )  # fmt: skip
            expected = expected_votes(clusters, _reports(ledger), question.entries)
            found = shares_of(query.labels, sums, expected, session.deviation(query))
            write_shares(folder.result_path, found)
            folder.finish(ledger, people)
    return found


def _reports(ledger: Ledger) -> int:
    """Return how many devices are in the sum of the last round; the others fell silent."""
    rounds = [entry for entry in ledger.entries() if entry["kind"] == "round"]
    return int(rounds[-1]["reports"])


def open_mixture(folder: Path, keep: float) -> Mixture:
    """Open the outcome of a vote, once the ledger is seen to have paid for it.

    Args:
        keep: share of the public text that is read.

    Raises:
        ValueError: nothing shows that the shares were paid for (see ``queries.paid.open_paid``), or
            the clusters are not those that were asked for.
    """
    paths = QuestionFolder(Path(folder), RESULT_FILE)
    paid = open_paid(paths, "shares", VERB)
    clusters = Clusters.open(paths.path / CLUSTERS_FOLDER)
    shares = read_shares(paths.result_path)
    if clusters.digest != paid.manifest["asked"]["clusters"]:
        raise ValueError(f"{folder}: {CLUSTERS_FOLDER} are not those that the phones voted for")
    weights = np.array([share.weight for share in shares[len(clusters.clusters) :]])
    if len(weights) != len(clusters.words.ids):
        raise ValueError(f"{paths.result_path} has other cells than the clusters")
    return Mixture(clusters, weights, _votes(paid.manifest, paid.ledger_sha256), keep)


def _votes(manifest: dict[str, Any], ledger_sha256: str) -> dict[str, Any]:
    """Return what a model says of the votes that chose its text."""
    return {
        "epsilon": manifest["policy"]["epsilon"],
        "delta": manifest["policy"]["delta"],
        "unit": manifest["policy"]["unit"],
        "population": manifest["population"]["name"],
        "statement": manifest["statements"]["simulated"],
        "ledger": ledger_sha256,
    }
