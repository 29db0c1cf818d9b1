"""Opacus' accountants without torch.

``import opacus`` imports torch (seconds, gigabytes) although its accountants are NumPy and SciPy.
Here Opacus' own files are executed, unchanged, as a package of another name whose one module
that needs torch, the abstract base of the accountants, is replaced by an empty base.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
import warnings
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

_ALIAS = "_opacus_accountants_without_torch"


class _Accountant:
    """What Opacus' accountants inherit, less the hooks into a torch optimizer."""

    def __init__(self) -> None:
        self.history: list[tuple[float, float, int]] = []


@cache
def _package() -> str:
    """Register the packages under the alias; return the name of Opacus' ``accountants``."""
    spec = importlib.util.find_spec("opacus")
    if spec is None or spec.origin is None:
        raise ValueError("opacus is not installed; pip install 'opacus>=1.6,<2'")
    root = Path(spec.origin).parent
    for name, folder in ((_ALIAS, root), (f"{_ALIAS}.accountants", root / "accountants")):
        package = ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package
    base = ModuleType(f"{_ALIAS}.accountants.accountant")
    base.IAccountant = _Accountant  # type: ignore[attr-defined]
    sys.modules[base.__name__] = base
    return f"{_ALIAS}.accountants"


def version() -> str:
    return importlib.metadata.version("opacus")


def module(name: str) -> Any:
    """Import a module of ``opacus.accountants`` ("rdp", "prv", "analysis.gdp")."""
    return importlib.import_module(f"{_package()}.{name}")


def rdp_epsilon(schedule: list[tuple[float, float, int]], delta: float) -> float:
    """Return the ε of ``opacus.accountants.RDPAccountant``; schedule of (z, rate, rounds)."""
    return _epsilon(module("rdp").RDPAccountant(), schedule, delta)


def prv_epsilon(schedule: list[tuple[float, float, int]], delta: float) -> float:
    """Return the upper ε of ``opacus.accountants.PRVAccountant``, its error of 0.01 included.

    Raises:
        ValueError: Opacus cannot discretise (tiny noise, tiny δ, a rate of 1).
    """
    return _epsilon(module("prv").PRVAccountant(), schedule, delta)


def gdp_epsilon(noise_multiplier: float, rate: float, rounds: int, delta: float) -> float:
    """Return the ε of Opacus' Gaussian-DP formula. NOT a bound: a central limit, often below.

    Raises:
        ValueError: the formula over- or underflows.
    """
    with np.errstate(all="ignore"):
        epsilon = module("analysis.gdp").compute_eps_poisson(
            steps=rounds, noise_multiplier=noise_multiplier, sample_rate=rate, delta=delta
        )
    return float(epsilon)


def _epsilon(accountant: Any, schedule: list[tuple[float, float, int]], delta: float) -> float:
    accountant.history = list(schedule)
    try:
        # Opacus warns where its best order is its last; its answer is an upper bound all the same.
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            epsilon = float(accountant.get_epsilon(delta=delta))
    except (RuntimeError, OverflowError, MemoryError) as error:
        raise ValueError(f"Opacus gave up: {error}") from error
    if not np.isfinite(epsilon):
        raise ValueError("Opacus returned no finite ε")
    return epsilon
