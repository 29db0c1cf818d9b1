"""Core ML, for Apple systems.

Converting works anywhere; Core ML's runtime exists on Apple systems only and was not run. What is
checked here: the written package is parsed again from its specification and weights, and its
program is interpreted in numpy, operation by operation, rounded to fp16 where the program says so
(see ``coreml_interpreter.py``). Speed and the Neural Engine's own rounding are not known here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pfl_lm.export.quantise.grids import GRIDS, INT4
from pfl_lm.export.quantise.word_tables import tables_of
from pfl_lm.export.signature import Arrays, ExportGraph, Signature, TensorSpec

NOT_RUN = "Core ML's runtime was not run: it exists on Apple systems only; interpreted in numpy"


def convert(graph: ExportGraph, precision: str, path: Path) -> list[str]:
    """Write ``graph`` to the folder ``path``; returns notes. See ``registry.convert``."""
    import coremltools as ct
    import torch

    _register_alias()
    program = torch.export.export(_apart(graph), graph.examples()).run_decompositions(
        _in_parts(graph)
    )
    exact = precision == "fp32"
    package = ct.convert(
        program,
        inputs=[_tensor_type(tensor) for tensor in graph.inputs],
        outputs=[ct.TensorType(name=tensor.name) for tensor in graph.outputs],
        minimum_deployment_target=ct.target.iOS18 if precision == "int4" else ct.target.iOS17,
        compute_precision=ct.precision.FLOAT32 if exact else ct.precision.FLOAT16,
        convert_to="mlprogram",
        skip_model_load=True,
    )
    notes = [NOT_RUN]
    if precision in ("int8", "int4"):
        package = _quantised(package, graph, precision)
        notes.append(
            f"word table {GRIDS[precision]}, 8 more for frequent words; the rest fp16, like sums"
        )
    package.short_description = f"pfl_lm {graph.name}"
    package.save(str(path))
    return notes


class Interpreted:
    """A package's program, parsed from what was written and interpreted."""

    def __init__(self, path: Path, signature: Signature) -> None:
        from pfl_lm.export.formats.coreml_interpreter import Program

        self.signature, self.program = signature, Program(path)

    def __call__(self, **given: np.ndarray) -> Arrays:
        pairs = zip(self.signature.inputs, self.signature.ordered(given), strict=True)
        outputs = self.program({tensor.name: value for tensor, value in pairs})
        return self.signature.named([outputs[tensor.name] for tensor in self.signature.outputs])


def open(path: Path, signature: Signature, threads: int = 1) -> Interpreted:
    """Open a package for the interpreter; see ``registry.open_file``."""
    return Interpreted(path, signature)


def _apart(graph: ExportGraph) -> Any:
    """Give every output a value of its own: the converter writes one name for a value that is
    returned twice, and no runtime takes such a program. The bounds are fp16's."""
    from torch import nn

    class Apart(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = graph.module

        def forward(self, *given: Any) -> tuple[Any, ...]:
            outputs: list[Any] = []
            for value in self.inner(*given):
                again = any(value is earlier for earlier in outputs)
                outputs.append(value.clamp(-65504.0, 65504.0) if again else value)
            return tuple(outputs)

    return Apart().eval()


def _in_parts(graph: ExportGraph) -> dict[Any, Any]:
    """Spell out a layer norm where a gradient needs it: the converter's own takes a constant gain
    only, and gives no mean and no spread, which the way back reads."""
    import torch

    def norm(x: Any, shape: Any, gain: Any, bias: Any, epsilon: float) -> tuple[Any, Any, Any]:
        axes = list(range(-len(shape), 0))
        mean = x.mean(axes, keepdim=True)
        away = x - mean
        inverse = torch.rsqrt((away * away).mean(axes, keepdim=True) + epsilon)
        scaled = away * inverse if gain is None else away * inverse * gain
        return scaled if bias is None else scaled + bias, mean, inverse

    if all(tensor.name != "gradient" for tensor in graph.outputs):
        return {}
    return {torch.ops.aten.native_layer_norm.default: norm}


def _tensor_type(tensor: TensorSpec) -> Any:
    import coremltools as ct

    dtype = np.int32 if tensor.dtype == "int32" else np.float32
    return ct.TensorType(name=tensor.name, shape=tensor.shape, dtype=dtype)


def _quantised(package: Any, graph: ExportGraph, precision: str) -> Any:
    """Quantise the word tables by coremltools' own optimiser; the layers between stay fp16."""
    import coremltools.optimize.coreml as cto

    def linear(**more: Any) -> Any:
        return cto.OpLinearQuantizerConfig(mode="linear_symmetric", **more)

    by_row = linear(dtype="int8", granularity="per_channel")
    in_groups = linear(dtype="int4", granularity="per_block", block_size=INT4.group)
    words = tables_of(graph, precision)
    found = {
        name: words.grid(meta.val)
        for name, meta in cto.get_weights_metadata(package, weight_threshold=1 << 12).items()
    }
    chosen = {
        name: in_groups if grid == INT4 else by_row
        for name, grid in found.items()
        if grid is not None
    }
    return cto.linear_quantize_weights(package, cto.OptimizationConfig(op_name_configs=chosen))


def _register_alias() -> None:
    """Teach the converter ``alias``, which torch's export leaves behind: an identity."""
    from coremltools.converters.mil import Builder
    from coremltools.converters.mil.frontend.torch.ops import _get_inputs
    from coremltools.converters.mil.frontend.torch.torch_op_registry import (
        _TORCH_OPS_REGISTRY,
        register_torch_op,
    )

    if "alias" in _TORCH_OPS_REGISTRY:
        return

    @register_torch_op
    def alias(context: Any, node: Any) -> None:
        x = _get_inputs(context, node)[0]
        context.add(Builder.identity(x=x, name=node.name))
