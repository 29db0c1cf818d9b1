"""The secret state that correlated noise keeps between rounds: one file a round, mode 0600.

The state before round r is in ``noise/round-r.bin``. Parts that it names (``dp.secret_state``) are
in ``noise/part-….bin``, each written once, whichever states name it. A round commits in this order,
each write on the disk before the next begins:

    1. parts    what no state before had
    2. file     the state after the round
    3. ledger   the round, with the digest of that state

The newest round in the ledger that names a state therefore says which one the next round takes
up. A run killed before 3 has released nothing: it takes up the state before the round and draws
again. Files are kept for the checkpoints and the two newest rounds, with the parts that these name,
and erased when the run is finished. Mechanisms whose rounds are independent have an empty state,
and no file.
"""

from __future__ import annotations

import hashlib
import io
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pfl_lm.dp.secret_state import SecretState, name_of, part_names
from pfl_lm.files import sweep, write_atomically
from pfl_lm.run.folder import RunFolder

_NEWEST = 2  # the state of the last recorded round, and that of one whose record was cut off


class NoiseStates:
    """The states of one run."""

    def __init__(self, folder: RunFolder) -> None:
        self._run = folder
        self._folder = folder.path / "noise"

    def save(self, round: int, state: bytes) -> None:
        """Make the state before ``round`` durable, and erase those that nothing needs any more."""
        if not state:
            return
        if not self._folder.exists():
            self._folder.mkdir(mode=0o700)
        for name, part in SecretState(state).parts.items():
            if not self._part(name).exists():
                self._write(self._part(name), part)
        self._write(self._path(round), state)
        self._prune()

    def read(self, round: int) -> bytes:
        """Return the state that was saved for ``round``.

        Raises:
            ValueError: there is none, or one of its parts is missing or changed.
        """
        state, parts = _read(self._path(round)), dict[bytes, bytes]()
        for name in part_names(io.BytesIO(state)):
            parts[name] = _read(self._part(name))
            if name_of(parts[name]) != name:
                raise _changed(self._part(name))
        return SecretState(state, parts)

    def before(self, round: int, entries: Iterable[Mapping[str, Any]]) -> bytes:
        """Return the state that ``round`` takes up; empty where no earlier round left one.

        Args:
            entries: of the ledger.

        Raises:
            ValueError: the state is missing, or is not the one that the ledger names.
        """
        left = {e["round"]: e["noise_state"] for e in entries if "noise_state" in e}
        earlier = [number for number in left if number < round]
        if not earlier:
            return b""
        state = self.read(max(earlier) + 1)
        if hashlib.sha256(state).hexdigest() != left[max(earlier)]:
            raise _changed(self._path(max(earlier) + 1))
        return state

    def erase(self) -> None:
        """Erase every state: a finished run draws no more noise."""
        if self._folder.exists():
            shutil.rmtree(self._folder)

    def _path(self, round: int) -> Path:
        return self._folder / f"round-{round:06d}.bin"

    def _part(self, name: bytes) -> Path:
        return self._folder / f"part-{name.hex()}.bin"

    def _write(self, path: Path, content: bytes) -> None:
        with write_atomically(path, mode=0o600) as temporary:
            temporary.write_bytes(content)

    def _prune(self) -> None:
        sweep(self._folder)
        files = {}
        for path in self._folder.glob("round-*.bin"):
            if matched := re.fullmatch(r"round-(\d+)\.bin", path.name):
                files[int(matched[1])] = path
        kept = set(sorted(files)[-_NEWEST:])
        for checkpoint in self._run.checkpoints():
            kept |= set(sorted(number for number in files if number <= checkpoint)[-1:])
        for number in files.keys() - kept:
            files[number].unlink()
        named = set[Path]()
        for number in kept:
            with files[number].open("rb") as file:
                named |= {self._part(name) for name in part_names(file)}
        for path in set(self._folder.glob("part-*.bin")) - named:
            path.unlink()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ValueError(
            f"{path} is missing: without the state of its noise the run cannot go on; start it "
            "again in another folder"
        ) from None


def _changed(path: Path) -> ValueError:
    return ValueError(
        f"{path} is not the state that the ledger names: put that file back, or start the run "
        "again in another folder"
    )
