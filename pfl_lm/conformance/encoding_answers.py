"""Answers of the kinds about noise, the grid, encoding and rotation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pfl_lm.conformance.plain import bytes_of, config_of, indexed
from pfl_lm.conformance.vectors import double_hex
from pfl_lm.dp.clipping import with_indicators
from pfl_lm.dp.encoding import protect
from pfl_lm.dp.grid import Grid
from pfl_lm.dp.noise import NoiseShare, skellam_from_seed
from pfl_lm.dp.rotation import Rotation
from pfl_lm.dp.sampler.random_bits import reproducible_bits
from pfl_lm.secagg import noise
from pfl_lm.secagg.noise import NoiseChain, NoisePlan

Inputs = Mapping[str, Any]
ROTATION_UNIT = 2.0**6  # rotated coordinates are compared as multiples of 2^-6


def _skellam(inputs: Inputs) -> dict[str, Any]:
    (seed,) = bytes_of(inputs, "seed")
    return {"noise": skellam_from_seed(seed, inputs["variance"], inputs["dim"]).tolist()}


def _noise_plan(inputs: Inputs) -> dict[str, Any]:
    plan = NoisePlan(inputs["variance"], inputs["cohort"], inputs["levels"], inputs["step"])
    components = [plan.component(level) for level in range(1, plan.levels + 1)]
    return {
        "share": double_hex(plan.share),
        "components": [double_hex(component) for component in components],
        "kept": plan.kept(inputs["reports"]),
        "achieved": double_hex(plan.achieved(inputs["reports"])),
    }


def _noise_components(inputs: Inputs) -> dict[str, Any]:
    config, (first,) = config_of(inputs["config"]), bytes_of(inputs, "first")
    plan = NoisePlan.of(config, inputs["variance"])
    chain = NoiseChain(first, config.context, inputs["device"], plan.levels)
    return {"noise": noise.add_components(plan, chain, config.dim, skellam_from_seed).tolist()}


def _superfluous(inputs: Inputs) -> dict[str, Any]:
    config, opened = config_of(inputs["config"]), indexed(inputs["opened"])
    plan = NoisePlan.of(config, inputs["variance"])
    total = noise.superfluous(plan, config, opened, inputs["reports"], skellam_from_seed)
    return {"noise": total.tolist()}


def _rotate(inputs: Inputs) -> dict[str, Any]:
    seed, row = bytes_of(inputs, "seed", "row")
    rows = np.frombuffer(row, dtype="<f4").copy()[None]
    rotation = Rotation(rows.shape[1], seed)
    (rotation.inverse if inputs["inverse"] else rotation.forward)(rows)
    return {"rotated": np.rint(rows[0].astype(np.float64) * ROTATION_UNIT).astype(int).tolist()}


def _grid(inputs: Inputs) -> dict[str, Any]:
    grid = _grid_of(inputs)
    return {"scale": double_hex(grid.scale), "norm_bound_squared": str(grid.norm_bound_squared)}


def _indicate(inputs: Inputs) -> dict[str, Any]:
    (row,) = bytes_of(inputs, "update")
    updates = np.frombuffer(row, dtype="<f4").copy()[None]
    joint, told = with_indicators(updates, inputs["clip_norm"], inputs["indicator_weight"])
    return {"joint": joint[0].astype("<f4").tobytes().hex(), "short": not told.clipped[0]}


def _encode(inputs: Inputs) -> dict[str, Any]:
    seed, row = bytes_of(inputs, "seed", "update")
    variance = inputs["variance"]
    share = None if variance is None else NoiseShare("skellam", variance)
    updates = np.frombuffer(row, dtype="<f4").copy()[None]
    vectors, clipped = protect(updates, _grid_of(inputs), share, reproducible_bits(seed))
    norm = float(clipped.norms[0])
    return {
        "vector": vectors[0].tolist(),
        "norm": None if math.isnan(norm) else double_hex(norm),
        "clipped": bool(clipped.clipped[0]),
    }


def _grid_of(inputs: Inputs) -> Grid:
    return Grid(inputs["dim"], inputs["clip_norm"], inputs["grid_steps"], 63)


KINDS: dict[str, Callable[[Inputs], dict[str, Any]]] = {
    "skellam": _skellam,
    "noise_plan": _noise_plan,
    "noise_components": _noise_components,
    "superfluous": _superfluous,
    "rotate": _rotate,
    "grid": _grid,
    "indicate": _indicate,
    "encode": _encode,
}
