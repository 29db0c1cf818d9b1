"""The workloads' models as a torch user writes them, with modules from torch.nn."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

Parameters = dict[str, torch.Tensor]  # by the names that the workloads have for them


class LSTM(nn.Module):
    """Embedding → LSTM → projection → untied output."""

    def __init__(self, start: dict[str, np.ndarray]) -> None:
        super().__init__()
        vocabulary, width = start["embedding"].shape
        cells = start["layer0.recurrent"].shape[1]
        self.embedding = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, cells, batch_first=True)
        self.projection = nn.Linear(cells, width)
        self.output = nn.Linear(width, vocabulary)
        self.lstm.bias_hh_l0.requires_grad_(False)  # one bias for each gate, as elsewhere
        own = dict(self.lstm.named_parameters())
        pairs: Parameters = {
            "embedding": self.embedding.weight,
            "output": self.output.weight,
            "output_bias": self.output.bias,
            "layer0.input": own["weight_ih_l0"],
            "layer0.input_bias": own["bias_ih_l0"],
            "layer0.recurrent": own["weight_hh_l0"],
            "projection": self.projection.weight,
            "projection_bias": self.projection.bias,
        }
        nn.init.zeros_(own["bias_hh_l0"])
        self.by_name = _fill(pairs, start)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        vectors, _ = self.lstm(self.embedding(words))
        return self.output(self.projection(vectors))


class CIFG(nn.Module):
    """Embedding → LSTM whose input gate is 1 − forget, with recurrent projection → tied output."""

    def __init__(self, start: dict[str, np.ndarray]) -> None:
        super().__init__()
        vocabulary, width = start["embedding"].shape
        gates = len(start["layer0.input"])  # three for each cell: forget, cell, output
        self.embedding = nn.Embedding(vocabulary, width)
        self.input = nn.Linear(width, gates)
        self.recurrent = nn.Linear(width, gates, bias=False)
        self.projection = nn.Linear(gates // 3, width, bias=False)
        self.output_bias = nn.Parameter(torch.empty(vocabulary))
        pairs: Parameters = {
            "embedding": self.embedding.weight,
            "output_bias": self.output_bias,
            "layer0.input": self.input.weight,
            "layer0.input_bias": self.input.bias,
            "layer0.recurrent": self.recurrent.weight,
            "layer0.projection": self.projection.weight,
        }
        self.by_name = _fill(pairs, start)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        sums = self.input(self.embedding(words)).unbind(1)  # (B, 3H) for each word
        r = sums[0].new_zeros(len(words), self.projection.out_features)
        c = sums[0].new_zeros(len(words), self.projection.in_features)
        vectors = []
        for now in sums:
            forget, cell, out = (now + self.recurrent(r)).chunk(3, 1)
            c = torch.lerp(torch.tanh(cell), c, torch.sigmoid(forget))
            r = self.projection(torch.sigmoid(out) * torch.tanh(c))
            vectors.append(r)
        return F.linear(torch.stack(vectors, 1), self.embedding.weight, self.output_bias)


class Transformer(nn.Module):
    """Learned positions → pre-norm blocks → norm → tied output."""

    def __init__(self, start: dict[str, np.ndarray], heads: int = 4) -> None:
        super().__init__()
        vocabulary, width = start["embedding"].shape
        length, inner = len(start["positions"]), len(start["block0.feedforward_in"])
        layers = sum(name.endswith("feedforward_in") for name in start)
        self.embedding = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.empty(length, width))
        block = nn.TransformerEncoderLayer(
            width, heads, inner, dropout=0.0, batch_first=True, norm_first=True
        )
        norm = nn.LayerNorm(width)
        self.blocks = nn.TransformerEncoder(block, layers, norm=norm, enable_nested_tensor=False)
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        self.register_buffer("mask", mask, persistent=False)
        pairs: Parameters = {"embedding": self.embedding.weight, "positions": self.positions}
        for number, each in enumerate(self.blocks.layers):
            pairs |= _block(f"block{number}", each)
        pairs |= {"final_norm_gain": norm.weight, "final_norm_bias": norm.bias}
        self.by_name = _fill(pairs, start)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        x = self.embedding(words) + self.positions
        x = self.blocks(x, mask=self.mask, is_causal=True)
        return F.linear(x, self.embedding.weight)


def build(start: dict[str, np.ndarray]) -> LSTM | Transformer:
    """Make the model that the parameters are of."""
    return Transformer(start) if "positions" in start else LSTM(start)


def loss_of(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the next words."""
    return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


def _block(name: str, block: nn.TransformerEncoderLayer) -> Parameters:
    attention = block.self_attn
    return {
        f"{name}.attention_norm_gain": block.norm1.weight,
        f"{name}.attention_norm_bias": block.norm1.bias,
        f"{name}.attention": attention.in_proj_weight,
        f"{name}.attention_bias": attention.in_proj_bias,
        f"{name}.attention_out": attention.out_proj.weight,
        f"{name}.attention_out_bias": attention.out_proj.bias,
        f"{name}.feedforward_norm_gain": block.norm2.weight,
        f"{name}.feedforward_norm_bias": block.norm2.bias,
        f"{name}.feedforward_in": block.linear1.weight,
        f"{name}.feedforward_in_bias": block.linear1.bias,
        f"{name}.feedforward_out": block.linear2.weight,
        f"{name}.feedforward_out_bias": block.linear2.bias,
    }


def _fill(pairs: Parameters, start: dict[str, np.ndarray]) -> Parameters:
    with torch.no_grad():
        for name, parameter in pairs.items():
            parameter.copy_(torch.from_numpy(start[name]))
    return pairs
