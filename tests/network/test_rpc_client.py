"""A device that waits says so at once, and says why."""

from __future__ import annotations

import logging

import grpc
import pytest

from pfl_lm.network.identity import DeviceKey
from pfl_lm.network.rpc_client import RetryPolicy, RpcClient
from pfl_lm.network.transport import channel_to
from tests.network.conftest import free_port


def test_a_device_without_a_server_says_at_once_what_it_waits_for(keys_of, caplog):
    caplog.set_level(logging.INFO, "pfl_lm.network")
    keys = keys_of(6)
    key = keys.folder / "devices" / "00003.json"
    retry = RetryPolicy(first_seconds=0.01, most_seconds=0.05, give_up_seconds=0.3)
    with channel_to(f"127.0.0.1:{free_port()}", keys.certificate) as channel:
        client = RpcClient(channel, DeviceKey.read(key), keys.server_certificate().digest, retry)
        with pytest.raises(ConnectionError, match="no server for a long time"):
            client.task_config()
    lines = [record.message for record in caplog.records]
    assert len(lines) == 1  # one line a minute, not one for each try
    assert lines[0].startswith("device 3 waits for the server and tries again for up to 0 s: ")
    assert "failed to connect" in lines[0].lower()


class Busy(grpc.RpcError):
    def code(self):
        return grpc.StatusCode.RESOURCE_EXHAUSTED

    def details(self):
        return "device 3 calls too often; wait"


def test_a_device_that_is_told_to_wait_says_so_and_when_it_is_over(keys_of, caplog):
    caplog.set_level(logging.INFO, "pfl_lm.network")
    key = DeviceKey.read(keys_of(6).folder / "devices" / "00003.json")
    with grpc.insecure_channel("127.0.0.1:1") as channel:
        client = RpcClient(channel, key, b"", RetryPolicy(first_seconds=0.001))
        answers = iter([Busy(), Busy(), "here"])

        def call():
            if isinstance(answer := next(answers), Exception):
                raise answer
            return answer

        assert client._retried(call) == "here"
    lines = [record.message for record in caplog.records]
    why = "device 3 calls too often; wait"
    assert lines == [
        f"device 3 waits for the server and tries again for up to 600 s: {why}",
        "device 3 waits no longer: the server answers",
    ]


def test_a_server_that_says_wait_is_not_away(keys_of):
    """A suspension may last longer than a device looks for a server that is silent."""
    key = DeviceKey.read(keys_of(6).folder / "devices" / "00003.json")
    refusals = iter([Busy()] * 12)

    def call():
        if (refusal := next(refusals, None)) is not None:
            raise refusal
        return "here"

    retry = RetryPolicy(first_seconds=0.02, most_seconds=0.02, give_up_seconds=0.05)
    with grpc.insecure_channel("127.0.0.1:1") as channel:
        assert RpcClient(channel, key, b"", retry)._retried(call) == "here"


@pytest.mark.parametrize(
    "details",
    [
        "failed to connect: Tls handshake failed: CERTIFICATE_VERIFY_FAILED: self signed",
        "failed to connect: UNAUTHENTICATED: Hostname Verification Check failed.",
    ],
)
def test_another_server_is_no_reason_to_wait(keys_of, details):
    class Other(Busy):
        def code(self):
            return grpc.StatusCode.UNAVAILABLE

        def details(self):
            return details

    def call():
        raise Other

    key = DeviceKey.read(keys_of(6).folder / "devices" / "00003.json")
    with (
        grpc.insecure_channel("127.0.0.1:1") as channel,
        pytest.raises(ValueError, match="shows another certificate than the one"),
    ):
        RpcClient(channel, key, b"")._retried(call)


def test_a_text_in_another_encoding_is_named(tmp_path, keys_of):
    from typer.testing import CliRunner

    from pfl_lm.cli import app

    keys = keys_of(6).folder
    (tmp_path / "mine.txt").write_bytes("café".encode("latin-1"))
    line = ["device", "run", str(keys / "devices/00000.json"), "--server", "localhost:1"]
    line += ["--ca", str(keys / "server/tls.pem"), "--text", str(tmp_path / "mine.txt")]
    line += ["--tokenizer", str(tmp_path), "--policy", "keyboard"]
    result = CliRunner().invoke(app, line)
    assert "mine.txt is no UTF-8 text" in str(result.exception)


@pytest.mark.parametrize(
    "server",
    [
        *("http://localhost:8443/", "localhost", "a b:1", "x:y", "x:65536", "256.0.0.1:8443"),
        *("::1:8443", "x:" + "1" * 5_000, "[x]:1", ":8443"),
    ],
)
def test_a_server_is_named_by_host_and_port(tmp_path, keys_of, server):
    from typer.testing import CliRunner

    from pfl_lm.cli import app

    keys = keys_of(6).folder
    line = ["device", "run", str(keys / "devices/00000.json"), "--server", server]
    line += ["--ca", str(keys / "server/tls.pem"), "--tokenizer", str(tmp_path)]
    result = CliRunner().invoke(app, line)
    assert f"--server {server}: expected host:port" in str(result.exception)
