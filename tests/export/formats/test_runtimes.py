"""Files through the real runtimes; each test skips unless its toolchain is installed
(`make test-export` installs all of them)."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch

from pfl_lm.devices.local_training import LocalTraining
from pfl_lm.devices.task import Task
from pfl_lm.devices.training import train
from pfl_lm.export.formats import registry as formats
from pfl_lm.export.graphs import predict as graphs
from pfl_lm.export.graphs.train_step import train_step
from pfl_lm.models.file import Model
from pfl_lm.models.models import LoraSpec, ModelSpec, initialise, roles
from pfl_lm.payload.choice import choose
from pfl_lm.payload.layout import gather
from pfl_lm.payload.plan import PayloadPlan
from tests.export.graph_training import train_by

V = 600
SPECS = {
    "cifg": ModelSpec("cifg_lstm", V, 30, hidden_dim=70, lora=LoraSpec(2)),
    "untied": ModelSpec("lstm", V, 32, layers=2, hidden_dim=40, projection_dim=64, tied=False),
    "transformer": ModelSpec(
        "transformer", V, 64, layers=1, heads=2, feedforward_dim=96, context=6
    ),
}
DIFFERENCE = {"fp32": 1e-4, "fp16": 0.05, "int8": 0.2, "int4": 1.5}  # of scores that are ±3 wide


def needs(format: str) -> None:
    known = formats.format_of(format)
    if remedy := known.missing() or known.runtime_missing():
        pytest.skip(remedy)


@lru_cache
def model_of(name: str) -> Model:
    draw = torch.Generator().manual_seed(3)
    values = initialise(SPECS[name], 1)
    found = {n: 0.2 * torch.randn(v.shape, generator=draw) for n, v in values.items()}
    found["embedding"][500:540] = 0  # padding of the vocabulary
    return Model(SPECS[name], found, {})


def stepped(run, graph, words) -> list[dict]:
    given, found = dict(graph.start), []
    for word in words:
        found.append(run(**given | {"token": np.array([word], np.int32)}))
        given |= {name: found[-1][output] for output, name in graph.state.items()}
    return found


CASES = [
    *(
        (name, precision, "cifg")
        for name, f in formats.FORMATS.items()
        for precision in f.precisions
    ),
    *((name, "fp32", "transformer") for name in formats.FORMATS),
    *((name, "int8", "untied") for name in formats.FORMATS),
]


@pytest.mark.parametrize(("format", "precision", "kind"), CASES)
def test_a_file_is_the_model(format, precision, kind, tmp_path):
    needs(format)
    graph = graphs.predict_graph(model_of(kind), best=4, blocked=[0, 1, 2, 3], adapter_rank=2)
    written = formats.convert(graph, format, precision, tmp_path)
    again = formats.ExportedFile.from_dict(written.as_dict())
    run = formats.open_file(tmp_path, again)
    words = np.random.default_rng(0).integers(4, V, 5)
    found, expected = stepped(run, graph, words), stepped(graph, graph, words)
    for one, other in zip(found, expected, strict=True):
        assert np.abs(one["logits"] - other["logits"]).max() < DIFFERENCE[precision]
        assert one["words"].dtype == np.int32
        assert not set(one["words"][0]) & {0, 1, 2, 3}
    if precision == "fp32":
        assert all(
            np.array_equal(one["words"], other["words"])
            for one, other in zip(found, expected, strict=True)
        )
    mask = np.full((1, V), graphs.AWAY, np.float32)
    mask[0, [77, 99]] = 0
    assert set(run(**graph.start | {"mask": mask})["words"][0][:2]) == {77, 99}


@pytest.mark.parametrize("format", formats.FORMATS)
def test_a_local_step_has_torchs_gradient(format, tmp_path):
    """For rows with LoRA and the sampled softmax, in two rounds: other rows, the same file.

    Words repeat, lie inside and outside the rows, and are candidates too. The gradient is bounded,
    as in every shipped scenario: without a bound this model's second loss is four times its first,
    and two ways of adding up in float32 part by 1e-4 of the update, torch's own two among them.
    """
    needs(format)
    model, unigram = model_of("cifg"), np.full(V, 1 / V)
    plan = PayloadPlan(rows=50, dense="lora")
    training = LocalTraining(
        0.5, batch_size=2, window=3, loss="sampled", negatives=12, gradient_clip=1.0
    )
    first, second = (
        choose(plan, roles(model.spec), unigram, (0, 1, 2, 3), 7, round) for round in (3, 4)
    )
    lookup = formats.format_of(format).lookup
    graph = train_step(model.spec, first, training, 2, lookup=lookup)
    run = formats.open_file(tmp_path, formats.convert(graph, format, "fp32", tmp_path))
    met = 0

    def by_file(**given):
        nonlocal met
        met += np.isin(given["windows"][:, 1:], given["candidates"]).sum()
        found, expected = run(**given), graph(**given)
        apart = np.linalg.norm(found["gradient"] - expected["gradient"])
        assert apart < 3e-6 * np.linalg.norm(expected["gradient"])
        assert abs(found["loss"] - expected["loss"]) < 3e-6 * expected["loss"]
        return found

    random = np.random.default_rng(1)
    for round, payload in ((3, first), (4, second)):
        held = random.config(payload.rows[payload.rows > 3], 6)
        drawn = random.integers(4, V, (5, 4))
        text = [np.where(random.random((5, 4)) < 0.7, random.config(held, (5, 4)), drawn)]
        text[0][-1, 2:] = 0
        values = gather(model.parameters, payload)
        task = Task(model.spec, model.parameters, payload, values, training, unigram, 5, round)
        simulated, _ = train(task, text, [11])
        updated, _ = train_by(by_file, graph.signature)(task, text, [11])
        assert np.abs(simulated).max() > 1e-3
        assert np.abs(updated - simulated).max() < 1e-6
    assert met > 0


@pytest.mark.parametrize(("positions", "activation"), [("learned", "gelu"), ("rotary", "relu")])
@pytest.mark.parametrize("format", formats.FORMATS)
def test_a_transformer_s_local_step_has_torchs_gradient(format, positions, activation, tmp_path):
    """Its norms' gains do not train, so the file is given them each round."""
    needs(format)
    spec = ModelSpec(
        "transformer", V, 32, layers=1, heads=2, feedforward_dim=48, context=6,
        positions=positions, activation=activation, lora=LoraSpec(2),
    )  # fmt: skip
    training = LocalTraining(0.5, batch_size=2, window=3, loss="softmax", gradient_clip=1.0)
    payload = choose(PayloadPlan(rows=50, dense="lora"), roles(spec), np.full(V, 1 / V),
                     (0, 1, 2, 3), 7, 3)  # fmt: skip
    values = {name: value + 0.05 for name, value in initialise(spec, 1).items()}
    graph = train_step(spec, payload, training, 2, lookup=formats.format_of(format).lookup)
    run = formats.open_file(tmp_path, formats.convert(graph, format, "fp32", tmp_path))

    def by_file(**given):
        found, expected = run(**given), graph(**given)
        apart = np.linalg.norm(found["gradient"] - expected["gradient"])
        assert apart < 3e-5 * np.linalg.norm(expected["gradient"])
        return found

    random = np.random.default_rng(1)
    text = [random.choice(payload.rows[payload.rows > 3], (5, 4)).astype(np.int32)]
    task = Task(spec, values, payload, gather(values, payload), training, np.full(V, 1 / V), 5, 3)
    simulated, _ = train(task, text, [11])
    updated, _ = train_by(by_file, graph.signature)(task, text, [11])
    assert np.abs(simulated).max() > 1e-3
    assert np.abs(updated - simulated).max() < 1e-5


