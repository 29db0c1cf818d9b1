"""PROTOCOL.md read by somebody who has not seen the code: bytes and derivations from scratch."""

from __future__ import annotations

import hashlib
import hmac
import struct

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from pfl_lm.secagg.config import DevicePolicy
from pfl_lm.secagg.device import KeysAdvertised
from pfl_lm.secagg.server import CollectingKeys

N, DIM, BITS, K, T = 4, 5, 20, 3, 3
PRIME = 2**256 + 297


def hkdf(label: bytes, secret: bytes, context: bytes, info: bytes) -> bytes:
    """RFC 5869 with one block of output."""
    extracted = hmac.digest(context, secret, "sha256")
    return hmac.digest(extracted, b"pfl_lm secagg 5 " + label + info + b"\x01", "sha256")


def u32(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}I", *values)


def body_of(message: bytes, kind: int, sender: int, context: bytes) -> bytes:
    body = message[52:-16]
    head = b"PFSA" + bytes([5, kind, 0, 0]) + u32(sender) + struct.pack("<Q", len(body)) + context
    nonce = hashlib.sha256(head).digest()[:12]
    assert message == head + body + AESGCM(context[:16]).encrypt(nonce, b"", body)
    return body


def records(body: bytes, size: int) -> tuple[dict[int, bytes], bytes]:
    count = struct.unpack_from("<I", body)[0]
    found = {}
    for at in range(4, 4 + count * (4 + size), 4 + size):
        found[struct.unpack_from("<I", body, at)[0]] = body[at + 4 : at + 4 + size]
    return found, body[4 + count * (4 + size) :]


def agree(secret: bytes, public: bytes) -> bytes:
    key = X25519PrivateKey.from_private_bytes(secret)
    return key.exchange(X25519PublicKey.from_public_bytes(public))


def stream(seed: bytes) -> np.ndarray:
    cipher = Cipher(algorithms.AES128(seed[:16]), modes.CTR(seed[16:])).encryptor()
    read = int.from_bytes(cipher.update(bytes(-(-DIM * BITS // 8))), "little")
    return np.array([read >> (BITS * at) & (2**BITS - 1) for at in range(DIM)], dtype=object)


class Tape:
    """Entropy that a second implementation can replay: 32-byte draws in the documented order."""

    def __init__(self, device: int) -> None:
        self.device, self.drawn = device, []

    def __call__(self, count: int) -> bytes:
        label = f"{self.device}/{len(self.drawn)}".encode()
        self.drawn.append(hashlib.shake_256(label).digest(count))
        return self.drawn[-1]


@pytest.fixture(scope="module")
def played(make_config):
    """A round of four, all neighbours; the last one shares keys and then drops out."""
    config = make_config(cohort=N, neighbours=K, threshold=T, dim=DIM, bits=BITS, min_reports=3)
    tapes = [Tape(i) for i in range(N)]
    policy = DevicePolicy(2, 3, 2)
    devices = [KeysAdvertised.join(config, i, policy, entropy=tapes[i]) for i in range(N)]
    server, sent = CollectingKeys(config), {}

    def deliver(kind, states):
        nonlocal server
        for index, state in states:
            sent[kind, index] = state.message
            server.receive(index, state.message)
        if kind < 9:
            server, messages = server.close()
            return messages
        return server.close()

    rosters = deliver(1, enumerate(devices))
    shared = [devices[i].share_keys(rosters[i]) for i in range(N)]
    inboxes = deliver(3, enumerate(shared))
    masked = [shared[i].mask_input(inboxes[i], np.arange(DIM) - i) for i in range(3)]
    requests = deliver(5, enumerate(masked))
    opened = deliver(9, ((i, masked[i].unmask(requests[i])) for i in range(3)))
    return config, tapes, sent, requests, opened


def test_the_context(played):
    config, *_ = played
    fields = struct.pack("<Q", 7) + b"m" * 32 + b"p" * 32
    fields += u32(N, 3, K, T, 0, 0, 0, 1) + struct.pack("<QBB", DIM, BITS, 0)
    assert config.context == hashlib.sha256(b"pfl_lm secagg 5 context" + fields).digest()


def test_the_masked_input(played):
    config, tapes, sent, *_ = played
    box, mask = ({}, {})
    for i in range(N):
        body = body_of(sent[1, i], 1, i, config.context)
        box[i], mask[i] = body[:32], body[32:]
    for i in range(3):
        expected = (np.arange(DIM) - i).astype(object)
        seed = hkdf(b"self mask", tapes[i].drawn[2], config.context, u32(i))
        expected = expected + stream(seed)
        for j in range(N):
            if j == i:
                continue
            low, high = min(i, j), max(i, j)
            secret = agree(tapes[i].drawn[1], mask[j])
            info = u32(low, high) + mask[low] + mask[high]
            seed = hkdf(b"pair mask", secret, config.context, info)
            expected = expected + stream(seed) * (1 if i < j else -1)
        fields = sum(int(x % 2**BITS) << (BITS * at) for at, x in enumerate(expected))
        packed = fields.to_bytes(-(-DIM * BITS // 8), "little")
        assert body_of(sent[5, i], 5, i, config.context) == packed


def test_the_boxes_shares_and_commitments(played):
    config, tapes, sent, *_ = played
    box = {i: sent[1, i][52:84] for i in range(N)}
    body = body_of(sent[3, 3], 3, 3, config.context)
    seed_commitment, rest = body[:32], body[32:]
    header = b"pfl_lm secagg 5 seed commitment" + config.context + u32(3, 3)
    assert hashlib.sha256(header + tapes[3].drawn[2]).digest() == seed_commitment
    dealt, rest = records(rest, 64 + 66 + 16)
    assert rest == b""
    assert set(dealt) == {0, 1, 2, 3}  # the complete graph: to itself too
    points = {}
    for holder, record in dealt.items():
        agreed = agree(tapes[holder].drawn[0], box[3])
        info = u32(3, holder) + box[3] + box[holder]
        key = hkdf(b"share box", agreed, config.context, info)
        shares = AESGCM(key).decrypt(bytes(12), record[64:], u32(3, holder) + record[:64])
        for kind, at, share in ((b"mask", 0, shares[:33]), (b"self", 32, shares[33:])):
            header = b"pfl_lm secagg 5 " + kind + b" share commitment" + config.context
            commitment = hashlib.sha256(header + u32(3, holder) + share).digest()
            assert commitment == record[at : at + 32]
        points[holder + 1] = [int.from_bytes(s, "little") for s in (shares[:33], shares[33:])]
    for which, secret in ((0, tapes[3].drawn[1]), (1, tapes[3].drawn[2])):
        found = 0
        for x in (1, 2, 4):
            weight = 1
            for other in (1, 2, 4):
                if other != x:
                    weight = weight * other * pow(other - x, -1, PRIME) % PRIME
            found += weight * points[x][which]
        assert (found % PRIME).to_bytes(32, "little") == secret


def test_the_request_and_the_answer(played):
    config, _, sent, requests, opened = played
    for i in range(3):
        assert body_of(requests[i], 8, 0xFFFFFFFF, config.context) == b"\x07\x08"
        self_shares, rest = records(body_of(sent[9, i], 9, i, config.context), 33)
        mask_shares, rest = records(rest, 33)
        assert (set(self_shares), set(mask_shares), rest) == ({0, 1, 2}, {3}, b"")
    assert opened.vector.tolist() == [3 * x - 3 for x in range(DIM)]
