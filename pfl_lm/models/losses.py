"""Next-word losses with hand-derived gradients, for K devices at once.

Three objectives, one optimum: scores s(w) that are log-probabilities of the next word.

* the exact softmax over V words, in a module of its own (``exact_softmax``);
* :func:`sampled_softmax`, the softmax over a target and a few candidates, each candidate's score
  corrected by the log of the probability with which it was drawn.
* :func:`noise_contrastive`, one logistic regression for each word: text against noise.

Legend: K devices, N rows of a device (batch · time), P width of hidden vectors, V words,
C candidates (shared by all devices in a step; a public draw).

Source: sampled softmax, Bengio and Senécal 2008, "Adaptive importance sampling to accelerate
training of a neural probabilistic language model"; NCE, Gutmann and Hyvärinen 2012 (JMLR 13),
equations 2 to 8, and for language models Mnih and Teh 2012 (arXiv:1206.6426), equations 8 to 12.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Candidates:
    """Words that stand in for the vocabulary in one step.

    Args:
        words: int64[C], distinct.
        log_weight: float32[C]. Sampled softmax: −log of each word's probability of being here.
            NCE: log of the expected number of noise words, log(ν p_noise(w)).
        counts: float32[C], NCE only: how often the noise gave the word.
        inclusion: float32[C], the probability with which the payload includes the word's row: the
            factor on a candidate's slope where it goes into its row and bias
            (``devices/output``). None: 1.
    """

    words: np.ndarray
    log_weight: np.ndarray
    counts: np.ndarray
    inclusion: np.ndarray | None = None


def draw_for_softmax(
    count: int,
    words: np.ndarray,
    inclusion: np.ndarray | None,
    unigram: np.ndarray,
    draw: np.random.Generator,
) -> Candidates:
    """Draw ``count`` of ``words`` without replacement, likelier the more frequent.

    Args:
        words: int64[k], the round's rows, or all words.
        inclusion: float64[k], probability with which each was put among ``words``; None: 1.
        unigram: float64[V].

    The draw is that of the payload's rows: a word of probability q arrives at an Exp(q) time, the
    earliest are taken, and given the first time missed, τ, each was taken with probability
    1 − exp(−q τ). A sum over candidates divided by these probabilities is unbiased.
    """
    travels = np.ones(len(words)) if inclusion is None else inclusion
    known = travels
    if count < len(words):
        rate = unigram[words]
        arrival = draw.exponential(size=len(words)) / rate
        order = np.argpartition(arrival, count)
        missed = arrival[order[count]]
        taken = np.sort(order[:count])
        words, travels = words[taken], travels[taken]
        known = travels * -np.expm1(-rate[taken] * missed)
    return Candidates(
        words,
        -np.log(known).astype(np.float32),
        np.ones(len(words), dtype=np.float32),
        None if inclusion is None else travels.astype(np.float32),
    )


def draw_for_nce(
    count: int, words: np.ndarray, unigram: np.ndarray, draw: np.random.Generator
) -> Candidates:
    """Draw ``count`` noise words from the unigram over ``words``, independently, with replacement.

    With ``count`` at least as large as ``words``, nothing is drawn: every word takes part with
    its expected count, which is the noise of infinitely many draws at the same ν.
    """
    noise = unigram[words] / unigram[words].sum()
    if count >= len(words):
        chosen, counts = np.arange(len(words)), count * noise
    else:
        chosen, counts = np.unique(
            np.searchsorted(np.cumsum(noise)[:-1], draw.random(count), side="right"),
            return_counts=True,
        )
    expected = np.log(count * noise[chosen])
    return Candidates(words[chosen], expected.astype(np.float32), counts.astype(np.float32))


def sampled_softmax(
    target: Tensor, scores: Tensor, log_weight: Tensor, hits: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax cross-entropy against importance-weighted candidates.

    Loss: log(exp s(t) + Σ_{c ≠ t} exp s(c) / π(c)) − s(t), with π(c) the probability of drawing c.
    The sum in the logarithm is an unbiased estimate of the partition function; the loss and its
    gradient are consistent, with a bias that falls as 1/C. All words, π = 1: the full softmax.

    Args:
        target: (K, N) scores of the targets.
        scores: (K, N, C) scores of the candidates; overwritten by their gradient.
        log_weight: (C,) −log π.
        hits: (h,) flat positions in ``scores`` where the candidate is the row's own target.

    Returns:
        Loss (K, N); its gradient by the target's score (K, N); by the candidates' scores.
    """
    scores.add_(log_weight).view(-1)[hits] = -torch.inf
    top = torch.maximum(scores.amax(-1), target)  # (K, N)
    scores.sub_(top.unsqueeze(-1)).exp_()
    own = torch.exp(target - top)
    total = scores.sum(-1).add_(own)
    loss = total.log() + top - target
    return loss, own / total - 1, scores.div_(total.unsqueeze(-1))


def noise_contrastive(
    target: Tensor,
    target_log_noise: Tensor,
    scores: Tensor,
    log_noise: Tensor,
    counts: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Tell the target from ν noise words by their scores alone.

    Loss: −log σ(s(t) − log ν p(t)) − Σ_c n(c) log(1 − σ(s(c) − log ν p(c))) with p the noise
    distribution and n(c) how often it gave c. Each word's optimum is its own: s(w) = log p(w | x),
    normalised without a partition function, whichever other words take part; so rows may change
    every round. As ν → ∞ over all words, the gradient of a normalised model tends to the
    softmax's.

    A target outside the noise's support has ``target_log_noise`` = −inf: it takes no part (a
    positive that can never be a negative would grow without bound), its row's noise words do.

    Args:
        target: (K, N) scores of the targets.
        target_log_noise: (K, N) log ν p(t), or −inf.
        scores: (K, N, C) scores of the noise words; overwritten by their gradient.
        log_noise: (C,) log ν p(c).
        counts: (C,) n(c).

    Returns:
        Loss (K, N); its gradient by the target's score (K, N); by the noise words' scores.
    """
    part = torch.isfinite(target_log_noise)
    margin = torch.where(part, target - target_log_noise, torch.inf)
    scores.sub_(log_noise)
    loss = F.softplus(-margin) + F.softplus(scores) @ counts
    return loss, -torch.sigmoid(-margin), scores.sigmoid_().mul_(counts)
