"""A tiny run, and a toolchain that needs nothing installed: its graphs are kept in memory."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from pfl_lm.export import build
from pfl_lm.export.cost import RuntimeCost
from pfl_lm.export.formats import registry as formats
from pfl_lm.export.formats.registry import Format
from pfl_lm.export.signature import ExportGraph
from pfl_lm.models.file import load_model, save_model
from pfl_lm.payload.plan import PayloadPlan

KEPT: dict[bytes, ExportGraph] = {}  # by the content of their files


@dataclass(frozen=True)
class Kept(Format):
    """A format whose files can be opened in this process alone."""

    def module(self):
        return SimpleNamespace(convert=convert, open=reopen)


def convert(graph: ExportGraph, precision: str, path: Path) -> list[str]:
    content = hashlib.sha256(f"{graph.name} {precision} {id(graph)}".encode()).digest() * 40
    KEPT[content] = graph
    path.write_bytes(content)
    return ["kept in memory"]


def reopen(path: Path, signature, threads: int):
    if path.read_bytes() not in KEPT:
        raise ValueError(f"{path.name}: the runtime refuses the file")
    return KEPT[path.read_bytes()]


@pytest.fixture(scope="module")
def kept_format():
    """Let ``onnx`` be such a format; figures of cost are made up."""
    known = formats.FORMATS["onnx"]
    fields = {name: getattr(known, name) for name in known.__dataclass_fields__}
    kept = Kept(**fields | {"converter": (), "runtime": (), "distributions": ()})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(formats.FORMATS, "onnx", kept)
        patch.setattr(
            build, "measure_cost", lambda *about: RuntimeCost(0.5, 0.9, 0.4, 1 << 20, 3.0)
        )
        yield kept


@pytest.fixture(scope="session")
def run_folder(tiny_scenario, policy_file, new_watcher, tmp_path_factory) -> Path:
    """A finished run of three rounds on invented users, 300 words."""
    import pfl_lm.run.setup
    from pfl_lm.run.simulate import simulate

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pfl_lm.run.setup, "PUBLIC_USERS", 20)
        payload = PayloadPlan(rows=120, draw="unigram")
        policy = policy_file(participation='{ kind = "rotation", min_separation = 6 }')
        scenario = tiny_scenario(policy=policy, rounds=3, payload=payload)
        run = simulate(scenario, tmp_path_factory.mktemp("export") / "run", new_watcher())
    # Three rounds leave a model that minds no context; a louder one can tell words apart.
    model = load_model(run.model_path)
    louder = model.parameters | {"embedding": 20 * model.parameters["embedding"]}
    save_model(run.model_path, replace(model, parameters=louder))
    close_again(run.path)
    return run.path


def close_again(run: Path) -> None:
    """Let a run's ledger end with the model that lies in its folder now."""
    from pfl_lm.dp.ledger import Ledger
    from pfl_lm.files import sha256_of

    with Ledger.open(run / "ledger.jsonl") as ledger:
        end = {"kind": "end", "rounds": 3, "code": "", "model": sha256_of(run / "model.pt")}
        ledger.record(end)


@pytest.fixture(scope="session")
def source(run_folder):
    from pfl_lm.export.source import open_source

    return open_source(run_folder)


@pytest.fixture(scope="session")
def text(source):
    """A little of what the invented held-out users wrote."""
    from pfl_lm.export.parity import HeldOutText
    from pfl_lm.run.held_out import invented_people

    people = invented_people(source.model, source.manifest).population
    return HeldOutText("invented users", people, source.tokenizer, "validation", 8, 60, 20)


@pytest.fixture(scope="module")
def bundle_folder(kept_format, source, text, tmp_path_factory) -> Path:
    """A bundle of that run in the kept format, fp32 and int8."""
    folder = tmp_path_factory.mktemp("bundles") / "bundle"
    build.export(source, folder, build.ExportConfig(formats=("onnx",)), text)
    return folder
