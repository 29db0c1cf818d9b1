"""The service over HTTP: the same answers and refusals as over gRPC, and nothing for strangers."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import threading
from http.client import HTTPConnection, HTTPSConnection

import pytest

from pfl_lm.network import web_call
from pfl_lm.network.admission import Admission
from pfl_lm.network.backend import LocalBackend
from pfl_lm.network.exclusions import Exclusions
from pfl_lm.network.identity import Credentials
from pfl_lm.network.mailbox import Mailbox
from pfl_lm.network.refusals import NotNow
from pfl_lm.network.service import Service
from pfl_lm.network.transport import CHUNK_BYTES, Limits, messages
from pfl_lm.network.web import WebAddress, WebServer
from tests.network.web.conftest import needs_node, plain_key, play

TASK = {
    "task_config": '{"run":"","scenario":{"clip_norm":0.25,"rounds":2,"seed":4},"trial":true}',
    "trial": True,
    "policy": None,
    "seed": "4",
    "noise": {"share": None},
}
FILES = {
    "index.html": b"<p>page",
    "a.mjs": b"export {};",
    "take_part.json": json.dumps(TASK).encode(),
}
LIMITS = Limits(hold_seconds=0.2, stranger_seconds=2.0)
FRAME_BYTES = 3 * CHUNK_BYTES


class Models:
    def open(self, have):
        return iter([b"abcd", b"efgh" * 100]) if have < 0 else iter([])


def task_config() -> str:
    config = TASK["task_config"].replace('"run":""', f'"run":"{"ab" * 16}"')
    return config.replace("0.25", "0.5").replace('"seed":4', '"seed":3')


class Served:
    """A service in an event loop of its own thread, and its address for browsers."""

    def __init__(self, keys, listen: str) -> None:
        self.keys, self.frames = keys, []
        self.at = WebAddress(listen, keys)
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.server = asyncio.run_coroutine_threadsafe(self._open(), self.loop).result(30)

    async def _open(self) -> WebServer:
        identities = self.keys.enrolled()
        digest = self.keys.server_certificate().digest
        credentials = Credentials(identities, self.keys.authority(), digest)
        exclusions = Exclusions(identities, frozenset(), {}, lambda *about: None)
        admission = Admission(credentials, LIMITS, exclusions)
        mailbox = Mailbox(identities, LIMITS, admission.strike, admission.grant_round, exclusions)
        mailbox.check_turn = self._turn
        mailbox.send = lambda device, round, frame: self.frames.append((device, round, frame))
        type(mailbox).under_way = property(lambda self: 7)
        service = Service(
            LocalBackend(admission, mailbox, Models()), task_config(), LIMITS, FRAME_BYTES
        )
        return WebServer(service, self.at, FILES)

    def _turn(self, device, round):
        if round != 7:
            raise NotNow(f"round {round} is not under way")

    def close(self) -> None:
        self.server.close()
        self.loop.call_soon_threadsafe(self.loop.stop)

    def ask(self, method: str, path: str, body: bytes | None = None, **headers):
        kind = HTTPSConnection if self.server.tls else HTTPConnection
        about = {"context": ssl._create_unverified_context()} if self.server.tls else {}
        connection = kind("127.0.0.1", self.server.server_port, timeout=20, **about)
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.headers.get("grpc-status"), answer.read()

    def call(self, name: str, request: bytes, **headers):
        return self.ask("POST", f"/{self.at.secret}/{name}", request, **headers)

    def session(self, key) -> dict[str, str]:
        """Open a session and return the header that carries it."""
        request = messages.ChallengeRequest(device=key.number).SerializeToString()
        nonce = messages.ChallengeResponse.FromString(self.call("Challenge", request)[2]).nonce
        proof = messages.AuthenticateRequest(
            nonce=nonce,
            signature=key.prove(nonce, self.keys.server_certificate().digest),
            certificate=key.identity.certificate,
        )
        status, _, content = self.call("Authenticate", proof.SerializeToString())
        assert status == 200, content
        token = messages.Session.FromString(content).token
        return {"session-bin": base64.b64encode(token).decode()}


@pytest.fixture(scope="module", params=["127.0.0.1:0", "0.0.0.0:0"], ids=["http", "https"])
def served(request, keys_of):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Mailbox, "under_way", None)  # put back afterwards
        found = Served(keys_of(6), request.param)
        yield found
        found.close()


@pytest.fixture(scope="module")
def session(served, key_of):
    return served.session(key_of(served.keys, 3))


@pytest.fixture(scope="module")
def key_of():
    from pfl_lm.network.identity import DeviceKey

    return lambda keys, number: DeviceKey.read(keys.folder / "devices" / f"{number:05d}.json")


def delimited(*requests) -> bytes:
    parts = []
    for request in requests:
        content, size = request.SerializeToString(), bytearray()
        left = len(content)
        while left >= 0x80:
            size.append(left & 0x7F | 0x80)
            left >>= 7
        parts += [bytes([*size, left]), content]
    return b"".join(parts)


def test_device_0_is_challenged_by_an_empty_message(served):
    status, _, content = served.call("Challenge", b"")
    assert status == 200
    assert len(messages.ChallengeResponse.FromString(content).nonce) == 32


def test_an_empty_fetch_comes_back_after_a_while(served, session):
    cursor = messages.Cursor(round=-1, step=0).SerializeToString()
    status, _, content = served.call("Fetch", cursor, **session)
    assert status == 200
    assert messages.Item.FromString(content).WhichOneof("content") is None


def test_a_stream_is_answered_message_by_message(served, session):
    version = messages.Version(have=-1, want=7).SerializeToString()
    status, _, content = served.call("Model", version, **session)
    chunks = [messages.Chunk(values=part) for part in (b"abcd", b"efgh" * 100)]
    assert (status, content) == (200, delimited(*chunks))
    version = messages.Version(have=7, want=7).SerializeToString()
    assert served.call("Model", version, **session) == (200, None, b"")


def test_a_frame_comes_in_parts(served, session):
    frame = bytes(range(256)) * 6000  # more than a part holds
    parts = [
        messages.Upload(round=7, size=len(frame), part=frame[:CHUNK_BYTES]),
        messages.Upload(part=frame[CHUNK_BYTES:]),
    ]
    assert served.call("Send", delimited(*parts), **session)[0] == 200
    assert served.frames[-1] == (3, 7, frame)


REFUSED = {
    "no session": ("Fetch", b"", {}, 401, 16),
    "another session": ("Fetch", b"", {"session-bin": "AAAA"}, 401, 16),
    "a session that is no base64": ("Fetch", b"", {"session-bin": "%"}, 401, 16),
    "no device of that number": ("Challenge", b"\x08\x63", {}, 403, 7),
    "no message": ("Challenge", b"\xff", {}, 400, 3),
    "a message that is too long": ("Challenge", b"\x08" + bytes(2 << 20), {}, 400, 3),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_says_so_as_grpc_does(served, case):
    name, request, headers, status, code = REFUSED[case]
    found = served.call(name, request, **headers)
    assert found[:2] == (status, str(code))
    assert found[2]


def test_a_frame_of_another_round_is_refused(served, session):
    status, code, text = served.call("Send", delimited(messages.Upload(round=6, size=1)), **session)
    assert (status, code, text) == (400, "9", b"round 6 is not under way")


@pytest.mark.parametrize("body", [b"", b"\xff\xff\xff\xff\xff\xff", b"\x05ab", b"\x80"])
def test_a_frame_that_is_cut_off_is_refused(served, session, body):
    status, code, _ = served.call("Send", body, **session)
    assert (status, code) in {(400, "9"), (400, "3")}


def test_a_message_that_comes_too_slowly_is_not_waited_for(served, monkeypatch):
    monkeypatch.setattr(web_call, "_READ_SECONDS", -1.0)
    status, code, text = served.call("Challenge", b"\x08\x01")
    assert (status, code, text) == (400, "9", b"the message is missing or incomplete")


def test_a_stranger_to_the_secret_is_answered_nothing(served):
    for path in ("/", "/Challenge", "/guess/Challenge", f"/{served.at.secret[:-1]}/Challenge"):
        assert served.ask("POST", path, b"") == (403, None, b"refused")
        assert served.ask("GET", path) == (403, None, b"refused")


def test_a_page_of_another_site_is_refused(served):
    for headers in ({"Origin": "https://evil.example"}, {"Host": "evil.example"}):
        assert served.call("Challenge", b"", **headers) == (403, None, b"refused")
    own = f"{served.server.scheme}://localhost:{served.server.server_port}"
    headers = {"Origin": own, "Host": own.partition("//")[2]}
    assert served.call("Challenge", b"", **headers)[0] == 200


def test_no_such_method_and_no_such_file(served):
    assert served.call("Delete", b"")[0] == 404
    assert served.ask("GET", f"/{served.at.secret}/../secret")[0] == 404


def test_files_are_served(served):
    assert served.ask("GET", f"/{served.at.secret}/")[2] == b"<p>page"
    assert served.ask("GET", f"/{served.at.secret}/a.mjs")[2] == b"export {};"


def test_the_address_is_the_same_at_each_start_and_belongs_to_the_keys(keys_of):
    first, again = (WebAddress("127.0.0.1:1", keys_of(6)).secret for _ in range(2))
    assert first == again
    assert first != WebAddress("127.0.0.1:1", keys_of(7)).secret


@needs_node
def test_a_page_made_for_another_run_leaves_and_names_what_differs(served):
    if served.server.tls:
        pytest.skip("Node trusts no certificate of ours")
    ended = play(served.server.address, plain_key(served.keys, 4), updates=[])
    assert ended["failed"] == "OtherTask"
    assert "made for (clip_norm, seed)" in ended["text"]


@needs_node
def test_a_key_that_is_not_enrolled_opens_no_session(served, keys_of):
    if served.server.tls:
        pytest.skip("Node trusts no certificate of ours")
    own = served.keys.server_certificate().digest.hex()
    key = plain_key(keys_of(7), 0) | {"server": own}
    ended = play(served.server.address, key, updates=[])
    assert ended["failed"] == "RefusedByServer"
    assert "the signature is not that of device 0" in ended["text"]


@pytest.mark.parametrize("listen", ["localhost:1", "8444", "127.0.0.1", "127.0.0.1:99999", ":1"])
def test_an_address_that_is_none_is_refused(keys_of, listen):
    with pytest.raises(ValueError, match="--web-listen"):
        WebAddress(listen, keys_of(6))


def test_an_address_that_is_taken_is_refused(served):
    async def again() -> None:
        WebServer(None, WebAddress(f"{served.at.host}:{served.server.server_port}", served.keys))

    with pytest.raises(ValueError, match="cannot listen on"):
        asyncio.run(again())
