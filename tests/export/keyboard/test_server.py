"""The local server: to this machine alone, and it computes what the runtime computes."""

from __future__ import annotations

import base64
import json
import socket
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


def split(address: str) -> tuple[str, str]:
    """Host and port, and the secret."""
    place, secret = address.removeprefix("http://").rstrip("/").split("/")
    return place, secret


def ask(address: str, method: str, path: str, body: bytes = b"", **headers) -> tuple[int, bytes]:
    place, secret = split(address)
    connection = HTTPConnection(place)
    connection.request(method, f"/{secret}{path}", body, headers)
    answer = connection.getresponse()
    return answer.status, answer.read()


def question(bundle_folder) -> tuple[bytes, dict[str, np.ndarray]]:
    index = json.loads((bundle_folder / "bundle.json").read_text())
    entry = next(g for g in index["graphs"] if g["name"] == "predict.fp32.onnx")
    given = {name: np.zeros(shape, dtype) for name, dtype, shape in entry["signature"]["inputs"]}
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
    from pfl_lm.export.graphs.predict import predict_graph

    body, given = question(bundle_folder)
    status, answer = ask(address, "POST", "/run", body)
    assert status == 200
    found = json.loads(answer)["words"]
    words = np.frombuffer(base64.b64decode(found["data"]), found["type"])
    graph = predict_graph(
        source.model, best=BEST, blocked=source.tokenizer.specials, adapter_rank=len(given["down"])
    )
    assert words.tolist() == graph(**given)["words"][0].tolist()


def test_another_page_is_refused(address, bundle_folder):
    body, _ = question(bundle_folder)
    assert ask(address, "POST", "/run", body, Origin="http://evil.example")[0] == 403
    assert ask(address, "POST", "/run", body, Host="evil.example")[0] == 403


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:{port}",
        "127.0.0.1.evil.example:{port}",
        "127.0.0.1:1",
        "127.0.0.1",
        "",
        "localhost:{port}@evil.example",
    ],
)
def test_another_name_of_this_machine_is_refused(address, bundle_folder, method, host):
    """A site whose name was made to point here (DNS rebinding) reads neither page nor bundle."""
    body, _ = question(bundle_folder)
    port = split(address)[0].rpartition(":")[2]
    for path in ("/", "/site.json", "/bundle/bundle.json", "/run"):
        status, answer = ask(address, method, path, body, Host=host.format(port=port))
        assert (status, answer) == (403, b"refused")


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "LOCALHOST", "[::1]"])
def test_every_own_name_is_answered(address, name):
    port = split(address)[0].rpartition(":")[2]
    assert ask(address, "GET", "/", Host=f"{name}:{port}")[0] == 200


def test_a_request_with_two_names_or_a_strange_length_is_refused(address):
    place, secret = split(address)
    for head in (f"Host: {place}\r\nHost: {place}", f"Host: {place}\r\nContent-Length: -1", "X: y"):
        with socket.create_connection(place.split(":"), timeout=10) as line:
            line.sendall(f"POST /{secret}/run HTTP/1.1\r\n{head}\r\n\r\n".encode())
            assert line.makefile("rb").readline().split()[1] == b"403"


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    "path", ["/", "/run", "//run", "/{other}/run", "/{secret}x/run", "run", "*"]
)
def test_without_the_secret_nothing_is_answered(address, bundle_folder, method, path):
    """Another user of this machine, or a page that guesses the port, has not seen the address."""
    body, _ = question(bundle_folder)
    place, secret = split(address)
    assert len(secret) >= 22  # 128 bits
    connection = HTTPConnection(place)
    connection.request(method, path.format(other="A" * len(secret), secret=secret), body)
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (403, b"refused")


def test_the_secret_is_another_at_every_start(bundle_folder):
    with opened(bundle_folder) as bundle:
        site = Site.of(bundle, "fp32", True)
        with Server(site, 0) as first, Server(site, 0) as second:
            assert first.secret != second.secret


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[]", b'{"graph": "x", "inputs": {}}', b"\xff", b"[" * 100_000]
)
def test_nonsense_is_answered_not_fatal(address, body):
    assert ask(address, "POST", "/run", body)[0] == 400


@pytest.mark.parametrize(
    "path", ["/../bundle.json", "/bundle/weights.f32", "/bundle/../bundle.json", "/etc/passwd"]
)
def test_only_the_page_s_files_are_served(address, path):
    assert ask(address, "GET", path)[0] == 404
