"""Who is who: the devices' identities, their enrolment, and the server's certificate.

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

import datetime
import ipaddress
import json
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from pfl_lm.files import folder_atomically
from pfl_lm.secagg.keys import KEY_BYTES, Identity, certify, check_signature, public_key

_ENTRY = b"network session"  # the purpose of the signature: it stands for nothing else
_DAYS = 365


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
            ValueError: no such file, or something else in it.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            secret, certificate, authority = (
                bytes.fromhex(content[name]) for name in ("secret", "certificate", "authority")
            )
            return cls(int(content["number"]), Identity(secret, certificate), authority)
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is no device's key ({error}); `pfl-lm enrol` writes them"
            ) from error

    def prove(self, nonce: bytes) -> bytes:
        """Sign the server's challenge."""
        return self.identity.sign(nonce, _ENTRY, struct.pack("<I", self.number))


def check_proof(identity: bytes, number: int, nonce: bytes, signature: bytes) -> None:
    """Raise ``Refused`` unless the enrolled key signed this challenge for this number."""
    check_signature(identity, signature, nonce, _ENTRY, struct.pack("<I", number))


@dataclass(frozen=True)
class ServerKeys:
    """What a server is given: its certificate, and who is enrolled."""

    folder: Path

    @property
    def certificate(self) -> Path:
        """The file that devices need to recognise the server."""
        return self.folder / "server" / "tls.pem"

    def tls(self) -> tuple[bytes, bytes]:
        """Return the secret key and the certificate, PEM."""
        return _read(self.folder / "server" / "tls.key"), _read(self.certificate)

    def authority(self) -> bytes:
        """Return the authority's public key."""
        return bytes.fromhex(_read(self.folder / "authority.pub").decode())

    def enrolled(self) -> dict[int, bytes]:
        """Return the public key of every device by its number, 0 … n − 1.

        Raises:
            ValueError: the list is missing, damaged, or its numbers have gaps.
        """
        path = self.folder / "server" / "enrolled.txt"
        try:
            rows = [line.split() for line in _read(path).decode().splitlines()]
            found = {int(number): bytes.fromhex(key) for number, key in rows}
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}") from error
        if sorted(found) != list(range(len(rows))) or len(set(found.values())) != len(rows):
            raise ValueError(f"{path}: numbers must run from 0, each once, each with its own key")
        if any(len(key) != KEY_BYTES for key in found.values()):
            raise ValueError(f"{path}: a public key has {KEY_BYTES} bytes")
        return found


def enrol(folder: Path, devices: int, hosts: Sequence[str] = ("localhost", "127.0.0.1")) -> None:
    """Write the keys of an authority, a server and so many devices into a new folder.

    Args:
        hosts: names and addresses under which devices will call the server.

    Raises:
        ValueError: the folder exists, or fewer than 3 devices: nobody could hide among them.
    """
    if devices < 3:
        raise ValueError(f"devices = {devices} must be at least 3: the sum of two betrays both")
    authority = os.urandom(KEY_BYTES)
    with folder_atomically(folder) as new:
        (new / "server").mkdir()
        (new / "devices").mkdir()
        _secret(new / "authority.key", authority.hex().encode())
        (new / "authority.pub").write_text(public_key(authority).hex(), encoding="ascii")
        key, certificate = _certificate(hosts)
        _secret(new / "server" / "tls.key", key)
        (new / "server" / "tls.pem").write_bytes(certificate)
        with (new / "server" / "enrolled.txt").open("w", encoding="ascii") as listed:
            for number in range(devices):
                identity = certify(authority, os.urandom(KEY_BYTES))
                listed.write(f"{number} {identity.public.hex()}\n")
                content = {
                    "number": number,
                    "secret": identity.secret.hex(),
                    "certificate": identity.certificate.hex(),
                    "authority": public_key(authority).hex(),
                }
                _secret(new / "devices" / f"{number:05d}.json", json.dumps(content).encode())


def _certificate(hosts: Sequence[str]) -> tuple[bytes, bytes]:
    """A certificate that vouches for itself (ECDSA P-256): whoever has it knows this server."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pfl_lm server")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=_DAYS))
        .add_extension(x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return secret, certificate.public_bytes(serialization.Encoding.PEM)


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _secret(path: Path, content: bytes) -> None:
    """Write a file that only its owner may read."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise ValueError(f"{path} is missing; `pfl-lm enrol` writes it")
    return path.read_bytes()
