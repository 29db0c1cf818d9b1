"""The service for browsers: HTTPS beside gRPC, and the page that calls it.

``POST ADDRESS/METHOD`` takes the bytes of a request of ``aggregation.proto`` and gives those of its
answer. In a stream (the request of Send, the answer of Model) each message stands behind its
length, a varint. The header ``session-bin`` holds the token of a session, in base64. Of an answer
that is an error, the header ``grpc-status`` holds gRPC's number and the text the reason.
``GET ADDRESS/FILE`` gives a file of the page.

A thread waits at each connection. The service itself runs in its own event loop, as for gRPC:
it decides whether a caller may speak before a byte of the message is read.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import ipaddress
import json
import logging
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509

from pfl_lm.network.identity import ServerKeys
from pfl_lm.network.transport import methods
from pfl_lm.network.web_call import WebCall
from pfl_lm.network.web_task import web_task
from pfl_lm.pages.local import LOOPBACK, LocalHandler, LocalServer
from pfl_lm.run.context import RunContext

log = logging.getLogger("pfl_lm.network")

_CONNECTIONS = 512  # at once; each costs a thread


@dataclass(frozen=True)
class WebAddress:
    """Where browsers are answered: ``host:port``, by HTTP on the loopback address, else HTTPS.

    Raises:
        ValueError: at construction: the address is no ``host:port`` of an IP address.
    """

    listen: str
    keys: ServerKeys

    def __post_init__(self) -> None:
        host, _, port = self.listen.rpartition(":")
        try:
            ipaddress.ip_address(host.strip("[]"))
            ok = port.isdecimal() and int(port) < 1 << 16
        except ValueError:
            ok = False
        if not ok:
            raise ValueError(
                f"--web-listen {self.listen}: expected an IP address and a port, such as "
                "127.0.0.1:8444"
            )

    @property
    def host(self) -> str:
        return self.listen.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        return int(self.listen.rpartition(":")[2])

    @property
    def is_local(self) -> bool:
        return ipaddress.ip_address(self.host).is_loopback

    @property
    def secret(self) -> str:
        """The secret part of the page's address: the same at each start, so links stay good."""
        digest = hmac.digest(self.keys.tls()[0], b"pfl_lm page for browsers", hashlib.sha256)
        return base64.urlsafe_b64encode(digest[:16]).decode().rstrip("=")

    @property
    def page(self) -> str:
        """The address of the page, below which devices call."""
        scheme = "http" if self.is_local else "https"
        return f"{scheme}://{self.names()[0]}:{self.port}/{self.secret}/"

    def names(self) -> tuple[str, ...]:
        """Return how browsers may call the server: by the names in its certificate."""
        if self.is_local:
            return LOOPBACK
        certificate = self.keys.server_certificate().parsed
        stated = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = [*stated.get_values_for_type(x509.DNSName)]
        addresses = stated.get_values_for_type(x509.IPAddress)
        names += [f"[{a}]" if a.version == 6 else str(a) for a in addresses]
        own = [name for name in names if name not in LOOPBACK]
        return (*own, *(name for name in names if name in LOOPBACK))

    def tls(self) -> ssl.SSLContext | None:
        """Return the server's certificate for HTTPS; None on the loopback address."""
        if self.is_local:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.keys.certificate, self.keys.certificate.with_suffix(".key"))
        return context


class WebServer(LocalServer):
    """Answers browsers until it is closed.

    Args:
        service: whose methods answer; it runs in the event loop in which this is opened.
        files: the page's, by name.

    Raises:
        ValueError: the address is taken.
    """

    def __init__(
        self, service: Any, at: WebAddress, files: Mapping[str, Path | bytes] | None = None
    ) -> None:
        self.service, self.files = service, files or {}
        self.loop = asyncio.get_running_loop()
        self._free = threading.BoundedSemaphore(_CONNECTIONS)
        try:
            super().__init__(at.port, _Handler, at.host, at.names(), at.secret, at.tls())
        except OSError as error:
            raise ValueError(f"cannot listen on {at.listen}: {error}") from error
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Close the port. Calls under way end with the event loop."""
        self.shutdown()
        self.server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread; hang up where there are too many."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer one connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()


@dataclass(frozen=True)
class Browsers:
    """How a server answers browsers: where, and with which page.

    Attributes:
        at: the address.
        files: the page's, by name; beside them ``take_part.json`` describes the run.
    """

    at: WebAddress
    files: Mapping[str, Path | bytes] = field(default_factory=dict)

    def check(self, context: RunContext, trial: bool) -> None:
        """Refuse a run in which a page cannot take part.

        Raises:
            ValueError: naming what it does not know.
        """
        self.task(context, trial)

    def task(self, context: RunContext, trial: bool) -> dict[str, Any]:
        """Return what ``take_part.json`` holds."""
        return web_task(context, trial)

    def open(self, service: Any, context: RunContext, trial: bool) -> WebServer:
        """Open the port, in the service's event loop.

        Raises:
            ValueError: the address is taken.
        """
        about = json.dumps(self.task(context, trial), allow_nan=False).encode()
        server = WebServer(service, self.at, {**self.files, "take_part.json": about})
        log.info("browsers take part at %s", server.address)
        return server


class _Handler(LocalHandler):
    server: WebServer
    methods = methods()

    def do_GET(self) -> None:
        if not self.refuses():
            self.answer_file(self.server.files)

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if self.refuses(too_long=not length.isdecimal() or len(length) > 12):
            return
        method = self.methods.get(self.name() or "")
        if method is None:
            self.close_connection = True  # the message stays unread
            self.answer(404, b"no such method", "text/plain")
            return
        WebCall(self, self.server, method, int(length)).run()
