"""The device in JavaScript, in headless Chromium: the modules as a page imports them."""

from __future__ import annotations

import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pfl_lm.conformance.suite import suite
from pfl_lm.conformance.verify import compare
from pfl_lm.web_device import FOLDER
from tests.export.keyboard.conftest import Browser, chromium

TOGETHER = 30  # vectors in one call over the debugging pipe
CURVES = "crypto.subtle.generateKey('X25519', false, ['deriveBits']).then(() => true, () => false)"


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    if chromium() is None:
        pytest.skip("no Chromium is installed")
    handler = partial(_Quiet, directory=str(FOLDER))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    browser = Browser(tmp_path_factory.mktemp("profile"))
    browser.open(f"http://127.0.0.1:{server.server_port}/errors.mjs")
    browser.until("document.readyState === 'complete' && location.port !== ''")
    if not browser.run(CURVES):
        pytest.skip("this Chromium's WebCrypto has no X25519")
    yield browser
    browser.close()
    server.shutdown()


def asked():
    """All vectors but most of the positive device ones, which take most of the time."""
    devices = [v for v in suite() if v.kind == "device" and v.positive]
    return [v for v in suite() if v not in devices or v in devices[::8]]


def test_it_answers_the_vectors_on_a_page(page):
    problems = []
    vectors = asked()
    for start in range(0, len(vectors), TOGETHER):
        part = vectors[start : start + TOGETHER]
        requests = json.dumps([{"kind": v.kind, "inputs": v.inputs} for v in part])
        answers = page.run(
            f"import('/answers.mjs').then(async ({{ answer }}) => {{ const found = [];"
            f"for (const request of {requests}) found.push(await answer(request));"
            f"return JSON.stringify(found); }})"
        )
        given = zip(part, json.loads(answers), strict=True)
        problems += [found.problem for v, one in given if not (found := compare(v, one)).conforms]
    assert problems == []
