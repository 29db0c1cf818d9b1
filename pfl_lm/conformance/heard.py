"""What a device of a positive vector was told, for the negative vectors that change it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from pfl_lm.conformance.lies import Lie
from pfl_lm.conformance.plain import config_of
from pfl_lm.conformance.vectors import Vector
from pfl_lm.secagg.config import RoundConfig
from pfl_lm.secagg.messages import Message, Roster, ShareInbox, UnmaskRequest

Accepted = Mapping[str, Vector]
Mutate = Callable[..., Vector]
UNSIGNED, SIGNED = "device_unsigned_0", "device_signed_0"
DROPPED, SPARSE = "device_unsigned_4_drops_at_input_0", "device_sparse_0"
ROSTER, INBOX, OUTCOME = range(3)  # calls of a signed round; unsigned has no outcome


class Heard:
    """A device's vector: its configuration, and what it was told."""

    def __init__(self, accepted: Accepted, base: str) -> None:
        inputs = accepted[base].inputs
        self.accepted, self.base = accepted, base
        self.config: RoundConfig = config_of(inputs["config"])
        self._calls = [bytes.fromhex(call["message"]) for call in inputs["calls"]]

    def _read(self, kind: type[Message], at: int) -> Any:
        return kind.decode_from_server(self._calls[at], self.config)

    @property
    def roster(self) -> Roster:
        read: Roster = self._read(Roster, ROSTER)
        return read

    @property
    def inbox(self) -> ShareInbox:
        read: ShareInbox = self._read(ShareInbox, INBOX)
        return read

    @property
    def request(self) -> UnmaskRequest:
        read: UnmaskRequest = self._read(UnmaskRequest, -1)
        return read

    def write(self, message: Message) -> str:
        return message.encode_from_server(self.config).hex()

    def call(self, at: int) -> str:
        """The path of a call's message in the vector's inputs."""
        return f"calls__{at % len(self._calls)}__message"

    def refused(
        self, mutate: Mutate, told: Iterable[Lie], at: int, prefix: str
    ) -> Iterator[Vector]:
        """The vectors in which a device is told each of these lies, in the place of a call."""
        for lie in told:
            yield mutate(
                self.accepted,
                self.base,
                prefix + lie.name,
                lie.rule,
                "refused",
                lie.message,
                self.call(at),
                self.write(lie.content),
            )
