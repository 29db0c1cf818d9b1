"""The negative vectors of derivations, envelopes and encodings: one mutation each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pfl_lm.conformance import refused_device, refused_round
from pfl_lm.conformance.answers import answer
from pfl_lm.conformance.damage import frames
from pfl_lm.conformance.play import VALIDITY, fixed, identity_of
from pfl_lm.conformance.vectors import Vector
from pfl_lm.secagg.keys import public_key
from pfl_lm.secagg.sharing import PRIME

Accepted = Mapping[str, Vector]


def mutate(
    accepted: Accepted,
    base: str,
    name: str,
    rule: str,
    code: str,
    message: str,
    place: str,
    value: Any,
) -> Vector:
    """Return the negative vector that differs from ``base`` in one input.

    Args:
        accepted: the positive vectors by name, of which ``base`` is one.
        rule, code, message: as in ``Vector``; the reference must refuse so.
        place: of the input; ``__`` stands before a name, or a number, inside it.
        value: what stands there instead.
    """
    inputs = _changed(accepted[base].inputs, place.split("__"), value)
    given = answer(accepted[base].kind, inputs)
    assert given.get("refused") == code, (name, given)
    assert message in given["message"], (name, given)
    return Vector(
        name,
        accepted[base].kind,
        inputs,
        refused=code,
        rule=rule,
        mutation_of=base,
        message=message,
    )


def _changed(inputs: Any, path: list[str], value: Any) -> Any:
    """Return a copy of nested mappings and lists with one place replaced."""
    first, *rest = path
    if isinstance(inputs, list):
        at = int(first)
        new = _changed(inputs[at], rest, value) if rest else value
        return [*inputs[:at], new, *inputs[at + 1 :]]
    return {**inputs, first: _changed(inputs[first], rest, value) if rest else value}


def negative(accepted: Iterable[Vector]) -> Iterator[Vector]:
    """Yield every negative vector.

    Args:
        accepted: the positive vectors, from which the negative ones differ in one input.
    """
    named = {vector.name: vector for vector in accepted}
    yield from _configs(named)
    yield from _frames(named)
    yield from _bodies(named)
    yield from _shares(named)
    yield from _agreements(named)
    yield from _boxes(named)
    yield from _signatures(named)
    yield from _certificates(named)
    yield from refused_round.negative(named, mutate)
    yield from refused_device.negative(named, mutate)


def _configs(accepted: Accepted) -> Iterator[Vector]:
    for name, rule, message, path, value in (
        ("bits_below_8", "8 to 64", "bits must be", "config__bits", 7),
        ("bits_above_64", "8 to 64", "bits must be", "config__bits", 65),
        ("odd_neighbours", "k even, or n − 1", "must be even", "config__neighbours", 3),
        ("low_threshold", "t > k/2", "exceed half", "config__threshold", 2),
        ("least_reports", "2 ≤ min_reports ≤ n", "min_reports", "config__min_reports", 6),
    ):
        yield mutate(accepted, "context_unsigned", name, rule, "invalid", message, path, value)


def _frames(accepted: Accepted) -> Iterator[Vector]:
    base = "unframe_1"
    whole = bytes.fromhex(accepted[base].inputs["frame"])
    for damage in frames(whole, whole):
        field, value = "frame", damage.content.hex()
        if damage.name == "frame_context":
            field, value = "context", fixed("another context").hex()
        yield mutate(
            accepted, base, damage.name, damage.rule, damage.code, damage.message, field, value
        )


def _bodies(accepted: Accepted) -> Iterator[Vector]:
    rule = "indices strictly ascending and below n"
    body = bytes.fromhex(accepted["read_records"].inputs["body"])
    count, (a, b, c) = body[:4], (body[4:13], body[13:22], body[22:31])
    for name, message, changed in (
        ("descend", "must ascend", count + b + a + c),
        ("twice", "must ascend", count + a + a + c),
        ("beyond_n", "must ascend", count + a + b + b"\x09\0\0\0" + c[4:]),
        ("too_many", "middle of a field", b"\x04\0\0\0" + a + b + c),
        ("too_few", "goes on", b"\x02\0\0\0" + a + b + c),
        ("cut", "middle of a field", body[:-1]),
    ):
        name = f"records_{name}"
        yield mutate(
            accepted, "read_records", name, rule, "malformed", message, "body", changed.hex()
        )
    rule, base = "unused bits zero", "read_bitmap"
    for name, message, changed in (
        ("unused_bits", "unused bits", b"\x09\x0d"),
        ("cut", "middle of a field", b"\x09"),
        ("longer", "goes on", b"\x09\x05\x00"),
    ):
        yield mutate(
            accepted, base, f"bitmap_{name}", rule, "malformed", message, "bitmap", changed.hex()
        )
    packed = bytes.fromhex(accepted["unpack_20"].inputs["packed"])
    set_bit = packed[:-1] + bytes([packed[-1] | 0x80])
    for name, message, changed in (
        ("unused_bits", "unused bits", set_bit),
        ("cut", "takes 28 bytes", packed[:-1]),
        ("longer", "takes 28 bytes", packed + b"\0"),
    ):
        yield mutate(
            accepted,
            "unpack_20",
            f"vector_{name}",
            rule,
            "malformed",
            message,
            "packed",
            changed.hex(),
        )


def _shares(accepted: Accepted) -> Iterator[Vector]:
    rule = "secrets and shares are little-endian, 32 and 33 bytes"
    shares = accepted["recover_3_of_5"].inputs["shares"]
    altered = bytes.fromhex(shares["2"])
    for name, code, message, changed in (
        ("outside_the_field", "malformed", "below the field's prime", PRIME.to_bytes(33, "little")),
        ("of_32_bytes", "malformed", "below the field's prime", altered[:32]),
        ("of_no_secret", "refused", "belong to no secret", _no_secret(accepted)),
    ):
        yield mutate(
            accepted,
            "recover_3_of_5",
            f"share_{name}",
            rule,
            code,
            message,
            "shares__2",
            changed.hex(),
        )


def _agreements(accepted: Accepted) -> Iterator[Vector]:
    rule = "an all-zero shared secret is refused"
    order_8 = "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"
    for name, point in (("zero", "00" * 32), ("one", "01" + "00" * 31), ("order_8", order_8)):
        name, code, message = f"small_order_{name}", "refused", "small order"
        yield mutate(accepted, "agree", name, rule, code, message, "public", point)


def _boxes(accepted: Accepted) -> Iterator[Vector]:
    rule = "associated data u32 d ‖ u32 h ‖ the two commitments"
    sealed = accepted["open"].inputs
    flipped = bytes.fromhex(sealed["box"])
    for name, field, value in (
        ("altered", "box", (bytes([flipped[0] ^ 1]) + flipped[1:]).hex()),
        ("cut", "box", flipped[:-1].hex()),
        ("commitments", "public", fixed("other commitments", 64).hex()),
        ("dealer", "other", 3),
        ("holder", "me", 0),
        ("direction", "deals", True),
        ("round", "context", fixed("another context").hex()),
    ):
        message = "does not open"
        yield mutate(accepted, "open", f"box_{name}", rule, "refused", message, field, value)


def _no_secret(accepted: Accepted) -> bytes:
    """Return a third share with which the value at zero is 2^256, which is no secret."""
    shares = accepted["recover_3_of_5"].inputs["shares"]
    points = {int(h) + 1: int.from_bytes(bytes.fromhex(s), "little") for h, s in shares.items()}
    weights = {}
    for x in points:
        weight = 1
        for other in points:
            if other != x:
                weight = weight * other * pow(other - x, -1, PRIME) % PRIME
        weights[x] = weight
    rest = sum(weights[x] * value for x, value in points.items() if x != 3)
    wanted = (2**256 - rest) * pow(weights[3], -1, PRIME) % PRIME
    return wanted.to_bytes(33, "little")


def _signatures(accepted: Accepted) -> Iterator[Vector]:
    rule = "purpose ‖ context ‖ content"
    base, message = "check_signature_survivor_set", "does not verify"
    signature = bytes.fromhex(accepted[base].inputs["signature"])
    for name, field, value in (
        ("altered", "signature", (signature[:40] + fixed("s", 24)).hex()),
        ("cut", "signature", signature[:-1].hex()),
        ("purpose", "purpose", "advertised keys"),
        ("round", "context", fixed("another context").hex()),
        ("content", "content", fixed("other content", 100).hex()),
        ("signer", "identity", public_key(fixed("identity 1")).hex()),
    ):
        yield mutate(accepted, base, f"signature_{name}", rule, "refused", message, field, value)


def _certificates(accepted: Accepted) -> Iterator[Vector]:
    base = "check_certificate_now"
    rule = "seconds since 1970, both included"
    certificate = identity_of(0).certificate
    longer = certificate[:8] + (VALIDITY.not_after + 1).to_bytes(8, "little") + certificate[16:]
    for name, message, field, value in (
        ("authority", "verify", "authority", public_key(fixed("another authority")).hex()),
        ("identity", "verify", "identity", public_key(fixed("identity 1")).hex()),
        ("dates", "verify", "certificate", longer.hex()),
        ("length", "has 80 bytes", "certificate", certificate[:-1].hex()),
        ("early", "valid only from", "now", VALIDITY.not_before - 3601),
        ("late", "expired", "now", VALIDITY.not_after + 3601),
    ):
        name = f"certificate_{name}"
        yield mutate(accepted, base, name, rule, "refused", message, field, value)
