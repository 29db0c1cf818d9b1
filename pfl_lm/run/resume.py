"""How a run begins, and how an interrupted one goes on: what must agree before a round is run."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from pfl_lm.dp.clipping import clip_before
from pfl_lm.dp.ledger import Ledger, LedgerError, verify
from pfl_lm.files import sweep
from pfl_lm.run.checkpoints import newest_checkpoint, save_checkpoint
from pfl_lm.run.context import RunContext
from pfl_lm.run.folder import RunFolder, digest_of, write_json
from pfl_lm.run.manifest import manifest
from pfl_lm.run.manifest_file import Manifest, first_difference, unreviewed
from pfl_lm.run.means import replay
from pfl_lm.run.progress import ProgressListener
from pfl_lm.server.state import ServerState

# Of a manifest, what a person chose. All else follows from it, to the last digit on one machine.
_CHOSEN = ("scenario", "policy", "fleet", "tokenizer", "vocabulary", "population", "model")


def check_free(folder: RunFolder, overwrite: bool) -> bool:
    """Return whether an earlier run lies in the folder; what is no run is never deleted.

    Raises:
        ValueError: something lies there that must not be overwritten: files of another kind, or a
            run that is going.
    """
    if not folder.path.exists():
        return False
    if overwrite and folder.path.is_symlink():
        raise ValueError(
            f"{folder.path} is a symbolic link, which --overwrite does not delete: name the folder "
            f"that it leads to, {folder.path.resolve()}"
        )
    if not folder.path.is_dir():
        raise ValueError(f"{folder.path} is a file; a run is a folder, choose another name")
    if not any(folder.path.iterdir()):
        return False
    if not overwrite:
        raise ValueError(
            f"{folder.path} is not empty; choose another folder, --overwrite or --resume"
        )
    RunFolder.open(folder.path)
    with _idle(folder):
        _check_nobodys(folder)
        return True


def _check_nobodys(folder: RunFolder) -> None:
    """Refuse to delete the record of rounds that were opened over people's text.

    Raises:
        ValueError: the folder holds such rounds, or a manifest or ledger that does not say.
    """
    try:
        population = Manifest.read(folder).scenario.population
    except ValueError as error:
        raise ValueError(
            f"{error}; a folder that does not say whose text it was made from is not overwritten: "
            "choose another folder"
        ) from error
    if not folder.ledger_path.is_file():
        return
    if population.kind == "synthetic" and not folder.served_rounds_path.is_file():
        return
    try:
        entries = verify(folder.ledger_path)
    except LedgerError as error:
        raise ValueError(f"{error}; a run of people's text is not overwritten") from error
    opened = [e for e in entries if e["kind"] == "round" and e.get("simulated") is False]
    if opened:
        raise ValueError(
            f"{folder.path} records {len(opened)} rounds that were opened over people's text: "
            "what they spent stays spent, so its ledger is not deleted; choose another folder"
        )


def remove_half_begun(folder: RunFolder) -> None:
    """Remove what a process left that was killed before its run had a manifest: no round was run.

    Files of another kind stay, and so does a ledger with rounds.

    Raises:
        ValueError: a process begins its run there at this moment.
    """
    if not folder.path.is_dir():
        return
    with _idle(folder):
        names = {path.name for path in folder.path.iterdir() if not path.name.startswith(".")}
        if names <= {"checkpoints", folder.ledger_path.name} and _lines(folder) <= 1:
            shutil.rmtree(folder.path)


def _lines(folder: RunFolder) -> int:
    path = folder.ledger_path
    return len(path.read_bytes().splitlines()) if path.is_file() else 0


@contextmanager
def _idle(folder: RunFolder) -> Iterator[None]:
    """Hold the lock of a run's ledger for the length of a block, so that no process writes the run.

    Raises:
        ValueError: a process writes it, or has replaced it this very moment.
    """
    try:
        descriptor = os.open(folder.ledger_path, os.O_RDONLY)
    except FileNotFoundError:  # no run, or one that was killed before its ledger was begun
        yield
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(descriptor), os.stat(folder.ledger_path)):
            raise BlockingIOError
    except (BlockingIOError, FileNotFoundError):
        os.close(descriptor)
        raise ValueError(
            f"another process is writing the run in {folder.path}: wait for its end or stop it, or "
            "choose another folder"
        ) from None
    try:
        yield
    finally:
        os.close(descriptor)


def begin_run(
    context: RunContext,
    folder: RunFolder,
    overwrite: bool = False,
    more: Mapping[str, Any] | None = None,
) -> tuple[ServerState, Ledger]:
    """Write a run's manifest, its ledger's genesis and its first checkpoint.

    Args:
        overwrite: delete an earlier run in that folder, once the new one is known to be sound.
        more: for the ledger's first entry.

    Raises:
        ValueError: the folder is not free, or the policy cannot be kept.
        OSError: the disk is full. Whatever is raised, nothing half-written is left.
    """
    earlier, policy = check_free(folder, overwrite), context.privacy.policy
    content = manifest(context, folder.path.name)  # before the folder: it may refuse the policy
    with _idle(folder):  # until the new ledger has a lock of its own
        if earlier:
            shutil.rmtree(folder.path)
        checkpoints = folder.path / "checkpoints"
        checkpoints.mkdir(parents=True, exist_ok=True)
        try:
            ledger = Ledger.create(
                folder.ledger_path,
                {
                    "run": folder.path.name,
                    "policy_digest": digest_of(content["policy"]),
                    "manifest_digest": digest_of(content),
                    "statements": content["statements"],
                    "served": content["served"],
                    **_nonce(context),
                    **(more or {}),
                },
                mode=0o600 if policy is not None and policy.counts_are_secret else 0o644,
            )
        except BaseException:
            with suppress(OSError):  # they are not empty: another process began its run here
                checkpoints.rmdir()
                folder.path.rmdir()
            raise
    state = ServerState(0, context.start.parameters)
    try:
        save_checkpoint(folder, state, ledger.head)
        write_json(folder.manifest_path, content)
    except BaseException:  # nothing was spent yet
        shutil.rmtree(folder.path, ignore_errors=True)
        ledger.close()
        raise
    return state, ledger


def _nonce(context: RunContext) -> dict[str, str]:
    """Return what makes a ledger's hashes this run's own, and nobody's guess; none from a seed."""
    return {} if context.scenario.reproducible else {"nonce": os.urandom(32).hex()}


