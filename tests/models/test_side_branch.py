"""The side branch: silent at first, beside every model, and learnt without going through it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pfl_lm.models import recurrent, side_branch
from pfl_lm.models.models import ModelSpec, hidden, initialise, roles

LSTM = ModelSpec("cifg_lstm", 30, 6, hidden_dim=8, side_branch=3)
TRANSFORMER = ModelSpec("transformer", 30, 6, heads=2, feedforward_dim=8, side_branch=3)


@pytest.mark.parametrize("spec", [LSTM, TRANSFORMER], ids=["lstm", "transformer"])
def test_it_adds_a_narrow_function_of_the_present_word(spec: ModelSpec) -> None:
    parameters, x = initialise(spec, 0), torch.randn(1, 2, 5, 6)
    plain = hidden(replace(spec, side_branch=0), parameters, x)
    assert torch.equal(hidden(spec, parameters, x), plain)  # it starts as nothing
    parameters["side_branch.up"] = torch.randn(6, 3)
    expected = torch.relu(x @ parameters["side_branch.down"].T) @ parameters["side_branch.up"].T
    assert torch.allclose(hidden(spec, parameters, x), plain + expected, atol=1e-6)


def test_word_by_word_is_the_same() -> None:
    parameters, x = initialise(LSTM, 0), torch.randn(1, 2, 5, 6)
    parameters["side_branch.up"] = torch.randn(6, 3)
    state, found = recurrent.zero_state(LSTM, 1, 2, x), []
    for t in range(5):
        vectors, state = recurrent.step(LSTM, parameters, x[:, :, t], state)
        found.append(side_branch.add(LSTM, parameters, vectors, x[:, :, t]))
    assert torch.allclose(torch.stack(found, 2), hidden(LSTM, parameters, x), atol=1e-6)


def test_a_model_without_it_has_no_parameters_of_it() -> None:
    assert not side_branch.roles(replace(LSTM, side_branch=0))
    assert {n for n, role in roles(LSTM).items() if role.kind == "side_branch"} == {
        "side_branch.down",
        "side_branch.up",
    }
    with pytest.raises(ValueError, match="side_branch = -1"):
        replace(LSTM, side_branch=-1)
