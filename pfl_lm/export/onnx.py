"""ONNX, for ONNX Runtime on phones and on the web.

int8 and int4: every large matrix becomes ``MatMulNBits``, the embedding ``GatherBlockQuantized``,
and both read ONE table where the model ties them, which halves the file. Groups run along the
rows; ONNX Runtime quantises the activations to int8 as it goes (``accuracy_level`` 4).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pfl_lm.export.grids import Grid, Quantised, grid_of, quantise
from pfl_lm.export.ports import Arrays, Graph, Interface

OPSET = 20
LEAST = 1 << 14  # elements below which a matrix stays as it is
CONTRIB = "com.microsoft"


def convert(graph: Graph, precision: str, path: Path) -> list[str]:
    """Write ``graph`` to ``path``; returns notes. See ``formats.convert``."""
    import onnx

    model = _exported(graph)
    notes = []
    if precision == "fp16":
        notes.append(_halve(model))
    elif precision in ("int8", "int4"):
        notes.append(_Quantiser(model, precision, graph).run())
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return notes


class Session:
    """A file opened by ONNX Runtime on the processor."""

    def __init__(self, path: Path, interface: Interface, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        self.interface = interface
        self.names = [port.name for port in interface.outputs]
        try:
            self.session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the runtime raises types of its own, all of them private
            raise ValueError(f"{path.name}: ONNX Runtime refuses the file: {error}") from error
        self.inputs = {entry.name for entry in self.session.get_inputs()}

    def __call__(self, **given: np.ndarray) -> Arrays:
        pairs = zip(self.interface.inputs, self.interface.ordered(given), strict=True)
        # An input that the computation does not read is not in the file.
        feed = {port.name: value for port, value in pairs if port.name in self.inputs}
        return self.interface.named(self.session.run(self.names, feed))


def open(path: Path, interface: Interface, threads: int = 1) -> Session:
    """Open a file for running; see ``formats.open_file``."""
    return Session(path, interface, threads)


def _exported(graph: Graph) -> Any:
    """Export by torch's own exporter, single file, named inputs and outputs."""
    import logging

    import torch

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    program = torch.onnx.export(
        graph.module,
        graph.examples(),
        dynamo=True,
        verbose=False,
        input_names=[port.name for port in graph.inputs],
        output_names=[port.name for port in graph.outputs],
        opset_version=OPSET,
    )
    assert program is not None
    model = program.model_proto
    del model.graph.value_info[:]  # stale after any rewriting
    return model


def _halve(model: Any) -> str:
    """Store large matrices as float16 and cast them where they are read: half the bytes.

    ONNX Runtime's processor kernels have no fp16 arithmetic, so the sums stay fp32.
    """
    from onnx import TensorProto, helper, numpy_helper

    graph, casts = model.graph, []
    for entry in list(graph.initializer):
        if entry.data_type == TensorProto.FLOAT and np.prod(entry.dims) >= LEAST:
            half = numpy_helper.to_array(entry).astype(np.float16)
            graph.initializer.remove(entry)
            graph.initializer.append(numpy_helper.from_array(half, f"{entry.name}_half"))
            casts.append(
                helper.make_node("Cast", [f"{entry.name}_half"], [entry.name], to=TensorProto.FLOAT)
            )
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    return "weights are stored in fp16; the processor computes in fp32"


