"""The other devices of a round, played by the hostile server itself with sound cryptography."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from pfl_lm.conformance.lies import Forger
from pfl_lm.secagg.checks import SURVIVORS
from pfl_lm.secagg.config import DevicePolicy, MessageKind, RoundConfig, sends
from pfl_lm.secagg.dealing import deal
from pfl_lm.secagg.device import KeysAdvertised, KeysShared
from pfl_lm.secagg.keys import KEY_BYTES, Identity, KeyPair, Validity, certify, public_key
from pfl_lm.secagg.messages import ShareKeys, SurvivorSet
from pfl_lm.secagg.noise import RemovableNoise
from pfl_lm.secagg.server import CollectingKeys

_DAY = 86_400  # seconds
_MARGIN = 3_600  # seconds by which a certificate's dates miss the leeway of a device's clock

Deliver = Callable[[int, bytes], None]  # (place, frame)


class Crowd:
    """Everybody but the device under attack: they report zeros, and answer at once.

    Args:
        config: the round.
        me: place of the device under attack.
        authority: secret of the authority that certifies identities.
        removable: the noise components of the round, or None.
        silent: the first message that the last of them does not send; None: all send everything.
    """

    def __init__(
        self,
        config: RoundConfig,
        me: int,
        authority: bytes,
        removable: RemovableNoise | None,
        silent: MessageKind | None,
    ) -> None:
        self._config, self._removable = config, removable
        self.places = [place for place in range(config.cohort) if place != me]
        self._silent = {self.places[-1]: silent} if silent else {}
        now = int(time.time())
        validity = Validity(now - _DAY, now + _DAY)
        identities = {p: certify(authority, os.urandom(KEY_BYTES), validity) for p in self.places}
        policy = DevicePolicy(2, 3, 2, config.adversary, public_key(authority))
        self._states: dict[int, Any] = {
            place: KeysAdvertised.join(config, place, policy, identities[place])
            for place in self.places
        }
        self._identities = identities
        self._dealers: dict[int, KeysShared] = {}
        stranger = KeyPair.from_secret(os.urandom(KEY_BYTES)).public
        self.forger = Forger(
            authority, self.identity, validity, now, stranger, os.urandom(KEY_BYTES), _MARGIN
        )

    def identity(self, place: int) -> Identity:
        """The identity under which a device of the crowd signs."""
        return self._identities[place]

    def advertise(self, phase: CollectingKeys) -> None:
        """Hand in everybody's keys."""
        for place, state in self._states.items():
            if self._speaks(place, MessageKind.KEYS):
                phase.receive(place, state.message)

    def tell(self, place: int, frame: bytes, deliver: Deliver) -> None:
        """Let a device of the crowd read what the server says, and answer."""
        state, kind = self._states[place], frame[5]
        if kind == 2:
            state = self._dealers[place] = state.share_keys(frame)
        elif kind == 4:
            zeros = np.zeros(self._config.dim, np.int64)
            state = state.mask_input(frame, zeros, self._removable)
        elif kind == 6:
            state = state.confirm(frame)
        else:
            state = state.unmask(frame)
        self._states[place] = state
        if self._speaks(place, MessageKind(kind // 2 + 1)):
            deliver(place, state.message)

    def replayed(self, dealer: int, holder: int) -> bytes:
        """The sealed shares that a dealer would have sent to a holder in another round."""
        state = self._dealers[dealer]
        me = replace(state._me, config=another_round(self._config))
        return deal(me, state._peers, state._agreed).shares[holder]

    def dealt(self, dealer: int, but: int) -> bytes:
        """The sealed shares that a dealer sent to another holder than this one."""
        message = ShareKeys.decode(self._dealers[dealer].message, self._config, dealer)
        return message.shares[next(holder for holder in message.shares if holder != but)]

    def sign(self, place: int, survivors: SurvivorSet) -> bytes:
        """Sign a survivor set, as a device does that was told this one."""
        content = survivors.body(self._config)
        return self.identity(place).sign(self._config.context, SURVIVORS, content)

    def _speaks(self, place: int, message: MessageKind) -> bool:
        return sends(self._silent, place, message)


def another_round(config: RoundConfig) -> RoundConfig:
    """The next round with everything else as it is."""
    return replace(config, round=config.round + 1)
