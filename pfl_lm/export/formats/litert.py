"""LiteRT (TensorFlow Lite), for Android and elsewhere.

int8 and int4 by the ai-edge quantiser: word tables by its dynamic recipe (stored as integers,
activations quantised as they come; a tied table stays one table), the layers between as fp16.
"""

from __future__ import annotations

import copy
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pfl_lm.export.quantise.grids import GRIDS, INT4, INT8
from pfl_lm.export.signature import Arrays, ExportGraph, Signature

# Layers by the names that the converter gives to what they put out.
SCORES, FREQUENT_SCORES = ".*Linear_output.*", ".*Linear_frequent_output.*"
READ, FREQUENT_READ = ".*Embedding_first.*", ".*Embedding_second.*"
WEIGHTS = "word table {}, 8 more for frequent words, activations int8; the rest fp16"
BETWEEN = ".*(Linear_(?!output|frequent_output)|hidden_output).*"
TINY = 1e-4  # moves a score by no more than a ten-thousandth of a hidden value


def convert(graph: ExportGraph, precision: str, path: Path) -> list[str]:
    """Write ``graph`` to ``path``; returns notes. See ``registry.convert``."""
    import litert_torch

    if precision == "int4":
        graph = _without_empty_groups(graph)
    names = [tensor.name for tensor in graph.inputs]
    arguments = dict(zip(names, graph.examples(), strict=True))
    edge = litert_torch.signature(graph.name, _named(graph), sample_kwargs=arguments).convert()
    if precision == "fp32":
        edge.export(str(path))
        return []
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "plain.tflite"
        edge.export(str(plain))
        return _quantise(plain, precision, path)


class SignatureRunner:
    """A signature of a file, run by LiteRT's interpreter."""

    def __init__(self, path: Path, signature: Signature, threads: int) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self.signature = signature
        try:
            self.interpreter = Interpreter(model_path=str(path), num_threads=threads)
            (name,) = self.interpreter.get_signature_list()
            self.runner = self.interpreter.get_signature_runner(name)
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"{path.name}: LiteRT refuses the file: {error}") from error
        self.inputs = set(self.runner.get_input_details())

    def __call__(self, **given: np.ndarray) -> Arrays:
        pairs = zip(self.signature.inputs, self.signature.ordered(given), strict=True)
        feed = {tensor.name: value for tensor, value in pairs if tensor.name in self.inputs}
        outputs = self.runner(**feed)
        return self.signature.named([outputs[tensor.name] for tensor in self.signature.outputs])


def open(path: Path, signature: Signature, threads: int = 1) -> SignatureRunner:
    """Open a file for running; see ``registry.open_file``."""
    return SignatureRunner(path, signature, threads)


def _named(graph: ExportGraph) -> Any:
    """Wrap the module so that inputs come, and outputs go, by name."""
    from torch import nn

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = graph.module

        def forward(self, **given: Any) -> dict[str, Any]:
            values = self.inner(*(given[tensor.name] for tensor in graph.inputs))
            return {p.name: v for p, v in zip(graph.outputs, values, strict=True)}

    return Named().eval()


def _without_empty_groups(graph: ExportGraph) -> ExportGraph:
    """Give each 4-bit group of zeros one tiny value: XNNPACK refuses a scale of 0."""
    module: Any = copy.deepcopy(graph.module)
    groups = module.rows.first.weight.data.view(-1, INT4.group)
    groups[(groups == 0).all(1), 0] = TINY
    return replace(graph, module=module)


def _quantise(plain: Path, precision: str, path: Path) -> list[str]:
    from ai_edge_quantizer import algorithm_manager, qtyping, quantizer

    recipe, ops = quantizer.Quantizer(str(plain)), qtyping.TFLOperationName
    halves = algorithm_manager.AlgorithmName.FLOAT_CASTING
    recipe.add_weight_only_config(BETWEEN, ops.FULLY_CONNECTED, num_bits=16, algorithm_key=halves)
    # A table that is read and multiplied with is one buffer: one grid for both.
    for grid, read, scored in (
        (GRIDS[precision], READ, SCORES),
        (INT8, FREQUENT_READ, FREQUENT_SCORES),
    ):
        kinds = qtyping.QuantGranularity
        how = {"granularity": kinds.BLOCKWISE_32 if grid.group else kinds.CHANNELWISE}
        recipe.add_dynamic_config(read, ops.EMBEDDING_LOOKUP, num_bits=grid.bits, **how)
        recipe.add_dynamic_config(scored, ops.FULLY_CONNECTED, num_bits=grid.bits, **how)
    recipe.quantize().export_model(str(path), overwrite=True)
    return [WEIGHTS.format(GRIDS[precision])]
