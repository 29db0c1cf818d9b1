"""The case of another certificate: a TLS server that nobody should finish a handshake with."""

from __future__ import annotations

import asyncio
import ssl
import tempfile
from contextlib import suppress
from pathlib import Path

from cryptography import x509

from pfl_lm.network.certificates import ServerCertificate, make_certificate
from pfl_lm.network.hostile.watch import Verdict, Watch

_PREFACE_BYTES = 24  # with which HTTP/2 begins
_DAYS = 30


async def offer(
    context: ssl.SSLContext, address: str, watch: Watch, seconds: float
) -> asyncio.Server:
    """Listen with a wrong certificate; a sound device breaks the handshake off.

    Args:
        seconds: for which a device may say nothing.
    """

    async def meets(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        watch.notes("called")
        said = b""
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(seconds):
                await writer.start_tls(context)
                said = await reader.read(_PREFACE_BYTES)
        if said:
            watch.judges(Verdict.CHEATED, "spoke to a server with another certificate")
        else:
            watch.tells(0, 0)
        writer.close()

    host, _, port = address.rpartition(":")
    return await asyncio.start_server(meets, host, int(port))


def another_certificate(honest: ServerCertificate) -> ssl.SSLContext:
    """A server's context with a certificate of its own for the names of the honest one."""
    names = honest.parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    key, certificate = make_certificate([str(name.value) for name in names], _DAYS)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["h2"])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "both.pem"
        path.touch(mode=0o600)
        path.write_bytes(key + certificate)
        context.load_cert_chain(path)
    return context
