"""From noisy votes to weights of public text, and the table that holds both.

Everything here is post-processing of a released sum: it costs no privacy.

Legend: K clusters, σ deviation of the noise on a cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np

from pfl_lm.dp.sampler.arrays import Doubles
from pfl_lm.files import write_atomically
from pfl_lm.text.clusters import Clusters

RESULT_FILE = "mixture.tsv"
_HEADER = "cluster\tstore\tpublic_share\tnoisy_sum\tdeviations\tshare\tweight"


@dataclass(frozen=True)
class ClusterShare:
    """What the phones said of one cluster.

    Attributes:
        label: of the cluster.
        store: number of the store that it divides; 0 is the one that pretraining reads.
        public_share: of the tokens of its store.
        sum: noisy sum of the votes; a device adds at most 1 in ℓ2 over all clusters.
        deviations: the same in standard deviations of the noise.
        share: of all votes, negative sums counted as 0.
        weight: how much likelier its text is wanted than it is in its store; 0 outside of store 0.
    """

    label: str
    store: int
    public_share: float
    sum: float
    deviations: float
    share: float
    weight: float


def weights_of(sums: Doubles, public_shares: Doubles, deviation: float) -> Doubles:
    """Return how much likelier each cluster's text is wanted than it is in public text: float64[K].

    A negative sum counts as 0. The noise of all cells together, K·σ votes, is counted as votes for
    public text as it is: with few phones the weights come near 1, with many it hardly matters.

    Args:
        sums: float64[K], noisy votes.
        public_shares: float64[K], shares of the public tokens; a cluster without any weighs 0.
        deviation: σ.
    """
    votes, plain = np.maximum(sums, 0.0), len(sums) * deviation
    wanted = (votes + plain * public_shares) / (votes.sum() + plain)
    weights: Doubles = np.divide(
        wanted, public_shares, out=np.zeros(len(sums)), where=public_shares > 0
    )
    return weights


def shares_of(clusters: Clusters, sums: Doubles, deviation: float) -> list[ClusterShare]:
    """Return what the phones said of each cluster, in the order of the clusters."""
    public, first = clusters.public_shares(), np.array([c.store == 0 for c in clusters.clusters])
    weights = np.zeros(len(sums))
    weights[first] = weights_of(sums[first], public[first], deviation)
    shares = np.maximum(sums, 0.0) / max(np.maximum(sums, 0.0).sum(), 1e-300)
    return [
        ClusterShare(
            cluster.label, cluster.store, float(public[cell]), float(sums[cell]),
            float(sums[cell] / deviation), float(shares[cell]), float(weights[cell]),
        )
        for cell, cluster in enumerate(clusters.clusters)
    ]  # fmt: skip


def write_shares(path: Path, shares: Sequence[ClusterShare]) -> None:
    """Write the table, largest sum first, whole or not at all."""
    rows = sorted(shares, key=lambda share: (-share.sum, share.label))
    lines = [_HEADER, *("\t".join(_text(value) for value in astuple(row)) for row in rows)]
    with write_atomically(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _text(value: str | float) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def read_shares(path: Path) -> list[ClusterShare]:
    """Read the table; raises ValueError where it is damaged."""
    header, *lines = Path(path).read_text(encoding="utf-8").removesuffix("\n").split("\n")
    if header != _HEADER:
        raise ValueError(f"{path} is no table of shares: its header is {header!r}")
    found = []
    for number, line in enumerate(lines, 2):
        try:
            label, store, *figures = line.split("\t")
            public, total, deviations, share, weight = map(float, figures)
        except ValueError:
            raise ValueError(f"{path}:{number}: expected a cluster and six numbers") from None
        found.append(ClusterShare(label, int(store), public, total, deviations, share, weight))
    return found
