"""A policy without a run, read by the auditor's own rules: what would be promised."""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_REQUIRED = ("unit", "neighboring", "epsilon", "delta", "population", "report_goal", "rounds")
_TABLES: dict[str, dict[str, Any]] = {  # with what holds where a policy is silent
    "participation": {"kind": None, "min_separation": None},
    "noise": {
        "at": None,
        "kind": None,
        "tolerated_dropout": 0.0,
        "excess": "kept",
        "levels": 16,
        "honest_fraction": 1.0,
        "grid_steps": 8.0,
        "min_dim": 1024,
    },
    "reviewed": {"noise_multiplier": None, "epsilon": None, "epsilon_unamplified": None},
}


@dataclass(frozen=True)
class PolicyFile:
    """A policy and the figures that are stated for it.

    Attributes:
        policy: as a run's manifest would hold it.
        guarantee: the reviewed figures; where the file has none, those that pfl-lm derives.
        is_reviewed: whether a person approved these figures.
    """

    path: Path
    policy: dict[str, Any]
    guarantee: dict[str, Any]
    is_reviewed: bool

    @classmethod
    def open(cls, path: Path) -> PolicyFile:
        """Read a policy, even one that pfl-lm itself would refuse to run.

        Raises:
            ValueError: the file is no policy, with the key and what was expected.
        """
        try:
            table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} cannot be read as a policy: {error}") from error
        policy = _whole(table, path)
        reviewed = policy["reviewed"]
        if None not in reviewed.values():
            return cls(Path(path), policy, _stated(reviewed, policy["noise"]["at"]), True)
        return cls(Path(path), policy, _derived(path), False)

    @property
    def title(self) -> str:
        return f"policy {self.path.stem}"

    @property
    def where(self) -> Path:
        return self.path

    @property
    def statements(self) -> dict[str, str]:
        source = "a person approved" if self.is_reviewed else "pfl-lm derives, unreviewed"
        return {
            "guaranteed": "None: a policy is a plan, and nothing was trained.",
            "simulated": (
                f"ε = {self.policy['epsilon']} at δ = {self.policy['delta']:g} per "
                f"{self.policy['unit']} over {self.policy['rounds']:,} rounds, by noise of "
                f"{self.guarantee['noise_multiplier']:g} clip norms, a figure that {source}."
            ),
        }


def _whole(table: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the policy with every key, or say which one is missing or unknown."""
    if unknown := set(table) - {*_REQUIRED, *_TABLES}:
        raise ValueError(f"{path}: {sorted(unknown)[0]!r} is no key of a policy")
    policy = {}
    for name in _REQUIRED:
        if name not in table:
            raise ValueError(f"{path}: {name} is missing")
        policy[name] = table[name]
    for name, defaults in _TABLES.items():
        stated = table.get(name, {})
        if unknown := set(stated) - set(defaults):
            raise ValueError(f"{path}: {name}.{sorted(unknown)[0]} is no key of a policy")
        policy[name] = defaults | stated
    for name, key in (("participation", "kind"), ("noise", "at"), ("noise", "kind")):
        if policy[name][key] is None:
            raise ValueError(f"{path}: {name}.{key} is missing")
    return policy


def _stated(reviewed: dict[str, Any], at: str) -> dict[str, Any]:
    return {
        "noise_multiplier": reviewed["noise_multiplier"],
        "epsilon": reviewed["epsilon"],
        "epsilon_unamplified": reviewed["epsilon_unamplified"],
        "epsilon_server": reviewed["epsilon_unamplified"] if at == "device" else math.inf,
        "accountant": "not stated by a policy",
    }


def _derived(path: Path) -> dict[str, Any]:
    """Ask the code under audit; what it answers is then checked like any statement."""
    from dataclasses import asdict

    from pfl_lm.dp.guarantee import guarantee
    from pfl_lm.recipes import load_policy

    return asdict(guarantee(load_policy(path)))
