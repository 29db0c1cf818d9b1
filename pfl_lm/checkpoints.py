"""Checkpoints: all that resuming needs beside the scenario and its seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pfl_lm.files import write_atomically
from pfl_lm.model_file import load_tensors
from pfl_lm.runs import RunFolder
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
        torch.save(content, temporary)
    folder.prune_checkpoints()


def newest_checkpoint(folder: RunFolder) -> tuple[ServerState, str]:
    """Return the newest readable state and the ledger head that it was written with.

    Raises:
        ValueError: there is none; a run writes one before its first round.
    """
    for path in reversed(folder.checkpoints().values()):
        try:
            return _read(path)
        except ValueError:
            continue  # damaged on the disk: the one before it will do
    raise ValueError(f"{folder.path} has no readable checkpoint; start the run anew")


def _read(path: Path) -> tuple[ServerState, str]:
    content: dict[str, Any] = load_tensors(path, "checkpoint")
    if missing := {"round", "parameters", "moments", "clock", "ledger_head"} - set(content):
        raise ValueError(f"{path}: the checkpoint has no {', '.join(sorted(missing))}")
    state = ServerState(
        content["round"], content["parameters"], content["moments"], content["clock"]
    )
    return state, content["ledger_head"]
