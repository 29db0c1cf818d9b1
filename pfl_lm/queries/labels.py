"""Which public group each user of a population is in: a file that says so, or a fleet's classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pfl_lm.files import sha256_of
from pfl_lm.phones.fleet import phones
from pfl_lm.queries.ask import QuerySession
from pfl_lm.queries.groups import place_of
from pfl_lm.queries.query import Cells
from pfl_lm.queries.table import TabTable
from pfl_lm.text.population import PopulationStore
from pfl_lm.text.population_build import BuildOptions
from pfl_lm.text.records import user_digest

PHONES = "phones"
_TABLE = TabTable("table of labels", ("user", "group"))


@dataclass(frozen=True)
class Labels:
    """The groups of a question, and where users' labels come from.

    Attributes:
        names: of the groups.
        stated: place of each user of the split among ``names``, int64[users]; None: the class of
            the user's phone in the question's fleet.
        source: as plain values, for the manifest.
    """

    names: tuple[str, ...] = ()
    stated: Cells | None = None
    source: Mapping[str, Any] | None = None

    def places(self, session: QuerySession, split: str, users: Sequence[int]) -> list[int | None]:
        """Return each user's place among the names; None where there are no groups."""
        if not self.names:
            return [None] * len(users)
        chosen = np.array(users, dtype=np.int64)
        if self.stated is not None:
            return [int(place) for place in self.stated[chosen]]
        assert session.fleet is not None
        place = [place_of(name, self.names, "fleet") for name in session.fleet.names]
        return [place[kind] for kind in phones(session.fleet, session.seed, split, chosen).profile]


def read_labels(path: Path, names: tuple[str, ...], store: PopulationStore, split: str) -> Labels:
    """Read a table with the columns ``user`` and ``group``.

    It may name more users than the split has. Where the groups have one called "other", users that
    the table does not name are in it.

    Raises:
        ValueError: no such table; a user twice, or a user of the split without a label; or a group
            that is none of ``names``.
    """
    number_of = _numbers(store, split)
    places = np.full(store.users(split), -1, dtype=np.int64)
    for line, (user, group) in _TABLE.read(path):
        place, at = place_of(group, names, line), number_of(user)
        if at is None:
            continue
        if places[at] >= 0:
            raise ValueError(f"{line}: user {user!r} is there twice; keep one row of them")
        places[at] = place
    unnamed = int((places < 0).sum())
    if unnamed == len(places):
        raise ValueError(
            f"{path} names no user of {store.folder}'s {split} split; write the ids of its input, "
            "and build it with --keep-user-ids where it has a --split-key of its own"
        )
    if unnamed:
        source = f"{path}: {unnamed:,} of {len(places):,} {split} users have no row"
        places[places < 0] = place_of(None, names, source)
    return Labels(names, places, {"file": path.name, "sha256": sha256_of(path)})


def phone_labels(names: tuple[str, ...], session: QuerySession) -> Labels:
    """Return labels that are the classes of a fleet's phones; ValueError where they do not fit."""
    if session.fleet is None:
        raise ValueError(
            f"--groups {PHONES}: state --fleet, whose classes of phones are the groups"
        )
    labels = Labels(names, None, {"fleet": session.fleet.names})
    labels.places(session, "train", [])
    return labels


def _numbers(store: PopulationStore, split: str) -> Callable[[str], int | None]:
    """Return a function from a user's id to the user's number in the split; None: not there."""
    if (store.folder / f"{split}.ids").is_file():
        return {user: number for number, user in enumerate(store.user_ids(split))}.get
    own = {store.user_digest(split, user): user for user in range(store.users(split))}
    key = BuildOptions().split_key
    return lambda user: own.get(user_digest(user, key)[0])
