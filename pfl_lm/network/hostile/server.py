"""One case of the hostile server: it listens, plays a round with a lie in it, and watches."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from pfl_lm.dp.cohort import cohort
from pfl_lm.network.admission import Admission
from pfl_lm.network.backend import LocalBackend
from pfl_lm.network.exclusions import Exclusions
from pfl_lm.network.hostile.cases import Case, Stage
from pfl_lm.network.hostile.certificate import another_certificate, offer
from pfl_lm.network.hostile.crowd import Crowd
from pfl_lm.network.hostile.frames import Scene
from pfl_lm.network.hostile.mailbox import HostileMailbox
from pfl_lm.network.hostile.statements import LyingModels, NotPossible, lying_task
from pfl_lm.network.hostile.watch import Outcome, Patience, Verdict, Watch
from pfl_lm.network.identity import Credentials, ServerKeys
from pfl_lm.network.listener import Listener
from pfl_lm.network.model_delta import model_digest
from pfl_lm.network.service import Requests, Service
from pfl_lm.network.task_config import TaskConfig, round_config
from pfl_lm.network.transport import Limits, Message, largest_frame
from pfl_lm.network.web import Browsers, WebServer
from pfl_lm.run.context import RunContext, choose_payload
from pfl_lm.run.scenario import Scenario
from pfl_lm.secagg.errors import SecaggError
from pfl_lm.secagg.server import CollectingKeys
from pfl_lm.server.state import ServerState, open_round

_DISMISS_SECONDS = 2.0
_NO_ITEM = (1 << 62, 0)  # the cursor of a lie that is in no item


class Running(Protocol):
    """A device that the server has started itself."""

    def has_ended(self) -> bool: ...

    def said(self) -> str:
        """What it said last; "" where nobody knows."""

    def stop(self) -> None: ...


@dataclass(frozen=True)
class Attack:
    """What all cases have in common.

    Attributes:
        context: the honest run.
        task: its task configuration.
        authority: secret of the authority that certified the device.
        start: starts the device for a case of this name; None: somebody else starts it.
        browsers: where devices that call over HTTPS are attacked too; None: over gRPC alone.
    """

    scenario: Scenario
    context: RunContext
    task: TaskConfig
    keys: ServerKeys
    authority: bytes
    address: str
    patience: Patience
    start: Callable[[str], Running] | None = None
    browsers: Browsers | None = None


async def play(attack: Attack, case: Case) -> Outcome:
    """Play one case against the device that calls, and say how it ended."""
    context, task = attack.context, attack.task
    if case.strong and task.trial:
        return Outcome(case, Verdict.SKIPPED, "devices in a trial believe it")
    if case.rounds is not None and case.rounds != context.scenario.adversary:
        return Outcome(case, Verdict.SKIPPED, f'only where adversary = "{case.rounds}"')
    if case.stage is Stage.CERTIFICATE:
        if attack.browsers is not None and attack.browsers.at.is_local:
            return Outcome(case, Verdict.SKIPPED, "HTTP on the loopback address has no certificate")
        return await _offer_certificate(attack, case)
    try:
        if case.stage is Stage.TASK:
            name = case.name.removeprefix("task_")
            context, task = lying_task(name, attack.scenario, context, task)
    except NotPossible as why:
        return Outcome(case, Verdict.SKIPPED, str(why))
    return await _Play(attack, case, context, task).play()


async def _offer_certificate(attack: Attack, case: Case) -> Outcome:
    """Show another certificate for the same names, and wait whether the device speaks."""
    devices: list[Running] = []
    watch = Watch(case, attack.patience, lambda: any(d.has_ended() for d in devices))
    browsers, context = attack.browsers, another_certificate(attack.keys.server_certificate())
    address = attack.address if browsers is None else browsers.at.listen
    server = await offer(context, address, watch, attack.patience.silence)
    try:
        if attack.start is not None:
            devices.append(attack.start(case.name))
        return with_words(await watch.decided(), devices[0] if devices else None)
    finally:
        server.close()
        for device in devices:
            device.stop()


class _Play:
    """A server for one case."""

    def __init__(self, attack: Attack, case: Case, context: RunContext, task: TaskConfig) -> None:
        self._attack, self._case = attack, case
        self._context, self._task = context, task
        self._device: Running | None = None
        self.watch = Watch(case, attack.patience, self._has_ended)
        silence = attack.patience.silence
        self._limits = Limits(
            phase_seconds=silence,
            training_seconds=attack.patience.arrival,
            hold_seconds=1.0,
            burst=10_000,
        )
        identities = attack.keys.enrolled()
        digest = attack.keys.server_certificate().digest
        credentials = Credentials(identities, attack.keys.authority(), digest)
        admission = Admission(credentials, self._limits, Exclusions({}))
        self._mailbox = HostileMailbox(case, self.watch, self._limits, admission)
        name = case.name.removeprefix("model_") if case.stage is Stage.MODEL else ""
        self._models = LyingModels(context, name, self._tells, self._swallowed)
        dim = context.privacy.summed_dim(choose_payload(context, 0).dim)
        frame_bytes = largest_frame(8 * dim, context.scenario.cohort)
        backend = LocalBackend(admission, self._mailbox, self._models)
        self._service = HostileService(backend, task.text(), self._limits, frame_bytes)
        self._service.watch, self._service.lies = self.watch, case.stage is Stage.TASK

    async def play(self) -> Outcome:
        """Listen, let the device come, and wait for what it does."""
        listener = Listener(self._service, self._attack.address, self._attack.keys.tls())
        await listener.start()
        web = self._open_web()
        if self._attack.start is not None:
            self._device = self._attack.start(self._case.name)
        rounds = asyncio.create_task(self._round())
        try:
            return with_words(await self.watch.decided(), self._device)
        finally:
            rounds.cancel()
            await asyncio.gather(rounds, return_exceptions=True)
            await self._dismiss()
            await listener.stop(grace=0.2)
            if web is not None:
                await asyncio.to_thread(web.close)
            if self._device is not None:
                self._device.stop()

    def _open_web(self) -> WebServer | None:
        """Open the port for browsers; a device there holds the run that an honest server states."""
        attack = self._attack
        if attack.browsers is None:
            return None
        return attack.browsers.open(self._service, attack.context, attack.task.trial)

    async def _round(self) -> None:
        """Play a round with the device, whatever becomes of it."""
        await self._mailbox.arrived.wait()
        try:
            opened = await self._phases()
        except (SecaggError, NotPossible) as failure:
            if self._case.stage is Stage.NOWHERE:
                self.watch.judges(Verdict.UNTOLD, f"the honest round failed: {failure}")
            elif isinstance(failure, NotPossible):
                self.watch.skips(str(failure))
            return
        if self._case.stage is Stage.NOWHERE:
            reports = f"a sum of {opened.reports} reports opened"
            self.watch.judges(Verdict.WITHSTOOD, f"took part to the end, and {reports}")

    async def _phases(self) -> Any:
        context, mailbox = self._context, self._mailbox
        number = self._invites()
        parameters = dict(context.start.parameters)
        broadcast = open_round(ServerState(number, parameters), choose_payload(context, number))
        invited = cohort(context.privacy.rule, context.scenario.seed, number).tolist()
        model = model_digest(self._task, parameters)
        config = round_config(context, broadcast, len(invited), model)
        me = invited.index(mailbox.victim)
        removable = context.privacy.removable_noise(
            context.privacy.grid(broadcast.payload.dim), config.cohort
        )
        crowd = Crowd(config, me, self._attack.authority, removable, self._case.silent)
        self._models.put(number, parameters)
        places = {device: place for place, device in enumerate(invited)}
        mailbox.begin(Scene(config, me, crowd, {}, {}), places, self._other_rounds(number))
        phase: Any = CollectingKeys(config, None, self._attack.keys.authority())
        crowd.advertise(phase)
        mailbox.invite(config, invited, broadcast.clip_norm)
        outgoing: Any = {}
        for _ in range(4 if config.signed else 3):
            seconds = self._limits.training_seconds if not outgoing else self._limits.phase_seconds
            phase, outgoing = await mailbox.collect(phase, outgoing, seconds)
        return await mailbox.collect(phase, outgoing, self._limits.phase_seconds)

    def _invites(self) -> int:
        """Return the first round to which the device is invited by the public rule."""
        for number in range(self._context.scenario.rounds):
            if self._is_invited(number):
                return number
        raise NotPossible(f"no round of the run invites device {self._mailbox.victim}")

    def _other_rounds(self, number: int) -> dict[str, int]:
        """Return by case the rounds to which lies invite the device."""
        rounds = self._context.scenario.rounds
        others = {"invitation_after_the_last": rounds}
        for later in range(number + 1, rounds):
            if not self._is_invited(later):
                return {**others, "invitation_uninvited": later, "again_separation": later}
        return others

    def _is_invited(self, number: int) -> bool:
        rule, scenario = self._context.privacy.rule, self._context.scenario
        return self._mailbox.victim in cohort(rule, scenario.seed, number)

    async def _dismiss(self) -> None:
        """Tell the device that it is over, and wait a moment until it has ended."""
        if self._has_ended():
            return
        await self._mailbox.finish("the hostile server is done with this case")
        until = asyncio.get_running_loop().time() + _DISMISS_SECONDS
        while self._device and not self._has_ended():
            if asyncio.get_running_loop().time() > until:
                return
            await asyncio.sleep(0.02)

    def _has_ended(self) -> bool:
        return self._device is not None and self._device.has_ended()

    def _tells(self) -> None:
        self.watch.tells(*_NO_ITEM)

    def _swallowed(self) -> None:
        self.watch.judges(Verdict.CHEATED, "read 64 MB more than the model has")


def with_words(outcome: Outcome, device: Running | None) -> Outcome:
    """Add what the device said about it."""
    said = device.said() if device is not None else ""
    return replace(outcome, reason=f"{outcome.reason}: {said}") if said else outcome


class HostileService(Service):
    """The service, which notes who comes; ``lies`` says that a session begins with the lie."""

    watch: Watch
    lies: bool

    async def Authenticate(self, requests: Requests, context: Any) -> Message:
        session = await super().Authenticate(requests, context)
        self.watch.notes("opened a session")
        if self.lies:
            self.watch.tells(*_NO_ITEM)
        return session
