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

from pfl_lm.export.grids import GRIDS, INT4, INT8
from pfl_lm.export.ports import Arrays, Graph, Interface

# Layers by the names that the converter gives to what they put out.
SCORES, FREQUENT_SCORES = ".*Linear_output.*", ".*Linear_frequent_output.*"
READ, FREQUENT_READ = ".*Embedding_first.*", ".*Embedding_second.*"
WEIGHTS = "word table {}, 8 more for frequent words, activations int8; the rest fp16"
BETWEEN = ".*(Linear_(?!output|frequent_output)|hidden_output).*"
TINY = 1e-4  # moves a score by no more than a ten-thousandth of a hidden value


def convert(graph: Graph, precision: str, path: Path) -> list[str]:
    """Write ``graph`` to ``path``; returns notes. See ``formats.convert``."""
    import litert_torch

    if precision == "int4":
        graph = _without_empty_groups(graph)
    names = [port.name for port in graph.inputs]
    arguments = dict(zip(names, graph.examples(), strict=True))
    edge = litert_torch.signature(graph.name, _named(graph), sample_kwargs=arguments).convert()
    if precision == "fp32":
        edge.export(str(path))
        return []
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "plain.tflite"
        edge.export(str(plain))
        return _quantise(plain, precision, path)


class Signature:
    """A signature of a file, run by LiteRT's interpreter."""

    def __init__(self, path: Path, interface: Interface, threads: int) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self.interface = interface
        try:
            self.interpreter = Interpreter(model_path=str(path), num_threads=threads)
            (name,) = self.interpreter.get_signature_list()
            self.runner = self.interpreter.get_signature_runner(name)
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"{path.name}: LiteRT refuses the file: {error}") from error
        self.inputs = set(self.runner.get_input_details())

    def __call__(self, **given: np.ndarray) -> Arrays:
        pairs = zip(self.interface.inputs, self.interface.ordered(given), strict=True)
        feed = {port.name: value for port, value in pairs if port.name in self.inputs}
        found = self.runner(**feed)
        return self.interface.named([found[port.name] for port in self.interface.outputs])


def open(path: Path, interface: Interface, threads: int = 1) -> Signature:
    """Open a file for running; see ``formats.open_file``."""
    return Signature(path, interface, threads)


def _named(graph: Graph) -> Any:
    """Wrap the module so that inputs come, and outputs go, by name."""
    from torch import nn

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = graph.module

        def forward(self, **given: Any) -> dict[str, Any]:
            values = self.inner(*(given[port.name] for port in graph.inputs))
            return {p.name: v for p, v in zip(graph.outputs, values, strict=True)}

    return Named().eval()


def _without_empty_groups(graph: Graph) -> Graph:
    """Give each 4-bit group of zeros one tiny value: XNNPACK refuses a scale of 0."""
    module: Any = copy.deepcopy(graph.module)
    groups = module.rows.first.weight.data.view(-1, INT4.group)
    groups[(groups == 0).all(1), 0] = TINY
    return replace(graph, module=module)


def _quantise(plain: Path, precision: str, path: Path) -> list[str]:
    from ai_edge_quantizer import algorithm_manager, qtyping, quantizer

    found, ops = quantizer.Quantizer(str(plain)), qtyping.TFLOperationName
    halves = algorithm_manager.AlgorithmName.FLOAT_CASTING
    found.add_weight_only_config(BETWEEN, ops.FULLY_CONNECTED, num_bits=16, algorithm_key=halves)
    # A table that is read and multiplied with is one buffer: one grid for both.
    for grid, read, scored in (
        (GRIDS[precision], READ, SCORES),
        (INT8, FREQUENT_READ, FREQUENT_SCORES),
    ):
        kinds = qtyping.QuantGranularity
        how = {"granularity": kinds.BLOCKWISE_32 if grid.group else kinds.CHANNELWISE}
        found.add_dynamic_config(read, ops.EMBEDDING_LOOKUP, num_bits=grid.bits, **how)
        found.add_dynamic_config(scored, ops.FULLY_CONNECTED, num_bits=grid.bits, **how)
    found.quantize().export_model(str(path), overwrite=True)
    return [WEIGHTS.format(GRIDS[precision])]
