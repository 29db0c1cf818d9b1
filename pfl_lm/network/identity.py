"""Identities of the devices, their enrolment, and the certificate of the server.

A device's identity is an Ed25519 key that an authority certified, the same that signs its keys in
signed rounds. The server knows the public keys of the enrolled and nothing secret of theirs. The
authority's secret belongs to neither; in a trial all three lie in one folder, side by side.

    KEYS/authority.key          the authority's secret; take it away from the server
    KEYS/authority.pub          its public key, for server and devices
    KEYS/server/tls.key .pem    the server's certificate and secret; devices get the .pem
    KEYS/server/enrolled.txt    number and public key of every device, one a line
    KEYS/devices/00017.json     one device's identity, for that device alone
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pfl_lm.dp.population_ledger import PopulationAccount
from pfl_lm.files import folder_atomically
from pfl_lm.network.certificates import ServerCertificate, make_certificate
from pfl_lm.secagg.errors import Refused
from pfl_lm.secagg.keys import (
    CERTIFICATE_BYTES,
    KEY_BYTES,
    Identity,
    Validity,
    certify,
    check_certificate,
    check_signature,
    public_key,
)

_ENTRY = b"network session"  # the purpose of the signature: it stands for nothing else
_DAY = 86_400  # seconds
_HOUR = 3_600
_LAST_NUMBER = (1 << 32) - 1  # a proof packs the number into 32 bits
DAYS = 365  # for which what ``enrol`` writes is valid


@dataclass(frozen=True)
class DeviceKey:
    """A device's number and identity, and the authority that it trusts."""

    number: int
    identity: Identity
    authority: bytes

    @classmethod
    def read(cls, path: Path) -> DeviceKey:
        """Read a file that ``enrol`` wrote.

        Raises:
            ValueError: no such file, or something else in it; names the field.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            number = content["number"]
            if type(number) is not int or not 0 <= number <= _LAST_NUMBER:
                raise ValueError(f"number must be whole, from 0 to {_LAST_NUMBER}")
            secret = key_of(content["secret"], "secret")
            certificate = key_of(content["certificate"], "certificate", CERTIFICATE_BYTES)
            authority = key_of(content["authority"], "authority")
            return cls(number, Identity(secret, certificate), authority)
        except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(
                f"{path} is no device's key ({error}); `pfl-lm enrol` writes them"
            ) from error

    def prove(self, nonce: bytes, server: bytes) -> bytes:
        """Sign the server's challenge for a server whose certificate has this digest."""
        return self.identity.sign(nonce, _ENTRY, struct.pack("<I", self.number) + server)

    def check_dates(self, now: float | None = None) -> None:
        """Refuse a key whose certificate is not the authority's or not valid now.

        Args:
            now: seconds since 1970; None: this machine's clock.

        Raises:
            ValueError: with the date and the remedy.
        """
        identity = self.identity
        try:
            check_certificate(
                self.authority,
                identity.public,
                identity.certificate,
                time.time() if now is None else now,
            )
        except Refused as error:
            raise ValueError(
                f"the key of device {self.number} cannot be used: {error}; let the authority "
                "certify it again"
            ) from error


@dataclass(frozen=True)
class Credentials:
    """What a server holds the proof of a device against.

    Attributes:
        identities: public key of every enrolled device, by its number.
        authority: public key that certifies identities.
        server: digest of the server's own TLS certificate.
        clock: seconds since 1970.
    """

    identities: Mapping[int, bytes]
    authority: bytes
    server: bytes
    clock: Callable[[], float] = time.time

    def check_signature(self, number: int, nonce: bytes, signature: bytes) -> None:
        """Raise ``Refused`` unless the enrolled key signed this challenge for this server."""
        content = struct.pack("<I", number) + self.server
        check_signature(self.identities[number], signature, nonce, _ENTRY, content)

    def check_certificate(self, number: int, certificate: bytes) -> None:
        """Raise ``Refused`` unless the authority's certificate for that key is valid now."""
        check_certificate(self.authority, self.identities[number], certificate, self.clock())


