"""The device's side: one class per phase, bytes in and bytes out, no input or output of its own.

    KeysAdvertised --share_keys--> KeysShared --mask_input--> InputMasked
    InputMasked --(active: confirm--> SurvivorsConfirmed)--unmask--> Unmasked

A state has one message to send and takes one message. It is left once: a second call raises
``WrongState``. To send again is to send ``state.message`` again, the same bytes. A message that
breaks a rule ends the round for this device.

Guarantees:
    Against a semi-honest server and at most C = ⌈γn⌉ corrupt devices, all that they see can be
    simulated from the sum of the honest survivors' vectors, except with probability 2^-σ, where
    k and t are those of ``parameters.required`` (Bell et al. 2020, Section 3; for the complete
    graph Bonawitz et al. 2017, Section 6).
    Against an active server the same holds, because of what the device checks. The argument is
    Bonawitz's consistency check, kept global, and a window on Bell's graph that is this project's:

      one survivor set   any two quorums of ⌊(m + C)/2⌋ + 1 of m members share an honest device,
                         which signs once: all honest devices that answer, answer for one set;
      one secret each    honest holders thus reveal shares of one and the same of a device's two
                         secrets; of the other there are those of the c < t corrupt holders;
      no small group     every k/2 consecutive devices hold an honest survivor (w survivors, where
                         w corrupt ones are unlikely), so the honest survivors are connected; and
                         of two neighbours who answer, each has added the mask with the other:
                         the sum of a proper part of them is never free of masks.

    The identity authority must not collude with the server. A sum of fewer than ``min_reports``
    is never opened with this device in it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from pfl_lm.secagg import checks
from pfl_lm.secagg.config import DevicePolicy, RoundConfig
from pfl_lm.secagg.dealing import Secrets, agree_on_boxes, deal, open_box
from pfl_lm.secagg.errors import Refused, WrongState
from pfl_lm.secagg.keys import Identity, pair_mask_seed, self_mask_seed
from pfl_lm.secagg.masks import mask
from pfl_lm.secagg.messages import (
    Confirmation,
    MaskedInput,
    Roster,
    ShareInbox,
    SurvivorSet,
    UnmaskAnswer,
    UnmaskRequest,
)
from pfl_lm.secagg.noise import NoiseChain, RemovableNoise
from pfl_lm.secagg.packing import Integers
from pfl_lm.secagg.sharing import Entropy


class _State:
    """A phase: what to send, and a guard that lets it be left once."""

    def __init__(self, me: Secrets, message: bytes) -> None:
        self.message = message
        self._me = me
        self._left = False

    @property
    def index(self) -> int:
        """The device's place in the cohort."""
        return self._me.index

    @property
    def noise(self) -> NoiseChain | None:
        """The seeds of the removable noise that belongs into the device's vector."""
        return self._me.noise

    @contextmanager
    def _leave(self) -> Iterator[Secrets]:
        if self._left:
            raise WrongState(f"{type(self).__name__} was left; its message can be sent again")
        try:
            yield self._me
        except Refused:
            self._left = True
            raise
        self._left = True


class KeysAdvertised(_State):
    """First phase: the device's keys are on their way to the server."""

    @classmethod
    def join(
        cls,
        config: RoundConfig,
        index: int,
        policy: DevicePolicy,
        identity: Identity | None = None,
        entropy: Entropy = os.urandom,
    ) -> KeysAdvertised:
        """Take part in a round as device ``index``.

        Args:
            config: as the device itself derived it from the broadcast it received.
            index: the device's place in the cohort.
            policy: what the device insists on.
            identity: needed in signed rounds.
            entropy: ``n -> n`` unpredictable bytes; anything but the default is for tests.

        Raises:
            Refused: the round promises less than the policy demands.
            ValueError: an index outside the cohort, or no identity in a signed round.
        """
        policy.check(config)
        if not 0 <= index < config.cohort:
            raise ValueError(f"index must lie in the cohort of {config.cohort}: {index}")
        if config.signed and identity is None:
            raise ValueError("identity is needed: the round has signed keys")
        me = Secrets.draw(config, index, policy, identity if config.signed else None, entropy)
        return cls(me, me.advertise().encode(config, index))

    def share_keys(self, roster: bytes) -> KeysShared:
        """Deal shares of the device's secrets to their holders."""
        with self._leave() as me:
            theirs = Roster.decode_from_server(roster, me.config)
            peers = checks.check_roster(theirs, me.config, me.policy, me.index, me.advertise())
            agreed = agree_on_boxes(me, peers)
            message = deal(me, peers, agreed).encode(me.config, me.index)
        return KeysShared(me, message, peers, agreed)


