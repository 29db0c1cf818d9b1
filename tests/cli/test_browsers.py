"""`device link` and `serve --web` from the command line."""

from __future__ import annotations

import base64
import json
import sys

import pytest
from typer.testing import CliRunner

pytest.importorskip("grpc_tools", reason="needs gRPC: pip install pfl-lm[network]")

from pfl_lm.cli import app
from pfl_lm.network.certificates import make_certificate

PAGE = "https://192.168.1.20:8444/secret/"


def run(*arguments: object):
    return CliRunner().invoke(app, [str(one) for one in arguments])


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys") / "keys"
    assert run("enrol", "-o", folder, "--devices", 3).exit_code == 0
    return folder


def link(keys, *more):
    devices = [keys / "devices" / f"{number:05d}.json" for number in (0, 2)]
    return run("device", "link", *devices, "--ca", keys / "server" / "tls.pem", *more)


def test_a_link_for_each_device(keys):
    lines = link(keys, "--page", PAGE, "--first-install").output.splitlines()
    assert all(line.startswith(f"{PAGE}#enrol=") for line in lines)
    coded = [line.partition("#enrol=")[2] for line in lines]
    carried = [json.loads(base64.urlsafe_b64decode(one + "=" * (-len(one) % 4))) for one in coded]
    assert [one["number"] for one in carried] == [0, 2]
    assert all(one["first_install"] for one in carried)


def test_a_link_as_a_qr_code(keys):
    pytest.importorskip("segno", reason="draws QR codes; the extra network has it")
    *drawn, last = link(keys, "--page", PAGE, "--qr").output.splitlines()
    assert last.startswith(f"{PAGE}#enrol=")
    code = [line for line in drawn if line and set(line) <= set(" ▀▄█")]
    assert len({len(line) for line in code}) == 1
    assert len(code[0]) % 4 == 1  # 17 + 4 × version modules, and a margin of 4 on each side
    assert set(code[0]) == {"█"}


def test_a_qr_code_needs_segno(keys, monkeypatch):
    monkeypatch.setitem(sys.modules, "segno", None)
    found = link(keys, "--page", PAGE, "--qr")
    assert "--qr needs segno" in str(found.exception)


def test_a_server_whose_certificate_expired_gets_no_link(keys, tmp_path):
    expired = tmp_path / "tls.pem"
    expired.write_bytes(make_certificate(["localhost"], days=0)[1])
    device = keys / "devices" / "00000.json"
    found = run("device", "link", device, "--ca", expired, "--page", PAGE)
    assert "the server's certificate expired on" in str(found.exception)
    assert "#enrol=" not in found.output


def test_an_address_that_is_no_page_is_refused(keys):
    found = link(keys, "--page", "192.168.1.20:8444")
    assert isinstance(found.exception, ValueError)
    assert "--page 192.168.1.20:8444: expected the address" in str(found.exception)


@pytest.mark.parametrize(
    ("more", "refused"),
    [
        (("--web-listen", "localhost:1"), "--web-listen localhost:1: expected an IP address"),
        ((), "no such bundle"),
    ],
)
def test_serving_begins_with_the_bundle_and_the_address(keys, tmp_path, more, refused):
    output, bundle = tmp_path / "run", tmp_path / "no bundle"
    found = run("serve", "demo", "-o", output, "--keys", keys, "--trial", "--web", bundle, *more)
    assert isinstance(found.exception, ValueError)
    assert refused in str(found.exception)
    assert not output.exists()
