"""A web server for pages behind a secret address, and for no other site's scripts.

By default it answers the browser of this machine alone.
"""

from __future__ import annotations

import hmac
import mimetypes
import secrets
import ssl
import sys
from collections.abc import Collection, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

HOME = "127.0.0.1"
LOOPBACK = (HOME, "localhost", "[::1]")
_SECONDS = 30.0  # that a caller may be silent
_HANDSHAKE_SECONDS = 10.0
_TYPES = {".mjs": "text/javascript", ".js": "text/javascript", ".wasm": "application/wasm"}


class LocalServer(ThreadingHTTPServer):
    """Bound to the loopback address, unless another is stated.

    Its address holds a secret. A caller who has not seen it, another user of this machine or a page
    of another site in this browser, is answered nothing.

    Args:
        host: address to listen on.
        names: how callers may name this server, the first in its own address.
        secret: of the address; None: one is drawn.
        tls: certificate and key for HTTPS; None: HTTP.
    """

    daemon_threads = True

    def __init__(
        self,
        port: int,
        handler: type[LocalHandler],
        host: str = HOME,
        names: Collection[str] = LOOPBACK,
        secret: str | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.secret = secret or secrets.token_urlsafe(16)
        self.names, self.tls = tuple(names), tls
        super().__init__((host, port), handler)

    @property
    def scheme(self) -> str:
        return "https" if self.tls else "http"

    @property
    def address(self) -> str:
        return f"{self.scheme}://{self.names[0]}:{self.server_port}/{self.secret}/"

    @property
    def hosts(self) -> set[str]:
        """The names of this server in a request.

        Any other name is that of a site which let it point to this machine (DNS rebinding), so
        that its scripts may read here.
        """
        port = self.server_port
        names = {f"{name}:{port}" for name in self.names}
        return names | (set(self.names) if port == (443 if self.tls else 80) else set())

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Answer a connection in its own thread, which also waits for the TLS handshake."""
        if self.tls is None:
            super().finish_request(request, client_address)
            return
        request.settimeout(_HANDSHAKE_SECONDS)
        with self.tls.wrap_socket(request, server_side=True) as encrypted:
            super().finish_request(encrypted, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print what went wrong, unless the caller just left."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError | ssl.SSLError):
            super().handle_error(request, client_address)


class LocalHandler(BaseHTTPRequestHandler):
    """Answers requests of this machine's own pages; logs nothing."""

    server: LocalServer
    protocol_version = "HTTP/1.1"
    timeout = _SECONDS

    def name(self) -> str | None:
        """Return what is asked for below the secret; None for a caller who does not know it."""
        _, secret, *rest = self.path.split("?")[0].split("/", 2)
        if not rest or not hmac.compare_digest(secret.encode(), self.server.secret.encode()):
            return None
        return rest[0]

    def refuses(self, too_long: bool = False) -> bool:
        """Refuse a caller without the secret, and a page of another site in this browser."""
        host, origin = self.headers.get_all("Host", []), self.headers.get("Origin")
        ours = len(host) == 1 and host[0].lower() in self.server.hosts
        known = self.path.startswith("/") and self.name() is not None
        own = f"{self.server.scheme}://{host[0]}" if host else ""
        if ours and known and origin in (None, own) and not too_long:
            return False
        self.close_connection = True
        self.answer(403, b"refused", "text/plain")
        return True

    def answer(
        self, status: int, body: bytes, kind: str, headers: Mapping[str, str] | None = None
    ) -> None:
        """Send a whole answer that nobody keeps."""
        self.head(status, kind, {"Content-Length": str(len(body)), **(headers or {})})
        self.wfile.write(body)

    def head(self, status: int, kind: str, headers: Mapping[str, str]) -> None:
        """Send the head of an answer that nobody keeps."""
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8" if "text" in kind else kind)
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")  # the address holds the secret
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def answer_file(self, files: Mapping[str, Path | bytes]) -> None:
        """Answer with the file of the name that is asked for; ``index.html`` where none is."""
        name = self.name() or "index.html"
        if (found := files.get(name)) is None:
            self.answer(404, b"not found", "text/plain")
            return
        guessed = mimetypes.guess_type(name)[0] or "application/octet-stream"
        try:
            content = found if isinstance(found, bytes) else found.read_bytes()
        except OSError as error:  # the folder was removed or moved meanwhile
            self.answer(503, str(error).encode(), "text/plain")
            return
        self.answer(200, content, _TYPES.get(Path(name).suffix, guessed))

    def log_message(self, format: str, *arguments: Any) -> None:
        """Log nothing: a request may hold what was typed."""
