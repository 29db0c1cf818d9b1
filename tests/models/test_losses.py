from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pfl_lm.models import exact_softmax, losses

V, P, N = 50, 6, 9
WORDS = np.arange(V)
UNIGRAM = np.random.default_rng(0).dirichlet(np.ones(V))


def problem(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    vectors = torch.randn(N, P, generator=draw, dtype=torch.float64)
    table = torch.randn(V, P, generator=draw, dtype=torch.float64)
    bias = torch.randn(V, generator=draw, dtype=torch.float64)
    targets = torch.randint(V, (N,), generator=draw)
    weight = torch.rand(N, generator=draw, dtype=torch.float64)
    weight[2] = 0.0
    return vectors, table, bias, targets, weight


def by_autograd(vectors, table, bias, targets, weight):
    leaves = [t.clone().requires_grad_() for t in (vectors, table, bias)]
    loss = F.cross_entropy(leaves[0] @ leaves[1].T + leaves[2], targets, reduction="none")
    return loss.detach(), torch.autograd.grad((loss * weight).sum(), leaves)


@pytest.fixture(params=["one block", "many blocks", "many blocks, made twice"])
def blocks(request, monkeypatch) -> None:
    if request.param != "one block":
        monkeypatch.setattr(exact_softmax, "BLOCK_BYTES", 0)
        monkeypatch.setattr(exact_softmax, "LEAST_BLOCK", 7)
    if request.param.endswith("twice"):
        monkeypatch.setattr(exact_softmax, "KEEP_BYTES", 0)


@pytest.mark.usefixtures("blocks")
def test_full_softmax_is_torchs() -> None:
    vectors, table, bias, targets, weight = problem()
    expected, gradients = by_autograd(vectors, table, bias, targets, weight)
    into = (torch.zeros_like(table), torch.zeros_like(bias))
    loss, gradient = exact_softmax.full_softmax(vectors, table, bias, targets, weight, into, 2.0)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, gradients[0])
    torch.testing.assert_close(into[0], 2 * gradients[1])
    torch.testing.assert_close(into[1], 2 * gradients[2])


@pytest.mark.usefixtures("blocks")
def test_full_softmax_may_step_on_its_own_table() -> None:
    vectors, table, bias, targets, weight = problem()
    _, gradients = by_autograd(vectors, table, bias, targets, weight)
    expected = table - 0.3 * gradients[1]
    _, gradient = exact_softmax.full_softmax(
        vectors, table, bias, targets, weight, (table, bias), -0.3
    )
    torch.testing.assert_close(table, expected)
    torch.testing.assert_close(gradient, gradients[0])


def test_full_softmax_survives_huge_scores() -> None:
    vectors, table, bias, targets, weight = problem()
    expected, _ = by_autograd(1e4 * vectors, table, bias, targets, weight)
    loss, gradient = exact_softmax.full_softmax(1e4 * vectors, table, bias, targets, weight)
    torch.testing.assert_close(loss, expected)
    assert gradient.isfinite().all()


def contrast(kind: str, candidates: losses.Candidates, scores: Tensor, targets: Tensor):
    """Loss and gradient by all V scores (N, V) of a candidate loss, in float64."""
    words = torch.from_numpy(candidates.words)
    weight = torch.from_numpy(candidates.log_weight).double()
    rows = torch.arange(len(targets))
    own, chosen = scores[rows, targets][None], scores[:, words][None].contiguous()
    if kind == "sampled":
        hit = (words == targets[:, None]).flatten().nonzero().squeeze(1)
        loss, d_own, d_chosen = losses.sampled_softmax(own, chosen, weight, hit)
    else:
        log_noise = torch.full((V,), -torch.inf, dtype=torch.float64)
        log_noise[words] = weight
        counts = torch.from_numpy(candidates.counts).double()
        loss, d_own, d_chosen = losses.noise_contrastive(
            own, log_noise[targets][None], chosen, weight, counts
        )
    gradient = torch.zeros_like(scores)
    gradient[:, words] += d_chosen[0]
    gradient[rows, targets] += d_own[0]
    return loss[0], gradient


def softmax_of(scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    loss = F.cross_entropy(scores, targets, reduction="none")
    return loss, scores.softmax(-1) - F.one_hot(targets, V)


def test_sampled_softmax_with_every_word_is_the_full_one() -> None:
    vectors, table, bias, targets, _ = problem()
    scores = vectors @ table.T + bias
    everything = losses.draw_for_softmax(V, WORDS, None, UNIGRAM, np.random.default_rng(0))
    loss, gradient = contrast("sampled", everything, scores, targets)
    expected, softmax = softmax_of(scores, targets)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, softmax)


def test_nce_with_every_word_tends_to_the_softmax_gradient() -> None:
    """Of a normalised model, as ν → ∞; the distance falls as 1/ν."""
    vectors, table, bias, targets, _ = problem()
    scores = torch.log_softmax(vectors @ table.T + bias, -1)
    _, softmax = softmax_of(scores, targets)
    distances = []
    for count in (10**3, 10**4, 10**5, 10**6):
        noise = losses.draw_for_nce(count, WORDS, UNIGRAM, np.random.default_rng(0))
        _, gradient = contrast("nce", noise, scores, targets)
        distances.append((gradient - softmax).abs().max().item())
    assert distances[-1] < 2e-2
    np.testing.assert_allclose(distances[2] / distances[3], 10, rtol=0.1)


