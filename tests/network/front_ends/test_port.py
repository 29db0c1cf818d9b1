"""The port that front ends share, and the descriptors that its connections need."""

from __future__ import annotations

import resource
import socket
import sys

import pytest
from typer.testing import CliRunner

pytest.importorskip("grpc_tools", reason="needs gRPC: pip install pfl-lm[network]")

from pfl_lm.cli import app
from pfl_lm.network.front_ends import port as module
from pfl_lm.network.front_ends.port import (
    SharedPort,
    check_shared_ports,
    make_room,
    require_free,
)
from pfl_lm.network.identity import ServerKeys
from pfl_lm.network.server import Serving

linux = pytest.mark.skipif(sys.platform != "linux", reason="a shared port needs Linux")


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(module, "_PATIENCE", 0.0)


@linux
def test_a_port_is_shared_by_those_who_say_so_and_refused_to_another_server():
    held = SharedPort("127.0.0.1:0")
    try:
        with pytest.raises(ValueError, match=f"cannot listen on {held.address}"):
            SharedPort(held.address)
        with socket.socket() as one, socket.socket() as other:
            for front_end in (one, other):
                front_end.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                front_end.bind(("127.0.0.1", held.port))
                front_end.listen()
            with pytest.raises(ValueError, match="cannot listen"):
                SharedPort(held.address)
            with pytest.raises(ValueError, match="another process listens there"):
                require_free(held.address)
    finally:
        held.close()
    SharedPort(held.address).close()
    require_free(held.address)


@pytest.mark.parametrize("address", ["127.0.0.1:port", "127.0.0.1:99999", "8443"])
def test_an_address_that_cannot_be_read_is_named(address):
    with pytest.raises(ValueError, match=f"cannot listen on {address}"):
        SharedPort(address)


@pytest.mark.parametrize("hostile", [[], ["--hostile", "all"]], ids=["a run", "an attack"])
@pytest.mark.parametrize("address", ["localhost", "8443", ":8443", "localhost:port", "::1:8443"])
def test_listen_is_checked_before_anything_is_read(tmp_path, address, hostile):
    line = ["serve", str(tmp_path / "absent.toml"), "--keys", str(tmp_path), "--listen", address]
    found = CliRunner().invoke(app, [*line, "-o", str(tmp_path / "run"), *hostile])
    assert f"--listen {address}: expected host:port, such as 127" in str(found.exception)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("address", ["localhost:0", "[::1]:8443", "0.0.0.0:65535", "fl_server:1"])
def test_a_server_may_listen_on(tmp_path, address):
    assert Serving(ServerKeys(tmp_path), address).address == address


def test_a_system_that_shares_no_ports_is_told_what_to_do(monkeypatch):
    monkeypatch.setattr(module.sys, "platform", "darwin")
    check_shared_ports(1)
    with pytest.raises(ValueError, match=r"--front-ends 2: only Linux .* leave the option out"):
        check_shared_ports(2)


def test_devices_need_descriptors(monkeypatch):
    """The soft limit is raised; where the hard one is too low, the error says what to do."""
    limits = [(1024, 4096)]
    monkeypatch.setattr(resource, "getrlimit", lambda kind: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limit: limits.append(limit))
    make_room(500, 1)
    assert len(limits) == 1
    make_room(3000, 1)
    assert limits[-1] == (3200, 4096)
    make_room(6000, 2)
    assert limits[-1] == (3800, 4096)
    with pytest.raises(ValueError, match=r"6,000 devices .* 4,096 files.*`ulimit -n 6200`"):
        make_room(6000, 1)
