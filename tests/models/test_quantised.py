"""Weights in few bits: on their grid, as near as it allows, and no larger than said."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pfl_lm.models.models import LoraSpec, ModelSpec, initialise, roles
from pfl_lm.models.quantised import bytes_of, round_model, rounded

SPEC = ModelSpec("cifg_lstm", 100, 8, hidden_dim=16, lora=LoraSpec(2))


@given(st.integers(0, 1000), st.sampled_from([4, 8]))
@settings(max_examples=30, deadline=None)
def test_rounding_is_to_the_nearest_of_few_values(seed: int, bits: int) -> None:
    values = torch.randn(5, 40, generator=torch.Generator().manual_seed(seed)) * 10 ** (seed % 5)
    found = rounded(values, bits)
    step = values.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
    assert ((found - values).abs() <= step / 2 * (1 + 1e-5)).all()
    assert all(len(row.unique()) <= 2**bits - 1 for row in found)
    assert torch.allclose(rounded(found, bits), found)


def test_one_bit_is_a_sign_and_a_scale() -> None:
    values = torch.tensor([[1.0, -3.0, 0.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    assert rounded(values, 1).tolist() == [[1.5, -1.5, 1.5, 1.5], [0, 0, 0, 0]]
    assert not rounded(torch.zeros(2, 3), 8).any()
    with pytest.raises(ValueError, match="weight_bits = 3"):
        rounded(values, 3)


def test_biases_and_factors_stay() -> None:
    parameters = initialise(SPEC, 0)
    found = round_model(parameters, roles(SPEC), 4)
    same = {name for name in parameters if found[name] is parameters[name]}
    assert same == {n for n, r in roles(SPEC).items() if "lora" in n or len(r.shape) == 1}


def test_bytes_are_those_of_the_bits() -> None:
    named = roles(ModelSpec("cifg_lstm", 100, 8, hidden_dim=16))
    # Table 100 x 8, input and recurrent 48 x 8, projection 8 x 16, input bias 48, output bias 100.
    weights, rows, biases = 800 + 384 + 384 + 128, 100 + 48 + 48 + 8, 148
    assert bytes_of(named, None) == 4 * (weights + biases)
    assert bytes_of(named, 8) == weights + 2 * rows + 4 * biases
    assert bytes_of(named, 4) == weights // 2 + 2 * rows + 4 * biases
    assert bytes_of(named, 1) == weights // 8 + 2 * rows + 4 * biases
