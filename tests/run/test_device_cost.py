"""What a scenario asks of phones, by every known method of training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pfl_lm.models.models import ModelSpec, roles
from pfl_lm.payload.choice import choose
from pfl_lm.payload.plan import PayloadPlan
from pfl_lm.phones.fleet import Fleet
from pfl_lm.phones.flops import training_flops
from pfl_lm.recipes import load
from pfl_lm.run.device_cost import device_cost
from pfl_lm.run.scenario import Scenario
from pfl_lm.run.training_methods import METHODS_BY_NAME, TRAINING_METHODS

RECIPES = Path(__file__).resolve().parents[2] / "simulations"
UNIFORM = [1 / 500] * 500


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return load(Scenario, RECIPES / "fleet_10m.toml")


@pytest.fixture(scope="module")
def fleet() -> Fleet:
    return load(Fleet, RECIPES / "fleets" / "small.toml")


@pytest.mark.parametrize("method", TRAINING_METHODS, ids=lambda method: method.name)
def test_every_method_has_a_cost(method, scenario, fleet) -> None:
    found = device_cost(method.apply(scenario), fleet)
    assert found["peak_bytes"] > found["model_bytes"] > 0
    assert found["flops"] > 0
    assert set(found["fits"]) == set(found["seconds"]) == {"low", "least"}
    for name, phone in fleet.profiles.items():
        assert found["fits"][name] == (found["peak_bytes"] <= phone.training_memory_mb * 1e6)


def test_a_method_that_a_transformer_cannot_have_is_refused_and_the_others_have_a_cost(
    scenario, fleet
) -> None:
    """Its gradients cannot be truncated: `device cost` of every transformer ended in a fault."""
    spec = ModelSpec("transformer", 2000, 8, heads=2, feedforward_dim=8)
    scenario = replace(scenario, model=spec)
    for method in TRAINING_METHODS:
        if method.name != "truncated":
            assert device_cost(method.apply(scenario), fleet)["peak_bytes"] > 0
    with pytest.raises(ValueError, match='activations = "truncated" does not go with'):
        device_cost(METHODS_BY_NAME["truncated"].apply(scenario), fleet)


def test_operations_are_those_of_the_shapes() -> None:
    """One recurrent layer, everything travels: three products each, two tables in one."""
    import numpy as np

    from pfl_lm.devices.local_training import LocalTraining

    spec = ModelSpec("cifg_lstm", 500, 8, hidden_dim=10)
    payload = choose(PayloadPlan(), roles(spec), np.asarray(UNIFORM), (0,), 0, 0)
    matrices = 30 * 8 + 30 * 8 + 8 * 10
    each = 3 * 2 * matrices + 3 * 2 * 8 * 500
    training = LocalTraining(1.0, epochs=2)
    assert training_flops(spec, payload, training, 100) == 200 * each
    capped = LocalTraining(1.0, max_tokens=60)
    assert training_flops(spec, payload, capped, 100) == 60 * each


def test_ways_order_as_the_literature_has_it(scenario, fleet) -> None:
    found = {method.name: device_cost(method.apply(scenario), fleet) for method in TRAINING_METHODS}
    assert found["everything"]["upload_bytes"] > 5 * found["rows + LoRA"]["upload_bytes"]
    assert found["zeroth order"]["upload_bytes"] < 0.02 * found["rows + LoRA"]["upload_bytes"]
    assert found["recomputed"]["work_bytes"] < found["rows + LoRA"]["work_bytes"]
    assert found["recomputed"]["flops"] > found["rows + LoRA"]["flops"]
    assert found["1-bit model"]["model_bytes"] < found["4-bit model"]["model_bytes"]
    assert found["least of all"]["peak_bytes"] < found["recomputed"]["peak_bytes"]
    assert found["side branch"]["work_bytes"] < found["biases"]["work_bytes"]


def test_a_rotated_update_is_narrower(scenario, fleet) -> None:
    plain, rotated = (
        device_cost(replace(scenario, rotate=rotate), fleet) for rotate in (False, True)
    )
    assert rotated["upload_bytes"] < 0.9 * plain["upload_bytes"]
    assert rotated["download_bytes"] == plain["download_bytes"]
