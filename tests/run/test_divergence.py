"""Training that diverges: it ends at the first round that shows it, and the budget is not spent."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from pfl_lm.devices.trace import Trace
from pfl_lm.dp.ledger import verify
from pfl_lm.models.file import Model, load_model, save_model
from pfl_lm.models.models import initialise
from pfl_lm.run import simulate as simulation
from pfl_lm.run.divergence import Diverged, LossWatch, has_diverged
from pfl_lm.run.folder import RunFolder
from pfl_lm.run.setup import open_run
from pfl_lm.run.simulate import simulate
from pfl_lm.server.optimizers import ServerOptimizer

pytestmark = pytest.mark.usefixtures("quick")


def rounds_of(run):
    return [entry["round"] for entry in verify(run / "ledger.jsonl") if entry["kind"] == "round"]


def test_a_run_that_diverges_ends_before_its_next_round(tiny_scenario, new_watcher, tmp_path):
    scenario = tiny_scenario(server=ServerOptimizer("sgd", learning_rate=1e9), rounds=5)
    with pytest.raises(ValueError, match=r"^round 2: no device has a finite perplexity .* lower"):
        simulate(scenario, tmp_path / "run", new_watcher())
    assert rounds_of(tmp_path / "run") == [0, 1]
    assert [line["diverged_devices"] for line in RunFolder(tmp_path / "run").metrics()] == [0, 6]
    with pytest.raises(ValueError, match=r"^round 2: no device has a finite perplexity .* lower"):
        simulate(scenario, tmp_path / "run", new_watcher(), resume=True)
    assert rounds_of(tmp_path / "run") == [0, 1]


def test_a_resumed_run_measures_its_loss_by_that_of_its_first_round(tiny_scenario):
    said: list[str] = []
    rounds = [
        {"kind": "round", "round": 0, "trained_devices": 6, "diverged_devices": 0, "loss": 5.0},
        {"kind": "evaluation", "round": 1, "perplexity": 150.0},
        {"kind": "round", "round": 1, "trained_devices": 6, "diverged_devices": 1, "loss": 45.0},
    ]
    watch = LossWatch(open_run(tiny_scenario()), said.append)
    watch.take_up(rounds)
    watch.check({"round": 2, "trained_devices": 6, "diverged_devices": 1, "loss": 45.0})
    assert said == []  # it was said before the interruption
    with pytest.raises(Diverged, match="round 4: the training loss is 450"):
        watch.check({"round": 3, "trained_devices": 6, "diverged_devices": 0, "loss": 450.0})


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_model_that_is_not_finite_ends_the_run_at_once_and_when_resumed(
    tiny_scenario, new_watcher, tmp_path, monkeypatch, broken
):
    scenario = tiny_scenario(rounds=5)

    def stepped(*arguments):
        state = step(*arguments)
        return replace(state, parameters={n: v + broken for n, v in state.parameters.items()})

    step = simulation.step
    with monkeypatch.context() as patch:
        patch.setattr(simulation, "step", stepped)
        with pytest.raises(ValueError, match=r"after 1 rounds .* not finite: training diverged"):
            simulate(scenario, tmp_path / "run", new_watcher())
    assert rounds_of(tmp_path / "run") == [0]
    with pytest.raises(ValueError, match=r"after 1 rounds .* not finite: training diverged"):
        simulate(scenario, tmp_path / "run", new_watcher(), resume=True)
    assert rounds_of(tmp_path / "run") == [0]


def test_a_start_that_is_not_finite_is_refused_before_a_folder_is_written(
    tiny_scenario, tmp_path, new_watcher
):
    scenario = tiny_scenario()
    start = tmp_path / "start.pt"
    context = open_run(scenario)
    parameters = dict(initialise(scenario.model, 0, context.tokenizer.unigram))
    name = next(iter(parameters))
    parameters[name] = torch.full_like(parameters[name], math.nan)
    origin = {"kind": "public", "tokenizer_digest": context.tokenizer.digest}
    save_model(start, Model(scenario.model, parameters, origin))
    for refused in (
        lambda: load_model(start),
        lambda: simulate(replace(scenario, start=start), tmp_path / "run", new_watcher()),
    ):
        with pytest.raises(ValueError, match=f"{name} holds numbers that are not finite"):
            refused()
    assert not (tmp_path / "run").exists()


def test_some_devices_that_diverge_are_said_once(tiny_scenario):
    said: list[str] = []
    watch = LossWatch(open_run(tiny_scenario()), said.append)
    for number in range(3):
        diverged = {"trained_devices": 6, "diverged_devices": min(number, 1)}
        watch.check({"round": number, "loss": 5.0, **diverged})
    nobody = {"trained_devices": 0, "diverged_devices": 0, "loss": None}
    watch.check({"round": 3, **nobody})
    assert len(said) == 1
    assert said[0].startswith("round 2: training diverged on some devices")


@pytest.mark.parametrize("loss", [math.nan, math.inf, 701.0])
def test_a_loss_without_a_perplexity_has_diverged(loss):
    assert has_diverged(loss)
    assert not has_diverged(9.2)


def test_the_loss_of_a_round_is_that_of_its_healthy_devices(tiny_scenario):
    from pfl_lm.run.availability import invite
    from pfl_lm.run.context import choose_payload
    from pfl_lm.run.figures import RoundFigures
    from pfl_lm.server.state import ServerState, open_round

    context = open_run(tiny_scenario())
    broadcast = open_round(ServerState(0, context.start.parameters), choose_payload(context, 0))
    figures = RoundFigures(context.privacy, broadcast, invite(context, broadcast, 0.0))
    figures._traces = [
        Trace(user=1, tokens=10, steps=1, loss=4.0, update_norm=1.0),
        Trace(user=2, tokens=30, steps=1, loss=8.0, update_norm=3.0),
        Trace(user=3, tokens=30, steps=1, loss=math.nan, update_norm=math.nan),
    ]
    entry = figures.entry()
    assert (entry["loss"], entry["update_norm"], entry["tokens"]) == (7.0, 2.0, 70)
    assert (entry["trained_devices"], entry["diverged_devices"]) == (3, 1)
