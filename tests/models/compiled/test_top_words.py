"""All words' sum and the three best: the C kernel against torch over stored scores."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pfl_lm import native
from pfl_lm.models.compiled.top_words import rank, supports


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    if native.load("top_words") is None or native.load("products") is None:
        pytest.skip("no C kernels: no compiler, or PFL_LM_NATIVE=0")
    yield
    torch.set_num_threads(threads)


def context(rows, words, width, seed=0, scale=1.0):
    draw = torch.Generator().manual_seed(seed)
    states = torch.randn(rows, width, generator=draw) * scale
    table, bias = torch.randn(words, width, generator=draw), torch.randn(words, generator=draw)
    silent = torch.rand(words, generator=draw) < 0.2
    return states, table, bias, silent


def plain(states, table, bias, silent):
    """The same in float64, with every score stored."""
    scores = states.double() @ table.double().mT + (0 if bias is None else bias.double())
    total = scores.logsumexp(1)
    order = scores.masked_fill(silent, -torch.inf).argsort(dim=1, descending=True, stable=True)
    best = torch.full((len(states), 3), -1)
    known = min(3, int((~silent).sum()))
    best[:, :known] = order[:, :known]
    return total, best


@pytest.mark.parametrize("with_bias", [True, False])
@given(
    rows=st.sampled_from([1, 7, 15, 16, 17, 33]),
    words=st.sampled_from([1, 2, 5, 6, 7, 149, 150, 151, 457]),
    width=st.sampled_from([1, 2, 3, 24, 97]),
    seed=st.integers(0, 50),
)
def test_odd_sizes(with_bias, rows, words, width, seed):
    states, table, bias, silent = context(rows, words, width, seed)
    bias = bias if with_bias else None
    assert supports(states, table, bias)
    total, best = rank(states, table, bias, silent)
    wanted_total, wanted = plain(states, table, bias, silent)
    assert torch.allclose(total, wanted_total, atol=1e-5, rtol=2e-6)  # of 97 products, ± 12
    differ = (best != wanted).any(1)
    for row in torch.nonzero(differ).squeeze(1).tolist():  # only where scores are all but equal
        scores = states[row].double() @ table.double().mT + (0 if bias is None else bias.double())
        assert torch.allclose(scores[best[row]], scores[wanted[row]], atol=1e-5)


def test_of_equal_scores_the_first_word_leads():
    states, table = torch.ones(20, 3), torch.zeros(200, 3)
    silent = torch.zeros(200, dtype=torch.bool)
    silent[1] = True
    assert rank(states, table, None, silent)[1].tolist() == [[0, 2, 3]] * 20
    table[199] = 1.0
    assert rank(states, table, None, silent)[1].tolist() == [[199, 0, 2]] * 20


def test_a_rows_bits_are_the_same_beside_any_others():
    states, table, bias, silent = context(50, 1001, 31)
    together = rank(states, table, bias, silent)
    for part in (slice(0, 1), slice(3, 40), slice(49, 50)):
        for whole, alone in zip(together, rank(states[part], table, bias, silent), strict=True):
            assert torch.equal(whole[part], alone)


@pytest.mark.parametrize(("value", "total"), [(torch.nan, torch.nan), (200.0, torch.inf)])
def test_what_float32_cannot_add_shows(value, total):
    states, table, bias, silent = context(20, 300, 8)
    bias[170] = value
    found, best = rank(states, table, bias, silent)
    assert torch.equal(found, torch.full((20,), total).double()) or found.isnan().all()
    assert found.isnan().all() == (total != total)
    if total == total and not silent[170]:
        assert (best[:, 0] == 170).all()
