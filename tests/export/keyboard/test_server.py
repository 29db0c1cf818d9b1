"""The local server: to this machine alone, and it computes what the runtime computes."""

from __future__ import annotations

import base64
import json
from http.client import HTTPConnection

import numpy as np
import pytest

from pfl_lm.export.bundle import opened
from pfl_lm.keyboard.server import Server
from pfl_lm.keyboard.site import Site


@pytest.fixture(scope="module")
def address(bundle_folder, serving):
    with opened(bundle_folder) as bundle:
        yield serving(Site.of(bundle, "fp32", server=True))


def ask(address: str, method: str, path: str, body: bytes = b"", **headers) -> tuple[int, bytes]:
    connection = HTTPConnection(address.removeprefix("http://").rstrip("/"))
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    return answer.status, answer.read()


def question(bundle_folder) -> tuple[bytes, dict[str, np.ndarray]]:
    index = json.loads((bundle_folder / "bundle.json").read_text())
    entry = next(g for g in index["graphs"] if g["name"] == "predict.fp32.onnx")
    given = {name: np.zeros(shape, dtype) for name, dtype, shape in entry["interface"]["inputs"]}
    given["token"][:] = 2
    inputs = {
        name: {
            "type": str(value.dtype), "dims": list(value.shape),
            "data": base64.b64encode(value.tobytes()).decode(),
        }
        for name, value in given.items()
    }  # fmt: skip
    return json.dumps({"graph": entry["path"], "inputs": inputs}).encode(), given


def test_listens_on_the_loopback_address_only(bundle_folder):
    with opened(bundle_folder) as bundle, Server(Site.of(bundle, "fp32", True), 0) as server:
        assert server.server_address[0] == "127.0.0.1"


def test_computes_what_the_graph_computes(address, bundle_folder, source):
    from pfl_lm.export.build import BEST
    from pfl_lm.export.graphs import predict

    body, given = question(bundle_folder)
    status, answer = ask(address, "POST", "/run", body)
    assert status == 200
    found = json.loads(answer)["words"]
    words = np.frombuffer(base64.b64decode(found["data"]), found["type"])
    graph = predict(
        source.model, best=BEST, blocked=source.tokenizer.specials, adapter_rank=len(given["down"])
    )
    assert words.tolist() == graph(**given)["words"][0].tolist()


def test_another_page_is_refused(address, bundle_folder):
    body, _ = question(bundle_folder)
    assert ask(address, "POST", "/run", body, Origin="http://evil.example")[0] == 403
    assert ask(address, "POST", "/run", body, Host="evil.example")[0] == 403


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"graph": "x", "inputs": {}}', b"\xff"])
def test_nonsense_is_answered_not_fatal(address, body):
    assert ask(address, "POST", "/run", body)[0] == 400


@pytest.mark.parametrize(
    "path", ["/../bundle.json", "/bundle/weights.f32", "/bundle/../bundle.json", "/etc/passwd"]
)
def test_only_the_page_s_files_are_served(address, path):
    assert ask(address, "GET", path)[0] == 404
