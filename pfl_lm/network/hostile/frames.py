"""What a hostile server sends in the place of the protocol's honest messages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

from pfl_lm.conformance import damage, lies
from pfl_lm.conformance.lies import Lie
from pfl_lm.network.hostile.cases import Case
from pfl_lm.network.hostile.crowd import Crowd, another_round
from pfl_lm.network.hostile.statements import NotPossible
from pfl_lm.secagg.checks import KEYS
from pfl_lm.secagg.config import RoundConfig
from pfl_lm.secagg.keys import KEY_BYTES, KeyPair, certify
from pfl_lm.secagg.messages import (
    AdvertiseKeys,
    Message,
    Roster,
    ShareInbox,
    SurvivorSet,
    UnmaskAnswer,
    UnmaskRequest,
)
from pfl_lm.secagg.wire import SERVER, frame

_HUGE_BYTES = 80_000_000

M = TypeVar("M", bound=Message)


@dataclass
class Scene:
    """A round as the server knows it, up to now.

    Attributes:
        me: place of the device under attack.
        told: kind → the honest frame that this device was or would be told.
        sent: kind → what this device sent.
    """

    config: RoundConfig
    me: int
    crowd: Crowd
    told: dict[int, bytes]
    sent: dict[int, bytes]

    def honest(self, kind: type[M]) -> M:
        """Read what this device was told."""
        return kind.decode_from_server(self.told[kind.kind], self.config)

    @property
    def outcome(self) -> SurvivorSet:
        """Who survived."""
        if self.config.signed:
            return self.honest(SurvivorSet)
        return self.honest(UnmaskRequest).outcome

    @property
    def first_dealer(self) -> int:
        """The other device whose shares a case replaces."""
        return min(self.honest(ShareInbox).shares.keys() - {self.me})


def lying_frame(case: Case, scene: Scene, whole: bytes) -> bytes | None:
    """Return what a case sends in the place of an honest frame; None: this frame stays.

    Raises:
        NotPossible: rounds of this kind have no such lie.
    """
    prefix, _, name = case.name.partition("_")
    kind = whole[5]
    if kind == 2 and prefix == "roster":
        return _of(_rosters(scene, whole), name)
    if kind == 4 and prefix == "inbox":
        return _of(_inboxes(scene, whole), name)
    if prefix == "survivors" and kind == (6 if scene.config.signed else 8):
        return _of(_survivors(scene, whole), name)
    if kind == 8 and prefix == "request":
        if not scene.config.signed:
            raise NotPossible("the round is not signed")
        return _of(_requests(scene), name)
    return None


def another_frame(case: Case, scene: Scene) -> bytes:
    """Return what a case sends once more, after the device's message."""
    name, config = case.name.removeprefix("again_"), scene.config
    if name == "roster":
        return scene.told[2]
    if name == "inbox":
        dealt = dict(scene.honest(ShareInbox).shares)
        if len(dealt) > config.graph.threshold:
            del dealt[max(dealt.keys() - {scene.me})]
        return ShareInbox(dealt).encode_from_server(config)
    if name == "survivors":
        return _without_one(scene.outcome, scene.me).encode_from_server(config)
    signatures: dict[int, bytes] = {}
    everybody = frozenset(scene.honest(ShareInbox).shares)
    outcome = SurvivorSet(everybody, frozenset(range(config.cohort)) - everybody)
    if name == "request":
        outcome = _without_one(scene.outcome, scene.me)
        signatures = {p: scene.crowd.sign(p, outcome) for p in scene.crowd.places}
    return UnmaskRequest(outcome, signatures).encode_from_server(config)


def reveals(scene: Scene, message: bytes) -> bool:
    """Whether an answer holds a share of the dealer whose shares were replaced."""
    answer = UnmaskAnswer.decode(message, scene.config, scene.me)
    return scene.first_dealer in {**answer.self_shares, **answer.mask_shares}


def _of(told: Iterator[tuple[str, bytes]], name: str) -> bytes:
    for other, content in told:
        if other == name:
            return content
    raise NotPossible("rounds of this kind have no such lie")


def _written(told: Iterator[Lie], scene: Scene) -> Iterator[tuple[str, bytes]]:
    for lie in told:
        yield lie.name, lie.content.encode_from_server(scene.config)


