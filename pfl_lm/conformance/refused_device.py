"""The negative vectors of a message read, of a policy, and of the keys that a device is told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from pfl_lm.conformance.heard import ROSTER, SIGNED, SPARSE, UNSIGNED, Accepted, Heard, Mutate
from pfl_lm.conformance.play import AUTHORITY_SECRET, NOW, VALIDITY, fixed, identity_of
from pfl_lm.conformance.vectors import Vector
from pfl_lm.secagg.keys import Identity, KeyPair, Validity, certify
from pfl_lm.secagg.messages import AdvertiseKeys, Roster
from pfl_lm.secagg.wire import SERVER, frame


def negative(accepted: Accepted, mutate: Mutate) -> Iterator[Vector]:
    """Yield the negative vectors of messages, promises and rosters."""
    yield from _readings(accepted, mutate)
    yield from _policies(accepted, mutate)
    yield from _rosters(accepted, mutate)
    yield from _signed_rosters(accepted, mutate)


def _readings(accepted: Accepted, mutate: Mutate) -> Iterator[Vector]:
    base = "read_roster_unsigned"
    whole = bytes.fromhex(accepted[base].inputs["frame"])
    context, body = whole[20:52], whole[52:-16]

    def framed(changed: bytes, kind: int = 2, sender: int = SERVER) -> str:
        return frame(kind, sender, context, changed).hex()

    rule = "A body has exactly one encoding; anything else is refused"
    for name, message, changed in (
        ("goes_on", "goes on", body + b"\0"),
        ("ends_early", "middle of a field", body[:-1]),
    ):
        yield mutate(
            accepted, base, f"body_{name}", rule, "malformed", message, "frame", framed(changed)
        )
    rule = "refuses a frame whose sender is another"
    yield mutate(
        accepted,
        base,
        "another_sender",
        rule,
        "refused",
        "comes from",
        "frame",
        framed(body, sender=1),
    )
    rule = "A state takes one kind of message"
    yield mutate(
        accepted,
        base,
        "another_kind",
        rule,
        "wrong_state",
        "of kind 4",
        "frame",
        framed(body, kind=4),
    )
    base, rule = "read_unmask_answer_noise", "a length (u32, 32)"
    whole = bytes.fromhex(accepted[base].inputs["frame"])
    at = whole.index((32).to_bytes(4, "little"), 52 + 8)
    body = whole[52:at] + (31).to_bytes(4, "little") + whole[at + 4 : -16]
    altered = frame(9, 0, whole[20:52], body).hex()
    yield mutate(
        accepted, base, "noise_secret_length", rule, "malformed", "noise", "frame", altered
    )


def _policies(accepted: Accepted, mutate: Mutate) -> Iterator[Vector]:
    rule = "holds it against its own `DevicePolicy`"
    for name, base, message, field, value in (
        ("least_reports", UNSIGNED, "min_reports is 3", "least_reports", 4),
        ("least_cohort", UNSIGNED, "the cohort is 5", "least_cohort", 6),
        ("least_neighbours", SPARSE, "4 neighbours", "least_neighbours", 5),
        ("adversary", UNSIGNED, "only with signed keys", "adversary", "active"),
        ("authority", SIGNED, "authority's public key", "authority", None),
    ):
        yield mutate(
            accepted, base, f"policy_{name}", rule, "refused", message, f"policy__{field}", value
        )


def _rosters(accepted: Accepted, mutate: Mutate) -> Iterator[Vector]:
    heard = Heard(accepted, UNSIGNED)
    honest = heard.roster
    keys = dict(honest.keys)
    own = AdvertiseKeys.decode(_own_keys(accepted, UNSIGNED), heard.config, 0)
    without = {device: keys[device] for device in (1, 2, 3)}
    members = "members < max(own least cohort, min_reports) or > n"
    exact = "not exactly min(k, members − 1) neighbours"
    twice = "a box key or a mask key occurs twice, also one as the other"
    for name, rule, message, roster in (
        ("too_few_members", members, "2 devices", Roster(2, {1: keys[1]})),
        ("too_many_members", members, "6 devices", Roster(6, keys)),
        ("neighbour_missing", exact, "3 neighbours", Roster(5, without)),
        ("neighbour_beside", exact, "4 neighbours", Roster(4, keys)),
        ("its_own_neighbour", exact, "its own neighbour", Roster(5, {0: own, **without})),
        ("mask_key_twice", twice, "twice", _with(honest, 2, mask_key=keys[1].mask_key)),
        ("box_key_twice", twice, "twice", _with(honest, 2, box_key=keys[1].box_key)),
        ("box_key_as_mask_key", twice, "twice", _with(honest, 2, mask_key=keys[1].box_key)),
        ("own_mask_key", twice, "twice", _with(honest, 2, mask_key=own.mask_key)),
    ):
        yield mutate(
            accepted,
            UNSIGNED,
            f"roster_{name}",
            rule,
            "refused",
            message,
            heard.call(ROSTER),
            heard.write(roster),
        )
    yield from _too_few_holders(accepted, mutate)
    rule = "an all-zero shared secret is refused"
    altered = heard.write(_with(honest, 2, box_key=bytes(32)))
    name, message = "roster_box_key_of_small_order", "small order"
    yield mutate(accepted, UNSIGNED, name, rule, "refused", message, heard.call(ROSTER), altered)


def _too_few_holders(accepted: Accepted, mutate: Mutate) -> Iterator[Vector]:
    base = "device_threshold_4_0"
    heard = Heard(accepted, base)
    keys = heard.roster.keys
    altered = heard.write(Roster(3, {1: keys[1], 2: keys[2]}))
    rule, message = "there are fewer than t holders", "3 holders"
    yield mutate(
        accepted,
        base,
        "roster_too_few_holders",
        rule,
        "refused",
        message,
        heard.call(ROSTER),
        altered,
    )


def _with(roster: Roster, device: int, **changes: bytes) -> Roster:
    changed = replace(roster.keys[device], **changes)
    return Roster(roster.members, {**roster.keys, device: changed})


def _own_keys(accepted: Accepted, base: str) -> bytes:
    output = accepted[base].output
    assert output is not None
    return bytes.fromhex(output["messages"][0])


def _signed_rosters(accepted: Accepted, mutate: Mutate) -> Iterator[Vector]:
    heard = Heard(accepted, SIGNED)
    honest, context = heard.roster, heard.config.context
    keys = dict(honest.keys)
    without = {device: keys[device] for device in (0, 1, 2, 3)}
    strange = KeyPair.from_secret(fixed("stranger")).public
    own = "this device is not among them with its own keys"

    def recertified(secret: bytes, validity: Validity) -> Roster:
        """The roster with a certificate by another authority, or of other dates, for device 2."""
        return _with(honest, 2, certificate=certify(secret, _secret(2), validity).certificate)

    def signed_by(identity: Identity) -> Roster:
        """The roster with device 2 under another identity, soundly signed."""
        theirs = replace(keys[2], identity=identity.public, certificate=identity.certificate)
        signature = identity.sign(context, b"advertised keys", theirs.signed_content(2))
        return _with(
            honest,
            2,
            identity=identity.public,
            certificate=identity.certificate,
            signature=signature,
        )

    certified, leeway = "if any certificate", "a certificate is not valid now"
    early = Validity(NOW + 3601, VALIDITY.not_after)
    late = Validity(VALIDITY.not_before, NOW - 3601)
    for name, rule, message, roster in (
        (
            "record_missing",
            "the records are not `members` many",
            "everybody once",
            Roster(5, without),
        ),
        ("own_keys", own, "its own keys", _with(honest, 0, mask_key=strange)),
        ("itself_missing", own, "everybody once", Roster(4, _others(keys))),
        ("identity_twice", "an identity occurs twice", "twice", signed_by(identity_of(1))),
        ("authority", certified, "verify", recertified(fixed("another"), VALIDITY)),
        ("early", leeway, "valid only from", recertified(AUTHORITY_SECRET, early)),
        ("late", leeway, "expired", recertified(AUTHORITY_SECRET, late)),
        (
            "signature",
            "any neighbour's signature fails",
            "verify",
            _with(honest, 2, mask_key=strange),
        ),
    ):
        yield mutate(
            accepted,
            SIGNED,
            f"signed_roster_{name}",
            rule,
            "refused",
            message,
            heard.call(ROSTER),
            heard.write(roster),
        )


def _secret(device: int) -> bytes:
    return fixed(f"identity {device}")


def _others(keys: Mapping[int, AdvertiseKeys]) -> dict[int, AdvertiseKeys]:
    return {device: keys[device] for device in keys if device != 0}
