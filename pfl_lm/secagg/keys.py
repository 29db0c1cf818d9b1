"""Keys of devices and what is derived from them; every primitive comes from ``cryptography``.

Every derivation takes the round's context as its salt, so that keys, masks, boxes, commitments
and signatures of different rounds, models, payloads or configurations have nothing in common.
"""

from __future__ import annotations

import hashlib
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from pfl_lm.secagg.errors import Refused
from pfl_lm.secagg.wire import LABEL

KEY_BYTES = 32  # of every public key, secret, seed and digest
SIGNATURE_BYTES = 64
CERTIFICATE_BYTES = 16 + SIGNATURE_BYTES  # both dates before the authority's signature
TAG_BYTES = 16  # by which a sealed box is longer than its content


@dataclass(frozen=True)
class KeyPair:
    """An X25519 key pair that lives for one round."""

    secret: bytes
    public: bytes

    @classmethod
    def from_secret(cls, secret: bytes) -> KeyPair:
        """The pair of a 32-byte secret; any 32 bytes are one (RFC 7748 clamps them)."""
        private = X25519PrivateKey.from_private_bytes(secret)
        return cls(secret, private.public_key().public_bytes_raw())

    def agree(self, public: bytes) -> bytes:
        """The shared secret with the owner of ``public``.

        Raises:
            Refused: a point of small order, whose shared secret everybody knows.
        """
        try:
            return self._private.exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError:
            raise Refused("a public key gives no secret: it is a point of small order") from None

    @cached_property
    def _private(self) -> X25519PrivateKey:
        return X25519PrivateKey.from_private_bytes(self.secret)

    def __repr__(self) -> str:
        return f"KeyPair(public={self.public.hex()})"


def pair_mask_seed(mine: KeyPair, theirs: bytes, context: bytes, me: int, other: int) -> bytes:
    """The 32-byte seed of the mask that two devices share: the same on both sides."""
    low, high = (mine.public, theirs) if me < other else (theirs, mine.public)
    info = struct.pack("<II", min(me, other), max(me, other)) + low + high
    return derive(mine.agree(theirs), context, b"pair mask", info)


def self_mask_seed(secret: bytes, context: bytes, device: int) -> bytes:
    """The 32-byte seed of a device's own mask."""
    return derive(secret, context, b"self mask", device.to_bytes(4, "little"))


@dataclass(frozen=True)
class Sealer:
    """Boxes between a dealer of shares and one of their holders (AES-256-GCM).

    A key seals one box in its life (it is bound to the round, the direction and both public
    keys), so the nonce may be constant.
    """

    key: bytes
    header: bytes

    @classmethod
    def between(
        cls, agreed: bytes, context: bytes, dealer: tuple[int, bytes], holder: tuple[int, bytes]
    ) -> Sealer:
        """The sealer that both derive from their agreed secret; a party is (index, public key)."""
        header = struct.pack("<II", dealer[0], holder[0])
        return cls(derive(agreed, context, b"share box", header + dealer[1] + holder[1]), header)

    def seal(self, content: bytes, public: bytes) -> bytes:
        """Encrypt ``content``; ``public`` travels beside the box and cannot be exchanged."""
        return AESGCM(self.key).encrypt(bytes(12), content, self.header + public)

    def open(self, box: bytes, public: bytes) -> bytes:
        """Decrypt a box.

        Raises:
            Refused: the box, its public part, the dealer, the holder or the round is another.
        """
        try:
            return AESGCM(self.key).decrypt(bytes(12), box, self.header + public)
        except InvalidTag:
            raise Refused("a box of shares does not open: it was altered or misdirected") from None

    def __repr__(self) -> str:
        return "Sealer(...)"


def commit(context: bytes, kind: bytes, dealer: int, holder: int, value: bytes) -> bytes:
    """SHA-256 commitment to a share or a seed.

    It binds, and it hides because what is committed to has 256 bits of entropy of its own.
    """
    return committer(context, kind)(dealer, holder, value)


