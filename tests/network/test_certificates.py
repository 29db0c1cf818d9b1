"""The server's certificate: one alone, and valid now."""

from __future__ import annotations

import json
import re
import time

import pytest
from cryptography import x509

pytest.importorskip("grpc_tools", reason="needs gRPC: pip install pfl-lm[network]")

from pfl_lm.network.certificates import ServerCertificate, make_certificate
from pfl_lm.network.identity import DeviceKey, ServerKeys, enrol
from pfl_lm.network.server import Serving, serve

DAY = 86_400.0


@pytest.fixture
def pem(tmp_path):
    path = tmp_path / "tls.pem"
    path.write_bytes(make_certificate(["localhost"], days=10)[1])
    return path


def test_a_certificate_is_refused_outside_its_dates_with_the_date(pem):
    certificate, now = ServerCertificate.read(pem), time.time()
    certificate.check_dates()
    certificate.check_dates(now + 9.9 * DAY)
    with pytest.raises(ValueError, match=r"tls.pem: the server's certificate expired on 20\d\d-"):
        certificate.check_dates(now + 10.1 * DAY)
    with pytest.raises(ValueError, match=r"valid only from .* is the clock of this machine"):
        certificate.check_dates(now - DAY)


def test_a_file_with_several_certificates_or_none_is_refused(pem, tmp_path):
    """A root that certified several servers would make them all the same to a device."""
    both = pem.read_bytes() + make_certificate(["localhost"], days=10)[1]
    for content, message in ((both, "holds 2 certificates"), (b"nothing", "holds no certificate")):
        pem.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            ServerCertificate.read(pem)
    with pytest.raises(ValueError, match="holds no certificate"):
        ServerCertificate.read(tmp_path / "absent")


@pytest.mark.parametrize(
    "host",
    [
        *("localhost:8443", "https://x.org", "exa mple", "", "[::1]", "256.0.0.1", "-x.org"),
        *("x..org", "münchen.de", "*.example.org", "a" * 64, "a." * 130 + "org"),
    ],
)
def test_a_host_that_is_none_comes_into_no_certificate(tmp_path, host):
    with pytest.raises(ValueError, match=f"^--host {re.escape(host)}: expected the name or IP"):
        enrol(tmp_path / "keys", 3, ["localhost", host])
    assert list(tmp_path.iterdir()) == []


def test_a_certificate_names_hosts_and_addresses(tmp_path):
    names = ["fl.example.org", "xn--mnchen-3ya.de", "fl_server", "10.0.0.7", "::1"]
    enrol(tmp_path / "keys", 3, names)
    parsed = ServerKeys(tmp_path / "keys").server_certificate().parsed
    found = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert found.get_values_for_type(x509.DNSName) == names[:3]
    assert [str(address) for address in found.get_values_for_type(x509.IPAddress)] == names[3:]


def test_enrolment_states_for_how_long_it_is_valid(tmp_path):
    enrol(tmp_path / "keys", 3, days=2)
    keys, now = ServerKeys(tmp_path / "keys"), time.time()
    key = DeviceKey.read(tmp_path / "keys" / "devices" / "00001.json")
    for checked in (key, keys.server_certificate()):
        checked.check_dates(now + 1.9 * DAY)
        for moment in (now - DAY, now + 2.1 * DAY):
            with pytest.raises(ValueError, match=r"expired|valid only from"):
                checked.check_dates(moment)


def test_a_damaged_certificate_of_a_device_is_refused_before_it_calls(tmp_path):
    enrol(tmp_path / "keys", 3)
    path = tmp_path / "keys" / "devices" / "00001.json"
    whole = json.loads(path.read_text(encoding="utf-8"))
    for name in ("certificate", "authority"):
        other = f"{int(whole[name][0], 16) ^ 1:x}{whole[name][1:]}"
        path.write_text(json.dumps({**whole, name: other}), encoding="utf-8")
        with pytest.raises(ValueError, match="device 1 cannot be used"):
            DeviceKey.read(path).check_dates()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in ("secret", "authority") for value in ("", "00", "zz" * 32, 7)),
        ("secret", "ab" * 31),
        ("authority", "ab" * 33),
        ("authority", "ab " * 32),
        ("certificate", "ab" * 79),
        *(("number", value) for value in (-1, 1.7, 2.0, 1e400, 2**32, True, "3", None)),
    ],
)
def test_a_damaged_key_of_a_device_is_refused_with_its_field(tmp_path, name, value):
    enrol(tmp_path / "keys", 3)
    path = tmp_path / "keys" / "devices" / "00001.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, name: value}), encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"00001.json is no device's key .*`pfl-lm enrol`"
    ) as error:
        DeviceKey.read(path)
    assert isinstance(value, int) or name in str(error.value)


@pytest.mark.parametrize("content", ["", "00", "zz" * 32, "ab" * 31, "ab" * 33, "\xff" * 32])
def test_a_damaged_authority_names_no_budget(tmp_path, content):
    """The population's ledger bears its name: another name would be a budget that nobody spent."""
    enrol(tmp_path / "keys", 3)
    keys, path = ServerKeys(tmp_path / "keys"), tmp_path / "keys" / "authority.pub"
    before = keys.account()
    path.write_text(path.read_text() + "\n")
    assert keys.account() == before
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=r"authority.pub is damaged .*`pfl-lm enrol`"):
        keys.account()


def test_a_damaged_list_of_the_enrolled_is_refused(tmp_path):
    enrol(tmp_path / "keys", 3)
    keys, path = ServerKeys(tmp_path / "keys"), tmp_path / "keys" / "server" / "enrolled.txt"
    path.write_text(path.read_text()[:-2] + "\n")
    with pytest.raises(ValueError, match=r"enrolled.txt is damaged: the key of 2 must be 64"):
        keys.enrolled()


@pytest.mark.parametrize("content", [b"", b"garbage", None], ids=["empty", "garbage", "another's"])
@pytest.mark.parametrize("name", ["tls.key", "tls.pem"])
def test_a_server_does_not_begin_without_the_key_of_its_certificate(
    tmp_path, small, new_watcher, name, content
):
    """Neither the run's folder nor the ledger of its people is there afterwards."""
    enrol(tmp_path / "keys", 6)
    key, certificate = make_certificate(["localhost"], days=10)
    other = key if name == "tls.key" else certificate
    (tmp_path / "keys" / "server" / name).write_bytes(other if content is None else content)
    serving = Serving(ServerKeys(tmp_path / "keys"), "127.0.0.1:1", trial=True)
    with pytest.raises(ValueError, match=r"tls\..*`pfl-lm enrol` w"):
        serve(small(), tmp_path / "run", serving, new_watcher())
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "keys" / "server" / "ledgers").exists()