class _Quantiser:
    """Rewrites Gemm, MatMul and Gather of constant matrices to their quantised forms."""

    def __init__(self, model: Any, precision: str, graph: Graph) -> None:
        from onnx import numpy_helper

        self.model, self.precision = model, precision
        logits = next((p for p in graph.outputs if p.name == "logits"), None)
        self.words = logits.shape[-1] if logits else 0
        self.values = {
            entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer
        }
        self.tables: dict[str, Quantised] = {}
        self.added: list[Any] = []

    def run(self) -> str:
        from onnx import helper

        graph = self.model.graph
        nodes = [new for node in graph.node for new in self._rewritten(node)]
        del graph.node[:]
        graph.node.extend(nodes)
        graph.initializer.extend(self.added)
        read = {name for node in graph.node for name in node.input}
        kept = [entry for entry in graph.initializer if entry.name in read]
        del graph.initializer[:]
        graph.initializer.extend(kept)
        self.model.opset_import.append(helper.make_opsetid(CONTRIB, 1))
        grids = sorted({f"{table.grid}" for table in self.tables.values()})
        return f"weights: {', '.join(grids)}; activations int8"

    def _rewritten(self, node: Any) -> list[Any]:
        if node.op_type == "Gemm" and _attribute(node, "transB") and self._large(node.input[1]):
            return self._product(node, self.values[node.input[1]], node.input[1])
        if node.op_type == "MatMul" and self._large(node.input[1]):
            return self._product(node, self.values[node.input[1]].T, f"{node.input[1]}_T")
        if node.op_type == "Gather" and self._large(node.input[0]):
            return self._lookup(node)
        return [node]

    def _large(self, name: str) -> bool:
        value = self.values.get(name)
        return value is not None and value.ndim == 2 and value.size >= LEAST

    def _table(self, name: str, matrix: np.ndarray) -> Quantised:
        from onnx import numpy_helper

        if name not in self.tables:
            table = quantise(matrix, grid_of(self.precision, len(matrix) == self.words))
            self.tables[name] = table
            self.added.append(numpy_helper.from_array(_packed(table), f"{name}_q"))
            self.added.append(numpy_helper.from_array(table.scales, f"{name}_scales"))
        return self.tables[name]

    def _product(self, node: Any, matrix: np.ndarray, name: str) -> list[Any]:
        from onnx import helper

        grid = self._table(name, matrix).grid
        bias = node.input[2] if len(node.input) > 2 else ""
        product = f"{node.output[0]}_product" if bias else node.output[0]
        found = [
            helper.make_node(
                "MatMulNBits",
                [node.input[0], f"{name}_q", f"{name}_scales"],
                [product],
                name=f"{node.name}_nbits",
                domain=CONTRIB,
                K=matrix.shape[1],
                N=matrix.shape[0],
                bits=grid.bits,
                block_size=grid.group,
                accuracy_level=4,
            )
        ]
        if bias:
            found.append(helper.make_node("Add", [product, bias], [node.output[0]]))
        return found

    def _lookup(self, node: Any) -> list[Any]:
        from onnx import helper, numpy_helper

        name = node.input[0]
        table = self._table(name, self.values[name])
        shape = np.array([len(self.values[name]), -1], np.int64)
        flat = f"{name}_rows"
        if not any(entry.name == f"{flat}_shape" for entry in self.added):
            self.added.append(numpy_helper.from_array(shape, f"{flat}_shape"))
        return [
            helper.make_node("Reshape", [f"{name}_q", f"{flat}_shape"], [flat]),
            helper.make_node(
                "GatherBlockQuantized",
                [flat, node.input[1], f"{name}_scales"],
                [node.output[0]],
                domain=CONTRIB,
                bits=table.grid.bits,
                block_size=table.grid.group,
                gather_axis=0,
                quantize_axis=1,
            ),
        ]


def _packed(table: Quantised) -> np.ndarray:
    """Lay codes out as MatMulNBits reads them: uint8 (rows, groups, bytes of a group)."""
    grid: Grid = table.grid
    codes = (table.codes.astype(np.int16) + (1 << (grid.bits - 1))).astype(np.uint8)
    codes = codes.reshape(len(codes), -1, grid.group)
    return codes if grid.bits == 8 else codes[..., 0::2] | (codes[..., 1::2] << 4)


def _attribute(node: Any, name: str) -> Any:
    return next((entry.i for entry in node.attribute if entry.name == name), 0)
