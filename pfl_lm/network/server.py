"""The server: one process that opens the run, answers devices, and runs round after round."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from pfl_lm.books import Watch, validation, write_results
from pfl_lm.budget import Budget
from pfl_lm.checkpoints import newest_checkpoint, save_checkpoint
from pfl_lm.dp.ledger import Ledger
from pfl_lm.dp.sampling import cohort
from pfl_lm.network.broadcast import Shelf
from pfl_lm.network.desk import Desk
from pfl_lm.network.door import Door
from pfl_lm.network.identity import ServerKeys
from pfl_lm.network.rounds import Office, charge, remembered, run_round
from pfl_lm.network.service import Service
from pfl_lm.network.store import OVER, RoundRow, Store
from pfl_lm.network.terms import Terms, served
from pfl_lm.network.transport import Limits, handler, largest_message, server_options
from pfl_lm.resume import begin_run, resume_run
from pfl_lm.runs import RunFolder, RunLog
from pfl_lm.scenario import Scenario
from pfl_lm.server.state import Broadcast, ServerState, close_round, open_round
from pfl_lm.simulate import abandon
from pfl_lm.world import World, choose_payload, final_evaluation, open_world

log = logging.getLogger("pfl_lm.network")


@dataclass(frozen=True)
class Serving:
    """How a server is set up.

    Attributes:
        keys: its certificate and who is enrolled.
        address: ``host:port`` to listen on.
        present: devices that must be there before a round is opened; None: as many as a cohort.
        reached: called with (point, round) after every durable write; tests kill the server there.
    """

    keys: ServerKeys
    address: str
    limits: Limits = field(default_factory=Limits)
    present: int | None = None
    reached: Callable[[str, int], None] = lambda point, round: None


def serve(
    scenario: Scenario,
    path: Path,
    serving: Serving,
    watch: Watch,
    resume: bool = False,
    overwrite: bool = False,
) -> RunFolder:
    """Run a scenario's rounds with the devices that call, then evaluate and write the model.

    Args:
        path: the run's folder, as ``simulate`` writes it, with ``rounds.sqlite`` beside the ledger.
        resume: go on with a run whose server was stopped or killed.
        overwrite: delete an earlier run in that folder first.

    Raises:
        ValueError: as ``simulate``; the enrolled are not those with whom the run began; the
            address is taken; or the budget is spent.
    """
    identities = serving.keys.enrolled()
    world = open_world(replace(scenario, secure_aggregation="protocol"))
    world = served(world, len(identities))
    folder = RunFolder(Path(path))
    if resume:
        _, ledger = resume_run(world, folder, _Nobody())
    else:
        _, ledger = begin_run(world, folder, overwrite)
    with ledger:
        store = _open_store(folder, ledger, identities)
        try:
            state = recover(world, folder, ledger, store)
            state = asyncio.run(_run(world, folder, ledger, store, state, serving, watch))
        finally:
            store.close()
    parameters = dict(state.parameters)
    write_results(world, folder, parameters, final_evaluation(world, parameters))
    return folder


def recover(world: World, folder: RunFolder, ledger: Ledger, store: Store) -> ServerState:
    """End the round in which a server was killed, and return where the run stands.

    The cases are those of the table in ``store``.
    """
    for row in store.rounds():
        if row.state not in OVER:
            _end(world, ledger, store, row)
    state, _ = newest_checkpoint(folder)
    for row in store.rounds():
        if row.state == "closed" and row.round >= state.round:
            assert row.mean is not None
            state = replace(state, round=row.round)
            broadcast = open_round(state, choose_payload(world, row.round))
            state = close_round(state, broadcast, row.mean, world.scenario.server)
    past = [row.round for row in store.rounds()]
    past += [e["round"] for e in ledger.entries() if e["kind"] in ("round", "abandoned")]
    return replace(state, round=max([state.round, *(round + 1 for round in past)]))


def _end(world: World, ledger: Ledger, store: Store, row: RoundRow) -> None:
    broadcast = Broadcast(row.round, choose_payload(world, row.round), np.empty(0, np.float32))
    invited = len(cohort(world.protection.rule, world.scenario.seed, row.round))
    given_up = any(e["kind"] == "abandoned" and e["round"] == row.round for e in ledger.entries())
    if row.state == "opened":
        assert row.reports is not None
        charge(world, ledger, broadcast, invited, row.reports, row.mean)
        store.closed(row.round)
        log.warning("round %d was opened when the server stopped: its sum counts", row.round)
    elif row.state == "asking" and not given_up:
        assert row.reports is not None
        charge(world, ledger, broadcast, invited, row.reports, None)
        store.lost(row.round)
        log.warning("round %d may have been answered and is lost: it stays spent", row.round)
    else:
        if not given_up:
            abandon(row.round, 0, ledger)
        store.abandoned(row.round)
        log.warning("round %d was under way when the server stopped: abandoned", row.round)


async def _run(
    world: World,
    folder: RunFolder,
    ledger: Ledger,
    store: Store,
    state: ServerState,
    serving: Serving,
    watch: Watch,
) -> ServerState:
    """Answer devices and run the rounds that are left."""
    identities, terms, limits = store.devices(), Terms.of(world), serving.limits
    door = Door(identities, limits)
    desk = Desk(identities, limits, door.strike)
    shelf = Shelf(world)
    service = Service(door, desk, shelf, terms, limits)
    budget = Budget(world.protection, ledger, choose_payload(world, 0).dim)
    office = Office(
        world, terms, ledger, store, desk, limits, serving.keys.authority(), serving.reached
    )
    present = min(len(identities), serving.present or world.scenario.cohort)
    server = await _listen(service, world, serving, len(identities))
    books = RunLog(folder, state.round)
    _fill_in(world, folder, store, books, budget)
    try:
        await asyncio.to_thread(_evaluate_where_due, world, state, books, watch)
        while state.round < world.scenario.rounds:
            budget.check(state.round)
            await desk.gather(present, min(present, max(3, world.protection.least_reports)))
            shelf.put(state.round, dict(state.parameters))
            state, entry = await run_round(office, state)
            entry |= budget.spent()
            books.write(entry)
            watch.round_done(entry, world.scenario.rounds)
            await asyncio.to_thread(_evaluate_where_due, world, state, books, watch)
            if state.round % world.scenario.checkpoint_every == 0:
                await asyncio.to_thread(save_checkpoint, folder, state, ledger.head)
            store.forget_means_before(min(folder.checkpoints()))
        await desk.finish(f"the run is over after {state.round} rounds")
    finally:
        save_checkpoint(folder, state, ledger.head)
        books.close()
        await server.stop(grace=1.0)
    return state


def _fill_in(world: World, folder: RunFolder, store: Store, books: RunLog, budget: Budget) -> None:
    """Note the rounds that ended when a server was killed, and what has been spent with them."""
    noted = {line["round"] for line in folder.metrics() if line["kind"] == "round"}
    for row in store.rounds():
        if row.round not in noted:
            books.write(remembered(world, row) | budget.spent())


async def _listen(service: Service, world: World, serving: Serving, devices: int) -> Any:
    """Open the port.

    Raises:
        ValueError: the address is taken or cannot be read.
    """
    dim = choose_payload(world, 0).dim
    vector_bytes = 8 * dim  # no ring is wider
    server = grpc.aio.server(
        options=server_options(largest_message(vector_bytes, devices)),
        maximum_concurrent_rpcs=4 * devices + 64,
    )
    server.add_generic_rpc_handlers((handler(service),))
    credentials = grpc.ssl_server_credentials([serving.keys.tls()])
    try:
        port = server.add_secure_port(serving.address, credentials)
    except RuntimeError as error:
        raise ValueError(f"cannot listen on {serving.address}: {error}") from error
    await server.start()
    log.info("listening on port %d for %d devices", port, devices)
    return server


def _evaluate_where_due(world: World, state: ServerState, books: RunLog, watch: Watch) -> None:
    """Measure the model on validation users, where the scenario asks for it."""
    if books.owes_evaluation(world.scenario.evaluation.every, state.round):
        entry = validation(world, state)
        books.write(entry)
        watch.evaluated(entry)


def _open_store(folder: RunFolder, ledger: Ledger, identities: dict[int, bytes]) -> Store:
    """Open the store of a run, or start it where the ledger holds nothing but its beginning."""
    path = folder.path / "rounds.sqlite"
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


class _Nobody:
    """``resume_run`` tells what a simulation lost; a served run still has it in its store."""

    def say(self, line: str) -> None:
        pass
