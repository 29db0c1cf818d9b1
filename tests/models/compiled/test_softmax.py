"""The exact softmax's C kernel against autograd in double precision."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pfl_lm import native
from pfl_lm.models import exact_softmax
from pfl_lm.models.compiled import softmax
from pfl_lm.native import products


@pytest.fixture(scope="module", autouse=True)
def compiled_here():
    if native.load("softmax") is None:
        pytest.skip("no C kernels: no compiler, or PFL_LM_NATIVE=0")


@pytest.fixture(params=["kept", "made twice"])
def powers(request, monkeypatch) -> None:
    if request.param == "made twice":
        monkeypatch.setattr(exact_softmax, "KEEP_BYTES", 0)


def problem(rows: int, words: int, width: int, size: float = 1.0):
    draw = torch.Generator().manual_seed(rows + words)
    vectors, table = (torch.randn(n, width, generator=draw) for n in (rows, words))
    bias, weight = torch.randn(words, generator=draw), torch.rand(rows, generator=draw)
    return size * vectors, table, bias, torch.randint(words, (rows,), generator=draw), weight


def exact(vectors, table, bias, targets, weight):
    leaves = [each.double().requires_grad_() for each in (vectors, table, bias)]
    loss = F.cross_entropy(leaves[0] @ leaves[1].T + leaves[2], targets, reduction="none")
    return loss.detach(), torch.autograd.grad((loss * weight).sum(), leaves)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


SHAPES = [(1, 2, 1), (5, 7, 3), (16, 6, 16), (17, 400, 33), (40, 3001, 17), (320, 130, 96)]


@pytest.mark.usefixtures("powers")
@pytest.mark.parametrize("shape", SHAPES)
def test_loss_and_gradients_are_autograds_on_odd_sizes(shape) -> None:
    vectors, table, bias, targets, weight = problem(*shape)
    expected, gradients = exact(vectors, table, bias, targets, weight)
    into = (torch.ones_like(table), torch.ones_like(bias))
    assert softmax.supports(torch.float32, table, bias, *into)
    loss, gradient = exact_softmax.full_softmax(vectors, table, bias, targets, weight, into, 2.0)
    close(loss, expected)
    for found, wanted in zip((gradient, into[0] - 1, into[1] - 1), gradients, strict=True):
        close(found / 2 if found is not gradient else found, wanted)


@pytest.mark.usefixtures("powers")
@pytest.mark.parametrize("parts", ["table", "bias", "neither", "no bias"])
def test_it_may_step_on_its_own_table_and_on_parts_of_it(parts: str) -> None:
    vectors, table, bias, targets, weight = problem(17, 400, 33)
    if parts == "no bias":
        bias = torch.zeros_like(bias)
    expected, gradients = exact(vectors, table, bias, targets, weight)
    stepped = [table.double() - 0.3 * gradients[1], bias.double() - 0.3 * gradients[2]]
    into = (table if parts != "bias" else None, bias if parts not in ("table", "no bias") else None)
    into = (None, None) if parts == "neither" else into
    held = None if parts == "no bias" else bias
    loss, gradient = exact_softmax.full_softmax(vectors, table, held, targets, weight, into, -0.3)
    close(loss, expected)
    close(gradient, gradients[0])
    for found, wanted in zip(into, stepped, strict=True):
        if found is not None:
            close(found, wanted)


def test_scores_beyond_the_range_of_powers_are_shifted() -> None:
    vectors, table, bias, targets, weight = problem(17, 400, 33, size=50.0)
    expected, gradients = exact(vectors, table, bias, targets, weight)
    into = (torch.zeros_like(table), torch.zeros_like(bias))
    loss, gradient = exact_softmax.full_softmax(vectors, table, bias, targets, weight, into)
    close(loss, expected)
    close(gradient, gradients[0])
    torch.testing.assert_close(into[0].double(), gradients[1], rtol=1e-3, atol=1e-3)
    huge, _ = exact_softmax.full_softmax(vectors, table, bias + 1e30, targets, weight, into)
    assert huge.isfinite().all()


def test_nan_is_seen_by_the_rows_that_it_reaches() -> None:
    vectors, table, bias, targets, weight = problem(17, 400, 33)
    vectors[3, 0] = torch.nan
    loss, gradient = exact_softmax.full_softmax(vectors, table, bias, targets, weight)
    assert loss[3].isnan()
    assert gradient[3].isnan().all()
    assert loss[:3].isfinite().all()


def test_a_row_has_the_same_bits_beside_any_others() -> None:
    vectors, table, bias, targets, weight = problem(40, 3001, 33)
    loss, gradient = exact_softmax.full_softmax(vectors, table, bias, targets, weight)
    for rows in (slice(0, 1), slice(7, 30)):
        part = (vectors[rows], table, bias, targets[rows], weight[rows])
        alone, own = exact_softmax.full_softmax(*part)
        assert torch.equal(alone, loss[rows])
        assert torch.equal(own, gradient[rows])


@pytest.fixture
def low(monkeypatch) -> None:
    """The kernels' bfloat16, by the processor's instruction or by float32's products."""
    monkeypatch.setattr(products, "has_bfloat16", lambda: True)


