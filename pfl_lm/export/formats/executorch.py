"""ExecuTorch with the XNNPACK delegate.

The delegate keeps its own copy of a linear's weights, so a tied table is stored twice. Portable
kernels are tens of times slower and stand in only for what the delegate does not take.

ExecuTorch's own training methods are not used: they hold parameters, frozen weights and the
payload's rows in the file, which every round of training would outdate. ``train_step`` takes them
as inputs.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np

from pfl_lm.export.quantise.grids import GRIDS, INT8, QuantisationGrid, scales_of
from pfl_lm.export.signature import Arrays, ExportGraph, Signature

METHOD = "forward"
TWICE = "the word table is stored twice: to read words, and in the delegate's own layout"
WEIGHTS = "torchao: word table {}, 8 more for frequent words, activations int8, dynamic"
HALVES = "layers between fp16: a processor with fp16 arithmetic (ARMv8.2, x86 with AVX2) is needed"


def convert(graph: ExportGraph, precision: str, path: Path) -> list[str]:
    """Write ``graph`` to ``path``; returns notes. See ``registry.convert``."""
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import (
        XnnpackDynamicallyQuantizedPartitioner,
        XnnpackPartitioner,
    )
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

    module, notes = graph.module, [TWICE]
    partitioners = [XnnpackPartitioner()]
    if precision in ("int8", "int4"):
        module = _quantised(graph, precision)
        partitioners.insert(0, XnnpackDynamicallyQuantizedPartitioner())
        notes += [WEIGHTS.format(GRIDS[precision]), HALVES]
    program = torch.export.export(module, graph.examples())
    edge = to_edge_transform_and_lower(
        program,
        partitioner=partitioners,
        compile_config=EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True),
    )
    with path.open("wb") as file:
        edge.to_executorch(_backend(precision)).write_to_file(file)
    return notes if graph.name.startswith("predict") else []


class Method:
    """A method of a program, run by ExecuTorch's own runtime."""

    def __init__(self, path: Path, signature: Signature, threads: int) -> None:
        import executorch.kernels.quantized  # noqa: F401  # registers the quantized kernels
        import torch
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime, Verification

        portable_lib._unsafe_reset_threadpool(threads)
        self.signature, self._tensor = signature, torch.from_numpy
        try:
            self.program = Runtime.get().load_program(
                path, verification=Verification.InternalConsistency
            )
            self.method = self.program.load_method(METHOD)
        except RuntimeError as error:
            raise ValueError(f"{path.name}: ExecuTorch refuses the file: {error}") from error
        if self.method is None:
            raise ValueError(f"{path.name}: the program has no method {METHOD!r}")

    def __call__(self, **given: np.ndarray) -> Arrays:
        tensors = [self._tensor(value) for value in self.signature.ordered(given)]
        outputs = self.method.execute(tensors)
        return self.signature.named([value.numpy().copy() for value in outputs])


def open(path: Path, signature: Signature, threads: int = 1) -> Method:
    """Open a file for running; see ``registry.open_file``."""
    return Method(path, signature, threads)


def _quantised(graph: ExportGraph, precision: str) -> Any:
    """Quantise a copy of the module: tables by torchao, the layers between become fp16."""
    import torch
    from torch import nn
    from torchao.utils import unwrap_tensor_subclass

    module: Any = copy.deepcopy(graph.module)
    tables = dict.fromkeys((module.output, module.rows.first), GRIDS[precision])
    tables |= dict.fromkeys((module.frequent_output, module.rows.second), INT8)
    # A layer's weight is replaced, not shared: all are read before any is set.
    weights = {
        layer: _integers(layer.weight.detach().clone(), grid, isinstance(layer, nn.Linear))
        for layer, grid in tables.items()
        if layer is not None
    }
    for layer, weight in weights.items():
        layer.weight = nn.Parameter(weight, requires_grad=False)
    for name, layer in module.linears.items():
        module.linears[name] = _half(layer)
    with torch.no_grad():
        return unwrap_tensor_subclass(module)


def _half(linear: Any) -> Any:
    """The layer with weights and arithmetic in fp16, between fp32 values."""
    from torch import nn

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = linear.half()

        def forward(self, x: Any) -> Any:
            return self.inner(x.half()).float()

    return Half()


def _integers(weight: Any, grid: QuantisationGrid, dynamic: bool) -> Any:
    """A weight as torchao's integers on our grid."""
    import torch
    from torchao.quantization import IntxUnpackedToInt8Tensor

    group = grid.group or weight.shape[1]
    scales = torch.from_numpy(
        scales_of(weight.unflatten(1, (-1, group)).abs().amax(-1).numpy(), grid)
    )
    return IntxUnpackedToInt8Tensor.from_hp(
        weight,
        (1, group),
        getattr(torch, f"int{grid.bits}"),
        activation_quantization="int8_asym_per_token" if dynamic else None,
        intx_choose_qparams_algorithm=None,
        custom_scale=scales,
        custom_zero_point=torch.zeros_like(scales, dtype=torch.int8),
    )


def _backend(precision: str) -> Any:
    from executorch.exir import ExecutorchBackendConfig

    if precision == "fp32":
        return ExecutorchBackendConfig()
    from executorch.exir.passes import MemoryPlanningPass
    from executorch.exir.passes.quant_fusion_pass import QuantFusionPass

    return ExecutorchBackendConfig(
        passes=[QuantFusionPass()],
        memory_planning_pass=MemoryPlanningPass(),
        do_quant_fusion_and_const_prop=True,
    )
