from __future__ import annotations

import pytest
import torch

from pfl_lm.models import models
from pfl_lm.models.models import LoraSpec, ModelSpec, Parameters


def spec_of(kind: str, lora: LoraSpec | None) -> ModelSpec:
    return ModelSpec(
        kind, 13, 6, layers=2, hidden_dim=5, heads=2, feedforward_dim=7, context=9, lora=lora
    )


def trained(spec: ModelSpec) -> Parameters:
    """Parameters whose second factors are not zero any more."""
    torch.manual_seed(0)
    start = models.initialise(spec, seed=0)
    return {n: v + 0.3 * torch.randn_like(v) if ".lora_b" in n else v for n, v in start.items()}


@pytest.mark.parametrize("kind", ["cifg_lstm", "lstm", "transformer"])
def test_merged_equals_unmerged(kind: str) -> None:
    spec = spec_of(kind, LoraSpec(rank=2, alpha=3.0))
    parameters = trained(spec)
    plain, merged = models.merge(spec, parameters)
    assert plain.lora is None
    assert list(merged) == list(models.roles(plain))
    x = torch.randn(1, 2, 4, 6)
    with_factors = models.hidden(spec, parameters, x)
    torch.testing.assert_close(models.hidden(plain, merged, x), with_factors)
    without = {n: v for n, v in parameters.items() if ".lora" not in n}
    assert not torch.allclose(models.hidden(plain, without, x), with_factors, atol=1e-3)


@pytest.mark.parametrize("kind", ["cifg_lstm", "lstm", "transformer"])
def test_fresh_factors_change_nothing(kind: str) -> None:
    spec = spec_of(kind, LoraSpec(rank=2))
    parameters = models.initialise(spec, seed=0)
    x = torch.randn(1, 2, 4, 6)
    plain = spec_of(kind, None)
    assert torch.equal(models.hidden(spec, parameters, x), models.hidden(plain, parameters, x))


def test_factors_go_beside_dense_layers_alone() -> None:
    names = [n for n in models.roles(spec_of("transformer", LoraSpec(2))) if n.endswith("lora_a")]
    assert len(names) == 8  # four matrices in each of two blocks; no table of positions, no gain


def test_targets_choose_layers_by_name() -> None:
    roles = models.roles(spec_of("cifg_lstm", LoraSpec(4, targets=("recurrent",))))
    factors = {name: role.shape for name, role in roles.items() if ".lora" in name}
    assert factors == {
        "layer0.recurrent.lora_a": (4, 6),
        "layer0.recurrent.lora_b": (15, 4),
        "layer1.recurrent.lora_a": (4, 6),
        "layer1.recurrent.lora_b": (15, 4),
    }


def test_a_target_that_names_no_layer_is_refused() -> None:
    spec = spec_of("cifg_lstm", LoraSpec(2, targets=("attention",)))
    with pytest.raises(ValueError, match="input, projection, recurrent"):
        models.roles(spec)


@pytest.mark.parametrize(("rank", "alpha", "field"), [(0, 1.0, "rank"), (2, 0.0, "alpha")])
def test_factors_without_width_or_scale_are_refused(rank: int, alpha: float, field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field} = "):
        LoraSpec(rank, alpha)