def resume_run(
    context: RunContext,
    folder: RunFolder,
    listener: ProgressListener,
    take_up: Callable[[Ledger], None] = lambda ledger: None,
) -> tuple[ServerState, Ledger]:
    """Reopen an interrupted run where its ledger ends.

    Rounds since the newest checkpoint take their steps again from the means that were kept. Where
    a mean is gone from the disk, reproducible noise repeats its round to the byte, which is the
    same entry; with fresh noise it would be another release, so the run goes on after it, and what
    it spent stays spent.

    Args:
        take_up: called with the ledger before the rounds in it are looked at; it may refuse the
            run, or record a round that was paid for when the run was killed.

    Raises:
        ValueError: no run began here, it began with another scenario or under another policy, or
            manifest, ledger and checkpoints do not belong together; nothing is changed.
    """
    written = RunFolder.open(folder.path).manifest()
    now = json.loads(json.dumps(manifest(context, folder.path.name)))  # as it would be read
    _check_same(written, now, folder)
    ledger = Ledger.open(folder.ledger_path)
    try:
        state = _last_state(folder, ledger, digest_of(written))
        _sweep(folder)
        take_up(ledger)
        state = replace(state, clip=clip_before(state.round, ledger.entries()))
        state = replay(context, folder, state, ledger.entries())
        return _past_lost_means(context, folder, state, ledger, listener), ledger
    except BaseException:
        ledger.close()
        raise


def _past_lost_means(
    context: RunContext,
    folder: RunFolder,
    state: ServerState,
    ledger: Ledger,
    listener: ProgressListener,
) -> ServerState:
    """Go on after the recorded rounds whose means are gone; a reproducible run repeats them.

    Raises:
        ValueError: the run has ended: its model would give way to one that lacks those rounds.
    """
    entries = ledger.entries()
    recorded = [e["round"] + 1 for e in entries if e["kind"] in ("round", "abandoned")]
    lost = max(recorded, default=0) - state.round
    if lost <= 0 or context.scenario.reproducible:
        return state
    if folder.model_path.exists() and any(entry["kind"] == "end" for entry in entries):
        raise ValueError(
            f"{folder.path} has ended and the checkpoint after its last round is damaged or gone: "
            f"to go on from round {state.round} would replace {folder.model_path.name} by a model "
            f"that lacks {lost} round(s); leave the run as it is, or put that checkpoint back"
        )
    listener.say(
        f"{lost} recorded round(s) from {state.round} on have lost their means in {folder.path}"
        "/means: the model goes on without them and what they spent stays spent"
    )
    return replace(state, round=state.round + lost)


def _check_same(written: dict[str, Any], now: dict[str, Any], folder: RunFolder) -> None:
    if written.get("served") != now["served"]:
        raise ValueError(
            f"{folder.path} was begun as {_kind(written)} and would go on as {_kind(now)}; resume "
            "it as it was begun, or start again in another folder"
        )
    for name in _CHOSEN:
        if name not in written:
            raise ValueError(f"{folder.manifest_path} is damaged: it has no {name}")
        then, this = written[name], now[name]
        if name == "policy":
            then, this = unreviewed(then), unreviewed(this)
        if then != this:
            what = first_difference(then, this, name)
            raise ValueError(
                f"{folder.path} was begun with another {name.removesuffix('s')} ({what}); resume "
                "with that one, or start again in another folder"
            )


def _kind(manifest: dict[str, Any]) -> str:
    """Name whether a run is simulated, a trial with devices, or one that protects them."""
    if "served" not in manifest:
        return "a run of an earlier version, which did not note whether it was a trial"
    if manifest["served"] is None:
        return "a simulation"
    return f"a {'trial' if manifest['served'] == {'trial': True} else 'run'} of `pfl-lm serve`"


def _sweep(folder: RunFolder) -> None:
    """Remove the files that the killed run was writing; the ledger's lock says that it is gone."""
    sweep(folder.path / "checkpoints", "round-*.pt")
    for path in (
        *(folder.metrics_path, folder.private_metrics_path, folder.public_ledger_path),
        *(folder.evaluation_path, folder.model_path, folder.budget_path),
    ):
        sweep(folder.path, path.name)


def _last_state(folder: RunFolder, ledger: Ledger, manifest_digest: str) -> ServerState:
    """Return the newest state, if the ledger still holds all that was spent when it was saved."""
    if ledger.entries()[0].get("manifest_digest") != manifest_digest:
        raise ValueError(
            f"{folder.manifest_path} is not the manifest that the ledger began with; put that one "
            "back, or start again in another folder"
        )
    state, head = newest_checkpoint(folder)
    try:
        verify(folder.ledger_path, head)
    except LedgerError as error:
        raise ValueError(
            f"{error}; a run that forgot what it spent cannot go on: put the ledger back"
        ) from error
    return state
