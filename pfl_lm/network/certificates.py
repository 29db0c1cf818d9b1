"""The server's TLS certificate: how it is made, and what both sides check of it.

A device holds this one certificate and accepts no other. Its digest stands in the signature by
which the device authenticates, so the signature is worth nothing to a server with another one.
"""

from __future__ import annotations

import datetime
import ipaddress
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from pfl_lm.network.addresses import check_host

_DAMAGE = (OSError, ValueError, TypeError, x509.InvalidVersion, UnsupportedAlgorithm)


@dataclass(frozen=True)
class ServerCertificate:
    """A server's TLS certificate, read from a PEM file.

    Attributes:
        path: where it was read.
        content: the file, PEM.
        parsed: the one certificate in it.
    """

    path: Path
    content: bytes
    parsed: x509.Certificate

    @classmethod
    def read(cls, path: Path) -> ServerCertificate:
        """Read a PEM file that holds one certificate, the server's own.

        Raises:
            ValueError: there is no file, no certificate in it, or more than one: a root that
                certified several servers cannot tell one of them from another.
        """
        try:
            content = Path(path).read_bytes()
            parsed = x509.load_pem_x509_certificates(content)
        except _DAMAGE as error:
            raise ValueError(
                f"{path} holds no certificate ({error}); `pfl-lm enrol` writes server/tls.pem"
            ) from error
        if len(parsed) != 1:
            raise ValueError(
                f"{path} holds {len(parsed)} certificates; it must hold the server's own alone"
            )
        return cls(Path(path), content, parsed[0])

    @property
    def digest(self) -> bytes:
        """SHA-256 of the certificate, DER."""
        return self.parsed.fingerprint(hashes.SHA256())

    def check_key(self, path: Path, secret: bytes) -> None:
        """Refuse a secret key that is not the certificate's.

        Args:
            path: where the key was read.
            secret: the file, PEM.

        Raises:
            ValueError: the file is damaged, or holds another certificate's key.
        """
        try:
            public = serialization.load_pem_private_key(secret, None).public_key()
        except _DAMAGE as error:
            raise ValueError(
                f"{path} holds no secret key ({error}); put back the one that `pfl-lm enrol` wrote"
            ) from error
        if public != self.parsed.public_key():
            raise ValueError(
                f"{path} is not the key of {self.path}; put back the two that `pfl-lm enrol` wrote "
                "together"
            )

    def check_dates(self, now: float | None = None) -> None:
        """Refuse a certificate that is not valid now.

        Args:
            now: seconds since 1970; None: this machine's clock.

        Raises:
            ValueError: with the date and the remedy.
        """
        moment = datetime.datetime.fromtimestamp(time.time() if now is None else now, datetime.UTC)
        first, last = self.parsed.not_valid_before_utc, self.parsed.not_valid_after_utc
        if moment < first:
            raise ValueError(
                f"{self.path}: the server's certificate is valid only from {first:%Y-%m-%d %H:%M} "
                "UTC on; is the clock of this machine right?"
            )
        if moment > last:
            raise ValueError(
                f"{self.path}: the server's certificate expired on {last:%Y-%m-%d %H:%M} UTC; make "
                "another and give it to server and devices"
            )


def make_certificate(hosts: Sequence[str], days: int) -> tuple[bytes, bytes]:
    """Make a self-signed certificate (ECDSA P-256); return secret key and certificate, PEM.

    Args:
        hosts: names and addresses under which devices will call the server.
        days: how long it is valid, from an hour ago.

    Raises:
        ValueError: one of them is neither the name nor the IP address of a host.
    """
    for host in hosts:
        check_host("--host", host)
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
        .not_valid_after(now + datetime.timedelta(days=days))
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
