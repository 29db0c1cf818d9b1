"""The server's certificate: one alone, and valid now."""

from __future__ import annotations

import re
import time

import pytest
from cryptography import x509

pytest.importorskip("grpc_tools", reason="needs gRPC: pip install pfl-lm[network]")

from pfl_lm.network.certificates import ServerCertificate, make_certificate
from pfl_lm.network.identity import DeviceKey, ServerKeys, enrol

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
    for name in ("certificate", "authority"):
        text = path.read_text(encoding="utf-8").replace(f'"{name}": "', f'"{name}": "00')
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match="device 1 cannot be used"):
            DeviceKey.read(path).check_dates()
