"""Lies that a server could tell a device: each breaks one rule of PROTOCOL.md, the rest is honest.

The negative vectors tell them to a device that is played step by step, and the hostile server of
``pfl_lm.network.hostile`` to one that calls over the network. Bytes that are no message at all are
in ``damage``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from pfl_lm.secagg.checks import CLOCK_LEEWAY, KEYS, graph_seed
from pfl_lm.secagg.config import RoundConfig
from pfl_lm.secagg.graph import draw_graph
from pfl_lm.secagg.keys import Identity, Validity, certify
from pfl_lm.secagg.messages import (
    AdvertiseKeys,
    Message,
    Roster,
    ShareInbox,
    SurvivorSet,
    UnmaskRequest,
)


@dataclass(frozen=True)
class Lie:
    """A message that breaks a rule.

    Args:
        name: one word, unique among the lies about one message.
        rule: the sentence of PROTOCOL.md that it breaks.
        message: part of the reference's refusal.
        content: what the server says.
    """

    name: str
    rule: str
    message: str
    content: Message


@dataclass(frozen=True)
class Forger:
    """What a liar can sign: it knows the secrets of the authority and of the other devices.

    Args:
        authority: the secret of the authority that the device trusts.
        identity: place → that device's identity.
        validity: the dates of honest certificates.
        now: what the device's clock says.
        stranger: a public key that belongs to nobody.
        another: the secret of another authority.
        margin: seconds by which false dates miss the leeway of the device's clock.
    """

    authority: bytes
    identity: Callable[[int], Identity]
    validity: Validity
    now: int
    stranger: bytes
    another: bytes
    margin: int = 1


def members(honest: Roster, config: RoundConfig, me: int) -> Iterator[Lie]:
    """Misstate how many devices advertised keys, in rounds of both kinds."""
    keys = dict(honest.keys)
    one = min(keys.keys() - {me})
    few = {device: keys[device] for device in (me, one) if device in keys}
    rule = "members < max(own least cohort, min_reports) or > n"
    many = config.cohort + 1
    yield Lie("too_few_members", rule, "2 devices", Roster(2, few))
    yield Lie("too_many_members", rule, f"{many} devices", Roster(many, keys))


def rosters(honest: Roster, config: RoundConfig, me: int, own: AdvertiseKeys) -> Iterator[Lie]:
    """Lie about the neighbours' keys in an unsigned round.

    Args:
        own: what the device itself advertised.
    """
    yield from members(honest, config, me)
    keys = dict(honest.keys)
    one, two, *_ = sorted(keys)
    without = {device: keys[device] for device in sorted(keys)[:-1]}
    exact = "not exactly min(k, members − 1) neighbours"
    twice = "a box key or a mask key occurs twice, also one as the other"
    count = honest.members
    missing, beside = f"{len(without)} neighbours", f"{len(keys)} neighbours"
    yield Lie("neighbour_missing", exact, missing, Roster(count, without))
    if len(keys) == count - 1:
        yield Lie("neighbour_beside", exact, beside, Roster(count - 1, keys))
    itself = Roster(count, {me: own, **without})
    yield Lie("its_own_neighbour", exact, "its own neighbour", itself)
    for name, changes in (
        ("mask_key_twice", {"mask_key": keys[one].mask_key}),
        ("box_key_twice", {"box_key": keys[one].box_key}),
        ("box_key_as_mask_key", {"mask_key": keys[one].box_key}),
        ("own_mask_key", {"mask_key": own.mask_key}),
    ):
        yield Lie(name, twice, "twice", changed_key(honest, two, **changes))


def small_order(honest: Roster, me: int) -> Lie:
    """Give a neighbour a key whose shared secret with every other is zero (unsigned rounds)."""
    rule, other = "an all-zero shared secret is refused", _second(honest, me)
    weak = changed_key(honest, other, box_key=bytes(32))
    return Lie("box_key_of_small_order", rule, "small order", weak)


def signed_rosters(honest: Roster, config: RoundConfig, me: int, forger: Forger) -> Iterator[Lie]:
    """Lie about the keys of everybody in a signed round."""
    keys, count = dict(honest.keys), honest.members
    other = _second(honest, me)
    last = max(keys.keys() - {me})
    without = {device: keys[device] for device in keys if device != last}
    others = {device: keys[device] for device in keys if device != me}
    strange = forger.stranger
    yield Lie(
        "record_missing",
        "the records are not `members` many",
        "everybody once",
        Roster(count, without),
    )
    own = "this device is not among them with its own keys"
    yield Lie("own_keys", own, "its own keys", changed_key(honest, me, mask_key=strange))
    yield Lie("itself_missing", own, "everybody once", Roster(count - 1, others))
    again = _under(honest, config, other, forger.identity(min(others)))
    yield Lie("identity_twice", "an identity occurs twice", "twice", again)
    yield from _certificates(honest, other, forger)
    signature = changed_key(honest, other, mask_key=strange)
    yield Lie("signature", "any neighbour's signature fails", "verify", signature)


def _certificates(honest: Roster, other: int, forger: Forger) -> Iterator[Lie]:
    """Certify another device by another authority, or for other dates."""
    secret, dates = forger.identity(other).secret, forger.validity
    beyond = int(CLOCK_LEEWAY) + forger.margin
    early = Validity(forger.now + beyond, dates.not_after)
    late = Validity(dates.not_before, forger.now - beyond)
    dated = "a certificate is not valid now"
    for name, rule, message, authority, validity in (
        ("authority", "if any certificate", "verify", forger.another, dates),
        ("early", dated, "valid only from", forger.authority, early),
        ("late", dated, "expired", forger.authority, late),
    ):
        certificate = certify(authority, secret, validity).certificate
        yield Lie(name, rule, message, changed_key(honest, other, certificate=certificate))


def inboxes(honest: ShareInbox, stranger: int | None) -> Iterator[Lie]:
    """Lie about who dealt shares to a device.

    Args:
        stranger: a device that is no holder; None where everybody is one.
    """
    dealt = dict(honest.shares)
    if stranger is not None:
        rule, shares = "a dealer is no holder", {**dealt, stranger: dealt[min(dealt)]}
        yield Lie("stranger", rule, "no neighbour", ShareInbox(shares))
    few = dict(list(dealt.items())[:2])
    rule = "there are fewer than t"
    yield Lie("too_few", rule, "2 neighbours shared", ShareInbox(few))


def outcomes(honest: SurvivorSet, config: RoundConfig, me: int) -> Iterator[Lie]:
    """Lie about who survived; every lie is a survivor set."""
    alive, gone = honest.survivors, honest.dropped
    last = max(alive - {me})
    others = sorted(alive - {me})
    few = frozenset([me, *others[: config.min_reports - 2]])
    listed = "the dealers of the inbox are not exactly the holders that are listed"
    missing = (alive, gone - {max(gone)}) if gone else (alive - {last}, gone)
    for name, rule, message, survivors, dropped in (
        ("overlap", "the two overlap", "both alive", alive, gone | {last}),
        ("itself_missing", "this device is no survivor", "own report", alive - {me}, gone | {me}),
        ("too_few", "survivors < min_reports", f"a sum of {len(few)}", few, (alive | gone) - few),
        ("dealer_missing", listed, "not those who shared", *missing),
    ):
        yield Lie(name, rule, message, SurvivorSet(survivors, dropped))


def crowd(config: RoundConfig) -> Lie:
    """List the whole cohort, of which a device advertised no keys (unsigned rounds)."""
    outcome = SurvivorSet(frozenset(range(config.cohort)), frozenset())
    return Lie("too_many", "more devices are listed than members", "more devices", outcome)


def sparse_outcomes(
    honest: Roster, held: Mapping[int, bytes], config: RoundConfig, me: int
) -> Iterator[Lie]:
    """Cut a device off, in a signed round whose graph is not complete and where all survive."""
    everybody = frozenset(honest.keys)
    few = everybody - frozenset(sorted(held)[: len(held) - config.graph.threshold + 1])
    rule, message = "fewer than t of them survive", "fewer neighbours survive"
    outcome = SurvivorSet(few, everybody - few)
    yield Lie("too_few_holders", rule, message, outcome)
    seed = graph_seed(honest, config)
    cycle = draw_graph(seed, sorted(honest.keys), config.graph.neighbours).cycle
    half, at = config.graph.neighbours // 2, cycle.index(me)
    far = (len(cycle) + 1) // 2  # the devices opposite on the cycle
    gone = frozenset(cycle[(at + far + step) % len(cycle)] for step in range(half))
    rule = "any k/2 consecutive devices of the cycle hold fewer than w survivors"
    outcome = SurvivorSet(everybody - gone, gone)
    yield Lie("window", rule, "consecutive", outcome)


def requests(honest: UnmaskRequest, me: int) -> Iterator[Lie]:
    """Lie about the set that was signed, and about who signed it."""
    alive, gone = honest.outcome.survivors, honest.outcome.dropped
    signatures, last = dict(honest.signatures), max(alive - {me})
    back = {min(gone)} if gone else set()
    other = SurvivorSet((alive - {last}) | back, (gone - back) | {last})
    one, *rest = signatures
    forged = {**signatures, one: signatures[rest[0]]}
    few = {device: signatures[device] for device in rest}
    yield Lie(
        "another_set",
        "it is another set than the one signed",
        "another survivor set",
        UnmaskRequest(other, signatures),
    )
    rule, message = "signatures are fewer than ⌊(members + C)/2⌋ + 1", "fewer than the quorum"
    yield Lie("too_few", rule, message, UnmaskRequest(honest.outcome, few))
    if gone:
        dead = {**few, min(gone): signatures[one]}
        rule = "one is not a survivor's"
        yield Lie("no_survivor", rule, "did not survive", UnmaskRequest(honest.outcome, dead))
    rule = "or does not verify"
    yield Lie("forged", rule, "does not verify", UnmaskRequest(honest.outcome, forged))


def changed_key(roster: Roster, device: int, **changes: bytes) -> Roster:
    """The roster with other fields of one device's record."""
    changed = replace(roster.keys[device], **changes)
    return Roster(roster.members, {**roster.keys, device: changed})


def _second(roster: Roster, me: int) -> int:
    return sorted(roster.keys.keys() - {me})[1]


def _under(roster: Roster, config: RoundConfig, device: int, identity: Identity) -> Roster:
    """The roster with a device under another identity, soundly signed."""
    public, certificate = identity.public, identity.certificate
    theirs = replace(roster.keys[device], identity=public, certificate=certificate)
    signature = identity.sign(config.context, KEYS, theirs.signed_content(device))
    return changed_key(
        roster, device, identity=public, certificate=certificate, signature=signature
    )