@dataclass(frozen=True)
class ServerKeys:
    """What a server is given: its certificate, and who is enrolled."""

    folder: Path

    @property
    def certificate(self) -> Path:
        """The file that devices need to recognise the server."""
        return self.folder / "server" / "tls.pem"

    def server_certificate(self) -> ServerCertificate:
        """Read the server's certificate.

        Raises:
            ValueError: it is missing or damaged.
        """
        return ServerCertificate.read(self.certificate)

    def tls(self) -> tuple[bytes, bytes]:
        """Return the secret key and the certificate, PEM.

        Raises:
            ValueError: one of them is missing or damaged, or they do not belong together.
        """
        path, certificate = self.folder / "server" / "tls.key", self.server_certificate()
        secret = _read(path)
        certificate.check_key(path, secret)
        return secret, certificate.content

    def check_server(self) -> None:
        """Refuse a certificate that is not valid now, or without its key; raises ValueError."""
        self.server_certificate().check_dates()
        self.tls()

    def authority(self) -> bytes:
        """Return the authority's public key.

        Raises:
            ValueError: it is missing or damaged.
        """
        return read_key(self.folder / "authority.pub")

    def account(self, ledgers: Path | None = None) -> PopulationAccount:
        """Name the ledger of everybody whom the authority vouches for, however many are enrolled.

        Args:
            ledgers: folder; by default beside the list of the enrolled.
        """
        digest = hashlib.sha256(b"devices of authority " + self.authority()).hexdigest()
        return PopulationAccount(digest, ledgers or self.folder / "server" / "ledgers")

    def enrolled(self) -> dict[int, bytes]:
        """Return the public key of every device by its number, 0 … n − 1.

        Raises:
            ValueError: the list is missing, damaged, or its numbers have gaps.
        """
        path = self.folder / "server" / "enrolled.txt"
        try:
            rows = [line.split() for line in _read(path).decode().splitlines()]
            keys = {int(number): key_of(key, f"the key of {number}") for number, key in rows}
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}") from error
        if sorted(keys) != list(range(len(rows))) or len(set(keys.values())) != len(rows):
            raise ValueError(f"{path}: numbers must run from 0, each once, each with its own key")
        return keys


def enrol(
    folder: Path,
    devices: int,
    hosts: Sequence[str] = ("localhost", "127.0.0.1"),
    days: int = DAYS,
) -> None:
    """Write the keys of an authority, a server and its devices into a new folder.

    Args:
        hosts: names and addresses under which devices will call the server.
        days: for which the server's certificate and the devices' are valid.

    Raises:
        ValueError: the folder exists, a host is none, or fewer than 3 devices, among whom no report
            is hidden.
    """
    if devices < 3:
        raise ValueError(f"devices = {devices} must be at least 3: the sum of two betrays both")
    authority = os.urandom(KEY_BYTES)
    now = int(time.time())
    validity = Validity(now - _HOUR, now + days * _DAY)
    with folder_atomically(folder) as new:
        (new / "server").mkdir()
        (new / "devices").mkdir()
        _secret(new / "authority.key", authority.hex().encode())
        (new / "authority.pub").write_text(public_key(authority).hex(), encoding="ascii")
        key, certificate = make_certificate(hosts, days)
        _secret(new / "server" / "tls.key", key)
        (new / "server" / "tls.pem").write_bytes(certificate)
        with (new / "server" / "enrolled.txt").open("w", encoding="ascii") as listed:
            for number in range(devices):
                identity = certify(authority, os.urandom(KEY_BYTES), validity)
                listed.write(f"{number} {identity.public.hex()}\n")
                content = {
                    "number": number,
                    "secret": identity.secret.hex(),
                    "certificate": identity.certificate.hex(),
                    "authority": public_key(authority).hex(),
                }
                _secret(new / "devices" / f"{number:05d}.json", json.dumps(content).encode())


def key_of(text: str, what: str, size: int = KEY_BYTES) -> bytes:
    """Read a key or certificate of so many bytes that is written in hexadecimal.

    Raises:
        ValueError: other characters, or another length.
    """
    if not re.fullmatch(f"[0-9a-fA-F]{{{2 * size}}}", text):
        raise ValueError(f"{what} must be {2 * size} hexadecimal digits")
    return bytes.fromhex(text)


def read_key(path: Path) -> bytes:
    """Read a file that holds one key in hexadecimal.

    Raises:
        ValueError: it is missing or damaged.
    """
    content = _read(path)
    try:
        return key_of(content.decode().strip(), "the key")
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({error}); put back the one that `pfl-lm enrol` wrote"
        ) from error


def _secret(path: Path, content: bytes) -> None:
    """Write a file that only its owner may read."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise ValueError(f"{path} is missing; `pfl-lm enrol` writes it")
    return path.read_bytes()
