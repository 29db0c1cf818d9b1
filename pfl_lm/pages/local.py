"""A web server for the browser of this machine alone, and for no other site's scripts."""

from __future__ import annotations

import hmac
import secrets
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HOME = "127.0.0.1"
_SECONDS = 30.0  # that a caller may be silent


class LocalServer(ThreadingHTTPServer):
    """Bound to the loopback address only.

    Its address holds a secret, drawn at each start. A caller who has not seen it, another user of
    this machine or a page of another site in this browser, is answered nothing.
    """

    daemon_threads = True

    def __init__(self, port: int, handler: type[LocalHandler]) -> None:
        self.secret = secrets.token_urlsafe(16)
        super().__init__((HOME, port), handler)

    @property
    def address(self) -> str:
        return f"http://{HOME}:{self.server_port}/{self.secret}/"

    @property
    def hosts(self) -> set[str]:
        """The names of this server in a request.

        Any other name is that of a site which let it point to this machine (DNS rebinding), so
        that its scripts may read here.
        """
        port = self.server_port
        names = {f"{name}:{port}" for name in (HOME, "localhost", "[::1]")}
        return names | ({HOME, "localhost", "[::1]"} if port == 80 else set())

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print what went wrong, unless the caller just left."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
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
        if ours and known and origin in (None, f"http://{host[0]}") and not too_long:
            return False
        self.close_connection = True
        self.answer(403, b"refused", "text/plain")
        return True

    def answer(self, status: int, body: bytes, kind: str) -> None:
        """Send a whole answer that nobody keeps."""
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8" if "text" in kind else kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")  # the address holds the secret
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Log nothing: a request may hold what was typed."""
