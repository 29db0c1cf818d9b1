"""One round of a question over the network, as a straight line, and what a killed server finds.

The counterpart of ``rounds`` for a question: the same mailbox, store and order of durable writes.
What devices download in place of a model is the round's content; in place of a model, what is known
of the question moves on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pfl_lm.dp.ledger import Ledger
from pfl_lm.network.mailbox import Mailbox
from pfl_lm.network.question_task import QuestionTask, round_config
from pfl_lm.network.recovery import end_round
from pfl_lm.network.rounds import end_unopened, open_sum
from pfl_lm.network.store import OVER, Store
from pfl_lm.network.transport import CHUNK_BYTES, Limits
from pfl_lm.queries.ask import QuerySession, broadcast_of, check_round, sums_of
from pfl_lm.queries.people import AskedPeople
from pfl_lm.queries.stated import Asked, content_of
from pfl_lm.run.progress import ProgressListener
from pfl_lm.run.round import Release, release
from pfl_lm.secagg.errors import SecaggError


class Content:
    """What devices download for the round under way."""

    def __init__(self) -> None:
        self._content = b""

    def put(self, content: bytes) -> None:
        """Hold the content of a round."""
        self._content = content

    def open(self, have: int) -> Iterator[bytes]:
        """Return the content in pieces, whatever a device has."""
        content = self._content
        return (content[at : at + CHUNK_BYTES] for at in range(0, len(content), CHUNK_BYTES))


@dataclass(frozen=True)
class QuestionServer:
    """What a server asks with, round after round.

    Attributes:
        denied: words that devices pass over.
        people: whose ledger is debited first.
        content: what devices download.
        authority, limits, reached: as of ``rounds.ServerContext``.
    """

    session: QuerySession
    task: QuestionTask
    denied: frozenset[str]
    ledger: Ledger
    people: AskedPeople
    store: Store
    mailbox: Mailbox
    limits: Limits
    authority: bytes
    content: Content
    listener: ProgressListener
    reached: Callable[[str, int], None]


async def ask_round(server: QuestionServer, asked: Asked, number: int) -> Asked:
    """Ask the devices that come one round; return what is known after it.

    Guarantees:
        Those of ``rounds.run_round``, with what is known in the place of the model. Nobody is asked
        where the policy, or the devices' one total, does not pay for the round.

    Raises:
        BudgetSpent: the devices' total does not cover the round.
        ValueError: the policy does not pay for it, or does not cover so few coordinates.
    """
    session, store, mailbox = server.session, server.store, server.mailbox
    query, content = asked.query(session.policy.noise.min_dim), content_of(asked, server.denied)
    broadcast, privacy = broadcast_of(query, number), session.privacy(query)
    check_round(session, query, number, server.ledger)
    server.people.check(session, query, number)
    server.content.put(content)
    invited = session.users(number)
    server.listener.say(f"round {number}: asking {len(invited):,} devices for {asked.say(query)}")
    try:
        config = round_config(session, query, broadcast, len(invited), server.task.digest(content))
        store.invited(number, config.context)
        server.reached("invited", number)
        mailbox.invite(config, invited)
        opened = await open_sum(server, privacy, config)

        def keep(released: Release) -> None:
            store.opened(number, released.mean)
            server.reached("opened", number)

        released = release(privacy, opened, config, server.ledger, broadcast, keep=keep)
    except SecaggError as failure:
        end_unopened(server, privacy, broadcast, len(invited), failure)
        return asked
    server.reached("debited", number)
    after = asked.descend(query, sums_of(session, query, released.mean), session.deviation(query))
    store.closed(number)
    server.reached("closed", number)
    mailbox.end(f"{opened.reports} answers were summed")
    server.listener.say(f"{opened.reports:,} answers were summed; {after.so_far()}")
    return after


def recover(session: QuerySession, asked: Asked, ledger: Ledger, store: Store) -> tuple[Asked, int]:
    """End the round in which a server was killed; return what is known, and the next round.

    Args:
        asked: what is known before the first round.
    """
    number = 0
    for row in store.rounds():
        query = asked.query(session.policy.noise.min_dim)
        released = None if row.mean is None else Release(row.mean)
        if row.state not in OVER:
            broadcast, invited = broadcast_of(query, row.round), len(session.users(row.round))
            privacy = session.privacy(query)
            end_round(privacy, broadcast, invited, ledger, store, row, released)
        if released is not None:
            sums = sums_of(session, query, released.mean)
            asked = asked.descend(query, sums, session.deviation(query))
        number = row.round + 1
    return asked, number
