"""The hostile server's mailbox: an honest one, but for what it tells the device under attack."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from pfl_lm.network.admission import Admission
from pfl_lm.network.exclusions import Exclusions
from pfl_lm.network.hostile.cases import Case, Stage
from pfl_lm.network.hostile.frames import Scene, another_frame, lying_frame, reveals
from pfl_lm.network.hostile.statements import NotPossible, invitation_changes
from pfl_lm.network.hostile.watch import Verdict, Watch
from pfl_lm.network.items import Content, Posted
from pfl_lm.network.mailbox import INVITATION, Mailbox
from pfl_lm.network.refusals import NotNow
from pfl_lm.network.task_config import stated
from pfl_lm.network.transport import Limits, Message, messages

_LATE = 254  # a step after all others, before the end of the round


class HostileMailbox(Mailbox):
    """Plays the crowd, lies to the first device that calls, and watches it.

    Attributes:
        victim: number of the first device that asked for news.
        arrived: is set when it has.
    """

    def __init__(self, case: Case, watch: Watch, limits: Limits, admission: Admission) -> None:
        super().__init__((), limits, admission.strike, admission.grant_round, Exclusions({}))
        self._case, self._watch = case, watch
        self.victim: int | None = None
        self.arrived = asyncio.Event()
        self._scene: Scene | None = None
        self._place_of: Mapping[int, int] = {}
        self._rounds: Mapping[str, int] = {}
        self._lie: Message | None = None
        self._untold = False  # the lie waits for the device's next call, whatever it asks for
        self._last: Any = None  # the round under way, also when it is over

    def begin(self, scene: Scene, places: Mapping[int, int], rounds: Mapping[str, int]) -> None:
        """Take in a round before its devices are invited.

        Args:
            places: device → its place.
            rounds: name of a case → the round to which it invites, where it is another.
        """
        self._scene, self._place_of, self._rounds = scene, places, rounds

    @property
    def under_way(self) -> int | None:
        """The number of the round under way, or of that to which a lie invites."""
        if self._lie is not None and self._lie.WhichOneof("content") == "invitation":
            return int(self._lie.round)
        return super().under_way

    async def fetch(self, device: int, round: int, step: int, spent: float = 0.0) -> Message:
        if self.victim is None:
            self.victim = device
            self._watch.notes("asked for news")
            self.arrived.set()
        if device != self.victim:
            return await super().fetch(device, round, step, spent)
        self._watch.asks(round, step)
        if self._untold and self._lie is not None:
            item: Any = self._lie
        else:
            item = await super().fetch(device, round, step, spent)
        if self._lie is not None and item == self._lie:
            self._untold = False
            self._watch.tells(item.round, item.step)
        return item

    def check_turn(self, device: int, round: int) -> Any:
        """Read whatever the device sends once it has been lied to."""
        self._last = self._round or self._last
        if device == self.victim and self._watch.told and self._last is not None:
            return self._last
        return super().check_turn(device, round)

    def send(self, device: int, round: int, frame: bytes) -> None:
        scene = self._scene
        if device != self.victim or scene is None:
            raise NotNow("the hostile server attacks another device")
        told = self._watch.told
        self._watch.sends(frame)
        kind = frame[5] if len(frame) > 5 else 0
        super().send(device, round, frame)
        scene.sent[kind] = frame
        if kind == 9 and told and self._case.looks_at_answer:
            revealed = reveals(scene, frame)
            verdict = Verdict.CHEATED if revealed else Verdict.WITHSTOOD
            did = "revealed" if revealed else "answered without"
            self._watch.judges(verdict, f"{did} a share out of the box that cannot be opened")
        if self._case.stage is Stage.AGAIN and kind == self._case.kind:
            self._once_more(scene)

    def _once_more(self, scene: Scene) -> None:
        """Post one more item after the device's message."""
        assert self.victim is not None
        round, name = scene.config.round, self._case.name
        try:
            if name in ("again_invitation", "again_separation"):
                step = _LATE if name == "again_invitation" else INVITATION
                round = round if step == _LATE else self._another_round()
                fields = {"place": scene.me, **stated(scene.config)}
                invitation = messages.Invitation(**fields)
                content: dict[str, Any] = {"invitation": invitation}
            else:
                step = self._case.kind + 1
                content = {"frame": another_frame(self._case, scene)}
        except NotPossible as why:
            self._watch.skips(str(why))
            return
        self._posts_lie(messages.Item(round=round, step=step, **content))
        self._untold = True

    def _another_round(self) -> int:
        """The round to which this case invites the device."""
        if self._case.name not in self._rounds:
            raise NotPossible("every round invites everybody")
        return self._rounds[self._case.name]

    def _posts_lie(self, item: Message) -> None:
        assert self.victim is not None
        self._lie = item
        field = str(item.WhichOneof("content"))
        content: Content = partial(dict, **{field: getattr(item, field)})
        self._posted[self.victim] = Posted(item.round, item.step, content)
        self.presence.ring(self.victim)

    def _post(self, device: int, step: int, write: Content) -> None:
        scene = self._scene
        if scene is None:
            return
        content = write()
        if device != self.victim:
            if frame := content.get("frame"):
                scene.crowd.tell(self._place_of[device], frame, self._deliver)
            return
        if self._lie is not None and not self._case.looks_at_answer:
            return  # the device is left alone with it
        try:
            lie = self._lying(scene, step, content)
        except NotPossible as why:
            self._watch.skips(str(why))
            return
        if lie is None:
            super()._post(device, step, write)
        else:
            self._posts_lie(lie)

    def _lying(self, scene: Scene, step: int, content: dict[str, Any]) -> Message | None:
        """Return the item that replaces an honest one; None where this one stays."""
        round = scene.config.round
        if (frame := content.get("frame")) is not None:
            scene.told[frame[5]] = frame
            if self._case.stage is not Stage.FRAME:
                return None
            told = lying_frame(self._case, scene, frame)
            return None if told is None else messages.Item(round=round, step=step, frame=told)
        if "invitation" not in content or self._case.stage is not Stage.INVITATION:
            return None
        name = self._case.name.removeprefix("invitation_")
        invitation = content["invitation"]
        fields = {field.name: getattr(invitation, field.name) for field in _fields(invitation)}
        if name in ("uninvited", "after_the_last"):
            round = self._another_round()
        elif changes := invitation_changes(name)(fields):
            fields |= changes
        else:
            raise NotPossible(f"{name} is the least that there is")
        return messages.Item(round=round, step=step, invitation=messages.Invitation(**fields))

    def _deliver(self, place: int, frame: bytes) -> None:
        """Hand in a message of the crowd."""
        assert self._round is not None
        with suppress(NotNow):
            super().send(self._round.devices[place], self._round.config.round, frame)

    def _missing(self, phase: Any) -> frozenset[int]:
        """Only the device under attack is waited for: the crowd answers at once."""
        assert self._scene is not None
        return super()._missing(phase) & {self._scene.me}


def _fields(message: Message) -> Any:
    return message.DESCRIPTOR.fields
