"""Serve the page to this machine alone; where the browser cannot compute, compute here."""

from __future__ import annotations

import base64
import json
import mimetypes
import threading
from collections.abc import Callable
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from pfl_lm.export.formats import Runner
from pfl_lm.export.ports import Arrays
from pfl_lm.keyboard.site import Site

_TYPES = {".mjs": "text/javascript", ".js": "text/javascript", ".wasm": "application/wasm"}
_MOST = 64 << 20  # bytes of a request
_HOME = "127.0.0.1"


class Server(ThreadingHTTPServer):
    """Holds the site; bound to the loopback address only."""

    daemon_threads = True

    def __init__(self, site: Site, port: int) -> None:
        self.files = site.files()
        self.about = site.about().encode()
        self.graphs: dict[str, Runner] = {} if site.in_page else site.graphs()
        self.turn = threading.Lock()  # a runtime's session answers one at a time
        super().__init__((_HOME, port), _Handler)

    @property
    def address(self) -> str:
        return f"http://{_HOME}:{self.server_port}/"

    def compute(self, graph: str, inputs: dict[str, Any]) -> dict[str, Any]:
        """Run a graph on what the page sent: ``{name: {type, dims, data}}``, data in base64.

        Raises:
            ValueError: no such graph, or inputs that are not its own.
        """
        if graph not in self.graphs:
            raise ValueError(f"this server runs no graph {graph!r}")
        given = {name: _array(tensor) for name, tensor in inputs.items()}
        with self.turn:
            found = self.graphs[graph](**given)
        return _tensors(found)


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        name = self.path.split("?")[0].lstrip("/") or "index.html"
        if name == "site.json":
            self._answer(200, self.server.about, "application/json")
        elif name in self.server.files:
            path = self.server.files[name]
            guessed = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
            self._answer(200, path.read_bytes(), _TYPES.get(path.suffix, guessed))
        else:
            self._answer(404, b"not found", "text/plain")

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        # Another page in the same browser must not have this one's words computed.
        ours = self.headers.get("Host", "") in (
            f"{_HOME}:{self.server.server_port}", f"localhost:{self.server.server_port}",
        )  # fmt: skip
        origin = self.headers.get("Origin")
        if not ours or origin not in (None, f"http://{self.headers['Host']}") or length > _MOST:
            self.close_connection = True
            self._answer(403, b"refused", "text/plain")
            return
        body = self.rfile.read(length)
        try:
            asked = json.loads(body)
            found = self.server.compute(asked["graph"], asked["inputs"])
        except (ValueError, KeyError, TypeError) as error:
            self._answer(400, str(error).encode(), "text/plain")
            return
        self._answer(200, json.dumps(found).encode(), "application/json")

    def _answer(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8" if "text" in kind else kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Log nothing: a request may hold what was typed."""


def serve(site: Site, port: int, browser: bool, say: Callable[[str], None]) -> None:
    """Serve until interrupted."""
    with Server(site, port) as server:
        where = "in the page" if site.in_page else "on this machine"
        if site.because:
            say(f"{site.because}; suggestions are computed on this machine instead")
        say(f"{server.address}  computes {where}; Ctrl+C ends it")
        if browser:
            import webbrowser

            threading.Timer(0.3, partial(webbrowser.open, server.address)).start()
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say("")


def _array(tensor: dict[str, Any]) -> np.ndarray:
    if tensor["type"] not in ("int32", "float32"):
        raise ValueError(f"tensors are int32 or float32, not {tensor['type']!r}")
    values = np.frombuffer(base64.b64decode(tensor["data"]), np.dtype(tensor["type"]))
    return values.reshape(tensor["dims"]).copy()  # what a buffer lends cannot be written


def _tensors(found: Arrays) -> dict[str, Any]:
    return {
        name: {
            "type": str(value.dtype),
            "dims": list(value.shape),
            "data": base64.b64encode(np.ascontiguousarray(value).tobytes()).decode(),
        }
        for name, value in found.items()
    }