@pytest.mark.parametrize("format", ["onnx", "executorch"])
def test_a_federated_round_by_exported_graphs_gives_the_simulators_update(
    format, tiny_scenario, policy_file, tmp_path, monkeypatch
):
    """Everything around training is the simulator's own: cohort, clip, grid, noise, sum, step."""
    needs(format)
    scenario = tiny_scenario(policy=policy_file(), reproducible=True, rounds=1)
    simulated = moved_by_one_round(scenario, tmp_path / "simulator", monkeypatch)
    by_graph = moved_by_one_round(scenario, tmp_path / format, monkeypatch, format)
    size = np.linalg.norm(simulated)
    assert size > 0
    # An update that differs in its last bits rounds to the other integer now and then.
    assert np.linalg.norm(by_graph - simulated) < 1e-3 * size


def moved_by_one_round(scenario, path, monkeypatch, format: str = "") -> np.ndarray:
    """Run one round; return how the payload moved."""
    import pfl_lm.run.setup
    from pfl_lm.run.folder import RunFolder
    from pfl_lm.run.recorder import RoundRecorder
    from pfl_lm.run.resume import begin_run
    from pfl_lm.run.simulate import Ends, run_round

    monkeypatch.setattr(pfl_lm.run.setup, "PUBLIC_USERS", 20)
    context = pfl_lm.run.setup.open_run(scenario)
    payload = pfl_lm.run.context.choose_payload(context, 0)
    state, ledger = begin_run(context, RunFolder(path))
    before, ends = gather(state.parameters, payload), Ends()
    if format:
        training = scenario.training
        graph = train_step(context.spec, payload, training, training.batch_size)
        run = formats.open_file(path, formats.convert(graph, format, "fp32", path))
        ends = Ends(train=train_by(run, graph.signature))
    with ledger:
        after, _ = run_round(context, state, RoundRecorder(ledger), ends=ends)
    return gather(after.parameters, payload) - before


@pytest.mark.parametrize("format", formats.FORMATS)
def test_a_file_that_is_cut_off_is_refused_in_one_line(format, tmp_path):
    needs(format)
    graph = graphs.predict_graph(model_of("cifg"))
    written = formats.convert(graph, format, "fp32", tmp_path)
    path = tmp_path / written.name
    files = [path] if path.is_file() else [f for f in path.rglob("*") if f.suffix == ".mlmodel"]
    for file in files:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 3])
    with pytest.raises(ValueError, match=written.name):
        formats.open_file(tmp_path, written)


def test_a_real_file_is_timed_in_a_process_of_its_own(tmp_path):
    from pfl_lm.export.cost import measure_cost

    needs("onnx")
    file = formats.convert(graphs.predict_graph(model_of("cifg")), "onnx", "fp32", tmp_path)
    cost = measure_cost(tmp_path, file)
    assert 0 < cost.median_ms <= cost.p95_ms
    assert (cost.peak_memory_bytes is None) != Path("/proc/self/status").exists()
    assert cost.peak_memory_bytes is None or cost.peak_memory_bytes > file.bytes / 2


def test_memory_that_the_system_does_not_tell_is_none_and_not_zero():
    from pfl_lm.export import cost

    assert cost._memory("VmNothing") is None
