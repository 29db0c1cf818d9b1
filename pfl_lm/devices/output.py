"""The output layer of K devices: score words against hidden vectors, take the loss, descend.

Which words are scored: all V for the exact softmax when every row travels (or none does), else
the target and the candidates of the step. (N, V) is never made for sampled softmax or NCE.

Rows of a partial payload. R is the round's draw of rows, π(w) the probability that w is in R, κ(w)
that a row of R is a candidate (1 for the softmax over the rows), t the target. The softmax's
partition function Z is estimated by

    Ẑ = exp s(t) + Σ_{c ≠ t, c a candidate} exp s(c) / (π(c) κ(c)),

and log Ẑ − s(t) is the loss. Its slope by a candidate's score, d(c) = exp s(c) / (π(c) κ(c) Ẑ), is
needed twice, and the two are not averaged over the same draws:

* by the hidden vector, Σ d(c) · row(c): an average over ALL draws of R, in which c is a candidate
  with probability π κ. Weighted by 1 / (π κ), the sum estimates Σ_w p(w) · row(w) over all words.
* by c's own row and bias: a row moves only in a round in which it travels, so what counts is the
  average GIVEN that c is in R. Then c is a candidate with probability κ, not π κ, and the slope
  must be π(c) d(c) = exp s(c) / (κ(c) Ẑ), whose average is exp s(c) / Ẑ. A positive,
  exp s(t) / Ẑ − 1, is not drawn at all: where the target's row travels it counts as it is.

The mean of what a device's text adds to a row, given that the row travels, is then the exact
softmax's gradient, up to the bias of the ratio 1 / Ẑ for 1 / Z: relative to a candidate's slope it
is of the order of p(w) / π(w) and Var(Ẑ) / Z². With d(c) itself a row would be pushed down
1 / π(c) times for every time that its positives lift it. What reaches a row of the embedding as an
INPUT comes through the hidden vector and is not multiplied by π, tied or not.

Noise-contrastive estimation has no such factor: its noise words are drawn from R and their slopes
are not divided by π, so in a row negatives and positives meet as they are. Given that w travels,
row w gets λ / (exp s(w) + λ) · (exp s(w) − [w = t]) with λ = ν p(w): the softmax's gradient of a
normalised model as ν → ∞. The hidden vector's gradient is the sum over R alone, in which a word
takes part with probability π: another weighting of words with the same optimum.

The mean is the exact softmax's with ``outside = "frozen"`` only: "skip" leaves targets out and
"unk" replaces words, so that the text itself is another one in each round.

Source: dividing by inclusion probabilities, Horvitz and Thompson 1952 (JASA 47(260)).

Legend: A devices at work, N rows of a device, P width, V words, C candidates, k payload rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pfl_lm.devices import candidates as compiled
from pfl_lm.devices.local_losses import LOSSES
from pfl_lm.devices.tables import Table
from pfl_lm.devices.task import Task
from pfl_lm.models import dense, exact_softmax
from pfl_lm.models.losses import Candidates
from pfl_lm.streams import stream


class Centre(NamedTuple):
    """The candidates' rows at the point around which a loss is differentiated by differences."""

    rows: Tensor  # (A, C, P)
    bias: Tensor | None  # (A, C)


