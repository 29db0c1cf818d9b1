"""Parsers: one encoding for one content, and nothing but the protocol's own errors."""

from __future__ import annotations

import contextlib
import random

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pfl_lm.secagg import messages
from pfl_lm.secagg.errors import MalformedMessage, Refused, SecaggError, WrongState
from pfl_lm.secagg.parameters import Adversary
from pfl_lm.secagg.wire import FRAME_BYTES, Reader, frame, unframe, write_bitmap, write_records

KINDS = [
    messages.AdvertiseKeys,
    messages.Roster,
    messages.ShareKeys,
    messages.ShareInbox,
    messages.MaskedInput,
    messages.SurvivorSet,
    messages.Confirmation,
    messages.UnmaskRequest,
    messages.UnmaskAnswer,
]
CONTEXT = bytes(range(32))


@pytest.fixture(scope="module", params=list(Adversary), ids=lambda adversary: adversary.value)
def transcript(request, make_round):
    """Every message of one round with noise components: (class, sender or None, bytes)."""
    lab = make_round(cohort=6, adversary=request.param, noise_levels=3, min_reports=3)
    found = []

    def note(up, down=None):
        found.extend((up, index, state.message) for index, state in lab.devices.items())
        if down is not None:
            found.extend((down, None, message) for message in lab.to_devices.values())

    names = messages
    note(names.AdvertiseKeys)
    lab.advertise()
    found.extend((names.Roster, None, message) for message in lab.to_devices.values())
    lab.share()
    note(names.ShareKeys, names.ShareInbox)
    lab.mask(silent={5})
    lab.devices.pop(5)
    signed = lab.config.signed
    note(names.MaskedInput, names.SurvivorSet if signed else names.UnmaskRequest)
    if signed:
        lab.confirm()
        note(names.Confirmation, names.UnmaskRequest)
    lab.unmask()
    note(names.UnmaskAnswer)
    return lab.config, found


def decode(kind, sender, message, config):
    if sender is None:
        return kind.decode_from_server(message, config)
    return kind.decode(message, config, sender)


def test_every_message_is_read_back_and_has_one_encoding(transcript):
    config, found = transcript
    assert {kind for kind, _, _ in found} == set(KINDS) - (
        set() if config.signed else {messages.SurvivorSet, messages.Confirmation}
    )
    for kind, sender, message in found:
        content = decode(kind, sender, message, config)
        again = content.encode(config, sender) if sender is not None else None
        assert (again or content.encode_from_server(config)) == message


def test_ten_thousand_random_bit_flips_are_all_detected(transcript):
    config, found = transcript
    rng = random.Random(5)
    for _ in range(5000):  # and as many in the other kind of round
        kind, sender, message = rng.choice(found)
        damaged = bytearray(message)
        damaged[rng.randrange(len(message))] ^= 1 << rng.randrange(8)
        with pytest.raises((MalformedMessage, Refused)):
            decode(kind, sender, bytes(damaged), config)


def test_every_truncation_and_extension_is_detected(transcript):
    config, found = transcript
    for kind, sender, message in {kind: found for kind, *found in found} and found[::5]:
        for cut in (*range(0, len(message), max(1, len(message) // 40)), len(message) - 1):
            with pytest.raises(MalformedMessage):
                decode(kind, sender, message[:cut], config)
        with pytest.raises(MalformedMessage):
            decode(kind, sender, message + b"\0", config)


def test_no_message_passes_for_one_of_another_kind(transcript):
    config, found = transcript
    for kind, sender, message in found[::3]:
        for other in KINDS:
            if other is not kind:
                with pytest.raises(WrongState):
                    decode(other, sender, message, config)


def test_a_changed_body_under_a_sound_checksum_is_refused_or_one_sound_content(transcript):
    """What an attacker who owns the transport can do to the format itself."""
    config, found = transcript
    rng = random.Random(6)
    for _ in range(3000):
        kind, sender, message = rng.choice(found)
        body = bytearray(message[52:-16])
        for _ in range(rng.randint(1, 3)):
            action = rng.randrange(3)
            at = rng.randrange(len(body))
            if action == 0:
                body[at] ^= 1 << rng.randrange(8)
            elif action == 1:
                del body[at : at + rng.randint(1, 40)]
            else:
                body[at:at] = rng.randbytes(rng.randint(1, 40))
            body = body or bytearray(1)
        with contextlib.suppress(SecaggError):
            number = 0xFFFF_FFFF if sender is None else sender
            reframed = frame(kind.kind, number, config.context, bytes(body))
            content = decode(kind, sender, reframed, config)
            assert content.body(config) == bytes(body)


@given(st.binary(max_size=400), st.sampled_from(KINDS), st.booleans())
@example(b"\xff" * 400, messages.Roster, True)
@example(b"\xff" * 400, messages.UnmaskAnswer, True)
def test_rubbish_raises_nothing_but_the_protocols_own_errors(make_config, data, kind, signed):
    adversary = Adversary.ACTIVE if signed else Adversary.SEMI_HONEST
    config = make_config(adversary=adversary, noise_levels=3)
    for message in (data, frame(kind.kind, 0, config.context, data)):
        with contextlib.suppress(SecaggError):
            assert kind.decode(message, config, 0).body(config) == data


def test_a_huge_count_allocates_nothing():
    body = memoryview((0xFFFF_FFFF).to_bytes(4, "little") + bytes(100))
    with pytest.raises(MalformedMessage, match="middle of a field"):
        Reader(body).records(32, 1 << 31)


@given(st.dictionaries(st.integers(0, 99), st.binary(min_size=3, max_size=3)))
def test_records_are_read_back(records):
    reader = Reader(memoryview(write_records(records)))
    assert reader.records(3, 100) == records
    reader.end()


@pytest.mark.parametrize("indices", [[3, 2], [2, 2], [100], [-1 % (1 << 32)]])
def test_records_ascend_inside_the_cohort(indices):
    body = len(indices).to_bytes(4, "little")
    body += b"".join(index.to_bytes(4, "little") + b"abc" for index in indices)
    with pytest.raises(MalformedMessage, match="ascend"):
        Reader(memoryview(body)).records(3, 100)


@given(st.integers(1, 200), st.data())
def test_bitmaps_are_read_back(size, data):
    members = data.draw(st.sets(st.integers(0, size - 1)))
    assert Reader(memoryview(write_bitmap(members, size))).bitmap(size) == members


def test_a_bitmap_names_nobody_outside_the_cohort():
    with pytest.raises(MalformedMessage, match="unused"):
        Reader(memoryview(b"\x20")).bitmap(5)


def test_the_envelope_says_what_is_wrong():
    message = frame(3, 9, CONTEXT, b"body")
    assert unframe(message, CONTEXT) == (3, 9, b"body")
    assert len(message) == FRAME_BYTES + 4
    other_version = np.frombuffer(message, dtype=np.uint8).copy()
    other_version[4] = 1
    for wrong, match in (
        (b"", "at least"),
        (b"HTTP" + message[4:], "no message"),
        (other_version.tobytes(), "version 1"),
        (message + b"x", "states a body"),
        (message[:-1] + b"x", "checksum"),
    ):
        with pytest.raises(MalformedMessage, match=match):
            unframe(wrong, CONTEXT)
    with pytest.raises(Refused, match="another round"):
        unframe(message, bytes(32))
