"""Headless Chromium, driven over its debugging pipe (no driver, no package, no port), and Node."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pfl_lm.keyboard.site import PAGE

WAIT = 60.0  # seconds for anything to happen; the machine may be busy


def chromium() -> str | None:
    """Return the path of an installed Chromium or Chrome."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return next((found for name in names if (found := shutil.which(name))), None)


class Browser:
    """One page at a phone's size, with touch."""

    def __init__(self, profile: Path, dark: bool = False) -> None:
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        os.set_inheritable(theirs_in, True)
        os.set_inheritable(theirs_out, True)
        # The browser reads commands from descriptor 3 and answers on 4.
        shell = f'exec 3<&{theirs_in} 4>&{theirs_out}; exec "$0" "$@"'
        self.process = subprocess.Popen(
            ["bash", "-c", shell, chromium() or "", "--headless=new", "--no-sandbox",
             "--disable-gpu", "--remote-debugging-pipe", "--hide-scrollbars",
             "--disable-extensions", f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(theirs_in, theirs_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        self._out, self._in = os.fdopen(ours_out, "wb"), os.fdopen(ours_in, "rb")
        self._buffer, self._number = b"", 0
        self.events: list[dict[str, Any]] = []
        self._session: str | None = None
        self._attach(dark)

    def _attach(self, dark: bool = False) -> str:
        """Open a tab, which all calls from now on are about; return its id."""
        self._session = None
        target: str = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self._call(f"{domain}.enable")
        self.size(390, 844)
        self.dark(dark)
        self.reads("en-US")
        return target

    @contextlib.contextmanager
    def tab(self) -> Iterator[None]:
        """Use a second tab of this browser within a ``with`` block, and close it."""
        first = self._session
        second = self._attach()
        yield
        self._session = None
        self._call("Target.closeTarget", targetId=second)
        self._session = first

    def size(self, width: int, height: int, mobile: bool = True) -> None:
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                   deviceScaleFactor=2, mobile=mobile)  # fmt: skip
        self._call("Emulation.setTouchEmulationEnabled", enabled=mobile)

    def dark(self, dark: bool) -> None:
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        still = {"name": "prefers-reduced-motion", "value": "reduce"}  # a tap must not miss
        self._call("Emulation.setEmulatedMedia", features=[theme, still])

    def reads(self, *tags: str) -> None:
        """Set the languages of the browser's owner, as pages see them."""
        agent = self.run("navigator.userAgent")
        self._call("Emulation.setUserAgentOverride", userAgent=agent,
                   acceptLanguage=",".join(tags))  # fmt: skip

    def open(self, address: str) -> None:
        self._call("Page.navigate", url=address)

    def run(self, expression: str) -> Any:
        """Evaluate JavaScript, awaiting a promise; raises RuntimeError for what it throws."""
        found = self._call("Runtime.evaluate", expression=expression, awaitPromise=True,
                           returnByValue=True)  # fmt: skip
        if "exceptionDetails" in found:
            raise RuntimeError(json.dumps(found["exceptionDetails"])[:600])
        return found["result"].get("value")

    def until(self, expression: str) -> Any:
        """Wait until an expression is true, and return it."""
        end = time.monotonic() + WAIT
        while time.monotonic() < end:
            with contextlib.suppress(RuntimeError):  # between two pages there is nothing to ask
                if found := self.run(expression):
                    return found
            time.sleep(0.05)
        raise TimeoutError(f"never true: {expression}; status: {self.run(STATUS)}")

    def tap(self, selector: str) -> None:
        """Touch the middle of an element."""
        self._touch(selector)
        self._call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def hold(self, selector: str) -> None:
        """Press a key for long, until it offers other characters; let go on the first."""
        self._touch(selector)
        self.until("document.querySelector('.hold') !== null")
        self._call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def _touch(self, selector: str) -> None:
        spot = self.run(
            f"(() => {{ const b = document.querySelector({json.dumps(selector)})"
            ".getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        points = [{"x": spot[0], "y": spot[1]}]
        self._call("Input.dispatchTouchEvent", type="touchStart", touchPoints=points)

    def tap_text(self, text: str) -> None:
        """Type with a finger on the keys of the page."""
        for character in text:
            self.tap(f'.key[data-key="{character}"]')

    def press(self, text: str) -> None:
        """Type with physical keys."""
        for character in text:
            about = {"key": character, "text": character, "unmodifiedText": character}
            self._call("Input.dispatchKeyEvent", type="keyDown", **about)
            self._call("Input.dispatchKeyEvent", type="keyUp", key=character)

    def compose(self, text: str) -> None:
        """Type by an input method that has not decided on what it writes."""
        self._call("Input.imeSetComposition", text=text, selectionStart=len(text),
                   selectionEnd=len(text))  # fmt: skip

    def key(self, name: str, code: int, modifiers: int = 0) -> None:
        """Press a named key, such as Tab (9)."""
        for kind in ("rawKeyDown", "keyUp"):
            self._call("Input.dispatchKeyEvent", type=kind, key=name, modifiers=modifiers,
                       windowsVirtualKeyCode=code)  # fmt: skip

    def picture(self, path: Path) -> None:
        found = self._call("Page.captureScreenshot", format="png")
        Path(path).write_bytes(base64.b64decode(found["data"]))

    def requests(self) -> list[str]:
        """Return the addresses that the page has asked for so far."""
        self.run("1")
        sent = [e for e in self.events if e["method"] == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"] for event in sent]

    def close(self) -> None:
        try:
            self._session = None
            self._call("Browser.close")
            self.process.wait(10)
        except (OSError, EOFError, subprocess.TimeoutExpired):
            self.process.kill()
        finally:
            self._out.close()
            self._in.close()

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._out.write(json.dumps(message).encode() + b"\0")
        self._out.flush()
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            chunk = os.read(self._in.fileno(), 1 << 16)
            if not chunk:
                raise EOFError("the browser has gone")
            self._buffer += chunk
        raw, self._buffer = self._buffer.split(b"\0", 1)
        found: dict[str, Any] = json.loads(raw)
        return found


STATUS = "document.getElementById('status')?.textContent"


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    """A browser; the test skips where there is none."""
    if chromium() is None:
        pytest.skip("needs Chromium or Chrome, which is not installed")
    found = Browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def serving():
    """A function that serves a site on a free port and returns its address."""
    from pfl_lm.keyboard.server import Server

    servers = []

    def serve(site) -> str:
        servers.append(Server(site, 0))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return servers[-1].address

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


HANGS = 300.0  # seconds after which a script of a few milliseconds will not end

SETUP = """
import fs from "fs";
import { Corrector } from "./autocorrect.js";
import { arrange, likeliest } from "./bar.js";
import { Editor } from "./editor.js";
import { Layouts } from "./layouts.js";
import { Lexicon } from "./lexicon.js";
import { begins, cased, shapeOf } from "./text_rules.js";
import { Tokenizer } from "./tokenizer.js";
const data = JSON.parse(fs.readFileSync("./layouts.json"));
const given = JSON.parse(fs.readFileSync(0, "utf8"));
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """A function that runs a script beside the page's modules and returns its answer."""
    if (program := shutil.which("node")) is None:
        pytest.skip("needs Node, which is not installed")
    folder = tmp_path_factory.mktemp("page")
    for path in [*PAGE.glob("*.js"), *PAGE.glob("*.json")]:
        shutil.copy(path, folder)
    (folder / "package.json").write_text('{"type": "module"}')

    def run(script: str, given: Any = None) -> Any:
        (folder / "run.js").write_text(SETUP + script)
        done = subprocess.run(
            [program, "run.js"], cwd=folder, input=json.dumps(given), capture_output=True,
            encoding="utf-8", check=False, timeout=HANGS,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run
