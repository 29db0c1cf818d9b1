"""A policy without a run, read by the auditor's own rules: what would be promised."""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfl_lm.audit.accounting.streams import STREAMS
from pfl_lm.audit.accounting.values import check_values
from pfl_lm.numbers import format_epsilon

_REQUIRED = ("unit", "neighboring", "epsilon", "delta", "population", "report_goal", "rounds")
# Keys and tables that a policy may leave out, with what holds then.
_OPTIONAL: dict[str, Any] = {
    "accepted_server_epsilon": None,
    "groups": 1,
    "public_labels": (),
}
_TABLES: dict[str, dict[str, Any]] = {
    "participation": {"kind": None, "min_separation": None, "max_participations": None},
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
    "devices": {
        "adversary": "active",
        "corrupt": 0.05,
        "least_neighbours": 0,
        "trust_days": 30.0,
    },
    "reviewed": {
        "noise_multiplier": None,
        "epsilon": None,
        "epsilon_unamplified": None,
        "rho": None,
    },
}


_CLIPPING = {  # where a policy has the table
    "lowest": None,
    "highest": None,
    "quantile": 0.5,
    "rate": 0.2,
    "first_rate": 2.0,
    "indicator_noise": 0.05,
}


TOP_KEYS = (*_REQUIRED, *_OPTIONAL)
TABLES: dict[str, dict[str, Any]] = {**_TABLES, "clipping": _CLIPPING}


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
            ValueError: the file is no policy, or a value is of a wrong type or out of range; with
                the key and what was expected.
        """
        try:
            table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(f"{path} cannot be read as a policy: {error}") from error
        policy = _whole(table, path)
        reviewed, stated = policy["reviewed"], None
        if all(value is not None for name, value in reviewed.items() if name != "rho"):
            stated = _stated(reviewed, policy["noise"]["at"])
        try:
            check_values(policy, stated, "reviewed")
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        if stated is not None:
            if policy["noise"]["kind"] in STREAMS:  # a review approves no numbers of a stream
                stated["stream"] = _derived(path)["stream"]
            return cls(Path(path), policy, stated, True)
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
                f"ε = {format_epsilon(self.policy['epsilon'])} at δ = {self.policy['delta']:g} per "
                f"{self.policy['unit']} over {self.policy['rounds']:,} rounds, by noise of "
                f"{self.guarantee['noise_multiplier']:g} clip norms, a figure that {source}."
            ),
        }


def _whole(table: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the policy with every key, or say which one is missing or unknown."""
    if unknown := set(table) - {*TOP_KEYS, *TABLES}:
        raise ValueError(f"{path}: {sorted(unknown)[0]!r} is no key of a policy")
    policy = {}
    for name in _REQUIRED:
        if name not in table:
            raise ValueError(f"{path}: {name} is missing")
        policy[name] = table[name]
    policy |= {name: table.get(name, default) for name, default in _OPTIONAL.items()}
    policy["clipping"] = None
    tables = _TABLES if "clipping" not in table else TABLES
    for name, defaults in tables.items():
        stated = table.get(name, {})
        if not isinstance(stated, dict):
            raise ValueError(
                f"{path}: {name} = {stated!r} is refused: expected a table with "
                f"{', '.join(defaults)}"
            )
        if unknown := set(stated) - set(defaults):
            raise ValueError(f"{path}: {name}.{sorted(unknown)[0]} is no key of a policy")
        policy[name] = defaults | stated
    needed = [("participation", "kind"), ("noise", "at"), ("noise", "kind")]
    needed += [(name, key) for name in tables.keys() - _TABLES for key in ("lowest", "highest")]
    for name, key in needed:
        if policy[name][key] is None:
            raise ValueError(f"{path}: {name}.{key} is missing")
    return policy


def _stated(reviewed: dict[str, Any], at: str) -> dict[str, Any]:
    return {
        "noise_multiplier": reviewed["noise_multiplier"],
        "epsilon": reviewed["epsilon"],
        "epsilon_unamplified": reviewed["epsilon_unamplified"],
        "epsilon_server": reviewed["epsilon_unamplified"] if at == "device" else math.inf,
        "rho": reviewed["rho"],
        "accountant": "not stated by a policy",
    }


def _derived(path: Path) -> dict[str, Any]:
    """Ask the code under audit; what it answers is then checked like any statement."""
    from dataclasses import asdict

    from pfl_lm.dp.guarantee import guarantee
    from pfl_lm.dp.policy import Policy
    from pfl_lm.recipes import load

    return asdict(guarantee(load(Policy, path)))
