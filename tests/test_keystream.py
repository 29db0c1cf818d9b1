"""The keystream: published vectors, and OpenSSL's bytes however it is read."""

from __future__ import annotations

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from pfl_lm import keystream, native
from pfl_lm.keystream import KeyStream

# NIST SP 800-38A, F.5.1 and F.5.5: counters f0f1…ff on, the keystream's blocks ("output block").
COUNTER = bytes(range(0xF0, 0x100))
KEY_128 = "2b7e151628aed2a6abf7158809cf4f3c"
KEY_256 = "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4"
STREAMS = {
    KEY_128: "ec8cdf7398607cb0f2d21675ea9ea1e4362b7c3c6773516318a077d7fc5073ae",
    KEY_256: "0bdf7df1591716335e9a8b15c860c5025a6e699d536119065433863c8f657b94",
}
CARRYING = [
    bytes(16),
    b"\xff" * 16,
    bytes(8) + b"\xff" * 7 + b"\xfb",
    bytes(8) + b"\xff" * 8,
    b"\x00" * 7 + b"\x01" + b"\xff" * 7 + b"\x80",
]


@pytest.fixture(params=["compiled", "OpenSSL"])
def way(request, monkeypatch):
    if request.param == "OpenSSL":
        monkeypatch.setattr(native, "library", lambda name: None)
    elif not keystream._compiled():
        pytest.skip("no compiler, or a processor without vector AES")
    return request.param


def read(stream: KeyStream, count: int) -> bytes:
    out = np.empty(count, np.uint8)
    stream.read_into(out)
    return out.tobytes()


def openssl(key: bytes, counter: bytes, count: int) -> bytes:
    return Cipher(algorithms.AES(key), modes.CTR(counter)).encryptor().update(bytes(count))


@pytest.mark.parametrize("key", STREAMS)
def test_published_vectors(way, key):
    assert read(KeyStream(bytes.fromhex(key), COUNTER), 32).hex() == STREAMS[key]


@pytest.mark.parametrize("counter", CARRYING)
@pytest.mark.parametrize("size", [16, 32])
def test_openssls_bytes_also_where_the_counter_carries(way, counter, size):
    key = bytes(range(size))
    assert read(KeyStream(key, counter), 5001) == openssl(key, counter, 5001)


@given(st.lists(st.integers(0, 700), max_size=12), st.sampled_from(CARRYING), st.booleans())
def test_bytes_do_not_depend_on_how_they_are_read(counts, counter, aside):
    stream, wanted = KeyStream(bytes(32), counter), openssl(bytes(32), counter, sum(counts))
    found = [stream.ahead(n).bytes().tobytes() if aside else read(stream, n) for n in counts]
    assert b"".join(found) == wanted


def test_what_is_set_aside_is_read_once_and_made_later(way):
    stream = KeyStream(bytes(16))
    first, second = stream.ahead(100), stream.ahead(33)
    last = read(stream, 7)
    made = second.bytes().tobytes(), first.bytes().tobytes()
    assert made[1] + made[0] + last == openssl(bytes(16), bytes(16), 140)


def test_a_wrong_compiled_stream_does_not_serve(monkeypatch, caplog):
    if not keystream._compiled():
        pytest.skip("no compiler, or a processor without vector AES")
    monkeypatch.setattr(keystream, "_opened", lambda key, counter: _spoilt(key, counter))
    keystream._agrees.cache_clear()
    assert not keystream._compiled()
    assert "wrong" in caplog.text
    assert read(KeyStream(bytes(32)), 40) == openssl(bytes(32), bytes(16), 40)
    keystream._agrees.cache_clear()


def _spoilt(key, counter, opened=keystream._opened):
    state = opened(key, counter)
    state.schedule[200 if len(key) == 32 else 100] ^= 1
    return state


@pytest.mark.parametrize(("key", "counter"), [(b"short", bytes(16)), (bytes(32), bytes(8))])
def test_other_lengths_are_refused(key, counter):
    with pytest.raises(ValueError, match="bytes"):
        KeyStream(key, counter)


def test_only_memory_that_may_be_written_is(way):
    stream = KeyStream(bytes(32))
    frozen = np.zeros(4, np.uint8)
    frozen.flags.writeable = False
    for out in (frozen, np.zeros((4, 4), np.uint8)[:, 1]):
        with pytest.raises(ValueError, match="contiguous"):
            stream.read_into(out)
