"""What a keyboard runs: the next words and the completions of a letter, from one graph.

Legend: V words, D width of an embedding row, P width of the hidden vectors, R rank of an adapter,
T tokens of a sequence, k suggestions, F frequent words, S words of the shortlist.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pfl_lm.export import forward
from pfl_lm.export.forward import State
from pfl_lm.export.quantise.word_tables import Layers
from pfl_lm.export.signature import ExportGraph, Signature, TensorSpec
from pfl_lm.models.file import Model
from pfl_lm.models.models import merge
from pfl_lm.text.tokenizer import Tokenizer

AWAY = forward.AWAY
BEST = 3


def predict_graph(
    model: Model,
    *,
    best: int = BEST,
    blocked: Sequence[int] = (),
    adapter_rank: int = 0,
    layers: Layers | None = None,
) -> ExportGraph:
    """Read one word, suggest the next ones.

    A keyboard calls it once for each key: after a word with that word and the state, after a
    letter AGAIN with the last whole word and the state before it, and a mask of the words that
    begin with the letters typed. The state moves only when the caller feeds it back.

    Inputs: ``token`` int32[1]; ``mask`` float32[1, V], added to the scores before the best are
    taken (0 keeps, −10⁴ drops a word; a personal bias can be folded in); with ``adapter_rank``
    R > 0 ``down`` float32[R, P] and ``up`` float32[P, R], which add up · down · hidden to the
    hidden vector (zeros: nothing); and the state by name.

    Outputs: ``words`` int32[1, k], best first, and ``scores`` float32[1, k], masked; ``logits``
    float32[1, V], of the model alone; ``hidden`` float32[1, P]; ``next_…``, the state after.

    Args:
        model: LoRA factors are merged, widths padded to multiples of 32.
        blocked: ids that must never be suggested, whatever the mask; a constant of the graph.
        layers: how a file of few bits holds the word table (``word_tables.layers_of(precision)``):
            its values are rounded so here. Where the model ties its tables, ``scores`` come a
            little closer to the model's than ``logits``.

    A transformer's state holds ``context`` words; the caller begins anew after so many.
    """
    module = _Predict(_ready(model), best, blocked, adapter_rank, layers)
    tensors, start = _predict_inputs(module, adapter_rank)
    token = TensorSpec("token", "int32", (1,))
    start["token"] = np.array([Tokenizer.bos_id], np.int32)
    return _graph("predict", module, (token, *tensors), start)


def _ready(model: Model) -> Model:
    spec, parameters = merge(model.spec, model.parameters)
    return forward.padded(Model(spec, parameters, model.origin))


class _Rows(nn.Module):
    """Reads rows of a word table, from both its layers where it has two."""

    def __init__(self, table: Tensor, layers: Layers | None) -> None:
        super().__init__()
        self.second = None
        if layers is not None:
            table, second = (torch.from_numpy(part) for part in layers.split(table.numpy()))
            self.second = nn.Embedding.from_pretrained(second)
        self.first = nn.Embedding.from_pretrained(table)

    def forward(self, words: Tensor) -> Tensor:
        words = words.to(torch.int64)  # ExecuTorch reads no other type
        rows: Tensor = self.first(words)
        if self.second is None:
            return rows
        return rows + self.second(words.clamp_max(self.second.num_embeddings - 1))


class _Predict(nn.Module):
    """The model as modules that quantisers know: tables of rows, linears by name."""

    def __init__(
        self,
        model: Model,
        best: int,
        blocked: Sequence[int],
        adapter_rank: int,
        layers: Layers | None,
    ) -> None:
        super().__init__()
        spec, parameters = model.spec, model.parameters
        if not 1 <= best <= spec.vocabulary_size:
            raise ValueError(f"best = {best}: must be between 1 and {spec.vocabulary_size}")
        forward.check_reads_all(spec)
        self.spec, self.best, self.adapter = spec, best, adapter_rank > 0
        self.names = list(forward.zero_state(spec))
        # Parameters of their own: no exporter or quantiser may touch the model that came in.
        own = {name: value.detach().clone().float() for name, value in parameters.items()}
        self.rows = _Rows(own["embedding"], layers)
        self.output = _linear(self.rows.first.weight if spec.tied else own["output"], None)
        self.frequent_output, self.shortlist = None, 0
        if self.rows.second is not None and layers is not None and spec.tied:
            self.frequent_output = _linear(self.rows.second.weight, None)
            self.shortlist = min(max(layers.shortlist, best), spec.vocabulary_size)
        self.linears = nn.ModuleDict(
            {
                name.replace(".", "_"): _linear(value, own.get(f"{name}_bias"))
                for name, value in own.items()
                if value.dim() == 2 and name not in ("embedding", "output", "positions")
            }
        )
        others = {n: v for n, v in own.items() if "norm" in n or n == "positions"}
        self.others = list(others | forward.turns(spec))
        for name, value in (others | forward.turns(spec)).items():
            self.register_buffer(name.replace(".", "_"), value)
        bias = own.get("output_bias", torch.zeros(spec.vocabulary_size))
        never = torch.zeros(spec.vocabulary_size)
        never[list(blocked)] = AWAY
        self.register_buffer("bias", bias[None])
        self.register_buffer("allowed", (bias + never)[None])

    def forward(self, token: Tensor, mask: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        adapter, state = self._split(rest)
        vector, after = self.step(token, state)
        return self.suggest(vector, mask, adapter, after)

    def step(self, token: Tensor, state: State) -> tuple[Tensor, State]:
        weights = {name: getattr(self, name.replace(".", "_")) for name in self.others}
        return forward.step(self.spec, self.linear, weights, self.rows(token), state)

    def linear(self, name: str, x: Tensor) -> Tensor:
        y: Tensor = self.linears[name.replace(".", "_")](x)
        return y

    def suggest(
        self, vector: Tensor, mask: Tensor, adapter: Sequence[Tensor], after: State
    ) -> tuple[Tensor, ...]:
        adapted = vector
        if self.adapter:
            down, up = adapter
            adapted = vector + (vector @ down.mT) @ up.mT
        products = self.output(adapted)  # (1, V)
        if self.frequent_output is not None:
            more = self.frequent_output(adapted)  # (1, F + 1)
            products = products + F.pad(more, (0, products.shape[1] - more.shape[1]))
        logits = products + self.get_buffer("bias")
        allowed = mask + self.get_buffer("allowed")  # an addition is the fastest way to leave out
        scores, words = torch.topk(products + allowed, self.shortlist or self.best, -1)
        if self.shortlist:
            short = words[0]
            exact = (self.rows(short) * adapted).sum(-1) + allowed[0][short]  # (S,)
            scores, places = torch.topk(exact[None], self.best, -1)
            words = short[places[0]][None]
        return words.to(torch.int32), scores, logits, vector, *(after[n] for n in self.names)

    def _split(self, rest: tuple[Tensor, ...]) -> tuple[Sequence[Tensor], State]:
        count = 2 if self.adapter else 0
        return rest[:count], dict(zip(self.names, rest[count:], strict=True))


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    layer.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight, False)
    if bias is not None:
        layer.bias = nn.Parameter(bias, False)
    return layer


def _predict_inputs(
    module: _Predict, adapter_rank: int
) -> tuple[list[TensorSpec], dict[str, np.ndarray]]:
    spec = module.spec
    start: dict[str, np.ndarray] = {"mask": np.zeros((1, spec.vocabulary_size), np.float32)}
    if adapter_rank:
        start["down"] = np.zeros((adapter_rank, spec.output_dim), np.float32)
        start["up"] = np.zeros((spec.output_dim, adapter_rank), np.float32)
    start |= {name: value.numpy() for name, value in forward.zero_state(spec).items()}
    return [TensorSpec(name, str(value.dtype), value.shape) for name, value in start.items()], start


def _graph(
    name: str, module: _Predict, inputs: tuple[TensorSpec, ...], start: dict[str, np.ndarray]
) -> ExportGraph:
    spec, by_name = module.spec, {tensor.name: tensor for tensor in inputs}
    outputs = (
        TensorSpec("words", "int32", (1, module.best)),
        TensorSpec("scores", "float32", (1, module.best)),
        TensorSpec("logits", "float32", (1, spec.vocabulary_size)),
        TensorSpec("hidden", "float32", (1, spec.output_dim)),
        *(TensorSpec(f"next_{n}", by_name[n].dtype, by_name[n].shape) for n in module.names),
    )
    state = {f"next_{n}": n for n in module.names}
    return ExportGraph(name, module.eval(), Signature(inputs, outputs, state), start)
