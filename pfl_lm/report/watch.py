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
        read_run(self.folder)  # of a question's folder there is no page
        super().__init__(port, _Handler)

    def page(self) -> bytes:
        """Return the run's page with the bar of buttons and the script that keeps it fresh."""
        bar = _BAR.read_text(encoding="utf-8")
        return render(read_run(self.folder)).replace("</body>", f"{bar}</body>").encode()

    def state(self) -> dict[str, Any]:
        """Say how far the run is, what it was asked, and a number that changes with its figures."""
        run, path = read_run(self.folder), self.folder.metrics_path
        left = not run.finished and len(run.rounds) < run.planned_rounds
        return {
            "rounds": len(run.rounds),
            "planned": run.planned_rounds,
            "finished": run.finished,
            "heeds": left and control.is_heeded(self.folder),
            "paused": control.asks(self.folder.path, control.PAUSE),
            "stopping": control.asks(self.folder.path, control.STOP),
            "version": [path.stat().st_size if path.is_file() else 0, run.finished],
        }

    def order(self, name: str) -> dict[str, Any]:
        """Ask the run to pause, go on or stop; return its state then.

        Raises:
            _Unheeded: nobody would heed it.
        """
        if not self.state()["heeds"]:
            raise _Unheeded("the run's rounds are over, or no process runs it now")
        act, request = _ORDERS[name]
        act(self.folder.path, request)
        return self.state()


class _Unheeded(Exception):
    """An order that no run heeds."""


class _Handler(LocalHandler):
    server: WatchServer

    def do_GET(self) -> None:
        if self.refuses():
            return
        if self.name() == "":
            self._answer(self.server.page, "text/html")
        elif self.name() == "state":
            self._answer(lambda: json.dumps(self.server.state()).encode(), "application/json")
        else:
            self.answer(404, b"not found", "text/plain")

    def do_POST(self) -> None:
        # A page of another site may send a POST unasked; its Origin gives it away.
        if self.refuses(too_long=self.headers.get("Origin") is None):
            return
        if (name := self.name() or "") in _ORDERS:
            self._answer(lambda: json.dumps(self.server.order(name)).encode(), "application/json")
        else:
            self.answer(404, b"not found", "text/plain")

    def _answer(self, content: Callable[[], bytes], kind: str) -> None:
        """Answer with what is asked for, or with a line that says why not."""
        try:
            status, body = 200, content()
        except _Unheeded as reason:
            status, body, kind = 409, str(reason).encode(), "text/plain"
        except (OSError, ValueError) as error:  # the folder was removed, or a file is damaged
            text = f"{self.server.folder.path} cannot be read now: {error}"
            status, body, kind = 503, text.encode(), "text/plain"
        self.answer(status, body, kind)


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
