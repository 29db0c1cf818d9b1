"""Names and addresses of a host, as a person states them in an option."""

from __future__ import annotations

import ipaddress
import re

_LABEL = "[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_MOST_CHARACTERS = 253  # of a name


def check_host(option: str, host: str) -> None:
    """Refuse what is neither an IP address nor a host name.

    Raises:
        ValueError: naming the option.
    """
    if not _is_host(host):
        raise ValueError(
            f"{option} {host}: expected the name or IP address of a host alone, without scheme, "
            "brackets or port; a name with other letters than a to z in its form xn--…"
        )


def check_host_and_port(option: str, address: str, example: str) -> None:
    """Refuse what is no ``host:port``; an IPv6 address stands in brackets.

    Raises:
        ValueError: naming the option.
    """
    host, _, port = address.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    sound = _is_host(bare) and (":" in bare) == (bare != host)
    if not (sound and re.fullmatch("[0-9]{1,5}", port) and int(port) < 1 << 16):
        raise ValueError(f"{option} {address}: expected host:port, such as {example}")


def _is_host(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        only_digits = text.rpartition(".")[2].isdecimal()  # 256.0.0.1, 8443
        return len(text) <= _MOST_CHARACTERS and bool(_NAME.fullmatch(text)) and not only_digits
    return True