class KeysShared(_State):
    """Second phase: shares are dealt; the others' shares are awaited."""

    def __init__(
        self, me: Secrets, message: bytes, peers: checks.Peers, agreed: Mapping[int, bytes]
    ) -> None:
        super().__init__(me, message)
        self._peers = peers
        self._agreed = agreed

    def mask_input(
        self,
        inbox: bytes,
        vector: Integers,
        removable: RemovableNoise | None = None,
    ) -> InputMasked:
        """Mask a vector, integers (d,), clipped, encoded and with the noise share that stays.

        Args:
            removable: the components that the device adds from its own chain of seeds, which it
                has dealt shares of; None where the round has none.

        Raises:
            ValueError: another shape than (dim,); integers narrower than the ring's words.
        """
        config = self._me.config
        if vector.shape != (config.dim,):
            raise ValueError(f"vector must have shape ({config.dim},): {vector.shape}")
        config.ring.check_integers(vector.dtype)
        if removable is not None and self.noise is not None:
            assert removable.plan.levels == config.noise_levels
            vector = removable.add(self.noise, vector)
        with self._leave() as me:
            dealt = ShareInbox.decode_from_server(inbox, config).shares
            checks.check_inbox(dealt, self._peers, config)
            held = {
                dealer: shares
                for dealer, record in dealt.items()
                if (shares := open_box(me, self._peers, self._agreed, dealer, record)) is not None
            }
            masked = mask(config.ring, vector, *_mask_seeds(me, self._peers, dealt))
            message = MaskedInput(masked).encode(config, me.index)
        return InputMasked(me, message, self._peers, frozenset(dealt), held)


class _Holder(_State):
    """After masking: the device holds shares of its dealers' secrets."""

    def __init__(
        self,
        me: Secrets,
        message: bytes,
        peers: checks.Peers,
        dealers: frozenset[int],
        held: dict[int, list[bytes]],
    ) -> None:
        super().__init__(me, message)
        self._peers = peers
        self._dealers = dealers
        self._held = held

    def _check(self, outcome: SurvivorSet) -> None:
        checks.check_outcome(outcome, self._peers, self._dealers, self._me.config, self._me.index)

    def _answer(self, outcome: SurvivorSet) -> bytes:
        """One share per dealer, never two: of which secret is the survivor set's to say."""
        config = self._me.config
        survivors = {d: held for d, held in self._held.items() if d in outcome.survivors}
        answer = UnmaskAnswer(
            self_shares={dealer: held[1] for dealer, held in survivors.items()},
            mask_shares={d: held[0] for d, held in self._held.items() if d in outcome.dropped},
        )
        level = config.noise_level(len(outcome.survivors))
        if self._me.noise is not None and level < config.noise_levels:
            answer = UnmaskAnswer(
                answer.self_shares,
                answer.mask_shares,
                self._me.noise.secrets()[level],
                {dealer: held[2 + level] for dealer, held in survivors.items()},
            )
        return answer.encode(config, self._me.index)


class InputMasked(_Holder):
    """Third phase: the report is on its way."""

    def confirm(self, outcome: bytes) -> SurvivorsConfirmed:
        """Sign the survivor set (signed rounds)."""
        if not self._me.config.signed:
            raise WrongState("this round does not sign its survivors")
        with self._leave() as me:
            survivors = SurvivorSet.decode_from_server(outcome, me.config)
            self._check(survivors)
            assert me.identity is not None
            signature = me.identity.sign(
                me.config.context, checks.SURVIVORS, survivors.body(me.config)
            )
            message = Confirmation(signature).encode(me.config, me.index)
        return SurvivorsConfirmed(
            me, message, self._peers, self._dealers, self._held, outcome=survivors
        )

    def unmask(self, request: bytes) -> Unmasked:
        """Answer with shares (unsigned rounds)."""
        if self._me.config.signed:
            raise WrongState("this round's survivors must be confirmed before it is unmasked")
        with self._leave() as me:
            outcome = UnmaskRequest.decode_from_server(request, me.config).outcome
            self._check(outcome)
            message = self._answer(outcome)
        return Unmasked(me, message)


class SurvivorsConfirmed(_Holder):
    """Fourth phase, signed rounds: the device signed one survivor set and answers for no other."""

    def __init__(
        self,
        me: Secrets,
        message: bytes,
        peers: checks.Peers,
        dealers: frozenset[int],
        held: dict[int, list[bytes]],
        outcome: SurvivorSet,
    ) -> None:
        super().__init__(me, message, peers, dealers, held)
        self._outcome = outcome

    def unmask(self, request: bytes) -> Unmasked:
        """Answer with shares once a quorum has signed the same survivor set."""
        with self._leave() as me:
            checked = UnmaskRequest.decode_from_server(request, me.config)
            if checked.outcome != self._outcome:
                raise Refused("the server asks about another survivor set than it had signed")
            checks.check_quorum(checked, self._peers, me.config)
            message = self._answer(checked.outcome)
        return Unmasked(me, message)


class Unmasked(_State):
    """Last phase: the device has answered, and has nothing more to say in this round."""


def _mask_seeds(
    me: Secrets, peers: checks.Peers, dealers: Iterable[int]
) -> tuple[list[bytes], list[bytes]]:
    """Seeds of the masks to add (the device's own among them) and of those to subtract."""
    context = me.config.context
    plus = [self_mask_seed(me.seed, context, me.index)]
    minus: list[bytes] = []
    for other in dealers:
        if other != me.index:
            theirs = peers.keys[other].mask_key
            seed = pair_mask_seed(me.mask_pair, theirs, context, me.index, other)
            (plus if me.index < other else minus).append(seed)
    return plus, minus
