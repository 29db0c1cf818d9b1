"""The port that front ends share, and how many connections a process may hold."""

from __future__ import annotations

import contextlib
import errno
import math
import resource
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any, TypeAlias

from pfl_lm.validate import positive, within

_SPARE = 200  # descriptors of a process for everything else
_UNEVEN = 1.2  # a front end may get so much more than its share of the devices
_PATIENCE = 5.0  # seconds: front ends of a killed server hold the port for a moment

Place: TypeAlias = tuple[Any, ...]  # host and port, as sockets take them


def check_shared_ports(front_ends: int) -> None:
    """Refuse several front ends where the system does not spread a port's connections.

    Raises:
        ValueError: it does not, or there is no front end.
    """
    positive(front_ends=front_ends)
    if front_ends > 1 and not (sys.platform == "linux" and hasattr(socket, "SO_REUSEPORT")):
        raise ValueError(
            f"--front-ends {front_ends}: only Linux spreads the connections of a port over several "
            "processes (SO_REUSEPORT); leave the option out, or put a balancer before servers"
        )


def make_room(devices: int, processes: int) -> None:
    """Let a process, and those that it starts, hold its share of the devices' connections.

    Args:
        devices: which are connected at once.
        processes: which share them.

    Raises:
        ValueError: this process may not open as many files.
    """
    share = devices if processes == 1 else math.ceil(_UNEVEN * devices / processes)
    wanted = share + _SPARE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY != hard < wanted:
        raise ValueError(
            f"{devices:,} devices hold a connection each, {share:,} at one process, which may open "
            f"{hard:,} files: raise that to {wanted:,} (`ulimit -n {wanted}`), or have more "
            "--front-ends"
        )
    if resource.RLIM_INFINITY != soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def require_free(address: str) -> None:
    """Refuse an address where another process listens; a server asks before it writes anything.

    Args:
        address: ``host:port``.

    Raises:
        ValueError: the address is taken, or cannot be read.
    """
    with _naming(address):
        for family, place in _places(address):
            with _if_there():
                _wait_until_free(family, place)


class SharedPort:
    """Holds a port for front ends, so that another server cannot share it by mistake.

    Args:
        address: ``host:port``; port 0 takes a free one.

    Raises:
        ValueError: the address is taken, or cannot be read.
    """

    def __init__(self, address: str) -> None:
        self._host = address.rpartition(":")[0]
        self._sockets: list[socket.socket] = []
        self.port = 0
        try:
            with _naming(address):
                for family, place in _places(address):
                    self._take(family, (place[0], self.port or place[1], *place[2:]))
                if not self._sockets:
                    raise OSError("this machine has no such address")
        except ValueError:
            self.close()
            raise

    @property
    def address(self) -> str:
        return f"{self._host}:{self.port}"

    def close(self) -> None:
        for held in self._sockets:
            held.close()

    def _take(self, family: int, place: Place) -> None:
        """Hold the port at one of the host's addresses, if this machine has that."""
        with _if_there():
            _wait_until_free(family, place)
            held = socket.socket(family, socket.SOCK_STREAM)
            try:
                held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                held.bind(place)
            except OSError:
                held.close()
                raise
            self._sockets.append(held)
            self.port = held.getsockname()[1]


def _places(address: str) -> list[tuple[int, Place]]:
    """Return the families and places that a ``host:port`` stands for."""
    host, _, port = address.rpartition(":")
    within(0, 65_535, port=int(port))
    found = socket.getaddrinfo(
        host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    return [(family, place) for family, _, _, _, place in found]


def _wait_until_free(family: int, place: Place) -> None:
    """Wait until nobody listens there, who need not share the port with us."""
    until = time.monotonic() + _PATIENCE
    while True:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(place)
            except OSError as error:
                if error.errno != errno.EADDRINUSE or time.monotonic() > until:
                    raise
            else:
                return
        time.sleep(0.1)


@contextlib.contextmanager
def _naming(address: str) -> Iterator[None]:
    """Turn what a system says of an address into a ValueError that names it."""
    try:
        yield
    except (OSError, ValueError, OverflowError) as error:
        taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        why = "another process listens there; stop it, or choose another port" if taken else error
        raise ValueError(f"cannot listen on {address}: {why}") from error


@contextlib.contextmanager
def _if_there() -> Iterator[None]:
    """Pass over an address that this machine does not have."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            raise
