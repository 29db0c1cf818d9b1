"""The server: it opens the run, answers devices, and runs round after round."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from pfl_lm.dp.clipping import clip_before
from pfl_lm.dp.cohort import cohort
from pfl_lm.dp.ledger import Ledger
from pfl_lm.native.tuning import give_memory_back
from pfl_lm.network.addresses import check_host_and_port
from pfl_lm.network.admission import Admission
from pfl_lm.network.backend import Downloads, LocalBackend
from pfl_lm.network.exclusions import Exclusions
from pfl_lm.network.front_ends.group import FrontEnds
from pfl_lm.network.front_ends.port import check_shared_ports, make_room, require_free
from pfl_lm.network.front_ends.process import FrontEndSetup
from pfl_lm.network.identity import Credentials, ServerKeys
from pfl_lm.network.listener import Listener
from pfl_lm.network.mailbox import Mailbox
from pfl_lm.network.model_delta import ModelCache
from pfl_lm.network.recovery import end_round, open_store
from pfl_lm.network.rounds import ServerContext, remembered, run_round
from pfl_lm.network.service import Service
from pfl_lm.network.store import OVER, RoundRow, Store
from pfl_lm.network.task_config import TaskConfig, served
from pfl_lm.network.transport import Limits, largest_frame
from pfl_lm.network.web import Browsers
from pfl_lm.run.checkpoints import newest_checkpoint
from pfl_lm.run.context import RunContext, choose_payload, smallest_and_largest_payload
from pfl_lm.run.control import heed_until
from pfl_lm.run.evaluable import require_held_out
from pfl_lm.run.evaluation import final_evaluation, validate, write_results
from pfl_lm.run.folder import RunFolder
from pfl_lm.run.noise_state import NoiseStates
from pfl_lm.run.progress import ProgressListener
from pfl_lm.run.recorder import RunRecorder
from pfl_lm.run.round import Release, step
from pfl_lm.run.scenario import Scenario
from pfl_lm.run.setup import open_run
from pfl_lm.server.state import Broadcast, ServerState, open_round

log = logging.getLogger("pfl_lm.network")


@dataclass(frozen=True)
class Serving:
    """How a server is set up.

    Attributes:
        keys: its certificate and who is enrolled.
        address: ``host:port`` to listen on.
        present: devices that must be there before a round is opened; None: as many as a cohort.
        trial: run rounds that protect nobody: few devices, a small cohort, seeded noise, no policy.
        ledgers: folder of the population's ledger; by default beside the list of the enrolled.
        reached: called with (point, round) after every durable write; tests kill the server there.
        revoked: public keys whose devices are left out.
        browsers: how browsers are answered, beside gRPC; None: they are not.
        front_ends: processes that hold the devices' connections; 1: this one does.

    Raises:
        ValueError: at construction: the address is no ``host:port``, or this system has no place
            for several front ends.
    """

    keys: ServerKeys
    address: str
    limits: Limits = field(default_factory=Limits)
    present: int | None = None
    trial: bool = False
    ledgers: Path | None = None
    reached: Callable[[str, int], None] = lambda point, round: None
    revoked: frozenset[bytes] = frozenset()
    browsers: Browsers | None = None
    front_ends: int = 1

    def __post_init__(self) -> None:
        check_host_and_port("--listen", self.address, "127.0.0.1:8443")
        check_shared_ports(self.front_ends)

    def require_free_addresses(self) -> None:
        """Refuse addresses that are taken; raises ValueError."""
        require_free(self.address)
        if self.browsers is not None:
            require_free(self.browsers.at.listen)


def serve(
    scenario: Scenario,
    path: Path,
    serving: Serving,
    listener: ProgressListener,
    resume: bool = False,
    overwrite: bool = False,
) -> RunFolder:
    """Run a scenario's rounds with the devices that call, then evaluate and write the model.

    Args:
        path: the run's folder, as ``simulate`` writes it, with ``rounds.sqlite`` beside the ledger.
        resume: go on with a run whose server was stopped or killed.
        overwrite: delete an earlier run in that folder first.

    Raises:
        RunStopped: somebody asked the run to stop (``run/control``).
        ValueError: as ``simulate``; the run promises less than its policy and is no trial; the
            enrolled are not those with whom the run began; too few of them are not left out; the
            server's certificate is not valid now, or lacks its key; the address is taken; or the
            budget is spent.
    """
    identities = serving.keys.enrolled()
    serving.keys.check_server()
    adversary = scenario.adversary or "active"
    context = open_run(
        replace(scenario, secure_aggregation="protocol", adversary=adversary),
        enrolled=len(identities),
    )
    require_held_out(scenario, context.population)
    context = served(context, len(identities), serving.trial)
    if serving.browsers:
        serving.browsers.check(context, serving.trial)
    serving.require_free_addresses()
    folder = RunFolder(Path(path))
    account = None if context.privacy.trial else serving.keys.account(serving.ledgers)
    recorder = RunRecorder(context, folder, listener, account)
    with ExitStack() as opened:
        opened.push(lambda kind, *_: _close(recorder, failed=kind is not None))
        stores: list[Store] = []

        def recovered(ledger: Ledger) -> ServerState:
            path = folder.served_rounds_path
            stores.append(opened.enter_context(closing(open_store(path, ledger, identities))))
            return recover(context, folder, ledger, stores[0])

        state = recorder.open(resume, overwrite, recovered)
        state = asyncio.run(_run(context, recorder, stores[0], state, serving))
        recorder.finish(state)
        parameters = state.averaged()
        write_results(context, folder, parameters, final_evaluation(context, parameters))
        recorder.record_end(state.round)
    return folder


def _close(recorder: RunRecorder, failed: bool) -> None:
    if failed:
        recorder.close_after_failure()
    else:
        recorder.close()


def recover(context: RunContext, folder: RunFolder, ledger: Ledger, store: Store) -> ServerState:
    """End the round in which a server was killed, and return where the run stands.

    The cases are those of the table in ``store``.
    """
    for row in store.rounds():
        if row.state not in OVER:
            _end(context, folder, ledger, store, row)
    state, _ = newest_checkpoint(folder)
    state = replace(state, clip=clip_before(state.round, ledger.entries()))
    for row in store.rounds():
        if row.state == "closed" and row.round >= state.round:
            assert row.mean is not None
            state = replace(state, round=row.round)
            broadcast = open_round(state, choose_payload(context, row.round))
            released = Release(row.mean)
            state = step(context.privacy, context.scenario, state, broadcast, released)
    past = [row.round for row in store.rounds()]
    past += [e["round"] for e in ledger.entries() if e["kind"] in ("round", "abandoned")]
    return replace(state, round=max([state.round, *(round + 1 for round in past)]))


def _end(
    context: RunContext, folder: RunFolder, ledger: Ledger, store: Store, row: RoundRow
) -> None:
    payload, clip = choose_payload(context, row.round), clip_before(row.round, ledger.entries())
    broadcast = Broadcast(row.round, payload, np.empty(0, np.float32), clip)
    invited = len(cohort(context.privacy.rule, context.scenario.seed, row.round))
    released = None if row.mean is None else Release(row.mean)
    if released is not None and context.privacy.mechanism.stateful:
        states = NoiseStates(folder)
        before = states.before(row.round, ledger.entries())
        released = Release(released.mean, states.read(row.round + 1), before)
    end_round(context.privacy, broadcast, invited, ledger, store, row, released)


def doors(
    serving: Serving, store: Store, downloads: Downloads, task_config: str, dim: int
) -> tuple[Service, Mailbox, Listener | FrontEnds]:
    """Wire up what answers devices' calls; the listener is not started yet.

    Where there are front ends, the service is what answers browsers, beside them.

    Args:
        downloads: what devices download for a round.
        task_config: what devices are told when they authenticate.
        dim: coordinates of the largest vector that a device sends.
    """
    count = serving.front_ends
    identities, limits = store.devices(), serving.limits
    exclusions = Exclusions(identities, serving.revoked, store.expelled(), store.expel)
    server = serving.keys.server_certificate().digest
    credentials = Credentials(identities, serving.keys.authority(), server)
    admission = Admission(credentials, limits, exclusions)
    mailbox = Mailbox(identities, limits, admission.strike, admission.grant_round, exclusions)
    backend = LocalBackend(admission, mailbox, downloads)
    frame_bytes = largest_frame(8 * dim, len(identities))  # no ring is wider than 64 bits
    own = limits.among(1 if count == 1 else count + bool(serving.browsers))
    service = Service(backend, task_config, own, frame_bytes)
    address, tls = serving.address, serving.keys.tls()
    if count == 1:
        return service, mailbox, Listener(service, address, tls)
    setup = FrontEndSetup(address, tls, task_config, own, frame_bytes)
    return service, mailbox, FrontEnds(backend, count, setup)


async def _run(
    context: RunContext, recorder: RunRecorder, store: Store, state: ServerState, serving: Serving
) -> ServerState:
    """Answer devices and run the rounds that are left."""
    identities, limits = store.devices(), serving.limits
    task_config = TaskConfig.of(context, store.run, serving.trial)
    authority, folder = serving.keys.authority(), recorder.folder
    models = ModelCache(context)
    dim = context.privacy.summed_dim(smallest_and_largest_payload(context)[1].dim)
    service, mailbox, listener = doors(serving, store, models, task_config.text(), dim)
    server = ServerContext(
        context, task_config, recorder, store, mailbox, limits, authority, serving.reached
    )
    present = min(len(identities), serving.present or context.scenario.cohort)
    least = min(present, max(3, context.privacy.least_reports))
    make_room(present, serving.front_ends)
    port = await listener.start()
    log.info("listening on port %d for %d devices", port, len(identities))
    _fill_in(context, store, recorder)
    pages, gathered = ExitStack(), partial(mailbox.presence.gather, present, least)
    try:
        if serving.browsers:
            pages.callback(serving.browsers.open(service, context, serving.trial).close)
        await asyncio.to_thread(_evaluate_where_due, context, state, recorder)
        while state.round < context.scenario.rounds:
            recorder.check_budget(state.round)
            await heed_until(gathered, folder.path, state.round)
            models.put(state.round, dict(state.parameters))
            state, entry = await run_round(server, state)
            await asyncio.to_thread(give_memory_back)
            recorder.round_done(entry)
            await asyncio.to_thread(_evaluate_where_due, context, state, recorder)
            await asyncio.to_thread(recorder.save_where_due, state)
            store.forget_means_before(min(folder.checkpoints()))
        recorder.save(state)
        await mailbox.finish(f"the run is over after {state.round} rounds")
    except BaseException:
        recorder.save_after_failure(state)
        raise
    finally:
        await asyncio.to_thread(pages.close)
        await listener.stop(grace=1.0)
    return state


def _fill_in(context: RunContext, store: Store, recorder: RunRecorder) -> None:
    """Note the rounds that ended when a server was killed, and what has been spent with them."""
    noted = {line["round"] for line in recorder.folder.metrics() if line["kind"] == "round"}
    for row in store.rounds():
        if row.round not in noted:
            assert recorder.ledger is not None
            clip = clip_before(row.round, recorder.ledger.entries())
            recorder.note(remembered(context, row, clip))


def _evaluate_where_due(context: RunContext, state: ServerState, recorder: RunRecorder) -> None:
    """Measure the model on validation users, where the scenario asks for it."""
    if recorder.evaluation_is_due(state.round):
        recorder.evaluated(validate(context, state))