def _replayed(scene: Scene, whole: bytes) -> bytes:
    """The same message in the frame of another round."""
    return frame(whole[5], SERVER, another_round(scene.config).context, whole[52:-16])


def _rosters(scene: Scene, whole: bytes) -> Iterator[tuple[str, bytes]]:
    config, me, forger = scene.config, scene.me, scene.crowd.forger
    for each in (*damage.frames(whole, _replayed(scene, whole)), *damage.bodies(whole)):
        yield each.name, each.content
    yield "huge", frame(2, SERVER, config.context, bytes(_HUGE_BYTES))
    honest = scene.honest(Roster)
    if config.signed:
        yield from _written(lies.members(honest, config, me), scene)
        yield from _written(lies.signed_rosters(honest, config, me, forger), scene)
        yield "server_keys", _server_keys(honest, scene).encode_from_server(config)
    else:
        own = AdvertiseKeys.decode(scene.sent[1], config, me)
        yield from _written(lies.rosters(honest, config, me, own), scene)
        yield from _written(iter([lies.small_order(honest, me)]), scene)


def _server_keys(honest: Roster, scene: Scene) -> Roster:
    """Everybody but this device with keys of the server's own, under another authority."""
    forger, context = scene.crowd.forger, scene.config.context
    listed = dict(honest.keys)
    for place in listed.keys() - {scene.me}:
        box, mask, secret = (KeyPair.from_secret(_secret(place, n)) for n in range(3))
        identity = certify(forger.another, secret.secret, forger.validity)
        keys = AdvertiseKeys(box.public, mask.public, identity.public, identity.certificate)
        signature = identity.sign(context, KEYS, keys.signed_content(place))
        listed[place] = replace(keys, signature=signature)
    return Roster(honest.members, listed)


def _secret(place: int, number: int) -> bytes:
    return (3 * place + number + 1).to_bytes(KEY_BYTES, "little")


def _inboxes(scene: Scene, whole: bytes) -> Iterator[tuple[str, bytes]]:
    honest, config = scene.honest(ShareInbox), scene.config
    strangers = [p for p in range(config.cohort) if p not in honest.shares]
    stranger = strangers[0] if strangers and config.holders < config.cohort else None
    yield from _written(lies.inboxes(honest, stranger), scene)
    yield "earlier_round", _replayed(scene, whole)
    dealer = scene.first_dealer
    for name, record in (
        ("replayed_share", scene.crowd.replayed(dealer, scene.me)),
        ("swapped_share", scene.crowd.dealt(dealer, scene.me)),
    ):
        inbox = ShareInbox({**honest.shares, dealer: record})
        yield name, inbox.encode_from_server(config)


def _survivors(scene: Scene, whole: bytes) -> Iterator[tuple[str, bytes]]:
    config, me, outcome = scene.config, scene.me, scene.outcome
    told = [*lies.outcomes(outcome, config, me)]
    if len(outcome.survivors | outcome.dropped) < config.cohort:
        told.append(lies.crowd(config))
    if config.signed and config.holders < config.cohort:
        held = scene.honest(ShareInbox).shares
        told += lies.sparse_outcomes(scene.honest(Roster), held, config, me)
    for lie in told:
        content = lie.content
        if not config.signed:
            assert isinstance(content, SurvivorSet)
            content = UnmaskRequest(content, {})
        yield lie.name, content.encode_from_server(config)
    yield "earlier_round", _replayed(scene, whole)


def _requests(scene: Scene) -> Iterator[tuple[str, bytes]]:
    honest, config = scene.honest(UnmaskRequest), scene.config
    yield from _written(lies.requests(honest, scene.me), scene)
    other = _without_one(honest.outcome, scene.me)
    half = [place for place in honest.signatures if place != scene.me][::2]
    told_another = {place: scene.crowd.sign(place, other) for place in half}
    split = UnmaskRequest(honest.outcome, {**honest.signatures, **told_another})
    yield "split", split.encode_from_server(config)


def _without_one(outcome: SurvivorSet, me: int) -> SurvivorSet:
    """The survivor set in which one more device has dropped out."""
    last = max(outcome.survivors - {me})
    return SurvivorSet(outcome.survivors - {last}, outcome.dropped | {last})
