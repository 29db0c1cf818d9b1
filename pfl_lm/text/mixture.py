"""Public text that is chosen by weights of words: the passages most like what people type.

Legend: W listed words, n passages.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pfl_lm.numbers import format_epsilon
from pfl_lm.text.clusters import Clusters, identity
from pfl_lm.text.passages import passages, public_stream
from pfl_lm.text.population import PopulationStore
from pfl_lm.validate import above_zero_in_unit


@dataclass(frozen=True)
class Mixture:
    """Weights that people were asked for, with what the asking cost them.

    ``pfl_lm.queries.mixture.open_mixture`` makes it, and refuses weights that nobody paid for.

    Attributes:
        clusters: of public text, with its listed words.
        weights: float64[W], above 0: how much oftener people name each listed word than passages
            of the public text do.
        votes: what a model that is made with it says of the votes: ``epsilon``, ``delta``,
            ``unit``, ``population``, ``statement`` and ``ledger``, the SHA-256 of the question's
            ledger.
        keep: share of the public text that is read, in (0, 1].
    """

    clusters: Clusters
    weights: npt.NDArray[np.float64]
    votes: dict[str, Any]
    keep: float = 0.25

    def __post_init__(self) -> None:
        above_zero_in_unit(keep=self.keep)

    @property
    def digest(self) -> str:
        """SHA-256 over all that decides which text is read."""
        stated = [self.clusters.digest, self.weights.tolist(), self.votes, self.keep]
        return hashlib.sha256(json.dumps(stated, sort_keys=True).encode()).hexdigest()

    def added_to(self, votes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the votes behind a model that knew ``votes`` before; the same vote counts once."""
        others = [vote for vote in votes if vote["ledger"] != self.votes["ledger"]]
        return [*others, self.votes]

    def check(self, store: PopulationStore) -> None:
        """Raise ValueError unless the clusters are those of this store."""
        stated, found = self.clusters.stores[0], identity(store)
        if stated["profile"] != found["profile"]:
            raise ValueError(
                f"--mixture: its clusters divide the public text {stated['name']!r}, and "
                f"{store.folder} is not the store that they were made of; ask with clusters of "
                "this one"
            )

    def choose(self, store: PopulationStore) -> np.ndarray:
        """Return the passages most like what people type, in the order of the store: unsigned[m].

        Passages are taken by falling affinity until they hold ``keep`` of the store's tokens.

        Raises:
            ValueError: the clusters are those of another store.
        """
        self.check(store)
        text = public_stream(store)
        bounds = passages(text, self.clusters.passage_tokens)
        affinity = self._affinity(text, bounds)
        order = np.argsort(-affinity, kind="stable")
        ends = np.cumsum(np.diff(bounds)[order])
        chosen = np.sort(order[: 1 + int(np.searchsorted(ends, self.keep * len(text)))])
        return np.concatenate([text[bounds[place] : bounds[place + 1]] for place in chosen])

    def _affinity(self, text: np.ndarray, bounds: np.ndarray) -> npt.NDArray[np.float64]:
        """Return float64[n]: of each passage, the mean of log weight over its tokens.

        A token that is no listed word counts as 0. This is the cross-entropy difference of Moore
        & Lewis 2010, "Intelligent selection of language model training data", with the votes in
        the place of a model of the people's text.
        """
        of_word = np.zeros(self.clusters.ratios.shape[1])
        of_word[self.clusters.words.ids] = np.log(self.weights)
        sums = np.add.reduceat(of_word[text], bounds[:-1])
        affinity: npt.NDArray[np.float64] = sums / np.diff(bounds)
        return affinity


def cost_of_votes(origin: Mapping[str, Any]) -> str:
    """Say what the votes behind a model cost, to be added to a statement; "" where there are none.

    Args:
        origin: a model file's, whose ``votes`` lists those that chose its public text.
    """
    return "".join(
        f" Votes of {vote['population']} chose the public text that it starts from: "
        f"ε = {format_epsilon(vote['epsilon'])}, δ = {vote['delta']:g} per {vote['unit']} who was "
        "asked, on top of this."
        for vote in origin.get("votes", ())
    )
