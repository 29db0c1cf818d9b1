"""The messages of the protocol, in the order in which they travel; PROTOCOL.md has the bytes.

    device                                server
      AdvertiseKeys    ------------------->
                       <-------------------  Roster
      ShareKeys        ------------------->
                       <-------------------  ShareInbox
      MaskedInput      ------------------->
                       <-------------------  SurvivorSet     active server only
      Confirmation     ------------------->                  active server only
                       <-------------------  UnmaskRequest
      UnmaskAnswer     ------------------->

Each class writes and reads its own body. Reading is strict: one encoding for one content.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Self

from pfl_lm.secagg.config import RoundConfig
from pfl_lm.secagg.errors import MalformedMessage, Refused, WrongState
from pfl_lm.secagg.keys import CERTIFICATE_BYTES, KEY_BYTES, SIGNATURE_BYTES, TAG_BYTES
from pfl_lm.secagg.sharing import SHARE_BYTES, check_share
from pfl_lm.secagg.wire import SERVER, Reader, frame, unframe, write_bitmap, write_records

MASK_SHARE, SELF_SHARE = b"mask share", b"self share"  # which secret a share belongs to
COMMITMENT = {  # where a sealed record has the commitment to the share of each
    MASK_SHARE: slice(0, KEY_BYTES),
    SELF_SHARE: slice(KEY_BYTES, 2 * KEY_BYTES),
}


class Message:
    """What all messages have: a kind, and a way into and out of frames."""

    kind: ClassVar[int]

    def encode(self, config: RoundConfig, sender: int) -> bytes:
        """The whole message as it travels."""
        return frame(self.kind, sender, config.context, self.body(config))

    def encode_from_server(self, config: RoundConfig) -> bytes:
        return self.encode(config, SERVER)

    @classmethod
    def decode(cls, message: bytes, config: RoundConfig, sender: int) -> Self:
        """Read a message of this kind from this sender.

        Raises:
            MalformedMessage: damaged, or not in the one encoding that its content has.
            Refused: of another round, or it claims another sender than the transport knows.
            WrongState: a message of another kind than the one awaited.
        """
        kind, claimed, body = unframe(message, config.context)
        if claimed != sender:
            raise Refused(f"the message says that it comes from {claimed}, not from {sender}")
        if kind != cls.kind:
            raise WrongState(f"a message of kind {kind} where only {cls.__name__} is taken")
        reader = Reader(body)
        content = cls.read(reader, config)
        reader.end()
        return content

    @classmethod
    def decode_from_server(cls, message: bytes, config: RoundConfig) -> Self:
        """``decode`` for what the server sends."""
        return cls.decode(message, config, SERVER)

    def body(self, config: RoundConfig) -> bytes | memoryview:
        raise NotImplementedError

    @classmethod
    def read(cls, reader: Reader, config: RoundConfig) -> Self:
        raise NotImplementedError


@dataclass(frozen=True)
class AdvertiseKeys(Message):
    """A device's public keys of the round; in signed rounds vouched for by its identity."""

    kind = 1
    box_key: bytes
    mask_key: bytes
    identity: bytes = b""
    certificate: bytes = b""
    signature: bytes = b""

    @staticmethod
    def bytes_in(config: RoundConfig) -> int:
        signed = KEY_BYTES + CERTIFICATE_BYTES + SIGNATURE_BYTES
        return 2 * KEY_BYTES + signed * config.signed

    def body(self, config: RoundConfig) -> bytes:
        return self.box_key + self.mask_key + self.identity + self.certificate + self.signature

    @classmethod
    def read(cls, reader: Reader, config: RoundConfig) -> Self:
        sizes = [KEY_BYTES, KEY_BYTES]
        if config.signed:
            sizes += [KEY_BYTES, CERTIFICATE_BYTES, SIGNATURE_BYTES]
        return cls(*(reader.take(size) for size in sizes))

    def signed_content(self, device: int) -> bytes:
        """What the signature covers."""
        return device.to_bytes(4, "little") + self.box_key + self.mask_key + self.identity


@dataclass(frozen=True)
class Roster(Message):
    """The keys of a device's neighbours; in signed rounds those of everybody, itself included."""

    kind = 2
    members: int
    keys: Mapping[int, AdvertiseKeys]

    def only(self, devices: Iterable[int]) -> Roster:
        """The part of the roster that a device with these neighbours gets."""
        return Roster(self.members, {device: self.keys[device] for device in devices})

    def body(self, config: RoundConfig) -> bytes:
        records = {index: keys.body(config) for index, keys in self.keys.items()}
        return self.members.to_bytes(4, "little") + write_records(records)

    @classmethod
    def read(cls, reader: Reader, config: RoundConfig) -> Self:
        members = reader.u32()
        records = reader.records(AdvertiseKeys.bytes_in(config), config.cohort)
        bodies = {index: Reader(memoryview(record)) for index, record in records.items()}
        return cls(members, {i: AdvertiseKeys.read(body, config) for i, body in bodies.items()})


