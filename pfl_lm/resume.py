"""How a run begins, and how an interrupted one goes on: what must agree before a round is run."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import Any, Protocol

from pfl_lm.checkpoints import newest_checkpoint, save_checkpoint
from pfl_lm.dp.ledger import Ledger, LedgerError, verify
from pfl_lm.files import sweep
from pfl_lm.manifest import manifest
from pfl_lm.runs import RunFolder, digest_of, write_json
from pfl_lm.server.state import ServerState
from pfl_lm.world import World

_CHOSEN = ("scenario", "policy", "tokenizer", "population", "model")


class Listener(Protocol):
    """Whoever is told what a resumed run has lost."""

    def say(self, line: str) -> None: ...


def check_free(folder: RunFolder, overwrite: bool) -> bool:
    """Return whether an earlier run lies in the folder; what is no run is never deleted.

    Raises:
        ValueError: something lies there that must not be overwritten.
    """
    if not folder.path.exists() or not any(folder.path.iterdir()):
        return False
    if not overwrite:
        raise ValueError(
            f"{folder.path} is not empty; choose another folder, --overwrite or --resume"
        )
    RunFolder.open(folder.path)
    return True


def begin_run(
    world: World, folder: RunFolder, overwrite: bool = False
) -> tuple[ServerState, Ledger]:
    """Write a run's manifest, its ledger's genesis and its first checkpoint.

    Args:
        overwrite: delete an earlier run in that folder, once the new one is known to be sound.

    Raises:
        ValueError: the folder is not free, or the policy cannot be kept; nothing is written.
    """
    earlier = check_free(folder, overwrite)
    content = manifest(world, folder.path.name)  # before the folder: it may refuse the policy
    if earlier:
        shutil.rmtree(folder.path)
    (folder.path / "checkpoints").mkdir(parents=True, exist_ok=True)
    ledger = Ledger.create(
        folder.ledger_path,
        {
            "run": folder.path.name,
            "policy_digest": digest_of(content["policy"]),
            "manifest_digest": digest_of(content),
            "statements": content["statements"],
        },
    )
    state = ServerState(0, world.start.parameters)
    save_checkpoint(folder, state, ledger.head)
    write_json(folder.manifest_path, content)
    return state, ledger


def resume_run(world: World, folder: RunFolder, listener: Listener) -> tuple[ServerState, Ledger]:
    """Reopen an interrupted run; rounds whose model was lost stay spent.

    With reproducible noise a lost round is repeated to the byte, which is the same debit. With
    fresh noise it would be another release, so the run goes on after it.

    Raises:
        ValueError: no run began here, it began with another scenario or under another policy, or
            manifest, ledger and checkpoints do not belong together; nothing is changed.
    """
    written = RunFolder.open(folder.path).manifest()
    _check_same(written, manifest(world, folder.path.name), folder)
    ledger = Ledger.open(folder.ledger_path)
    try:
        state = _last_state(folder, ledger, digest_of(written))
    except BaseException:
        ledger.close()
        raise
    _sweep(folder)
    recorded = [e["round"] + 1 for e in ledger.entries() if e["kind"] in ("round", "abandoned")]
    lost = max(recorded, default=0) - state.round
    if lost > 0 and not world.scenario.reproducible:
        listener.say(
            f"{lost} recorded round(s) from {state.round} on had not reached a checkpoint: their "
            "model is lost and what they spent stays spent"
        )
        state = replace(state, round=state.round + lost)
    return state, ledger


def _check_same(written: dict[str, Any], now: dict[str, Any], folder: RunFolder) -> None:
    for name in _CHOSEN:
        if name not in written:
            raise ValueError(f"{folder.manifest_path} is damaged: it has no {name}")
        if written[name] != now[name]:
            raise ValueError(
                f"{folder.path} was begun with another {name}; resume with that one, or start "
                "anew in another folder"
            )


def _sweep(folder: RunFolder) -> None:
    """Remove the files that the killed run was writing; the ledger's lock says that it is gone."""
    sweep(folder.path / "checkpoints", "round-*.pt")
    for path in (folder.metrics_path, folder.evaluation_path, folder.model_path):
        sweep(folder.path, path.name)


def _last_state(folder: RunFolder, ledger: Ledger, manifest_digest: str) -> ServerState:
    """Return the newest state, if the ledger still holds all that was spent when it was saved."""
    if ledger.entries()[0].get("manifest_digest") != manifest_digest:
        raise ValueError(
            f"{folder.manifest_path} is not the manifest that the ledger began with; put that one "
            "back, or start anew in another folder"
        )
    state, head = newest_checkpoint(folder)
    try:
        verify(folder.ledger_path, head)
    except LedgerError as error:
        raise ValueError(
            f"{error}; a run that forgot what it spent cannot go on: put the ledger back"
        ) from error
    return state
