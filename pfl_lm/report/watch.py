"""A run's page while the run goes on: figures move, and buttons pause and stop it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pfl_lm.pages.local import LocalHandler, LocalServer
from pfl_lm.report.page import render
from pfl_lm.report.source import read_run
from pfl_lm.run import control
from pfl_lm.run.folder import RunFolder

_BAR = Path(__file__).parent / "watch.html"
_ORDERS: dict[str, tuple[Callable[[Path, str], None], str]] = {
    "pause": (control.ask, control.PAUSE),
    "go-on": (control.withdraw, control.PAUSE),
    "stop": (control.ask, control.STOP),
}


class WatchServer(LocalServer):
    """Serves the page of one run to this machine.

    Raises:
        ValueError: no run lies in the folder.
    """

    def __init__(self, run: Path, port: int) -> None:
        self.folder = RunFolder.open(run)
        super().__init__(port, _Handler)

    def page(self) -> bytes:
        """Return the run's page with the bar of buttons and the script that keeps it fresh."""
        bar = _BAR.read_text(encoding="utf-8")
        return render(read_run(self.folder)).replace("</body>", f"{bar}</body>").encode()

    def state(self) -> dict[str, Any]:
        """Say how far the run is, what it was asked, and a number that changes with its figures."""
        run, path = read_run(self.folder), self.folder.metrics_path
        return {
            "rounds": len(run.rounds),
            "planned": run.planned_rounds,
            "finished": run.finished,
            "paused": control.asks(self.folder.path, control.PAUSE),
            "stopping": control.asks(self.folder.path, control.STOP),
            "version": [path.stat().st_size if path.is_file() else 0, run.finished],
        }


class _Handler(LocalHandler):
    server: WatchServer

    def do_GET(self) -> None:
        if self.refuses():
            return
        if self.name() == "":
            self.answer(200, self.server.page(), "text/html")
        elif self.name() == "state":
            self.answer(200, json.dumps(self.server.state()).encode(), "application/json")
        else:
            self.answer(404, b"not found", "text/plain")

    def do_POST(self) -> None:
        # A page of another site may send a POST unasked; its Origin gives it away.
        if self.refuses(too_long=self.headers.get("Origin") is None):
            return
        order = _ORDERS.get(self.name() or "")
        if order is None:
            self.answer(404, b"not found", "text/plain")
            return
        act, request = order
        act(self.server.folder.path, request)
        self.answer(200, b"{}", "application/json")


def serve(run: Path, port: int, browser: bool, say: Callable[[str], None]) -> None:
    """Serve until interrupted."""
    with WatchServer(run, port) as server:
        say(f"{server.address}  shows {run}; Ctrl+C ends the page, not the run")
        if browser:
            import webbrowser

            threading.Timer(0.3, partial(webbrowser.open, server.address)).start()
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say("")