@lru_cache(maxsize=16)
def committer(context: bytes, kind: bytes) -> Callable[[int, int, bytes], bytes]:
    """``commit`` to many shares of one kind in one round."""
    prefix = LABEL + kind + b" commitment" + context
    pair, sha256 = struct.Struct("<II").pack, hashlib.sha256
    return lambda dealer, holder, value: sha256(prefix + pair(dealer, holder) + value).digest()


@dataclass(frozen=True)
class Identity:
    """A device's long-term Ed25519 key and the authority's certificate for it.

    The authority (an attestation service, say) is not the aggregating server: a party that can
    certify identities can invent a cohort and see the one real device in it.
    """

    secret: bytes
    certificate: bytes

    @property
    def public(self) -> bytes:
        return public_key(self.secret)

    def sign(self, context: bytes, purpose: bytes, content: bytes) -> bytes:
        """Sign ``content`` for one purpose in one round."""
        key = Ed25519PrivateKey.from_private_bytes(self.secret)
        return key.sign(LABEL + purpose + context + content)

    def __repr__(self) -> str:
        return f"Identity(public={self.public.hex()})"


@dataclass(frozen=True)
class Validity:
    """From when to when a certificate is valid, in whole seconds since 1970, both included."""

    not_before: int
    not_after: int

    def check(self, now: float, leeway: float = 0.0) -> None:
        """Raise ``Refused`` unless a certificate of these dates is valid now.

        Args:
            now: seconds since 1970.
            leeway: by how many seconds the clocks of the parties may differ.
        """
        if now < self.not_before - leeway:
            raise Refused(f"the certificate is valid only from {_moment(self.not_before)} on")
        if now > self.not_after + leeway:
            raise Refused(f"the certificate expired on {_moment(self.not_after)}")


ALWAYS = Validity(0, (1 << 64) - 1)
_DATES = struct.Struct("<QQ")


def certify(authority_secret: bytes, device_secret: bytes, validity: Validity = ALWAYS) -> Identity:
    """Let the authority vouch for a device's identity between two dates."""
    authority = Ed25519PrivateKey.from_private_bytes(authority_secret)
    dates = _DATES.pack(validity.not_before, validity.not_after)
    signature = authority.sign(LABEL + b"identity" + public_key(device_secret) + dates)
    return Identity(device_secret, dates + signature)


def public_key(secret: bytes) -> bytes:
    """The Ed25519 public key of a 32-byte secret."""
    return Ed25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def check_certificate(
    authority: bytes, identity: bytes, certificate: bytes, now: float, leeway: float = 0.0
) -> None:
    """Raise ``Refused`` unless the authority certified this identity and the dates hold.

    Args:
        now: seconds since 1970.
        leeway: by how many seconds the clocks of the parties may differ.
    """
    if len(certificate) != CERTIFICATE_BYTES:
        raise Refused(f"a certificate has {CERTIFICATE_BYTES} bytes, not {len(certificate)}")
    dates, signature = certificate[: _DATES.size], certificate[_DATES.size :]
    _verify(authority, signature, LABEL + b"identity" + identity + dates)
    Validity(*_DATES.unpack(dates)).check(now, leeway)


def check_signature(
    identity: bytes, signature: bytes, context: bytes, purpose: bytes, content: bytes
) -> None:
    """Raise ``Refused`` unless ``identity`` signed ``content`` for this purpose and round."""
    _verify(identity, signature, LABEL + purpose + context + content)


def _verify(public: bytes, signature: bytes, content: bytes) -> None:
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, content)
    except (InvalidSignature, ValueError):
        raise Refused("a signature does not verify") from None


def _moment(seconds: int) -> str:
    """Write a time of UTC; a year beyond 9999 has no such form."""
    latest = 253_402_300_799  # 9999-12-31 23:59:59
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(min(seconds, latest)))


def derive(secret: bytes, context: bytes, label: bytes, info: bytes) -> bytes:
    """HKDF-SHA256 with the context as salt: 32 bytes, the function H of PROTOCOL.md."""
    return HKDF(hashes.SHA256(), KEY_BYTES, context, LABEL + label + info).derive(secret)
