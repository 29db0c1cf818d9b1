"""ONNX, for ONNX Runtime on phones and on the web.

int8: word tables are bytes with a scale for each row, read and multiplied by standard operations
that are fast in WebAssembly too. int4: ``MatMulNBits`` and ``GatherBlockQuantized``, groups along
the rows. Either way reading and scoring share ONE table where the model ties them, which halves
the file, the activations are quantised to int8 as they come, and the layers between are stored in
fp16.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pfl_lm.export.quantise.grids import Quantised, quantise
from pfl_lm.export.quantise.word_tables import tables_of
from pfl_lm.export.signature import Arrays, ExportGraph, Signature

OPSET = 20
LEAST = 1 << 14  # elements below which a matrix stays as it is
CONTRIB = "com.microsoft"
ZERO = 128  # the byte that stands for 0


def convert(graph: ExportGraph, precision: str, path: Path) -> list[str]:
    """Write ``graph`` to ``path``; returns notes. See ``registry.convert``."""
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

    def __init__(self, path: Path, signature: Signature, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        self.signature = signature
        self.names = [tensor.name for tensor in signature.outputs]
        try:
            self.session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the runtime raises types of its own, all of them private
            raise ValueError(f"{path.name}: ONNX Runtime refuses the file: {error}") from error
        self.inputs = {entry.name for entry in self.session.get_inputs()}

    def __call__(self, **given: np.ndarray) -> Arrays:
        pairs = zip(self.signature.inputs, self.signature.ordered(given), strict=True)
        # An input that the computation does not read is not in the file.
        feed = {tensor.name: value for tensor, value in pairs if tensor.name in self.inputs}
        return self.signature.named(self.session.run(self.names, feed))


def open(path: Path, signature: Signature, threads: int = 1) -> Session:
    """Open a file for running; see ``registry.open_file``."""
    return Session(path, signature, threads)


def _exported(graph: ExportGraph) -> Any:
    """Export by torch's own exporter, single file, named inputs and outputs."""
    import logging

    import torch

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    program = torch.onnx.export(
        graph.module,
        graph.examples(),
        dynamo=True,
        verbose=False,
        input_names=[tensor.name for tensor in graph.inputs],
        output_names=[tensor.name for tensor in graph.outputs],
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
        large = np.prod(entry.dims) >= LEAST and min(entry.dims) > 1  # a bias stays as it is
        if entry.data_type == TensorProto.FLOAT and large:
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
    """Rewrites products with, and reads from, word tables to their quantised forms."""

    def __init__(self, model: Any, precision: str, graph: ExportGraph) -> None:
        from onnx import numpy_helper

        self.model, self.words = model, tables_of(graph, precision)
        self.values = {
            entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer
        }
        self.tables: list[_QuantisedTable] = []
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
        if any(node.domain == CONTRIB for node in graph.node):
            self.model.opset_import.append(helper.make_opsetid(CONTRIB, 1))
        grid = self.tables[0].held.grid
        return (
            f"word table {grid}, 8 more for frequent words, activations int8; {_halve(self.model)}"
        )

    def _rewritten(self, node: Any) -> list[Any]:
        without_bias = (
            node.op_type == "Gemm" and len(node.input) == 2 and _attribute(node, "transB")
        )
        if without_bias and (table := self._table(node.input[1])):
            return table.product(node)
        if node.op_type == "MatMul" and (table := self._table(node.input[1], turned=True)):
            return table.product(node)
        if node.op_type == "Gather" and (table := self._table(node.input[0])):
            return table.lookup(node)
        return [node]

    def _table(self, name: str, turned: bool = False) -> _QuantisedTable | None:
        """Store a matrix, unless it is stored already; None if it is no word table."""
        matrix = self.values.get(name)
        if matrix is None or matrix.ndim != 2:
            return None
        matrix = matrix.T if turned else matrix
        if (grid := self.words.grid(matrix)) is None:
            return None
        held = quantise(matrix, grid)
        for table in self.tables:
            if np.array_equal(table.held.codes, held.codes):
                return table
        name = f"table{len(self.tables)}"
        table = _Fourbits(name, held) if held.grid.bits == 4 else _Bytes(name, held)
        self.tables.append(table)
        self.added += table.stored()
        return table


class _QuantisedTable:
    """A quantised table: what is stored of it, how it is read, how it is multiplied with."""

    def __init__(self, name: str, held: Quantised) -> None:
        self.name, self.held = name, held

    def _constants(self, **values: np.ndarray) -> list[Any]:
        from onnx import numpy_helper

        return [numpy_helper.from_array(v, f"{self.name}_{name}") for name, v in values.items()]

    def stored(self) -> list[Any]:
        raise NotImplementedError

    def product(self, node: Any) -> list[Any]:
        raise NotImplementedError

    def lookup(self, node: Any) -> list[Any]:
        raise NotImplementedError


class _Bytes(_QuantisedTable):
    """Bytes with a scale for each row; unsigned, for signed ones overflow in some kernels."""

    def stored(self) -> list[Any]:
        codes = (self.held.codes.astype(np.int16) + ZERO).astype(np.uint8)
        return self._constants(
            codes=codes, scales=self.held.scales, zero=np.array(ZERO, np.uint8),
            zero_float=np.array(ZERO, np.float32), flat=np.array([1, -1], np.int64),
        )  # fmt: skip

    def product(self, node: Any) -> list[Any]:
        """Σ codes · activations in integers; the runtime lays the table out anew as it opens."""
        from onnx import helper

        name, (x, _), (y,) = self.name, node.input, node.output
        return [
            helper.make_node("Transpose", [f"{name}_codes"], [f"{y}_codes"], perm=[1, 0]),
            helper.make_node(
                "DynamicQuantizeLinear", [x], [f"{y}_bytes", f"{y}_scale", f"{y}_zero"]
            ),
            helper.make_node(
                "MatMulInteger",
                [f"{y}_bytes", f"{y}_codes", f"{y}_zero", f"{name}_zero"],
                [f"{y}_integers"],
            ),
            helper.make_node("Cast", [f"{y}_integers"], [f"{y}_sums"], to=1),
            helper.make_node("Reshape", [f"{name}_scales", f"{name}_flat"], [f"{y}_scales"]),
            helper.make_node("Mul", [f"{y}_scales", f"{y}_scale"], [f"{y}_step"]),
            helper.make_node("Mul", [f"{y}_sums", f"{y}_step"], [y]),
        ]

    def lookup(self, node: Any) -> list[Any]:
        from onnx import helper

        name, (_, words), (y,) = self.name, node.input, node.output
        return [
            helper.make_node("Gather", [f"{name}_codes", words], [f"{y}_codes"], axis=0),
            helper.make_node("Gather", [f"{name}_scales", words], [f"{y}_scales"], axis=0),
            helper.make_node("Cast", [f"{y}_codes"], [f"{y}_floats"], to=1),
            helper.make_node("Sub", [f"{y}_floats", f"{name}_zero_float"], [f"{y}_centred"]),
            helper.make_node("Mul", [f"{y}_centred", f"{y}_scales"], [y]),
        ]


class _Fourbits(_QuantisedTable):
    """Four bits with a scale for each group, by ONNX Runtime's own operations."""

    def stored(self) -> list[Any]:
        shape = np.array([len(self.held.codes), -1], np.int64)
        return self._constants(codes=_packed(self.held), scales=self.held.scales, shape=shape)

    def product(self, node: Any) -> list[Any]:
        from onnx import helper

        rows, columns = self.held.codes.shape
        return [
            helper.make_node(
                "MatMulNBits",
                [node.input[0], f"{self.name}_codes", f"{self.name}_scales"],
                list(node.output),
                domain=CONTRIB,
                K=columns,
                N=rows,
                bits=self.held.grid.bits,
                block_size=self.held.grid.group,
                accuracy_level=4,
            )
        ]

    def lookup(self, node: Any) -> list[Any]:
        from onnx import helper

        name, y = self.name, node.output[0]
        return [
            helper.make_node("Reshape", [f"{name}_codes", f"{name}_shape"], [f"{y}_rows"]),
            helper.make_node(
                "GatherBlockQuantized",
                [f"{y}_rows", node.input[1], f"{name}_scales"],
                [y],
                domain=CONTRIB,
                bits=self.held.grid.bits,
                block_size=self.held.grid.group,
                gather_axis=0,
                quantize_axis=1,
            ),
        ]


def _packed(held: Quantised) -> np.ndarray:
    """Lay codes out as MatMulNBits reads them: uint8 (rows, groups, bytes of a group)."""
    codes = (held.codes.astype(np.int16) + 8).astype(np.uint8)
    codes = codes.reshape(len(codes), -1, held.grid.group)
    return codes[..., 0::2] | (codes[..., 1::2] << 4)


def _attribute(node: Any, name: str) -> Any:
    return next((entry.i for entry in node.attribute if entry.name == name), 0)
