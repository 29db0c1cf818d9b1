"""People who are in another store too: what was charged to them there, no total of this one counts.

A population's ledger is named by a digest of who is in a split. A store that was built again with
one user more has other people, so its ledger begins with nothing spent. Stores that lie side by
side are compared, user by user, by the digests of their ids.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pfl_lm.dp.population_ledger import PopulationAccount
from pfl_lm.dp.population_spent import population_spent
from pfl_lm.numbers import format_epsilon
from pfl_lm.run.progress import ProgressListener
from pfl_lm.text.population import (
    PROFILE_FILE,
    SPLITS,
    USER_DIGEST_BYTES,
    Population,
    PopulationStore,
)


def say_charged_elsewhere(
    people: Population, split: str, account: PopulationAccount | None, listener: ProgressListener
) -> None:
    """Tell a person which users of a split were charged in the ledgers of other people too.

    One line for each split of a store beside this one that shares users with it and has spent
    rounds of a ledger in the same folder. Ids that were digested with another key are not
    recognised.

    Args:
        people: of whom the split is; invented users are nobody.
        account: of the split; None where nobody's budget is spent.
    """
    if account is not None and isinstance(people, PopulationStore):
        for line in _charged_elsewhere(people, split, account):
            listener.say(line)


def _charged_elsewhere(
    store: PopulationStore, split: str, account: PopulationAccount
) -> Iterator[str]:
    own = _users(store, split)
    for other, name in _others(store):
        ledger = replace(account, digest=other.digest_of(name)).path
        if ledger == account.path or not ledger.is_file():
            continue
        spent = population_spent(ledger)
        common = len(np.intersect1d(own, _users(other, name)))
        if common and spent.cost is not None and spent.cost.participations:
            yield (
                f"{common:,} of these {len(own):,} people are {name} users of {other.folder} too, "
                f"where ε = {format_epsilon(spent.cost.epsilon)} was charged to them: what both "
                "cost a person adds up, and neither ledger counts it. Use one store for all runs "
                "and questions on the same people"
            )


def _others(store: PopulationStore) -> Iterator[tuple[PopulationStore, str]]:
    """Yield the splits of the stores that lie beside a store; what is damaged is passed over."""
    here = Path(store.folder).resolve()
    for path in sorted(here.parent.glob(f"*/{PROFILE_FILE}")):
        if path.parent.resolve() == here:
            continue
        try:
            other = PopulationStore.open(path.parent)
        except (OSError, ValueError):
            continue
        yield from ((other, split) for split in SPLITS if other.users(split))


def _users(store: PopulationStore, split: str) -> npt.NDArray[np.void]:
    """Return the digests of a split's users, as they stand in the store: void[users]."""
    content = (store.folder / f"{split}.users").read_bytes()
    return np.frombuffer(content, dtype=f"V{USER_DIGEST_BYTES}")
