"""Files that others may have written: bundles, models, ledgers, keys, certificates, recipes."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from pfl_lm.demo import RECIPE
from pfl_lm.dp.ledger import Ledger, verify
from pfl_lm.dp.policy import Policy
from pfl_lm.export.bundle import opened, write_index, write_zip
from pfl_lm.export.verify import verify_bundle
from pfl_lm.models.file import Model, load_model, save_model
from pfl_lm.models.models import ModelSpec, initialise
from pfl_lm.network.certificates import ServerCertificate, make_certificate
from pfl_lm.network.exclusions import read_revoked
from pfl_lm.network.identity import DeviceKey, ServerKeys, enrol
from pfl_lm.network.participation_record import ParticipationRecord
from pfl_lm.network.task_config import TaskConfig
from pfl_lm.recipes import load
from pfl_lm.run.scenario import Scenario
from pfl_lm.text.population import PROFILE_FILE, PopulationStore
from pfl_lm.text.synthetic.population import PUBLIC, SyntheticPopulation, write_public_store
from tests.fuzz.targets import Target

SPEC = ModelSpec("cifg_lstm", vocabulary_size=12, embedding_dim=2, hidden_dim=3)


def targets(folder: Path) -> Iterator[Target]:
    """Yield a target for each kind of file.

    Args:
        folder: for the files; new.
    """
    folder.mkdir(parents=True)
    yield _target(folder, "bundle.zip", [_bundle(folder)], _read_bundle)
    yield _target(folder, "model.pt", [_model(folder)], load_model)
    yield _target(folder, "ledger.jsonl", [_ledger(folder)], verify)
    enrol(folder / "keys", 3)
    devices = [path.read_bytes() for path in sorted((folder / "keys" / "devices").iterdir())]
    yield _target(folder, "00000.json", devices, lambda path: DeviceKey.read(path).check_dates())
    yield _target(folder, "tls.pem", [make_certificate(["x"], 2)[1]], _read_certificate)
    listed = (folder / "keys" / "server" / "enrolled.txt").read_bytes()
    yield _target(folder, "enrolled.txt", [listed], lambda path: _enrolled(folder, path))
    revoked = b"".join(line.split()[1] + b"  # lost\n" for line in listed.splitlines())
    yield _target(folder, "revoked.txt", [revoked], read_revoked)
    yield _target(
        folder,
        "policy.toml",
        [RECIPE.with_name("policy.toml").read_bytes()],
        lambda path: load(Policy, path),
        OSError,
    )
    yield _target(
        folder, "scenario.toml", [RECIPE.read_bytes()], lambda path: load(Scenario, path), OSError
    )
    yield Target("task configuration", [_task_config()], lambda data: _read_task_config(data))
    yield _store(folder / "store")
    yield _target(folder, "phone.record", [_record(folder)], _read_record)


def _target(
    folder: Path,
    name: str,
    seeds: list[bytes],
    read: Callable[[Path], object],
    *allowed: type[BaseException],
) -> Target:
    path = folder / f"fuzzed-{name}"

    def attempt(data: bytes) -> None:
        path.write_bytes(data)
        read(path)

    return Target(name, seeds, attempt, (ValueError, *allowed))


def _bundle(folder: Path) -> bytes:
    """A bundle's frame without graphs, as a zip whose members are stored: mutations reach them."""
    bundle = folder / "bundle"
    (bundle / "provenance").mkdir(parents=True)
    for name in ("privacy.json", "testvectors.json", "provenance/manifest.json"):
        (bundle / name).write_text(json.dumps({"statements": {}, "tokenizer": {"digest": "d"}}))
    (bundle / "blocklist.txt").write_text("word\n")
    run = {"manifest_digest": "m", "ledger_head": "h", "ledger_entries": 1}
    vocabulary = {"digest": "d", "blocked": {"sha256": "s"}}
    stated = {"name": "n", "pfl_lm": "0", "run": run, "model": {}, "vocabulary": vocabulary}
    write_index(bundle, {**stated, "graphs": [], "limits": {}})
    write_zip(bundle, folder / "seed.zip")
    stored = io.BytesIO()
    with zipfile.ZipFile(folder / "seed.zip") as deflated, zipfile.ZipFile(stored, "w") as out:
        for name in deflated.namelist():
            out.writestr(name, deflated.read(name))
    return stored.getvalue()


def _read_bundle(path: Path) -> None:
    with opened(path) as bundle:
        for _ in verify_bundle(bundle):
            pass


def _model(folder: Path) -> bytes:
    save_model(folder / "seed.pt", Model(SPEC, initialise(SPEC, 1), {"kind": "random"}))
    return (folder / "seed.pt").read_bytes()


def _ledger(folder: Path) -> bytes:
    with Ledger.create(folder / "seed.jsonl", {"run": "r", "policy_digest": "p"}) as ledger:
        ledger.record_round(0, {"reports": 0})
    return (folder / "seed.jsonl").read_bytes()


def _read_certificate(path: Path) -> None:
    ServerCertificate.read(path).check_dates()


def _enrolled(folder: Path, path: Path) -> None:
    place = folder / "enrolled" / "server"
    place.mkdir(parents=True, exist_ok=True)
    path.replace(place / "enrolled.txt")
    ServerKeys(folder / "enrolled").enrolled()


def _task_config() -> bytes:
    return TaskConfig("0" * 32, False, {"rounds": 2}, 6, "t", "p").text().encode()


def _read_task_config(data: bytes) -> None:
    TaskConfig.read(data.decode("utf-8", errors="replace"))


def _store(folder: Path) -> Target:
    """A population's profile, beside its sound files."""
    users = dict.fromkeys(("train", "validation", "test", PUBLIC), 2)
    write_public_store(SyntheticPopulation(users, 200, 20, 1), folder)
    profile = folder / PROFILE_FILE

    def attempt(data: bytes) -> None:
        profile.write_bytes(data)
        store = PopulationStore.open(folder)
        store.check()
        store.lengths("train")
        store.tokens("train", 0)

    return Target(PROFILE_FILE, [profile.read_bytes()], attempt)


def _record(folder: Path) -> bytes:
    ParticipationRecord(folder / "seed.record", first_install=True).close()
    return (folder / "seed.record").read_bytes()


def _read_record(path: Path) -> None:
    record = ParticipationRecord(path)
    try:
        record.participations()
        assert record.installation is not None
    finally:
        record.close()
