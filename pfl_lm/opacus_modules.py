"""Opacus' accountants and their formulas without torch, which ``import opacus`` needs seconds for.

Accountants and formulas are NumPy and SciPy. Opacus' own files are executed, unchanged, as a
package of another name. One module in it needs torch: the accountants' abstract base, with its
hooks into an optimizer. A base without the hooks stands in for it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

_ALIAS = "_pfl_lm_opacus"


class _Accountant:
    """What Opacus' accountants inherit, less the hooks into a torch optimizer."""

    def __init__(self) -> None:
        self.history: list[tuple[float, float, int]] = []


def load(name: str) -> Any:
    """Import a module of ``opacus.accountants`` ("rdp", "prv", "analysis.gdp").

    Raises:
        ValueError: Opacus is not installed.
    """
    return importlib.import_module(f"{_package()}.{name}")


@cache
def _package() -> str:
    """Register Opacus' folders under the alias; return the name of its ``accountants``."""
    spec = importlib.util.find_spec("opacus")
    if spec is None or spec.origin is None:
        raise ValueError("opacus is not installed; pip install 'opacus>=1.6,<2'")
    root, accountants = Path(spec.origin).parent, f"{_ALIAS}.accountants"
    for name, folder in ((_ALIAS, root), (accountants, root / "accountants")):
        package = ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package
    base = ModuleType(f"{accountants}.accountant")
    base.IAccountant = _Accountant  # type: ignore[attr-defined]
    sys.modules[base.__name__] = base
    return accountants
