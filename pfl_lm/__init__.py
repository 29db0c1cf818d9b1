"""Federated training of a keyboard's language model under user-level differential privacy.

    import pfl_lm

    scenario = pfl_lm.load_scenario("simulations/mine.toml", {"training.epochs": 2})
    run = pfl_lm.simulate(scenario, "runs/mine")
    run.guarantee, run.metrics, run.suggest("how are")

What stands in ``__all__`` is the interface for programs and notebooks; it is loaded when it is
first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pfl_lm.version import __version__

if TYPE_CHECKING:
    from pfl_lm.api.comparing import compare
    from pfl_lm.api.runs import Run, open_run, simulate
    from pfl_lm.api.scenarios import load_policy, load_scenario, new_project
    from pfl_lm.run.progress import ProgressListener
    from pfl_lm.run.scenario import Scenario

_HOMES = {
    "ProgressListener": "pfl_lm.run.progress",
    "Run": "pfl_lm.api.runs",
    "Scenario": "pfl_lm.run.scenario",
    "compare": "pfl_lm.api.comparing",
    "load_policy": "pfl_lm.api.scenarios",
    "load_scenario": "pfl_lm.api.scenarios",
    "new_project": "pfl_lm.api.scenarios",
    "open_run": "pfl_lm.api.runs",
    "simulate": "pfl_lm.api.runs",
}
__all__ = [
    "ProgressListener",
    "Run",
    "Scenario",
    "__version__",
    "compare",
    "load_policy",
    "load_scenario",
    "new_project",
    "open_run",
    "simulate",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