class Objective:
    """The training objective of a round, the same for every device.

    With only some rows in the payload, the candidates of every loss are drawn from them. What the
    softmax losses estimate stays the likelihood over all V words: each candidate counts with the
    inverse of the probability that the draws of rows and candidates include it.
    """

    def __init__(self, task: Task) -> None:
        payload, training, unigram = task.payload, task.training, task.unigram
        self.loss, self.negatives = LOSSES[training.loss], training.negatives
        self.unigram, self.precision = unigram, getattr(torch, training.precision)
        self._seed, self._round = task.seed, task.round
        self._buffer: tuple[int, Tensor] | None = None  # rows that it is for, and it
        self.words: np.ndarray = np.arange(task.spec.vocabulary_size)
        self.inclusion: np.ndarray | None = None
        if payload.rows is not None and payload.some_rows:
            self.words, self.inclusion = payload.rows, payload.inclusion
        self.exact = self.loss.exact(payload.some_rows)
        self.skip = payload.outside == "skip" and payload.some_rows
        self.log_noise = self.loss.log_noise(self.words, unigram, self.negatives)

    def draw(self, step: int) -> Candidates | None:
        """Draw a step's candidates from a public stream; None for the exact softmax."""
        if self.exact:
            return None
        draw = stream(self._seed, "candidates", self._round, step)
        return self.loss.draw(self.negatives, self.words, self.inclusion, self.unigram, draw)

    def __call__(
        self,
        vectors: Tensor,
        targets: Tensor,
        weight: Tensor,
        table: Table,
        bias: Table | None,
        rate: float,
        candidates: Candidates | None,
        centre: Centre | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return losses (A, N), 0 where weight is, and the gradient by the vectors (A, N, P).

        Args:
            vectors: (A, N, P); targets: int64 (A, N).
            weight: (A, N), each row's share in its device's loss.
            table, bias: the output rows; ``rate`` times their gradient is added to them.
            centre: see :meth:`centre`; losses are then those of candidates moved by π of what
                ``table`` and ``bias`` moved.
        """
        if self.skip and table.slots is not None:
            weight = weight * (table.slots[targets] >= 0)
        if candidates is None:
            loss, gradient = self._exact(vectors, targets, weight, table, bias, rate)
        elif self.loss.weighted and self.loss.plain and compiled.supports(vectors, table, bias):
            loss, gradient = compiled.contrast(
                vectors, targets, weight, table, bias, rate, candidates, centre
            )
        else:
            loss, gradient = self._candidates(
                vectors, targets, weight, table, bias, rate, candidates, centre
            )
        return torch.where(weight > 0, loss, 0.0), gradient

    def centre(
        self, table: Table, bias: Table | None, candidates: Candidates | None
    ) -> Centre | None:
        """Read the candidates' rows before they are moved to take a difference of losses.

        The difference of two losses knows one slope by a row, not the two of which only one is to
        be multiplied by π. A candidate's score is therefore taken with the row centre + π · (row −
        centre), while the target's own score and the words that are read move whole. At the
        centre this is the loss itself, its derivative by a candidate's row is π times the loss's
        and every other derivative is the loss's: what goes into the rows in training by gradients.

        Returns:
            None where no candidate's slope is multiplied by anything.
        """
        if candidates is None or candidates.inclusion is None or table.now is None:
            return None
        words = torch.from_numpy(candidates.words).to(table.frozen.device)
        return Centre(
            table.columns(words).contiguous(),
            None if bias is None else bias.columns(words).contiguous(),
        )

    def _candidates(
        self,
        vectors: Tensor,
        targets: Tensor,
        weight: Tensor,
        table: Table,
        bias: Table | None,
        rate: float,
        candidates: Candidates,
        centre: Centre | None,
    ) -> tuple[Tensor, Tensor]:
        words = torch.from_numpy(candidates.words).to(vectors.device)
        inclusion = None
        if candidates.inclusion is not None:
            inclusion = torch.from_numpy(candidates.inclusion).to(vectors.device)
        columns, own = table.columns(words), table.read(targets)  # (A, C, P), (A, N, P)
        biases = None if bias is None else bias.columns(words)
        if centre is not None and inclusion is not None:
            columns = torch.lerp(centre.rows, columns, inclusion.unsqueeze(1))
            if biases is not None and centre.bias is not None:
                biases = torch.lerp(centre.bias, biases, inclusion)
        target = (vectors * own).sum(-1)  # (A, N)
        scores = dense.times(vectors, columns, biases)
        if bias is not None:
            target = target + bias.read(targets)
        slopes = self.loss.slopes(target, targets, scores, candidates, self.log_noise)
        _check_slopes(type(self.loss).__name__, slopes, (target, target, scores))
        loss, d_target, d_scores = slopes
        d_target, d_scores = d_target.mul_(weight), d_scores.mul_(weight.unsqueeze(-1))
        gradient = dense.times_back(d_scores, columns)
        gradient.addcmul_(d_target.unsqueeze(-1), own)
        if inclusion is not None:
            d_scores = d_scores.mul_(inclusion)  # from here on it goes into rows and bias
        if table.grad_out is not None:
            table.add_columns(words, torch.bmm(d_scores.mT, vectors), rate)
            table.add(targets, d_target.unsqueeze(-1) * vectors, rate)
        if bias is not None and bias.grad_out is not None:
            bias.add_columns(words, d_scores.sum(1), rate)
            bias.add(targets, d_target, rate)
        return loss, gradient

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
            loss, gradient = exact_softmax.full_softmax(
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
            loss[k], gradient[k] = exact_softmax.full_softmax(
                vectors[k],
                table.now[k],
                None if bias is None or bias.now is None else bias.now[k],
                targets[k],
                weight[k],
                (
                    None if table.grad_out is None else table.grad_out[k],
                    None if bias is None or bias.grad_out is None else bias.grad_out[k],
                ),
                rate,
                scratch,
                self.precision,
            )
        return loss, gradient

    def _scratch(self, vectors: Tensor, table: Tensor) -> Tensor:
        """One buffer for all devices and steps; made anew when the number of rows changes."""
        if self._buffer is None or self._buffer[0] != len(vectors):
            made = exact_softmax.scratch_for(vectors, table, self.precision)
            self._buffer = (len(vectors), made)
        return self._buffer[1]


def _check_slopes(name: str, slopes: Sequence[object], like: Sequence[Tensor]) -> None:
    """Refuse what a loss of one's own returns in another shape: it would be stretched to fit."""
    expected = [(tuple(x.shape), x.dtype) for x in like]
    found = [(tuple(x.shape), x.dtype) if isinstance(x, Tensor) else type(x) for x in slopes]
    if found != expected:
        raise ValueError(
            f"the loss {name}: slopes must return losses (A, N), slopes by the targets' scores "
            f"(A, N) and by all scores (A, N, C), here {expected}; it returned {found}"
        )
