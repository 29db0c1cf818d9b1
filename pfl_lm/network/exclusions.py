"""Devices left out of a run: those whose key was revoked, and those that spoiled a round.

A device spoils a round when the shares that it dealt do not fit what it committed to, or when more
holders than may be corrupt could not use them. The opening of the sum proves either, so no more
devices than may be corrupt can make another look guilty. The store keeps who it was.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from pfl_lm.network.identity import key_of

log = logging.getLogger("pfl_lm.network")


class Exclusions:
    """Who is left out, and why.

    Args:
        identities: public key of every enrolled device.
        revoked: public keys that are revoked; keys of no enrolled device among them do nothing.
        expelled: device → why it was expelled in an earlier life of the server.
        keep: called with (device, round, reason) to make an expulsion durable.
    """

    def __init__(
        self,
        identities: Mapping[int, bytes],
        revoked: Collection[bytes] = (),
        expelled: Mapping[int, str] | None = None,
        keep: Callable[[int, int, str], None] = lambda device, round, reason: None,
    ) -> None:
        self._keep = keep
        self._reasons = dict(expelled or {})
        revoked = frozenset(revoked)
        for device, identity in identities.items():
            if identity in revoked:
                self._reasons[device] = "its key is revoked"

    def __contains__(self, device: int) -> bool:
        return device in self._reasons

    def __len__(self) -> int:
        return len(self._reasons)

    def reason(self, device: int) -> str | None:
        """Return why a device is left out; None where it may take part."""
        return self._reasons.get(device)

    def expel(self, device: int, round: int, text: str) -> None:
        """Leave a device out of every later round, also after a restart of the server."""
        reason = f"it spoiled round {round}: {text}"
        self._keep(device, round, reason)
        self._reasons.setdefault(device, reason)
        log.warning("device %d is expelled from the run: %s", device, reason)


def read_revoked(path: Path) -> frozenset[bytes]:
    """Read a list of revoked identity keys: one in hexadecimal a line, as in ``enrolled.txt``.

    Empty lines count for nothing, nor does what follows a ``#``.

    Raises:
        ValueError: there is no such file, or a line that is no key, with its number.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"revoked: {path} cannot be read ({error})") from error
    revoked = set()
    for number, line in enumerate(lines, start=1):
        if not (text := line.partition("#")[0].strip()):
            continue
        try:
            revoked.add(key_of(text, "a public key"))
        except ValueError as error:
            raise ValueError(
                f"{path}, line {number}: {text[:80]!r}: {error}, as in enrolled.txt"
            ) from error
    return frozenset(revoked)
