"""The noisy means of the rounds since the oldest checkpoint: with them a killed run loses none.

The mean of round r is in ``means/round-r.npy``. A round commits in this order, each write on the
disk before the next begins:

    1. files    the noise's state after the round, and the round's mean
    2. ledger   the round, with the digest of both
    3. metrics  the round's line
    4. now and then a checkpoint, after which earlier means are erased

A run killed after 2 takes the model's step again from the same mean. A run killed before 2 has
released nothing: a mean that the ledger does not name is never read. The means are what the run
releases: checkpoints and the model show the same.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pfl_lm.files import sweep, write_atomically
from pfl_lm.run.availability import invite
from pfl_lm.run.context import RunContext, choose_payload
from pfl_lm.run.folder import RunFolder
from pfl_lm.run.round import Release, step
from pfl_lm.server.state import ServerState, abandon_round, open_round


class Means:
    """The means of one run."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder.path / "means"

    def save(self, round: int, mean: np.ndarray) -> None:
        """Make the mean of a round durable: float32[d]."""
        with (
            write_atomically(self._path(round), mode=0o600) as temporary,
            temporary.open("wb") as f,
        ):
            np.save(f, mean, allow_pickle=False)

    def read(self, round: int, digest: str) -> np.ndarray | None:
        """Return the mean of a round; None where it is missing, or not the one of that digest.

        Args:
            digest: SHA-256 of its bytes, as the ledger names it.
        """
        try:
            mean = np.load(self._path(round), allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        return mean if hashlib.sha256(mean.tobytes()).hexdigest() == digest else None

    def forget_before(self, round: int) -> None:
        """Erase the means of earlier rounds, and what a killed process was writing."""
        sweep(self._folder)
        for path in self._folder.glob("round-*.npy"):
            if (matched := re.fullmatch(r"round-(\d+)\.npy", path.name)) and int(
                matched[1]
            ) < round:
                path.unlink()

    def erase(self) -> None:
        """Erase every mean: a finished run has its model."""
        if self._folder.exists():
            shutil.rmtree(self._folder)

    def _path(self, round: int) -> Path:
        return self._folder / f"round-{round:06d}.npy"


def replay(
    context: RunContext, folder: RunFolder, state: ServerState, entries: Iterable[Mapping[str, Any]]
) -> ServerState:
    """Take the recorded rounds' steps again that no checkpoint holds, from the means kept.

    Args:
        state: of the newest checkpoint.
        entries: of the ledger.

    Returns:
        The state after the last round whose mean is there. A reproducible run stops before a round
        whose figures were not written: it repeats that round to the byte, figures included.
    """
    recorded = {e["round"]: e for e in entries if e["kind"] in ("round", "abandoned")}
    noted = {line["round"] for line in folder.metrics() if line["kind"] == "round"}
    means = Means(folder)
    while (entry := recorded.get(state.round)) is not None:
        if context.scenario.reproducible and state.round not in noted:
            break
        broadcast = open_round(state, choose_payload(context, state.round))
        begun = replace(state, clock=invite(context, broadcast, state.clock).closed)
        if entry.get("released") is None:  # abandoned, or paid for and lost
            state = abandon_round(begun)
            continue
        mean = means.read(state.round, entry["released"])
        if mean is None:
            break
        state = step(context.privacy, context.scenario, begun, broadcast, Release(mean))
    return state
