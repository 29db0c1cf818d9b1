"""One step of central training: Adam on the mean loss of a batch of windows.

Legend: B windows of a batch, T tokens of a window, N = B · T, D width of an embedding row, P width
of the hidden vectors, C candidates, V words.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from pfl_lm.models import exact_softmax, losses
from pfl_lm.models.models import Parameters, hidden
from pfl_lm.models.slopes import along
from pfl_lm.run.pretrain_recipe import Pretraining
from pfl_lm.streams import stream
from pfl_lm.text.population import PAD_ID


class Trainer:
    """Adam on one model; gradients of the word tables are summed into dense buffers by hand."""

    def __init__(
        self, recipe: Pretraining, parameters: Parameters, unigram: np.ndarray, steps: int
    ) -> None:
        self.steps = steps
        self.recipe, self.parameters, self.unigram = recipe, parameters, unigram
        self.tables = ("embedding", "output", "output_bias")
        self.dense = [value for name, value in parameters.items() if name not in self.tables]
        for value in self.dense:
            value.requires_grad_(True)
        for name in self.tables:
            if name in parameters:
                parameters[name].grad = torch.zeros_like(parameters[name])
        self.adam = torch.optim.Adam(
            parameters.values(), lr=recipe.learning_rate, betas=(0.9, 0.99), fused=True
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.adam, self._rate)

    def _rate(self, step: int) -> float:
        warm = max(1, self.steps // 50)
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.steps)))

    def step(self, number: int, windows: np.ndarray) -> float:
        """Take one step on int64[B, T + 1] and return the mean loss per predicted word."""
        spec, parameters = self.recipe.model, self.parameters
        self._forget_gradients()
        batch = torch.from_numpy(windows)
        inputs, targets = batch[:, :-1], batch[:, 1:].reshape(-1)  # (B, T), (N,)
        embedded = parameters["embedding"][inputs].unsqueeze(0).requires_grad_(True)
        vectors = hidden(spec, parameters, embedded)  # (1, B, T, P)
        valid = (targets != PAD_ID).float()
        weight = valid / valid.sum()  # (N,)
        flat = vectors.detach().reshape(len(targets), -1)
        loss, gradient = self._loss(number, flat, targets, weight)
        along([vectors], [gradient]).backward()
        assert embedded.grad is not None
        table = parameters["embedding"].grad
        assert table is not None
        table.index_add_(0, inputs.reshape(-1), embedded.grad.reshape(-1, table.shape[1]))
        torch.nn.utils.clip_grad_norm_(self.dense, self.recipe.gradient_clip)
        self.adam.step()
        self.schedule.step()
        return float((loss * weight).sum())

    def _forget_gradients(self) -> None:
        for value in self.parameters.values():
            if value.grad is not None:
                value.grad.zero_()

    def _loss(
        self, number: int, vectors: torch.Tensor, targets: torch.Tensor, weight: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss (N,) and its weighted gradient by the vectors (N, P); tables' gradients added."""
        table = self.parameters[self.recipe.model.output_table]
        bias = self.parameters.get("output_bias")
        into = (table.grad, None if bias is None else bias.grad)
        if self.recipe.loss == "softmax":
            return exact_softmax.full_softmax(vectors, table, bias, targets, weight, into)
        words, log_weight = self._candidates(number)
        scores = vectors @ table[words].mT  # (N, C)
        own = (vectors * table[targets]).sum(1)
        if bias is not None:
            scores += bias[words]
            own = own + bias[targets]
        hits = torch.nonzero((targets.unsqueeze(1) == words).view(-1)).squeeze(1)
        loss, d_own, d_scores = losses.sampled_softmax(
            own.unsqueeze(0), scores.unsqueeze(0), log_weight, hits
        )
        if self.recipe.self_normalise:
            # log Z is the loss + the target's score; its gradient is the softmax itself.
            push = 1 + 2 * self.recipe.self_normalise * (loss + own)  # (1, N)
            d_own, d_scores = (d_own + 1) * push - 1, d_scores * push.unsqueeze(-1)
        d_own, d_scores = d_own[0] * weight, d_scores[0] * weight.unsqueeze(1)
        assert into[0] is not None
        into[0].index_add_(0, words, d_scores.mT @ vectors)
        into[0].index_add_(0, targets, d_own.unsqueeze(1) * vectors)
        if into[1] is not None:
            into[1].index_add_(0, words, d_scores.sum(0))
            into[1].index_add_(0, targets, d_own)
        return loss[0], d_scores @ table[words] + d_own.unsqueeze(1) * table[targets]

    def _candidates(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        draw = losses.draw_for_softmax(
            self.recipe.candidates, np.arange(len(self.unigram)), None, self.unigram,
            stream(self.recipe.seed, "candidates", number),
        )  # fmt: skip
        return torch.from_numpy(draw.words), torch.from_numpy(draw.log_weight)
