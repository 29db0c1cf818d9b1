from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pfl_lm.models import models, recurrent
from pfl_lm.models.models import LoraSpec, ModelSpec, Parameters

V, D, K = 13, 6, 3


def spec_of(kind: str, **more: object) -> ModelSpec:
    common = {"layers": 2, "hidden_dim": 5, "heads": 2, "feedforward_dim": 7, "context": 9}
    return ModelSpec(kind, V, D, **(common | more))


SPECS = [
    spec_of("cifg_lstm"),
    spec_of("lstm"),
    spec_of("transformer"),
    spec_of("transformer", positions="rotary", activation="relu", heads=3),
]


def ids(spec):
    return f"{spec.kind}-{spec.positions}"


def weights_of(spec: ModelSpec, per_device: bool, seed: int = 0) -> Parameters:
    """Random float64 weights of everything between the tables."""
    draw = torch.Generator().manual_seed(seed)
    lead = (K,) if per_device else ()
    return {
        name: 0.4 * torch.randn(*lead, *role.shape, generator=draw, dtype=torch.float64)
        for name, role in models.roles(spec).items()
        if role.kind != "rows"
    }


def embedded_of(windows: int = 2, length: int = 4) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(K, windows, length, D, generator=draw, dtype=torch.float64)


@pytest.mark.parametrize("spec", SPECS, ids=ids)
@pytest.mark.parametrize("factors", [None, LoraSpec(2)], ids=["plain", "lora"])
@pytest.mark.parametrize("own", ["shared", "per device", "factors per device"])
def test_gradients_by_hand_match_finite_differences(spec, factors, own) -> None:
    spec = replace(spec, lora=factors)
    shared, per_device = weights_of(spec, False), weights_of(spec, True)
    weights = {
        n: (per_device if own == "per device" or (own != "shared" and ".lora" in n) else shared)[n]
        for n in shared
    }
    leaves = [w.requires_grad_() for w in (embedded_of(), *weights.values())]

    def run(x, *w):
        return models.hidden(spec, dict(zip(weights, w, strict=True)), x)

    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)


@pytest.mark.parametrize("spec", SPECS, ids=ids)
def test_shared_and_equal_weights_give_one_result_and_each_device_its_gradient(spec) -> None:
    """A weight with first stride 0 is per device: its gradient is not summed over devices."""
    shared, x = weights_of(spec, False), embedded_of()
    equal = {n: w.expand(K, *w.shape).requires_grad_() for n, w in shared.items()}
    apart = {n: w.detach().clone().requires_grad_() for n, w in equal.items()}
    ones, twos = (models.hidden(spec, w, x) for w in (equal, apart))
    torch.testing.assert_close(ones, models.hidden(spec, shared, x))
    torch.testing.assert_close(ones, twos)
    push = torch.randn_like(ones)
    for own, other in zip(
        torch.autograd.grad(ones, list(equal.values()), push),
        torch.autograd.grad(twos, list(apart.values()), push),
        strict=True,
    ):
        torch.testing.assert_close(own, other)


@pytest.mark.parametrize("spec", SPECS, ids=ids)
def test_devices_do_not_meet(spec) -> None:
    """A device whose weights are NaN leaves the others' results as they were."""
    weights, x = weights_of(spec, True), embedded_of()
    before = models.hidden(spec, weights, x)
    for w in weights.values():
        w[1] = torch.nan
    after = models.hidden(spec, weights, x)
    assert after[1].isnan().all()
    assert torch.equal(after[[0, 2]], before[[0, 2]])


@pytest.mark.parametrize("spec", SPECS, ids=ids)
def test_the_future_is_not_seen(spec) -> None:
    weights, x = weights_of(spec, False), embedded_of()
    before = models.hidden(spec, weights, x)
    x[:, :, 2:] = x[:, :, 2:].flip(-1)
    after = models.hidden(spec, weights, x)
    assert torch.equal(after[:, :, :2], before[:, :, :2])
    assert not torch.allclose(after[:, :, 2:], before[:, :, 2:])


@pytest.mark.parametrize("kind", ["cifg_lstm", "lstm"])
@pytest.mark.parametrize("factors", [None, LoraSpec(2)], ids=["plain", "lora"])
def test_one_word_at_a_time_equals_a_window(kind: str, factors: LoraSpec | None) -> None:
    spec = spec_of(kind, lora=factors)
    weights, x = weights_of(spec, False), embedded_of()
    state = recurrent.zero_state(spec, K, 2, torch.zeros(1, dtype=torch.float64))
    seen = []
    for t in range(x.shape[2]):
        out, state = recurrent.step(spec, weights, x[:, :, t], state)
        seen.append(out)
    torch.testing.assert_close(torch.stack(seen, 2), models.hidden(spec, weights, x))


