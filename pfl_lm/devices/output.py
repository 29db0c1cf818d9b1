"""The output layer of K devices: score words against hidden vectors, take the loss, descend.

Which words are scored: all V for the exact softmax when every row travels (or none does), else
the target and the candidates of the step. (N, V) is never made for sampled softmax or NCE.

Legend: A devices at work, N rows of a device, P width, V words, C candidates, k payload rows.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pfl_lm.devices import candidates as compiled
from pfl_lm.devices.tables import Table
from pfl_lm.devices.task import Task
from pfl_lm.language import dense, losses
from pfl_lm.language.losses import Candidates
from pfl_lm.streams import stream


class Objective:
    """The training objective of a round, the same for every device.

    With only some rows in the payload, the candidates of every loss are drawn from them. What the
    loss estimates stays the likelihood over all V words: each candidate counts with the inverse
    of the probability that the draws of rows and candidates include it.
    """

    def __init__(self, task: Task) -> None:
        payload, training, unigram = task.payload, task.training, task.unigram
        loss, negatives, words = training.loss, training.negatives, task.spec.vocabulary_size
        self.loss, self.unigram, self.precision = loss, unigram, training.dtype
        self._seed, self._round = task.seed, task.round
        self._buffer: tuple[int, Tensor] | None = None  # rows that it is for, and it
        self.words: np.ndarray = np.arange(words)
        self.inclusion: np.ndarray | None = None
        some = payload.rows is not None and len(payload.rows) > 0
        if payload.rows is not None and some:
            self.words, self.inclusion = payload.rows, payload.inclusion
        self.exact = loss == "softmax" and not some
        self.negatives = len(self.words) if loss == "softmax" else negatives
        self.skip = payload.outside == "skip" and some
        if loss == "nce":
            log_noise = np.full(words, -np.inf, np.float32)
            noise = unigram[self.words] / unigram[self.words].sum()
            log_noise[self.words] = np.log(negatives * noise)
            self.log_noise = torch.from_numpy(log_noise)  # (V,): log ν p, −inf outside the rows

    def draw(self, step: int) -> Candidates | None:
        """Draw a step's candidates from a public stream; None for the exact softmax."""
        if self.exact:
            return None
        draw = stream(self._seed, "candidates", self._round, step)
        if self.loss == "nce":
            return losses.draw_for_nce(self.negatives, self.words, self.unigram, draw)
        return losses.draw_for_softmax(
            self.negatives, self.words, self.inclusion, self.unigram, draw
        )

    def __call__(
        self,
        vectors: Tensor,
        targets: Tensor,
        weight: Tensor,
        table: Table,
        bias: Table | None,
        rate: float,
        candidates: Candidates | None,
    ) -> tuple[Tensor, Tensor]:
        """Return losses (A, N), 0 where weight is, and the gradient by the vectors (A, N, P).

        Args:
            vectors: (A, N, P); targets: int64 (A, N).
            weight: (A, N), each row's share in its device's loss.
            table, bias: the output rows; ``rate`` times their gradient is added to them.
        """
        if self.skip and table.slots is not None:
            weight = weight * (table.slots[targets] >= 0)
        if candidates is None:
            loss, gradient = self._exact(vectors, targets, weight, table, bias, rate)
        elif self.loss != "nce" and compiled.suits(vectors, table, bias):
            loss, gradient = compiled.contrast(
                vectors, targets, weight, table, bias, rate, candidates
            )
        else:
            loss, gradient = self._candidates(
                vectors, targets, weight, table, bias, rate, candidates
            )
        return torch.where(weight > 0, loss, 0.0), gradient

    def _candidates(
        self,
        vectors: Tensor,
        targets: Tensor,
        weight: Tensor,
        table: Table,
        bias: Table | None,
        rate: float,
        candidates: Candidates,
    ) -> tuple[Tensor, Tensor]:
        words = torch.from_numpy(candidates.words).to(vectors.device)
        columns, own = table.columns(words), table.read(targets)  # (A, C, P), (A, N, P)
        target = (vectors * own).sum(-1)  # (A, N)
        scores = dense.times(vectors, columns, None if bias is None else bias.columns(words))
        if bias is not None:
            target = target + bias.read(targets)
        loss, d_target, d_scores = self._contrast(target, targets, scores, words, candidates)
        d_target, d_scores = d_target.mul_(weight), d_scores.mul_(weight.unsqueeze(-1))
        gradient = dense.times_back(d_scores, columns)
        gradient.addcmul_(d_target.unsqueeze(-1), own)
        if table.into is not None:
            table.add_columns(words, torch.bmm(d_scores.mT, vectors), rate)
            table.add(targets, d_target.unsqueeze(-1) * vectors, rate)
        if bias is not None and bias.into is not None:
            bias.add_columns(words, d_scores.sum(1), rate)
            bias.add(targets, d_target, rate)
        return loss, gradient

    def _contrast(
        self,
        target: Tensor,
        targets: Tensor,
        scores: Tensor,
        words: Tensor,
        candidates: Candidates,
    ) -> tuple[Tensor, Tensor, Tensor]:
        log_weight = torch.from_numpy(candidates.log_weight).to(scores.device)
        if self.loss == "nce":
            counts = torch.from_numpy(candidates.counts).to(scores.device)
            return losses.noise_contrastive(
                target, self.log_noise.to(scores.device)[targets], scores, log_weight, counts
            )
        place = torch.searchsorted(words, targets).clamp_max_(len(words) - 1)  # (A, N)
        rows = torch.arange(targets.numel(), device=targets.device).view_as(targets)
        hits = (rows * len(words) + place)[words[place] == targets]
        return losses.sampled_softmax(target, scores, log_weight, hits)

    def _exact(
        self,
        vectors: Tensor,
        targets: Tensor,
        weight: Tensor,
        table: Table,
        bias: Table | None,
        rate: float,
    ) -> tuple[Tensor, Tensor]:
        """Exact softmax: device by device over their own tables, at once over a frozen one."""
        if table.now is None:
            loss, gradient = losses.full_softmax(
                vectors.flatten(0, 1),
                table.frozen,
                None if bias is None else bias.frozen,
                targets.flatten(),
                weight.flatten(),
                precision=self.precision,
            )
            return loss.view_as(weight), gradient.view_as(vectors)
        loss, gradient = torch.empty_like(weight), torch.empty_like(vectors)
        scratch = self._scratch(vectors[0], table.now[0])
        for k in range(len(vectors)):
            loss[k], gradient[k] = losses.full_softmax(
                vectors[k],
                table.now[k],
                None if bias is None or bias.now is None else bias.now[k],
                targets[k],
                weight[k],
                (
                    None if table.into is None else table.into[k],
                    None if bias is None or bias.into is None else bias.into[k],
                ),
                rate,
                scratch,
                self.precision,
            )
        return loss, gradient

    def _scratch(self, vectors: Tensor, table: Tensor) -> Tensor:
        """One buffer for all devices and steps; made anew when the number of rows changes."""
        if self._buffer is None or self._buffer[0] != len(vectors):
            made = losses.scratch_for(vectors, table, self.precision)
            self._buffer = (len(vectors), made)
        return self._buffer[1]
