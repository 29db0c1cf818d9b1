"""Admission: challenges, sessions, rates, strikes."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("grpc_tools", reason="needs gRPC: pip install pfl-lm[network]")

from pfl_lm.network.admission import Admission, Bucket
from pfl_lm.network.exclusions import Exclusions, read_revoked
from pfl_lm.network.identity import Credentials, DeviceKey
from pfl_lm.network.refusals import CalledOn, NotAdmitted, TooOften
from pfl_lm.network.rpc_client import RetryPolicy
from pfl_lm.network.strangers import StrangerPool
from pfl_lm.network.transport import Limits
from pfl_lm.secagg.keys import Validity, certify, public_key

AUTHORITY = b"a" * 32
SERVER = b"s" * 32  # digest of its certificate


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def key_of(number: int) -> DeviceKey:
    identity = certify(AUTHORITY, bytes([number + 1]) * 32)
    return DeviceKey(number, identity, public_key(AUTHORITY))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def admission(clock) -> Admission:
    limits = Limits(burst=6, calls_per_second=1, strikes=2, round_calls=4)
    return admission_of(range(3), limits, clock)


def admission_of(numbers, limits: Limits, clock, now=lambda: 0.0, revoked=()) -> Admission:
    identities = {n: key_of(n).identity.public for n in numbers}
    credentials = Credentials(identities, public_key(AUTHORITY), SERVER, now)
    return Admission(credentials, limits, Exclusions(identities, revoked), clock)


def enter(admission: Admission, nonce: bytes, number: int, server: bytes = SERVER):
    key = key_of(number)
    return admission.authenticate(nonce, key.prove(nonce, server), key.identity.certificate)


def authenticate(admission: Admission, number: int) -> bytes:
    nonce = admission.challenge(number)
    device, token = enter(admission, nonce, number)
    assert device == number
    return token


def called(admission: Admission, token: bytes, cost: int = 1) -> int:
    with admission.call(token, cost) as device:
        return device


def test_a_signature_opens_one_session(admission):
    first = authenticate(admission, 1)
    assert called(admission, first) == 1
    second = authenticate(admission, 1)
    assert called(admission, second) == 1
    with pytest.raises(NotAdmitted, match="no session has this token"):
        called(admission, first)


def test_a_challenge_is_answered_once_and_in_time(admission, clock):
    nonce = admission.challenge(1)
    enter(admission, nonce, 1)
    with pytest.raises(NotAdmitted, match="not open"):
        enter(admission, nonce, 1)
    late = admission.challenge(1)
    clock.now += 61
    with pytest.raises(NotAdmitted, match="not open"):
        enter(admission, late, 1)


def test_nobody_enters_for_another(admission):
    nonce = admission.challenge(1)
    with pytest.raises(NotAdmitted, match="not that of device 1"):
        enter(admission, nonce, 2)
    thief = DeviceKey(1, key_of(2).identity, b"")
    signed = thief.prove(nonce := admission.challenge(1), SERVER)
    with pytest.raises(NotAdmitted, match="not that of device 1"):
        admission.authenticate(nonce, signed, thief.identity.certificate)
    with pytest.raises(NotAdmitted, match="no device 7"):
        admission.challenge(7)


def test_failed_entries_do_not_shut_the_owner_out(admission):
    for _ in range(5):
        with pytest.raises(NotAdmitted):
            admission.authenticate(admission.challenge(1), bytes(64), b"")
    authenticate(admission, 1)


def test_calls_run_out_and_come_back(admission, clock):
    token = authenticate(admission, 1)
    for _ in range(5):
        called(admission, token)
    with pytest.raises(TooOften, match="device 1 calls too often; wait"):
        called(admission, token)
    clock.now += 3
    called(admission, token, cost=3)
    with pytest.raises(TooOften):
        called(admission, token)
    assert called(admission, authenticate(admission, 2)) == 2  # another's calls are its own


def test_a_new_session_brings_no_new_calls(admission):
    token = authenticate(admission, 1)
    for _ in range(5):
        called(admission, token)
    with pytest.raises(TooOften):
        called(admission, authenticate(admission, 1))


def test_a_flood_of_challenges_forgets_none(admission):
    nonce = admission.challenge(1)
    for _ in range(20_000):
        admission.challenge(0)
    assert enter(admission, nonce, 1)[0] == 1


@pytest.mark.parametrize("change", [b"", b"\x00" * 36, b"short"], ids=["none", "zeros", "short"])
def test_a_challenge_that_the_server_did_not_make_is_refused(admission, change):
    with pytest.raises(NotAdmitted, match="not open"):
        enter(admission, change, 1)
    nonce = admission.challenge(1)
    for place in (0, 8, 12, 16, 31):
        changed = bytearray(nonce)
        changed[place] ^= 1
        with pytest.raises(NotAdmitted, match="not open"):
            enter(admission, bytes(changed), 1)


def test_failed_entries_write_few_lines(admission, caplog):
    for _ in range(500):
        with pytest.raises(NotAdmitted):
            admission.authenticate(admission.challenge(1), bytes(64), b"")
    assert 0 < len(caplog.records) <= 20


def test_an_invitation_brings_the_calls_of_a_round(admission):
    token = authenticate(admission, 1)
    for _ in range(20):
        admission.grant_round([1])
        for _ in range(4):
            called(admission, token)


def test_invitations_that_are_not_used_do_not_add_up(admission):
    token = authenticate(admission, 1)
    for _ in range(20):
        admission.grant_round([1])
    called(admission, token, cost=10)
    with pytest.raises(TooOften):
        called(admission, token)


def test_too_many_calls_are_told_to_wait_and_only_then_suspended(admission, clock):
    token = authenticate(admission, 1)
    called(admission, token, cost=5)
    for _ in range(60):
        with pytest.raises(TooOften, match="wait"):
            called(admission, token)
    with pytest.raises(CalledOn, match="suspended"):
        called(admission, token)


def test_a_device_has_few_calls_open(clock):
    limits = Limits(calls_at_once=2)
    admission = admission_of([1], limits, clock)
    token = authenticate(admission, 1)
    refused = pytest.raises(TooOften, match="2 calls open")
    with admission.call(token), admission.call(token), refused:
        called(admission, token)
    assert called(admission, token) == 1


def test_the_oldest_silent_stranger_makes_room():
    """Three silent callers where two fit: the first ends, and one who speaks is served."""
    ends: list[str] = []

    async def silent(pool: StrangerPool, name: str) -> None:
        try:
            async with pool.call():
                await asyncio.sleep(60)
        except TimeoutError:
            ends.append(name)

    async def trial() -> None:
        pool = StrangerPool(2, 30.0)
        tasks = [asyncio.create_task(silent(pool, name)) for name in "abc"]
        await asyncio.sleep(0.05)
        assert ends == ["a"]
        async with pool.call():
            ends.append("served")
        await asyncio.sleep(0.05)
        assert ends == ["a", "served", "b"]
        for task in tasks:
            task.cancel()

    asyncio.run(trial())


def test_strikes_shut_out_for_a_while(admission, clock, caplog):
    token = authenticate(admission, 1)
    admission.strike(1)
    assert called(admission, token) == 1
    admission.strike(1)
    assert "device 1 is suspended for 600 s after 2 mistakes" in caplog.text
    clock.now += 59
    for attempt in (lambda: called(admission, token), lambda: admission.challenge(1)):
        with pytest.raises(TooOften, match=r"suspended for 541 s more, after too many mistakes"):
            attempt()
    clock.now += 542
    assert called(admission, token) == 1


def test_strikes_are_forgotten_in_time(admission, clock):
    """Two that are an hour apart count as one; two at once still suspend."""
    token = authenticate(admission, 1)
    for _ in range(10):
        clock.now += 3_600
        admission.strike(1)
        assert called(admission, token) == 1
    admission.strike(1)
    with pytest.raises(TooOften, match="suspended"):
        called(admission, token)


def test_a_bucket_never_holds_more_than_its_burst(clock):
    bucket = Bucket(2, 100, clock)
    clock.now += 1000
    assert [bucket.take() for _ in range(3)] == [True, True, False]


def test_a_signature_made_for_a_server_with_another_certificate_opens_no_session(admission):
    """What a man in the middle gets from a device that takes the wrong certificate for ours."""
    with pytest.raises(NotAdmitted, match="made for a server with another certificate"):
        enter(admission, admission.challenge(1), 1, server=b"m" * 32)


@pytest.mark.parametrize(
    ("now", "message"),
    [(99.0, "valid only from 1970-01-01 00:01:40 UTC on"), (201.0, "expired on 1970-01-01 00:03")],
)
def test_a_certificate_outside_its_dates_is_refused(clock, now, message):
    identity = certify(AUTHORITY, bytes([2]) * 32, Validity(100, 200))
    key = DeviceKey(1, identity, public_key(AUTHORITY))
    for moment, refused in ((150.0, False), (now, True)):
        admission = admission_of([1], Limits(), clock, now=lambda moment=moment: moment)
        nonce = admission.challenge(1)
        arguments = nonce, key.prove(nonce, SERVER), identity.certificate
        if not refused:
            assert admission.authenticate(*arguments)[0] == 1
            continue
        with pytest.raises(NotAdmitted, match=message):
            admission.authenticate(*arguments)
    with pytest.raises(ValueError, match=f"device 1 cannot be used.*{message}"):
        key.check_dates(now)
    key.check_dates(150.0)


def test_a_certificate_of_another_authority_or_with_other_dates_is_refused(admission):
    nonce = admission.challenge(1)
    identity = key_of(1).identity
    forged = bytes(8) + b"\x00" * 7 + b"\x01" + identity.certificate[16:]
    for certificate in (b"", forged, certify(b"x" * 32, identity.secret).certificate):
        with pytest.raises(NotAdmitted, match="device 1: "):
            admission.authenticate(nonce, key_of(1).prove(nonce, SERVER), certificate)
    enter(admission, nonce, 1)


def test_a_revoked_device_is_left_out_and_told_so(clock):
    revoked = key_of(1).identity.public
    admission = admission_of(range(3), Limits(), clock, revoked=[revoked, b"r" * 32])
    with pytest.raises(NotAdmitted, match="device 1 is left out of this run: its key is revoked"):
        admission.challenge(1)
    authenticate(admission, 2)


def test_an_expelled_device_is_left_out_at_once_and_in_later_lives(clock):
    identities = {n: key_of(n).identity.public for n in range(3)}
    kept = []
    exclusions = Exclusions(identities, keep=lambda *entry: kept.append(entry))
    credentials = Credentials(identities, public_key(AUTHORITY), SERVER, lambda: 0.0)
    admission = Admission(credentials, Limits(), exclusions, clock)
    token = authenticate(admission, 2)
    exclusions.expel(2, 7, "wrong shares")
    assert kept == [(2, 7, "it spoiled round 7: wrong shares")]
    later = Exclusions(identities, expelled={2: kept[0][2]})
    for attempt in (lambda: called(admission, token), lambda: admission.challenge(2)):
        with pytest.raises(NotAdmitted, match="left out of this run: it spoiled round 7"):
            attempt()
    with pytest.raises(NotAdmitted, match="it spoiled round 7: wrong shares"):
        Admission(credentials, Limits(), later, clock).challenge(2)


def test_a_list_of_revoked_keys_has_comments_and_empty_lines(tmp_path):
    path = tmp_path / "revoked.txt"
    path.write_text(f"# lost phones\n\n{'ab' * 32}  # device 7\n{'CD' * 32}\n", encoding="utf-8")
    assert read_revoked(path) == {b"\xab" * 32, b"\xcd" * 32}


@pytest.mark.parametrize("line", ["17", "zz" * 32, "ab" * 31, "ab" * 33, f"7 {'ab' * 32}"])
def test_a_bad_line_of_revoked_keys_is_refused_with_its_number(tmp_path, line):
    path = tmp_path / "revoked.txt"
    path.write_text(f"# one\n{'ab' * 32}\n{line}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"revoked.txt, line 3: .* 64 hexadecimal digits"):
        read_revoked(path)


def test_a_missing_or_binary_list_of_revoked_keys_is_refused(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name in ("none", "binary"):
        with pytest.raises(ValueError, match=r"revoked: .* cannot be read"):
            read_revoked(tmp_path / name)


def test_the_reference_client_is_never_suspended_for_calls_without_a_wait(clock):
    """Every call is refused; the client waits its shortest pauses, and is told to wait only."""
    retry = RetryPolicy()
    limits = Limits()
    admission = admission_of([1], limits, clock)
    token = authenticate(admission, 1)
    for _ in range(300):  # exchanges one after another, each refused until it may pass
        pause = retry.first_seconds
        while True:
            try:
                called(admission, token, cost=10)  # the dearest call
                break
            except TooOften:
                clock.now += 0.5 * pause  # the shortest random part
                pause = min(2 * pause, retry.most_seconds)