def test_at_the_truth_every_expected_gradient_vanishes() -> None:
    """The three losses share one optimum: scores equal to log p(w). A wrong weight moves it."""
    truth = np.random.default_rng(1).dirichlet(np.ones(V))
    scores = torch.from_numpy(np.log(truth)).expand(V, V).clone()  # a row for each target
    share = torch.from_numpy(truth)[:, None]
    targets = torch.arange(V)
    _, softmax = softmax_of(scores, targets)
    assert (share * softmax).sum(0).abs().max() < 1e-12
    noise = losses.draw_for_nce(V, WORDS, UNIGRAM, np.random.default_rng(0))
    assert (share * contrast("nce", noise, scores, targets)[1]).sum(0).abs().max() < 1e-6
    wrong = losses.Candidates(noise.words, noise.log_weight + 0.1, noise.counts)
    assert (share * contrast("nce", wrong, scores, targets)[1]).sum(0).abs().max() > 1e-3


def test_nce_optimum_does_not_depend_on_the_rows_that_take_part() -> None:
    """With the noise over half of the words, the optimum of their scores is still log p(w)."""
    truth = np.random.default_rng(1).dirichlet(np.ones(V))
    scores = torch.from_numpy(np.log(truth)).expand(V, V).clone()
    half = losses.draw_for_nce(V, WORDS[::2], UNIGRAM, np.random.default_rng(0))
    _, gradient = contrast("nce", half, scores, torch.arange(V))
    assert (torch.from_numpy(truth)[:, None] * gradient).sum(0).abs().max() < 1e-6


@pytest.mark.parametrize("kind", ["sampled", "nce"])
def test_candidate_gradients_match_finite_differences(kind: str) -> None:
    vectors, table, bias, targets, _ = problem()
    draw = np.random.default_rng(3)
    candidates = (
        losses.draw_for_softmax(12, WORDS, None, UNIGRAM, draw)
        if kind == "sampled"
        else losses.draw_for_nce(12, WORDS, UNIGRAM, draw)
    )
    scores = vectors @ table.T + bias
    _, gradient = contrast(kind, candidates, scores, targets)
    nudge = torch.randn_like(scores)
    up, down = (contrast(kind, candidates, scores + e * nudge, targets)[0] for e in (1e-5, -1e-5))
    torch.testing.assert_close((up - down) / 2e-5, (gradient * nudge).sum(1), rtol=1e-6, atol=1e-6)


def test_sampled_partition_function_is_unbiased_over_rows_and_candidates() -> None:
    """Draw rows uniformly, candidates by the unigram: Σ e^s / π estimates Z; without π it fails."""
    scores = np.log(UNIGRAM) + 0.5 * np.random.default_rng(2).standard_normal(V)
    draw = np.random.default_rng(4)
    weighted, unweighted = [], []
    for _ in range(4000):
        rows = np.sort(draw.choice(V, 30, replace=False))
        drawn = losses.draw_for_softmax(10, rows, np.full(30, 30 / V), UNIGRAM, draw)
        weighted.append(np.exp(scores[drawn.words] + drawn.log_weight).sum())
        unweighted.append(np.exp(scores[drawn.words]).sum() * V / 10)
    error = np.std(weighted) / np.sqrt(len(weighted))
    total = np.exp(scores).sum()
    assert abs(np.mean(weighted) - total) < 4 * error
    assert abs(np.mean(unweighted) - total) > 8 * error


def test_noise_words_follow_the_unigram_over_the_rows() -> None:
    rows = np.array([3, 5, 8, 40])
    drawn = np.zeros(V)
    draw = np.random.default_rng(0)
    for _ in range(5000):
        noise = losses.draw_for_nce(3, rows, UNIGRAM, draw)
        drawn[noise.words] += noise.counts
        assert noise.counts.sum() == 3
    expected = UNIGRAM[rows] / UNIGRAM[rows].sum()
    np.testing.assert_allclose(drawn[rows] / 15000, expected, atol=4 * np.sqrt(0.25 / 15000))
    assert drawn.sum() == drawn[rows].sum()
    rates = 3 * UNIGRAM[noise.words] / UNIGRAM[rows].sum()
    np.testing.assert_allclose(np.exp(noise.log_weight), rates, rtol=1e-5)


def test_a_target_without_noise_takes_no_part_in_nce() -> None:
    scores, own = torch.randn(1, 1, 4), torch.ones(1, 1)
    expected = F.softplus(scores).sum(-1)
    loss, d_own, _ = losses.noise_contrastive(
        own, torch.full((1, 1), -torch.inf), scores, torch.zeros(4), torch.ones(4)
    )
    torch.testing.assert_close(loss, expected)
    assert d_own.item() == 0
