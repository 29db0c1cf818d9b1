"""The positive vectors, all of them, from fixed entropy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pfl_lm.conformance import accepted_encoding
from pfl_lm.conformance.answers import answer
from pfl_lm.conformance.plain import plain_config
from pfl_lm.conformance.play import (
    AUTHORITY_SECRET,
    NOW,
    VALIDITY,
    PlayedRound,
    fixed,
    identity_of,
    play,
    signed_config,
    small_config,
)
from pfl_lm.conformance.vectors import Vector
from pfl_lm.secagg.config import MessageKind, RoundConfig
from pfl_lm.secagg.keys import KeyPair, public_key
from pfl_lm.secagg.parameters import GraphParameters
from pfl_lm.secagg.ring import Ring

WIDTHS = (8, 9, 15, 16, 17, 20, 24, 25, 26, 31, 32, 33, 40, 47, 48, 56, 57, 58, 63, 64)
_DIM = 11
_MESSAGE_NAMES = {
    1: "advertise_keys",
    2: "roster",
    3: "share_keys",
    4: "share_inbox",
    5: "masked_input",
    6: "survivor_set",
    7: "confirmation",
    8: "unmask_request",
    9: "unmask_answer",
}


def accept(name: str, kind: str, inputs: Mapping[str, Any]) -> Vector:
    """Return the positive vector of inputs that the reference accepts."""
    given = answer(kind, inputs)
    assert "output" in given, (name, given)
    return Vector(name, kind, inputs, output=given["output"])


def positive() -> Iterator[Vector]:
    """Yield every positive vector."""
    yield from _contexts()
    yield from _derivations()
    yield from _masks()
    yield from _sharings()
    yield from _envelopes()
    yield from _signatures()
    yield from accepted_encoding.positive(accept)
    for label, played in rounds().items():
        yield from _devices(label, played)
    yield from _messages()


def configs() -> dict[str, RoundConfig]:
    """The rounds of which contexts are asked for."""
    graph = GraphParameters(4, 3, 1, 2)
    return {
        "unsigned": small_config(),
        "signed": signed_config(),
        "noise": small_config(noise_levels=2),
        "sparse": signed_config(cohort=8, graph=graph),
        "late": small_config(round=1 << 40, dim=1 << 33, bits=64, cohort=70_000),
    }


def rounds() -> dict[str, PlayedRound]:
    """A round of five with nobody missing, and one for each phase in which one drops out."""
    played = {}
    for label, config in (("unsigned", small_config()), ("signed", signed_config())):
        played[label] = play(config)
        for kind in MessageKind:
            if kind is not MessageKind.CONFIRMATION or config.signed:
                without = f"{label}_4_drops_at_{kind.name.lower()}"
                played[without] = play(config, {4: kind})
    noisy = small_config(noise_levels=2)
    played["noise"] = play(noisy, variance=60.0)
    played["noise_4_drops_at_input"] = play(noisy, {4: MessageKind.INPUT}, variance=60.0)
    sparse = signed_config(cohort=8, graph=GraphParameters(4, 3, 1, 1))
    played["threshold_4"] = play(small_config(graph=GraphParameters(4, 4, 0)))
    played["sparse"] = play(sparse, {6: MessageKind.INPUT})
    played["sparse_6_drops_at_keys"] = play(sparse, {6: MessageKind.KEYS})
    return played


def _contexts() -> Iterator[Vector]:
    for label, config in configs().items():
        yield accept(f"context_{label}", "context", {"config": plain_config(config)})


def _derivations() -> Iterator[Vector]:
    context, secret = fixed("context").hex(), fixed("secret a").hex()
    theirs = KeyPair.from_secret(fixed("secret b")).public.hex()
    for label in ("share box", "pair mask", "self mask"):
        inputs: dict[str, Any] = {
            "label": label,
            "secret": secret,
            "context": context,
            "info": fixed("i", 72).hex(),
        }
        yield accept(f"hkdf_{label.replace(' ', '_')}", "hkdf", inputs)
    for letter in "ab":
        secret_of = {"secret": fixed(f"secret {letter}").hex()}
        yield accept(f"public_key_{letter}", "public_key", secret_of)
    yield accept("agree", "agree", {"secret": secret, "public": theirs})
    for me, other in ((0, 1), (3, 2)):
        inputs = {"secret": secret, "theirs": theirs, "context": context, "me": me, "other": other}
        yield accept(f"pair_mask_seed_{me}_{other}", "pair_mask_seed", inputs)
    yield accept(
        "self_mask_seed", "self_mask_seed", {"secret": secret, "context": context, "device": 3}
    )
    for purpose in ("mask share", "self share", "seed"):
        value = fixed("value", 32 if purpose == "seed" else 33).hex()
        holder = 2 if purpose == "seed" else 4
        inputs = {"context": context, "purpose": purpose, "dealer": 2, "holder": holder}
        yield accept(f"commit_{purpose.replace(' ', '_')}", "commit", {**inputs, "value": value})
    for start in (1, 3):
        inputs = {"first": secret, "context": context, "device": 2, "levels": 4, "start": start}
        yield accept(f"noise_chain_from_{start}", "noise_chain", inputs)


def _masks() -> Iterator[Vector]:
    vector = [str((-1) ** at * at**3) for at in range(_DIM)]
    for bits in WIDTHS:
        seeds = {"plus": [fixed(f"self {bits}").hex()], "minus": []}
        inputs: dict[str, Any] = {"bits": bits, "vector": ["0"] * _DIM, **seeds}
        yield accept(f"mask_{bits:02}_alone", "mask", inputs)
        plus, minus = [fixed("plus").hex()], [fixed("minus").hex()]
        inputs = {"bits": bits, "vector": vector, "plus": plus, "minus": minus}
        yield accept(f"mask_{bits:02}_pair", "mask", inputs)
    overflowing = (fixed("key", 16) + b"\xff" * 16).hex()
    inputs = {"bits": 20, "vector": ["0"] * _DIM, "plus": [overflowing], "minus": []}
    yield accept("mask_counter_wraps", "mask", inputs)
    for bits in (20, 47, 64):
        words = Ring(bits).zeros(_DIM)
        words[:] = [(-5 * at**2) % (1 << bits) for at in range(_DIM)]
        inputs = {"bits": bits, "dim": _DIM, "packed": Ring(bits).pack(words).hex()}
        yield accept(f"unpack_{bits}", "unpack", inputs)


def _sharings() -> Iterator[Vector]:
    secret = fixed("shared secret").hex()
    for holders, threshold in (([0, 1, 2, 3, 4], 3), ([7, 2, 90_000], 2), ([5], 1)):
        entropy = fixed("coefficients", 48 * (threshold - 1)).hex()
        inputs: dict[str, Any] = {
            "secret": secret,
            "holders": holders,
            "threshold": threshold,
            "entropy": entropy,
        }
        dealt = accept(f"share_{threshold}_of_{len(holders)}", "share", inputs)
        yield dealt
        assert dealt.output is not None
        shares = dealt.output["shares"]
        chosen = {str(holder): shares[str(holder)] for holder in holders[-threshold:]}
        yield accept(f"recover_{threshold}_of_{len(holders)}", "recover", {"shares": chosen})
    for members, degree in (([0, 1, 2, 3, 4], 4), (list(range(12)), 4), ([1, 4, 6, 9, 11], 10)):
        inputs = {"seed": fixed("graph").hex(), "members": members, "degree": degree}
        yield accept(f"graph_{len(members)}_{degree}", "graph", inputs)


def _envelopes() -> Iterator[Vector]:
    context = fixed("context").hex()
    for kind, sender, size in ((1, 3, 64), (5, 0, 1000), (8, 0xFFFFFFFF, 2)):
        inputs: dict[str, Any] = {
            "kind": kind,
            "sender": sender,
            "context": context,
            "body": fixed("b", size).hex(),
        }
        framed = accept(f"frame_{kind}", "frame", inputs)
        yield framed
        assert framed.output is not None
        inputs = {"frame": framed.output["frame"], "context": context}
        yield accept(f"unframe_{kind}", "unframe", inputs)
    records = {str(index): fixed(f"record {index}", 5).hex() for index in (0, 3, 8)}
    written = accept("write_records", "write_records", {"records": records})
    yield written
    assert written.output is not None
    inputs = {"body": written.output["body"], "size": 5, "cohort": 9}
    yield accept("read_records", "read_records", inputs)
    members: dict[str, Any] = {"members": [0, 3, 8, 10], "cohort": 11}
    bitmap = accept("write_bitmap", "write_bitmap", members)
    yield bitmap
    assert bitmap.output is not None
    yield accept("read_bitmap", "read_bitmap", {**bitmap.output, "cohort": 11})
    secret_a, secret_b = fixed("secret a"), fixed("secret b")
    shared = {"context": context, "public": fixed("commitments", 64).hex()}
    theirs = KeyPair.from_secret(secret_b).public.hex()
    sealing: dict[str, Any] = {
        "secret": secret_a.hex(),
        "theirs": theirs,
        "me": 2,
        "other": 1,
        "deals": True,
    }
    sealed = accept("seal", "seal", {**shared, **sealing, "content": fixed("shares", 66).hex()})
    yield sealed
    assert sealed.output is not None
    theirs = KeyPair.from_secret(secret_a).public.hex()
    opening = {"secret": secret_b.hex(), "theirs": theirs, "me": 1, "other": 2, "deals": False}
    yield accept("open", "open", {**shared, **opening, **sealed.output})


def _signatures() -> Iterator[Vector]:
    secret, context = fixed("identity 0"), fixed("context").hex()
    for purpose in ("advertised keys", "survivor set"):
        inputs: dict[str, Any] = {
            "context": context,
            "purpose": purpose,
            "content": fixed("content", 100).hex(),
        }
        name = purpose.replace(" ", "_")
        signed = accept(f"sign_{name}", "sign", {"secret": secret.hex(), **inputs})
        yield signed
        assert signed.output is not None
        inputs |= {"identity": public_key(secret).hex(), **signed.output}
        yield accept(f"check_signature_{name}", "check_signature", inputs)
    dates = {"not_before": str(VALIDITY.not_before), "not_after": str(VALIDITY.not_after)}
    device_secret = {"device_secret": secret.hex()}
    authority_secret = {"authority_secret": AUTHORITY_SECRET.hex()}
    certified = accept("certify", "certify", {**authority_secret, **device_secret, **dates})
    yield certified
    inputs = {
        "authority": public_key(AUTHORITY_SECRET).hex(),
        "identity": public_key(secret).hex(),
        "certificate": identity_of(0).certificate.hex(),
        "leeway": 3600,
    }
    for name, now in (
        ("now", NOW),
        ("a_leeway_before", VALIDITY.not_before - 3600),
        ("a_leeway_after", VALIDITY.not_after + 3600),
    ):
        yield accept(f"check_certificate_{name}", "check_certificate", {**inputs, "now": now})


def _devices(label: str, played: PlayedRound) -> Iterator[Vector]:
    """A vector for each device of a round: what it is told, and what it sends."""
    for device, inputs in played.inputs.items():
        output = {"messages": played.sent[device]}
        yield Vector(f"device_{label}_{device}", "device", inputs, output=output)


def _messages() -> Iterator[Vector]:
    """One message of each kind, in rounds that differ in what it holds."""
    for label, played in (
        ("unsigned", play(small_config())),
        ("signed", play(signed_config(), {4: MessageKind.INPUT})),
        ("noise", play(small_config(noise_levels=2), {4: MessageKind.INPUT}, variance=60.0)),
    ):
        told = [call["message"] for call in played.inputs[0]["calls"]]
        for frame, sender in (*((f, 0) for f in played.sent[0]), *((f, 0xFFFFFFFF) for f in told)):
            kind = bytes.fromhex(frame)[5]
            inputs: dict[str, Any] = {"config": plain_config(played.config), "frame": frame}
            name = f"read_{_MESSAGE_NAMES[kind]}_{label}"
            yield accept(name, "read_message", {**inputs, "kind": kind, "sender": sender})