class SealedShares(NamedTuple):
    """One holder's shares of one dealer's secrets: commitments in the clear, shares in a box.

    A server forwards tens of thousands of records unread: messages hold them as they travel, and
    who looks into one wraps it.
    """

    record: bytes

    @staticmethod
    def bytes_in(config: RoundConfig) -> int:
        return 2 * KEY_BYTES + (2 + config.noise_levels) * SHARE_BYTES + TAG_BYTES

    @property
    def public(self) -> bytes:
        """What the box authenticates beside its content: both commitments."""
        return self.record[: 2 * KEY_BYTES]

    @property
    def box(self) -> bytes:
        return self.record[2 * KEY_BYTES :]


@dataclass(frozen=True)
class ShareKeys(Message):
    """A device's secrets, shared among their holders; commitments to the secrets themselves."""

    kind = 3
    seed_commitment: bytes
    noise_commitment: bytes  # empty without noise components
    shares: Mapping[int, bytes]  # records of SealedShares by holder

    def body(self, config: RoundConfig) -> bytes:
        return self.seed_commitment + self.noise_commitment + write_records(self.shares)

    @classmethod
    def read(cls, reader: Reader, config: RoundConfig) -> Self:
        seed = reader.take(KEY_BYTES)
        noise = reader.take(KEY_BYTES if config.noise_levels else 0)
        return cls(seed, noise, reader.records(SealedShares.bytes_in(config), config.cohort))


@dataclass(frozen=True)
class ShareInbox(Message):
    """What the others dealt to one device."""

    kind = 4
    shares: Mapping[int, bytes]  # records of SealedShares by dealer

    def body(self, config: RoundConfig) -> bytes:
        return write_records(self.shares)

    @classmethod
    def read(cls, reader: Reader, config: RoundConfig) -> Self:
        return cls(reader.records(SealedShares.bytes_in(config), config.cohort))


@dataclass(frozen=True)
class MaskedInput(Message):
    """The report: a vector that is uniform to a reader who lacks one of its masks."""

    kind = 5
    packed: bytes | memoryview  # dim fields of b bits

    def body(self, config: RoundConfig) -> bytes | memoryview:
        return self.packed

    @classmethod
    def read(cls, reader: Reader, config: RoundConfig) -> Self:
        packed = reader.view(config.ring.packed_bytes(config.dim))
        config.ring.check_packed(packed, config.dim)
        return cls(packed)


@dataclass(frozen=True)
class SurvivorSet(Message):
    """Whose reports are summed, and who shared keys and then dropped out."""

    kind = 6
    survivors: frozenset[int]
    dropped: frozenset[int]

    def body(self, config: RoundConfig) -> bytes:
        lists = (self.survivors, self.dropped)
        return b"".join(write_bitmap(members, config.cohort) for members in lists)

    @classmethod
    def read(cls, reader: Reader, config: RoundConfig) -> Self:
        return cls(reader.bitmap(config.cohort), reader.bitmap(config.cohort))


@dataclass(frozen=True)
class Confirmation(Message):
    """A survivor's signature over the survivor set."""

    kind = 7
    signature: bytes

    def body(self, config: RoundConfig) -> bytes:
        return self.signature

    @classmethod
    def read(cls, reader: Reader, config: RoundConfig) -> Self:
        return cls(reader.take(SIGNATURE_BYTES))


@dataclass(frozen=True)
class UnmaskRequest(Message):
    """The survivor set; in signed rounds with a quorum's signatures over it."""

    kind = 8
    outcome: SurvivorSet
    signatures: Mapping[int, bytes]

    def body(self, config: RoundConfig) -> bytes:
        signatures = write_records(self.signatures) if config.signed else b""
        return self.outcome.body(config) + signatures

    @classmethod
    def read(cls, reader: Reader, config: RoundConfig) -> Self:
        outcome = SurvivorSet.read(reader, config)
        signed = config.signed
        return cls(outcome, reader.records(SIGNATURE_BYTES, config.cohort) if signed else {})


@dataclass(frozen=True)
class UnmaskAnswer(Message):
    """A share of each surviving dealer's self-mask seed and of each dropped dealer's mask key, and
    what removes the noise that proved superfluous."""

    kind = 9
    self_shares: Mapping[int, bytes]
    mask_shares: Mapping[int, bytes]
    noise_secret: bytes = b""  # the device's own
    noise_shares: Mapping[int, bytes] | None = None  # of the survivors among its dealers

    def body(self, config: RoundConfig) -> bytes:
        parts = [write_records(self.self_shares), write_records(self.mask_shares)]
        if config.noise_levels:
            parts.append(struct.pack("<I", len(self.noise_secret)) + self.noise_secret)
            parts.append(write_records(self.noise_shares or {}))
        return b"".join(parts)

    @classmethod
    def read(cls, reader: Reader, config: RoundConfig) -> Self:
        self_shares = _read_shares(reader, config)
        mask_shares = _read_shares(reader, config)
        if not config.noise_levels:
            return cls(self_shares, mask_shares)
        length = reader.u32()
        if length not in (0, KEY_BYTES):
            raise MalformedMessage(f"a noise secret has {KEY_BYTES} bytes or none: {length}")
        return cls(self_shares, mask_shares, reader.take(length), _read_shares(reader, config))


def _read_shares(reader: Reader, config: RoundConfig) -> dict[int, bytes]:
    shares = reader.records(SHARE_BYTES, config.cohort)
    for share in shares.values():
        check_share(share)
    return shares
