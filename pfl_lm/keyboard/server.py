"""Serve the page to this machine alone; where the browser cannot compute, compute here."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pfl_lm.export.formats.registry import Runner
from pfl_lm.export.signature import Arrays
from pfl_lm.keyboard.site import Site
from pfl_lm.pages.local import LocalHandler, LocalServer

_MOST = 64 << 20  # bytes of a request
_NONSENSE = (  # what a request that is none makes json, numpy and a runtime raise
    *(ValueError, LookupError, TypeError, AttributeError, ArithmeticError),
    *(RuntimeError, MemoryError),
)


class Server(LocalServer):
    """Holds the site; bound to the loopback address only."""

    def __init__(self, site: Site, port: int) -> None:
        self.files: dict[str, Path | bytes] = {**site.files(), "site.json": site.about().encode()}
        self.graphs: dict[str, Runner] = {} if site.in_page else site.graphs()
        self.turn = threading.Lock()  # a runtime's session answers one at a time
        super().__init__(port, _Handler)

    def compute(self, graph: str, inputs: dict[str, Any]) -> dict[str, Any]:
        """Run a graph on what the page sent: ``{name: {type, dims, data}}``, data in base64.

        Raises:
            ValueError: no such graph, or inputs that are not its own.
        """
        if graph not in self.graphs:
            raise ValueError(f"this server runs no graph {graph!r}")
        given = {name: _array(tensor) for name, tensor in inputs.items()}
        with self.turn:
            outputs = self.graphs[graph](**given)
        return _tensors(outputs)


class _Handler(LocalHandler):
    server: Server

    def do_GET(self) -> None:
        if self.refuses():
            return
        self.answer_file(self.server.files)

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length") or "0"
        if self.refuses(too_long=not length.isdecimal() or int(length) > _MOST):
            return
        body = self.rfile.read(int(length))
        try:
            request = json.loads(body)
            outputs = self.server.compute(request["graph"], request["inputs"])
        except _NONSENSE as error:
            self.answer(400, str(error).encode(), "text/plain")
            return
        self.answer(200, json.dumps(outputs).encode(), "application/json")


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


def _tensors(outputs: Arrays) -> dict[str, Any]:
    return {
        name: {
            "type": str(value.dtype),
            "dims": list(value.shape),
            "data": base64.b64encode(np.ascontiguousarray(value).tobytes()).decode(),
        }
        for name, value in outputs.items()
    }
