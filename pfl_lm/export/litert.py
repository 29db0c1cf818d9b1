"""LiteRT (TensorFlow Lite), for Android and elsewhere.

int8 and int4 by the ai-edge quantiser's dynamic recipe: weights are stored as integers,
activations are quantised as they come. A tied table stays one table.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from pfl_lm.export.ports import Arrays, Graph, Interface

TABLE = ".*logits_output.*"  # the product with the word table, by its output


def convert(graph: Graph, precision: str, path: Path) -> list[str]:
    """Write ``graph`` to ``path``; returns notes. See ``formats.convert``."""
    import litert_torch

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


def _quantise(plain: Path, precision: str, path: Path) -> list[str]:
    from ai_edge_quantizer import qtyping, quantizer

    found, ops = quantizer.Quantizer(str(plain)), qtyping.TFLOperationName
    found.add_dynamic_config(".*", ops.ALL_SUPPORTED, num_bits=8)
    notes = ["weights: 8 bits per row; activations int8, dynamic"]
    if precision == "int4":
        # The last linear reads the table, and a tied table is one buffer: one recipe for both.
        blocks = qtyping.QuantGranularity.BLOCKWISE_32
        for scope, op in ((".*", ops.EMBEDDING_LOOKUP), (TABLE, ops.FULLY_CONNECTED)):
            found.add_dynamic_config(scope, op, num_bits=4, granularity=blocks)
        tables = "tables 4 bits in groups of 32, the rest 8 bits per row"
        notes = [f"weights: {tables}; activations int8, dynamic"]
    found.quantize().export_model(str(path), overwrite=True)
    return notes
