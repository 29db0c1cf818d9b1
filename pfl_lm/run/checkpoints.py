"""Checkpoints: all that resuming needs beside the scenario and its seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pfl_lm.files import write_atomically
from pfl_lm.models.file import load_tensors, write_tensors
from pfl_lm.run.folder import RunFolder
from pfl_lm.server.state import ServerState


def save_checkpoint(folder: RunFolder, state: ServerState, ledger_head: str) -> None:
    """Write the state after ``state.round`` rounds, whole or not at all; prune old ones."""
    content = {
        "round": state.round,
        "parameters": dict(state.parameters),
        "moments": {name: dict(table) for name, table in state.moments.items()},
        "clock": state.clock,
        "ledger_head": ledger_head,
    }
    with write_atomically(folder.checkpoint_path(state.round)) as temporary:
        write_tensors(temporary, content)
    folder.prune_checkpoints()


def newest_checkpoint(folder: RunFolder) -> tuple[ServerState, str]:
    """Return the newest readable state and the ledger head that it was written with.

    Raises:
        ValueError: there is none; a run writes one before its first round.
    """
    for path in reversed(folder.checkpoints().values()):
        try:
            return read_checkpoint(path)
        except ValueError:
            continue  # damaged on the disk: the one before it will do
    raise ValueError(f"{folder.path} has no readable checkpoint; start the run again")


def read_checkpoint(path: Path) -> tuple[ServerState, str]:
    """Read one checkpoint: its state, and the ledger head that it was written with.

    Raises:
        ValueError: it is damaged, or no checkpoint.
    """
    content: dict[str, Any] = load_tensors(path, "checkpoint")
    if missing := {"round", "parameters", "moments", "clock", "ledger_head"} - set(content):
        raise ValueError(f"{path}: the checkpoint has no {', '.join(sorted(missing))}")
    state = ServerState(
        content["round"], content["parameters"], content["moments"], content["clock"]
    )
    return state, content["ledger_head"]
