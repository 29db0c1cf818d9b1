"""The open port: a gRPC server that is opened again where a stranger's bytes end gRPC's own loop.

grpcio 1.85 ends the loop of an asyncio server, and closes its port, when a method's path is no
UTF-8. Nothing of ours is asked before that. Sessions, rounds and waiting messages live in the
service, so devices that call again go on where they were.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

import grpc

from pfl_lm.network.transport import handler, server_options

log = logging.getLogger("pfl_lm.network")


class Listener:
    """Listens until it is stopped.

    Args:
        service: whose methods answer (``transport.handler``).
        address: ``host:port``; port 0 takes a free one.
        tls: secret key and certificate, PEM; None: without TLS, for tests.
        shared: other processes listen on the same port.
    """

    def __init__(
        self,
        service: Any,
        address: str,
        tls: tuple[bytes, bytes] | None,
        shared: bool = False,
    ) -> None:
        self._service, self._address, self._tls = service, address, tls
        self._options = server_options(shared)
        self._server: Any = None
        self._watch: asyncio.Task[None] | None = None
        self._stopping = False

    async def start(self) -> int:
        """Open the port and return its number.

        Raises:
            ValueError: the address is taken or cannot be read.
        """
        port = await self._open()
        self._address = f"{self._address.rpartition(':')[0]}:{port}"
        self._watch = asyncio.create_task(self._reopen())
        asyncio.get_running_loop().set_exception_handler(_report)
        return port

    async def stop(self, grace: float | None) -> None:
        """Close the port; calls under way get ``grace`` seconds to end."""
        self._stopping = True
        with contextlib.suppress(UnicodeDecodeError):  # its loop ended a moment ago
            await self._server.stop(grace)
        if self._watch is not None:
            await self._watch

    async def _open(self) -> int:
        server = grpc.aio.server(options=self._options)
        server.add_generic_rpc_handlers((handler(self._service),))
        try:
            if self._tls is None:
                port = server.add_insecure_port(self._address)
            else:
                credentials = grpc.ssl_server_credentials([self._tls])
                port = server.add_secure_port(self._address, credentials)
        except RuntimeError as error:
            raise ValueError(f"cannot listen on {self._address}: {error}") from error
        await server.start()
        self._server = server
        return int(port)

    async def _reopen(self) -> None:
        """Wait until gRPC's loop ends, which it does for no reason of ours, and open it again."""
        while True:
            try:
                await self._server.wait_for_termination()
                reason = "it stopped"
            except Exception as error:
                reason = repr(error)
            if self._stopping:
                return
            log.warning(
                "the port was closed by what a caller sent (%s); it is opened again", reason
            )
            while not await self._opened_again():
                await asyncio.sleep(0.05)

    async def _opened_again(self) -> bool:
        try:
            await self._open()
        except ValueError:  # the old socket is not closed yet
            return False
        return True


def _report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Report what went wrong unseen, but for what callers do to gRPC: they would fill the log.

    Its own loop's end has a line already; a caller that leaves in the middle of a call needs none.
    """
    error = context.get("exception")
    of_grpc = type(error).__module__.partition(".")[0] == "grpc"
    if not (of_grpc or isinstance(error, UnicodeDecodeError)):
        loop.default_exception_handler(context)
