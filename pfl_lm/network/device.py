"""The reference client: one device, and a round of it as a straight line.

The text, the untrained update, the noise and the masks' secrets stay here; a masked vector leaves,
and shares of secrets in boxes for other devices.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np

from pfl_lm.devices.training import train
from pfl_lm.dp.grid import Grid
from pfl_lm.dp.mechanisms import protect
from pfl_lm.dp.sampling import cohort
from pfl_lm.language.models import Parameters
from pfl_lm.network.broadcast import apply, model_digest
from pfl_lm.network.caller import Caller, LeftOut
from pfl_lm.network.identity import DeviceKey
from pfl_lm.network.terms import Own, Terms, round_config, stated
from pfl_lm.network.transport import Message
from pfl_lm.payload import Payload
from pfl_lm.secagg.config import DevicePolicy, RoundConfig
from pfl_lm.secagg.device import InputMasked, KeysAdvertised, SurvivorsConfirmed
from pfl_lm.secagg.errors import Refused, SecaggError
from pfl_lm.secagg.parameters import Adversary
from pfl_lm.server.state import Broadcast, ServerState, open_round
from pfl_lm.world import choose_payload, text_of

log = logging.getLogger("pfl_lm.network")

_OVER = 255
_KIND_AT = 5  # of a frame

Sending = Callable[[int, int], None]  # (round, kind of the message that is about to be sent)


class Device:
    """A device that takes part in rounds until the run is over.

    Args:
        caller: its line to the server.
        key: who it is.
        own: its vocabulary, policy and text.
        sending: called before every message of the protocol; trials let processes die there.

    Raises:
        ValueError: the server's terms are not those that the device was made for.
    """

    def __init__(
        self, caller: Caller, key: DeviceKey, own: Own, sending: Sending = lambda round, kind: None
    ) -> None:
        self._caller, self._key, self._sending = caller, key, sending
        self._terms = Terms.read(caller.terms())
        self._world = self._terms.world(own)
        self._parameters: Parameters = {}
        self._have = -1  # the round whose model these are
        self._last = -1  # the round last taken part in: in none twice

    def run(self) -> int:
        """Take part whenever invited, until the run is over; return in how many rounds."""
        taken_part, cursor = 0, (-1, 0)
        while True:
            item = self._caller.fetch(*cursor)
            content = item.WhichOneof("content")
            if content is None:
                continue
            cursor = (item.round, item.step)
            if content == "finished":
                log.info("device %d: %s", self._key.number, item.finished)
                return taken_part
            if content == "invitation" and item.round > self._last:
                taken_part += self._try(item.round, item.invitation)
                cursor = (item.round, _OVER)

    def _try(self, round: int, invitation: Message) -> bool:
        """Take part in a round, or say why not."""
        self._last = round
        try:
            self._take_part(round, invitation)
        except (LeftOut, SecaggError) as reason:
            log.warning("device %d leaves round %d: %s", self._key.number, round, reason)
            return False
        log.info("device %d took part in round %d", self._key.number, round)
        return True

    def _take_part(self, round: int, invitation: Message) -> None:
        """Download, train, protect, and speak the protocol to its end.

        Guarantees:
            What leaves the device is clipped, carries the device's own share of the noise as its
            own copy of the policy has it, and is masked. It trains and answers once in a round.
        """
        broadcast = self._receive(round, invitation.model)
        config, place = self._config(broadcast, invitation)
        update = self._train(broadcast)  # first: whoever is switched off meanwhile costs nobody
        keys = KeysAdvertised.join(config, place, self._policy(config), self._key.identity)
        vector = self._protect(update, broadcast, config.cohort)
        noise = self._world.protection.removable_noise(self._grid(broadcast), config.cohort)
        if noise is not None:
            assert keys.noise is not None
            vector = noise.add(keys.noise, vector)
        shared = keys.share_keys(self._exchange(round, keys.message))
        masked = shared.mask_input(self._exchange(round, shared.message), vector)
        holder: InputMasked | SurvivorsConfirmed = masked
        if config.signed:
            holder = masked.confirm(self._exchange(round, masked.message))
        answer = holder.unmask(self._exchange(round, holder.message))
        self._send(round, answer.message)

    def _receive(self, round: int, stated: bytes) -> Broadcast:
        """Bring the model up to date; it must be the one that the invitation is about."""
        for have in (self._have, -1):
            values = self._caller.model(have, round)
            try:
                model = apply(self._world, self._parameters, values, have, round)
            except ValueError as error:
                raise LeftOut(str(error)) from None
            if model_digest(self._terms, model) == stated:
                self._parameters, self._have = model, round
                payload: Payload = choose_payload(self._world, round)
                return open_round(ServerState(round, model), payload)
        raise LeftOut("the model that came is not the one that the round is about")

    def _config(self, broadcast: Broadcast, invitation: Message) -> tuple[RoundConfig, int]:
        """Compute what the round must be like and refuse any other.

        Raises:
            Refused: naming what differs.
        """
        world, number = self._world, self._key.number
        invited = cohort(world.protection.rule, world.scenario.seed, broadcast.round)
        place = invitation.place
        if place >= len(invited) or invited[place] != number:
            raise Refused(f"device {number} is not invited by the rule that the terms state")
        model = model_digest(self._terms, self._parameters)
        config = round_config(world, broadcast, len(invited), model)
        for name, mine in stated(config).items():
            if (theirs := getattr(invitation, name)) != mine:
                raise Refused(f"the server states {name} = {theirs!r}, it should be {mine!r}")
        return config, place

    def _policy(self, config: RoundConfig) -> DevicePolicy:
        """What this device insists on: what its own computation gave."""
        least = config.min_reports
        return DevicePolicy(
            least,
            max(3, least),
            config.graph.neighbours,
            Adversary(self._world.scenario.adversary),
            self._key.authority,
        )

    def _train(self, broadcast: Broadcast) -> np.ndarray:
        """Train on the device's own text: float32[1, d], trained − received."""
        world, number = self._world, self._key.number
        task = world.task(broadcast, self._parameters)
        updates, _ = train(task, [text_of(world, number, broadcast.round)], [number])
        return updates

    def _protect(self, update: np.ndarray, broadcast: Broadcast, invited: int) -> np.ndarray:
        """Rotate, clip, encode and add the device's own share of the noise: int64[d]."""
        protection, grid, round = self._world.protection, self._grid(broadcast), broadcast.round
        if (rotation := protection.rotation(grid.dim, round)) is not None:
            rotation.forward(update)
        bits = protection.bits("device", round, self._key.number)
        vectors, _ = protect(update, grid, protection.own_share(grid, invited), bits)
        return vectors[0]

    def _grid(self, broadcast: Broadcast) -> Grid:
        return self._world.protection.grid(broadcast.payload.dim)

    def _exchange(self, round: int, frame: bytes) -> bytes:
        """Send a message and return the server's next.

        Raises:
            LeftOut: the round ended, or goes on without this device.
        """
        self._send(round, frame)
        while True:
            item = self._caller.fetch(round, frame[_KIND_AT])
            content = item.WhichOneof("content")
            if content == "frame" and item.round == round:
                return bytes(item.frame)
            if content is not None:
                raise LeftOut(item.over or "the round ended in the meantime")

    def _send(self, round: int, frame: bytes) -> None:
        self._sending(round, frame[_KIND_AT])
        self._caller.send(round, frame)
