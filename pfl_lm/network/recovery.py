"""How a server that was killed finds its rounds again; the cases are those of ``store``."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from pfl_lm.dp.ledger import Ledger
from pfl_lm.network.store import RoundRow, Store
from pfl_lm.run.privacy import RunPrivacy
from pfl_lm.run.round import Release, abandon, ledger_entry
from pfl_lm.server.state import Broadcast

log = logging.getLogger("pfl_lm.network")


def open_store(path: Path, ledger: Ledger, identities: Mapping[int, bytes]) -> Store:
    """Open the store of a run, or start it where the ledger holds nothing but its beginning.

    Raises:
        ValueError: the store is missing or of another version, or other devices are enrolled now.
    """
    begun = len(ledger.entries()) > 1
    if not begun and not path.is_file():
        return Store.create(path, identities)
    store = Store.open(path)
    if not begun and not store.rounds():
        store.close()
        return Store.create(path, identities)
    if store.devices() != identities:
        store.close()
        raise ValueError("other devices are enrolled than when the run began; begin another run")
    return store


def end_round(
    privacy: RunPrivacy,
    broadcast: Broadcast,
    invited: int,
    ledger: Ledger,
    store: Store,
    row: RoundRow,
    released: Release | None,
) -> None:
    """End the round in which a server was killed: in the ledger first, then in the store.

    Args:
        invited: devices in its cohort.
        released: what the round released, where the store has its mean.
    """
    if row.state == "opened":
        assert row.reports is not None
        assert released is not None
        entry = ledger_entry(privacy, broadcast, invited, row.reports, released)
        ledger.record_round(row.round, entry)
        store.closed(row.round)
        log.warning("round %d was opened when the server stopped: its sum counts", row.round)
    elif row.state == "asking":
        assert row.reports is not None
        if row.round not in [e["round"] for e in ledger.entries() if e["kind"] == "round"]:
            entry = ledger_entry(privacy, broadcast, invited, row.reports, None)
            ledger.record_round(row.round, entry)
        store.lost(row.round)
        log.warning("round %d may have been answered and is lost: it stays spent", row.round)
    else:
        if not any(e["kind"] == "abandoned" and e["round"] == row.round for e in ledger.entries()):
            abandon(row.round, 0, ledger)
        store.abandoned(row.round)
        log.warning("round %d was under way when the server stopped: abandoned", row.round)
