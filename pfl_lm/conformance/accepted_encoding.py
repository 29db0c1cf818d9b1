"""The positive vectors of noise, the grid, encoding and rotation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from pfl_lm.conformance.plain import plain_config
from pfl_lm.conformance.play import fixed, small_config
from pfl_lm.conformance.vectors import Vector
from pfl_lm.secagg.noise import NoiseChain

Accept = Callable[[str, str, dict[str, Any]], Vector]
DEVIATIONS = (0.1, 0.5, 1.0, 3.0, 20.0, 255.0, 256.0, 600.0)
_MANY = 3000  # samples: enough for some of them to be drawn by inversion


def positive(accept: Accept) -> Iterator[Vector]:
    """Yield every positive vector of this file's kinds."""
    yield from _noise(accept)
    yield from _components(accept)
    yield from _rotations(accept)
    yield from _indicators(accept)
    yield from _encodings(accept)


def _noise(accept: Accept) -> Iterator[Vector]:
    for deviation in DEVIATIONS:
        label = f"{deviation:g}".replace(".", "_")
        seed = fixed(f"noise {label}").hex()
        inputs = {"seed": seed, "variance": deviation**2, "dim": _MANY}
        yield accept(f"skellam_{label}", "skellam", inputs)
    yield accept(
        "skellam_none", "skellam", {"seed": fixed("none").hex(), "variance": 0.0, "dim": 5}
    )


def _components(accept: Accept) -> Iterator[Vector]:
    for levels, step, reports in ((3, 1, 10), (3, 1, 8), (2, 2, 7), (0, 1, 10)):
        inputs = {"variance": 1234.5, "cohort": 10, "levels": levels, "step": step}
        name = f"noise_plan_{levels}_{step}_{reports}"
        yield accept(name, "noise_plan", {**inputs, "reports": reports})
    config = small_config(noise_levels=2)
    plain: dict[str, Any] = {"config": plain_config(config), "variance": 60.0}
    first = fixed("chain")
    for device in (0, 3):
        of_device = {"first": first.hex(), "device": device}
        yield accept(f"noise_components_{device}", "noise_components", {**plain, **of_device})
    second = NoiseChain(first, config.context, 1, 2).secrets()[1]
    opened = {"1": second.hex(), "2": fixed("level 2").hex()}
    yield accept("superfluous", "superfluous", {**plain, "opened": opened, "reports": 4})


def _rotations(accept: Accept) -> Iterator[Vector]:
    """Whole numbers: where the block is a power of four the result is exact in float32."""
    for dim in (1, 4, 11, 16, 37, 64, 100):
        row = np.frombuffer(fixed(f"row {dim}", dim), dtype=np.int8).astype("<f4").tobytes()
        for inverse in (False, True):
            inputs = {"seed": fixed(f"rotation {dim}").hex(), "row": row.hex(), "inverse": inverse}
            name = f"rotate_{'back_' if inverse else ''}{dim}"
            yield accept(name, "rotate", inputs)


def _indicators(accept: Accept) -> Iterator[Vector]:
    rows = {name: row for name, row in _updates().items() if name != "not_finite"}
    rows["at_the_clip"] = np.array([0.3, 0.4], dtype=np.float32)
    for name, row in rows.items():
        update = row.astype("<f4").tobytes().hex()
        for weight in (0.0048, 0.5):
            inputs = {"update": update, "clip_norm": 0.5, "indicator_weight": weight}
            label = f"{weight:g}".replace(".", "_")
            yield accept(f"indicate_{name}_{label}", "indicate", inputs)


def _encodings(accept: Accept) -> Iterator[Vector]:
    for dim, clip_norm, grid_steps in ((11, 0.5, 8.0), (140_000, 1.0, 8.0), (1, 3.0, 0.25)):
        inputs = {"dim": dim, "clip_norm": clip_norm, "grid_steps": grid_steps}
        yield accept(f"grid_{dim}", "grid", inputs)
    for name, row in _updates().items():
        grid: dict[str, Any] = {"dim": len(row), "clip_norm": 0.5, "grid_steps": 8.0}
        update = row.astype("<f4").tobytes().hex()
        for label, variance in (("plain", None), ("share", 30.0), ("wide_share", 90_000.0)):
            drawn = {"variance": variance, "seed": fixed(f"encode {name} {label}").hex()}
            yield accept(f"encode_{name}_{label}", "encode", {**grid, "update": update, **drawn})


def _updates() -> dict[str, np.ndarray]:
    """One row for each line of the table in ``encoding.protect``, and one refused at first."""
    drawn = np.frombuffer(fixed("update", 600), dtype=np.int8).astype(np.float32)
    broken, longest = drawn[:20].copy(), np.zeros(300, dtype=np.float32)
    broken[5], longest[5] = np.nan, 3e38
    return {
        "short": drawn[:40] * np.float32(2.0**-14),
        "long": drawn,
        "zero": np.zeros(20, dtype=np.float32),
        "not_finite": broken,
        "huge": longest,
        "tiny": np.full(20, 1e-42, dtype=np.float32),
        "single": np.array([-0.75], dtype=np.float32),
    }
