"""How a server that was killed finds its rounds again; the cases are those of ``store``."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pfl_lm.dp.ledger import Ledger
from pfl_lm.network.store import OVER, RoundRow, Store
from pfl_lm.run.privacy import RunPrivacy
from pfl_lm.run.round import Release, abandon, ledger_entry
from pfl_lm.server.state import Broadcast

log = logging.getLogger("pfl_lm.network")


def open_store(path: Path, ledger: Ledger, identities: Mapping[int, bytes]) -> Store:
    """Open the store of a run, or start it where the ledger holds nothing but its beginning.

    Raises:
        ValueError: the store is missing or of another version, other devices are enrolled now, or
            ledger and store do not hold the same rounds.
    """
    begun = len(ledger.entries()) > 1
    if not begun and not path.is_file():
        return Store.create(path, identities)
    store = Store.open(path)
    if not begun and not store.rounds():
        store.close()
        return Store.create(path, identities)
    try:
        if store.devices() != identities:
            raise ValueError(
                "other devices are enrolled than when the run began; begin another run"
            )
        _check_rounds(ledger, store)
    except BaseException:
        store.close()
        raise
    return store


def _check_rounds(ledger: Ledger, store: Store) -> None:
    """Refuse a ledger and a store of which one lacks what the other has of a round.

    Raises:
        ValueError: naming both files, and the first such round.
    """
    entries = ledger.entries()
    debits = {entry["round"]: entry for entry in entries if entry["kind"] == "round"}
    abandoned = {entry["round"] for entry in entries if entry["kind"] == "abandoned"}
    rows = {row.round: row for row in store.rounds()}
    for number in sorted(rows.keys() | debits.keys()):
        row, debit = rows.get(number), debits.get(number)
        if not _agree(row, debit, number in abandoned):
            state = "nothing" if row is None else f"{row.reports or 0} reports, {row.state}"
            debited = "no debit" if debit is None else f"a debit of {debit['reports']} reports"
            raise ValueError(
                f"{store.path} has of round {number}: {state}; {ledger.path} has {debited}. One "
                "of the two files is an older copy, or of another run: put back the one that "
                "belongs to the other"
            )


def _agree(row: RoundRow | None, debit: Mapping[str, Any] | None, abandoned: bool) -> bool:
    """Whether store and ledger hold a round alike, or differ by no more than a crash leaves."""
    if row is None or row.state == "invited":
        return debit is None
    if row.state == "abandoned":
        return debit is None and abandoned
    if debit is None:
        return row.state not in OVER
    was_released = row.state in ("opened", "closed")
    return debit["reports"] == row.reports and (debit["released"] is not None) == was_released


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