def in_bfloat16(vectors, table, bias, targets, weight):
    """The same in double precision, rounded where the kernel rounds: losses and gradients."""
    columns = (vectors * softmax.LOG2_E).bfloat16().double()
    scores = columns @ table.bfloat16().double().T + bias.double() * softmax.LOG2_E
    powers = scores.exp2()
    total = powers.sum(1, keepdim=True)
    loss = total.squeeze(1).log() - (vectors * table[targets]).sum(1) - bias[targets]
    target, share = F.one_hot(targets, len(table)), weight.unsqueeze(1) / total
    rounded = powers.float().bfloat16().double()
    scaled = (vectors * share).float().bfloat16().double()
    by_vectors = (
        share * (rounded @ table.bfloat16().double()) - weight.unsqueeze(1) * table[targets]
    )
    by_table = rounded.T @ scaled - target.double().T @ (weight.unsqueeze(1) * vectors).double()
    by_bias = rounded.T @ share.squeeze(1) - target.double().T @ weight.double()
    return loss, (by_vectors, by_table, by_bias)


@pytest.mark.usefixtures("low", "powers")
@pytest.mark.parametrize("shape", [*SHAPES, (33, 301, 7)])
def test_bfloat16_rounds_operands_and_powers_and_nothing_else(shape) -> None:
    given = problem(*shape, size=0.3)
    vectors, table, bias, targets, weight = given
    expected, gradients = in_bfloat16(*given)
    into = (table.clone(), bias.clone())
    args = vectors, into[0], into[1], targets, weight, into, -0.5, None, torch.bfloat16
    loss, gradient = exact_softmax.full_softmax(*args)
    close(loss, expected.float().double())
    # A number within float32's rounding of the middle between two of 16 bits may take the other.
    largest = max(gradients[0].abs().max().item(), 1.0)
    torch.testing.assert_close(gradient.double(), gradients[0], rtol=0, atol=2e-3 * largest)
    for found, held, wanted in zip(into, (table, bias), gradients[1:], strict=True):
        error = (found - held).double() / -0.5 - wanted
        assert error.norm() <= 1e-3 * wanted.norm() + 1e-4


@pytest.mark.usefixtures("low")
def test_in_bfloat16_too_a_row_has_the_same_bits_and_large_scores_are_shifted() -> None:
    vectors, table, bias, targets, weight = problem(41, 301, 33)
    more = (None, None), 1.0, None, torch.bfloat16
    loss, gradient = exact_softmax.full_softmax(vectors, table, bias, targets, weight, *more)
    part = slice(7, 30)
    given = vectors[part], table, bias, targets[part], weight[part]
    alone, own = exact_softmax.full_softmax(*given, *more)
    assert torch.equal(alone, loss[part])
    assert torch.equal(own, gradient[part])
    into = torch.zeros_like(table), torch.zeros_like(bias)
    args = vectors, table, bias + 1e30, targets, weight, into, 1.0, None, torch.bfloat16
    huge, _ = exact_softmax.full_softmax(*args)
    assert huge.isfinite().all()
    assert all(each.isfinite().all() for each in into), "rows that are not there may be infinite"


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_without_the_instruction_torch_makes_bfloat16s_softmax(precision, monkeypatch) -> None:
    monkeypatch.setattr(products, "has_bfloat16", lambda: False)
    assert softmax.supports(precision, torch.zeros(3, 2)) == (precision == torch.float32)
