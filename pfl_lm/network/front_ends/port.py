"""The port that front ends share, and how many connections a process may hold."""

from __future__ import annotations

import errno
import math
import resource
import socket
import sys
import time
from typing import Any

from pfl_lm.validate import positive

_SPARE = 200  # descriptors of a process for everything else
_UNEVEN = 1.2  # a front end may get so much more than its share of the devices
_PATIENCE = 5.0  # seconds: front ends of a killed server hold the port for a moment


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


class SharedPort:
    """Holds a port for front ends, so that another server cannot share it by mistake.

    Args:
        address: ``host:port``; port 0 takes a free one.

    Raises:
        ValueError: the address is taken, or cannot be read.
    """

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._host = host
        self._sockets: list[socket.socket] = []
        try:
            found = socket.getaddrinfo(
                host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            self.port = int(port)
            for family, kind, protocol, _, place in found:
                self._take(family, kind, protocol, place)
            if not self._sockets:
                raise OSError("this machine has no such address")
        except (OSError, ValueError, OverflowError) as error:
            self.close()
            raise ValueError(f"cannot listen on {address}: {error}") from error

    @property
    def address(self) -> str:
        return f"{self._host}:{self.port}"

    def close(self) -> None:
        for held in self._sockets:
            held.close()

    def _take(self, family: int, kind: int, protocol: int, place: tuple[Any, ...]) -> None:
        """Hold the port at one of the host's addresses, if this machine has that."""
        try:
            self._free(family, kind, protocol, place)
            self._hold(family, kind, protocol, place)
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                raise

    def _free(self, family: int, kind: int, protocol: int, place: tuple[Any, ...]) -> None:
        """Wait until nobody listens there, who need not share the port with us."""
        until = time.monotonic() + _PATIENCE
        while True:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(self._at(place))
                except OSError as error:
                    if error.errno != errno.EADDRINUSE or time.monotonic() > until:
                        raise
                else:
                    return
            time.sleep(0.1)

    def _hold(self, family: int, kind: int, protocol: int, place: tuple[Any, ...]) -> None:
        held = socket.socket(family, kind, protocol)
        try:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            held.bind(self._at(place))
        except OSError:
            held.close()
            raise
        self._sockets.append(held)
        self.port = held.getsockname()[1]

    def _at(self, place: tuple[Any, ...]) -> tuple[Any, ...]:
        return (place[0], self.port, *place[2:])
