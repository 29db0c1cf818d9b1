"""Core ML, for Apple systems.

Converting works anywhere; Core ML's runtime exists on Apple systems only and was not run. What is
checked here: the written package is parsed again from its specification and weights, and its
program is interpreted in numpy, operation by operation, rounded to fp16 where the program says so
(see ``mil.py``). Speed and the Neural Engine's own rounding stay to be seen on a device.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pfl_lm.export.grids import GRIDS, INT4
from pfl_lm.export.ports import Arrays, Graph, Interface, Port
from pfl_lm.export.tables import grids_by_rows

NOT_RUN = "Core ML's runtime was not run: it exists on Apple systems only; interpreted in numpy"


def convert(graph: Graph, precision: str, path: Path) -> list[str]:
    """Write ``graph`` to the folder ``path``; returns notes. See ``formats.convert``."""
    import coremltools as ct
    import torch

    _register_alias()
    program = torch.export.export(_apart(graph), graph.examples()).run_decompositions({})
    exact = precision == "fp32"
    package = ct.convert(
        program,
        inputs=[_tensor(port) for port in graph.inputs],
        outputs=[ct.TensorType(name=port.name) for port in graph.outputs],
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

    def __init__(self, path: Path, interface: Interface) -> None:
        from pfl_lm.export.mil import Program

        self.interface, self.program = interface, Program(path)

    def __call__(self, **given: np.ndarray) -> Arrays:
        pairs = zip(self.interface.inputs, self.interface.ordered(given), strict=True)
        found = self.program({port.name: value for port, value in pairs})
        return self.interface.named([found[port.name] for port in self.interface.outputs])


def open(path: Path, interface: Interface, threads: int = 1) -> Interpreted:
    """Open a package for the interpreter; see ``formats.open_file``."""
    return Interpreted(path, interface)


def _apart(graph: Graph) -> Any:
    """Give every output a value of its own: the converter writes one name for a value that is
    returned twice, and no runtime takes such a program. The bounds are fp16's."""
    from torch import nn

    class Apart(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = graph.module

        def forward(self, *given: Any) -> tuple[Any, ...]:
            found: list[Any] = []
            for value in self.inner(*given):
                again = any(value is earlier for earlier in found)
                found.append(value.clamp(-65504.0, 65504.0) if again else value)
            return tuple(found)

    return Apart().eval()


def _tensor(port: Port) -> Any:
    import coremltools as ct

    dtype = np.int32 if port.dtype == "int32" else np.float32
    return ct.TensorType(name=port.name, shape=port.shape, dtype=dtype)


def _quantised(package: Any, graph: Graph, precision: str) -> Any:
    """Quantise the word tables by coremltools' own optimiser; the layers between stay fp16."""
    import coremltools.optimize.coreml as cto

    def linear(**more: Any) -> Any:
        return cto.OpLinearQuantizerConfig(mode="linear_symmetric", **more)

    by_row = linear(dtype="int8", granularity="per_channel")
    in_groups = linear(dtype="int4", granularity="per_block", block_size=INT4.group)
    grids = grids_by_rows(graph, precision)
    chosen = {
        name: in_groups if grids[len(meta.val)] == INT4 else by_row
        for name, meta in cto.get_weights_metadata(package, weight_threshold=1 << 12).items()
        if meta.val.ndim == 2 and len(meta.val) in grids
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