def test_plain_lstm_is_torchs() -> None:
    spec = spec_of("lstm")
    weights, x = weights_of(spec, False), embedded_of()
    theirs = nn.LSTM(D, spec.hidden_dim, spec.layers, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        for n in range(spec.layers):
            getattr(theirs, f"weight_ih_l{n}").copy_(weights[f"layer{n}.input"])
            getattr(theirs, f"weight_hh_l{n}").copy_(weights[f"layer{n}.recurrent"])
            getattr(theirs, f"bias_ih_l{n}").copy_(weights[f"layer{n}.input_bias"])
            getattr(theirs, f"bias_hh_l{n}").zero_()
        expected = theirs(x.flatten(0, 1))[0] @ weights["projection"].T + weights["projection_bias"]
    torch.testing.assert_close(models.hidden(spec, weights, x).flatten(0, 1), expected)


def test_coupled_lstm_is_the_papers_recurrence() -> None:
    """The equations of the coupled input and forget gate, with projection, written out."""
    spec = spec_of("cifg_lstm", layers=1)
    w, x = weights_of(spec, False), embedded_of()[0]
    r, c = torch.zeros(2, D, dtype=x.dtype), torch.zeros(2, 5, dtype=x.dtype)
    expected = []
    for t in range(x.shape[1]):
        z = x[:, t] @ w["layer0.input"].T + w["layer0.input_bias"] + r @ w["layer0.recurrent"].T
        f, g, o = z[:, :5].sigmoid(), z[:, 5:10].tanh(), z[:, 10:].sigmoid()
        c = f * c + (1 - f) * g
        r = (o * c.tanh()) @ w["layer0.projection"].T
        expected.append(r)
    got = models.hidden(spec, w, x.unsqueeze(0))[0]
    torch.testing.assert_close(got, torch.stack(expected, 1))


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_transformer_is_torchs(activation: str) -> None:
    spec = spec_of("transformer", activation=activation)
    w, x = weights_of(spec, False), embedded_of()
    layer = nn.TransformerEncoderLayer(
        D, 2, 7, 0.0, activation, batch_first=True, norm_first=True, dtype=torch.float64
    )
    theirs = nn.TransformerEncoder(
        layer, 2, norm=nn.LayerNorm(D, dtype=torch.float64), enable_nested_tensor=False
    )
    ours = [n for n in w if n != "positions"]
    assert len(ours) == len(list(theirs.parameters()))
    with torch.no_grad():
        for n, block in enumerate(theirs.layers):
            pairs = {
                "attention": (block.self_attn.in_proj_weight, block.self_attn.in_proj_bias),
                "attention_out": tuple(block.self_attn.out_proj.parameters()),
                "feedforward_in": tuple(block.linear1.parameters()),
                "feedforward_out": tuple(block.linear2.parameters()),
            }
            for name, (matrix, bias) in pairs.items():
                matrix.copy_(w[f"block{n}.{name}"])
                bias.copy_(w[f"block{n}.{name}_bias"])
            for name, norm in (("attention", block.norm1), ("feedforward", block.norm2)):
                norm.weight.copy_(w[f"block{n}.{name}_norm_gain"])
                norm.bias.copy_(w[f"block{n}.{name}_norm_bias"])
        theirs.norm.weight.copy_(w["final_norm_gain"])
        theirs.norm.bias.copy_(w["final_norm_bias"])
    mask = nn.Transformer.generate_square_subsequent_mask(4, dtype=torch.float64)
    expected = theirs((x + w["positions"][:4]).flatten(0, 1), mask=mask, is_causal=True)
    torch.testing.assert_close(models.hidden(spec, w, x).flatten(0, 1), expected)


def test_hards_model_has_its_published_size() -> None:
    """Hard et al. 2018: 10,000 words, CIFG of 670 cells, tied width 96: 1.4 million parameters."""
    spec = ModelSpec("cifg_lstm", 10_000, 96, hidden_dim=670, output_bias=False)
    assert models.size(spec) == pytest.approx(1.4e6, rel=0.02)


def test_initial_model_predicts_the_public_unigram_nearly() -> None:
    unigram = np.random.default_rng(0).dirichlet(np.ones(V))
    spec = spec_of("cifg_lstm")
    parameters = models.initialise(spec, seed=0, unigram=unigram)
    windows = np.random.default_rng(1).integers(0, V, (3, 4))
    vectors = models.hidden_of(spec, parameters, windows)
    predicted = models.scores(spec, parameters, vectors.flatten(0, 1)).softmax(-1).numpy()
    assert predicted.shape == (12, V)
    np.testing.assert_allclose(predicted, np.broadcast_to(unigram, (12, V)), rtol=0.1)


def test_initialisation_is_named_by_seed_and_parameter() -> None:
    """Adding a layer or an output bias changes no other parameter's start."""
    few, many = (models.initialise(spec_of("lstm", layers=n), seed=3) for n in (1, 2))
    assert all(torch.equal(few[name], many[name]) for name in few)
    other = models.initialise(spec_of("lstm"), seed=4)
    assert not torch.equal(other["embedding"], many["embedding"])


def test_chunks_cover_all_rows_within_the_budget() -> None:
    spec = spec_of("lstm")
    cuts = list(models.chunks(spec, 100, budget_bytes=4 * V * 7))
    assert [c.stop - c.start for c in cuts] == [7] * 14 + [2]
    assert (cuts[0].start, cuts[-1].stop) == (0, 100)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "gru"}, "kind = 'gru'"),
        ({"vocabulary_size": 0}, "vocabulary_size = 0"),
        ({"hidden_dim": 0}, "hidden_dim = 0"),
        ({"projection_dim": 4}, "projection_dim = embedding_dim"),
        ({"kind": "transformer", "heads": 4}, "multiple of heads"),
        ({"kind": "transformer", "feedforward_dim": 0}, "feedforward_dim = 0"),
        ({"kind": "transformer", "heads": 6, "positions": "rotary"}, "even"),
        ({"kind": "transformer", "activation": "tanh"}, "activation = 'tanh'"),
        ({"kind": "transformer", "positions": "none"}, "positions = 'none'"),
    ],
)
def test_specs_that_make_no_sense_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(spec_of("lstm"), **change)


def test_windows_beyond_the_context_are_refused() -> None:
    spec = spec_of("transformer")
    with pytest.raises(ValueError, match="context is 9"):
        models.hidden(spec, weights_of(spec, False), embedded_of(length=10))
