"""LoRA on dense layers: which get factors, how they start, and how they merge into the weights.

Legend: O output width, I input width, R rank.

Source: Hu et al. 2021, "LoRA: Low-rank adaptation of large language models" (arXiv:2106.09685),
section 4; training only the second factor, Sun et al. 2024, "Improving LoRA in privacy-preserving
federated learning" (arXiv:2403.12313), section 4.
"""

from __future__ import annotations

from collections.abc import Mapping

from pfl_lm.models.spec import LoraSpec, Parameters, Role


def factors(lora: LoraSpec, dense: Mapping[str, Role]) -> dict[str, Role]:
    """Name the factors A (R, I) and B (O, R) of the dense layers that ``lora`` targets.

    Raises:
        ValueError: a target that names no dense layer of the model.
    """
    layers = {name: role.shape for name, role in dense.items() if is_layer(name, role)}
    known = sorted({name.rsplit(".", 1)[-1] for name in layers})
    for target in lora.targets:
        if target not in known:
            raise ValueError(f"lora target {target!r}: must be one of {', '.join(known)}")
    roles: dict[str, Role] = {}
    for name, (rows, columns) in layers.items():
        if not lora.targets or name.rsplit(".", 1)[-1] in lora.targets:
            roles[f"{name}.lora_a"] = Role("lora_a", (lora.rank, columns))
            roles[f"{name}.lora_b"] = Role("lora_b", (rows, lora.rank))
    return roles


def is_layer(name: str, role: Role) -> bool:
    """Whether a parameter is the matrix of a dense layer (and not, say, a table of positions)."""
    return role.kind == "dense" and len(role.shape) == 2 and name != "positions"


def merge(lora: LoraSpec, parameters: Parameters) -> Parameters:
    """Return parameters of the model without factors: W + (alpha / rank) · B A in W's place.

    The inputs are left as they are; untouched tensors are shared, not copied.
    """
    merged = {name: value for name, value in parameters.items() if ".lora_" not in name}
    for name, a in parameters.items():
        if name.endswith(".lora_a"):
            layer = name.removesuffix(".lora_a")
            b = parameters[f"{layer}.lora_b"]
            merged[layer] = parameters[layer] + lora.scale * (b @ a)
    return merged
