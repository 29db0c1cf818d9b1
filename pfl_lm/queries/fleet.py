"""A question to a fleet: who is able to answer, who vanishes, and what a person is told of it."""

from __future__ import annotations

from dataclasses import dataclass

from pfl_lm.dp.cohort import cohort as cohort_of
from pfl_lm.phones.fleet import phones
from pfl_lm.phones.round_timing import Demand, Selection
from pfl_lm.queries.ask import QuerySession
from pfl_lm.queries.query import Query
from pfl_lm.run.availability import Cohort, select
from pfl_lm.run.progress import ProgressListener


@dataclass(frozen=True)
class Work:
    """What an answer takes of a phone beside its cells.

    Attributes:
        memory_bytes, flops, download_bytes: of what the phone runs on its own text.
    """

    memory_bytes: int = 0
    flops: float = 0.0
    download_bytes: int = 0


CELLS_ALONE = Work()


def invite(
    session: QuerySession,
    query: Query,
    round: int,
    clock: float,
    work: Work = CELLS_ALONE,
    split: str = "train",
) -> Cohort:
    """Return who is asked in a round, and who of them falls silent.

    Args:
        clock: simulated seconds since the question began.
        split: whose phones they are.

    Raises:
        ValueError: the fleet can never fill a round.
    """
    fleet, users = session.fleet, cohort_of(session.rule, session.seed, round)
    if fleet is None:
        return Cohort(users, closed=clock)
    own = phones(fleet, session.seed, split, users)
    needed = _demand(session, query, work)
    selection = Selection(fleet, users, own, needed, session.cohort, session.seed, round)
    return select(selection, clock)


def _demand(session: QuerySession, query: Query, work: Work) -> Demand:
    """Say what an answer asks of every phone."""
    grid = session.privacy(query).grid(query.dim)
    cells = sum(len(label) + 1 for label in query.labels)
    return Demand(
        work.memory_bytes
        + cells
        + (4 + grid.integer.itemsize) * query.dim,  # labels, float32 and integer
        work.flops,
        work.download_bytes + cells,
        (grid.modulus_bits * grid.dim + 7) // 8,
    )


def say_fleet(cohort: Cohort, listener: ProgressListener) -> None:
    """Say how many phones of a fleet could answer, and what became of them."""
    if "fleet" not in cohort.figures:
        return
    figures = cohort.figures["fleet"]
    away = ", ".join(f"{count:,} {reason}" for reason, count in figures["rejected"].items())
    lost = ", ".join(f"{count:,} {reason}" for reason, count in figures["lost"].items() if count)
    listener.say(
        f"{figures['checked_in']:,} phones checked in ({away}); {len(cohort):,} were invited "
        f"{figures['opened_hours']:.1f} hours in, and {figures['minutes']:.1f} minutes passed; "
        f"lost: {lost or 'none'}"
    )
