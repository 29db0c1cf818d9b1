"""Which public text is like theirs? Each phone votes for the clusters nearest to its own text.

Legend: K clusters, m entries of a device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pfl_lm.dp.policy import Policy
from pfl_lm.dp.sampler.arrays import Doubles
from pfl_lm.queries.ask import QuerySession, ask
from pfl_lm.queries.folder import QuestionFolder
from pfl_lm.queries.manifest import describe, ticks
from pfl_lm.queries.paid import open_paid
from pfl_lm.queries.people import AskedPeople, account_of
from pfl_lm.queries.query import Answer, Query, equal_weights
from pfl_lm.queries.shares import RESULT_FILE, ClusterShare, read_shares, shares_of, write_shares
from pfl_lm.run.progress import ProgressListener
from pfl_lm.secagg.rounds import Kind
from pfl_lm.text.clusters import Clusters
from pfl_lm.text.mixture import Mixture
from pfl_lm.text.population import PopulationStore
from pfl_lm.validate import at_least, below_one

CLUSTERS_FOLDER = "clusters"  # the very clusters that were asked for, beside the result
VERB = "mixture ask"


@dataclass(frozen=True)
class MixtureQuestion:
    """How the phones vote.

    Args:
        entries: m, the most clusters that one device names.
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
    """Return the query whose cells are the clusters: at most ``entries`` a device, norm 1."""
    labels = [cluster.label for cluster in clusters.clusters]
    return Query("nearest clusters of public text", labels, min(entries, len(labels)),
                 least_dim=least_dim)  # fmt: skip


def vote(clusters: Clusters, tokens: np.ndarray, entries: int) -> Answer:
    """Return what a device says: the clusters that its own text is likeliest under, norm 1.

    It names no cluster under which its text is less likely than in public text as a whole, and
    weighs those that it names alike.
    """
    scores = clusters.scores_of(tokens)
    nearest = np.argsort(-scores, kind="stable")[:entries]
    return equal_weights([int(cell) for cell in nearest if scores[cell] > 0])


def ask_for_mixture(
    question: MixtureQuestion,
    clusters: Clusters,
    store: PopulationStore,
    policy: Policy,
    path: Path,
    listener: ProgressListener | None = None,
    resume: bool = False,
    ledgers: Path | None = None,
) -> list[ClusterShare]:
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
    if store.tokenizer_digest != clusters.tokenizer_digest:
        raise ValueError(
            f"{store.folder} was built with another tokenizer than the clusters; build it again"
        )
    folder = QuestionFolder(Path(path), RESULT_FILE)
    session = QuerySession.of(
        policy, store.users("train"), question.cohort, question.aggregation, question.dropout
    )
    query = mixture_query(clusters, question.entries, session.policy.noise.min_dim)
    session.check(query)
    asked = {
        **asdict(question), "entries": query.entries, "norm": query.norm,
        "clusters": clusters.digest, "public_text": list(clusters.stores),
    }  # fmt: skip
    described = describe("mixture", RESULT_FILE, asked, session, store, policy)
    account = account_of(store, "train", question.seed, ledgers)
    with AskedPeople(account, "mixture") as people:
        ledger, session = folder.open(described, session, people, question.seed, resume, listener)
        with ledger:
            if not (folder.path / CLUSTERS_FOLDER).exists():
                clusters.save(folder.path / CLUSTERS_FOLDER)
            listener.say(f"asking {session.cohort:,} users which of {len(query.labels)} clusters "
                         "of public text are like theirs")  # fmt: skip
            sums = ask(
                session, query, 0, session.users(0),
                lambda user: vote(clusters, store.tokens("train", user), query.entries),
                ledger, ticks(listener), people.check,
            )  # fmt: skip
            found = shares_of(clusters, sums, session.deviation(query))
            write_shares(folder.result_path, found)
            folder.finish(ledger, people)
    return found


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
    return Mixture(clusters, _weights(clusters, shares), _votes(paid.manifest, paid.ledger_sha256),
                   keep)  # fmt: skip


def _weights(clusters: Clusters, shares: Sequence[ClusterShare]) -> Doubles:
    """Return float64[K], the weight of each cluster, from a table whose rows are in any order."""
    weights = {share.label: share.weight for share in shares}
    return np.array([weights[cluster.label] for cluster in clusters.clusters])


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
