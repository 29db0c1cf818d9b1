"""What a question to phones left behind, read without trusting it and without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfl_lm.run.folder import read_json

KINDS = ("words", "comparison", "mixture")
_NEEDED = ("asked", "policy", "guarantee", "statements", "population", "result")


@dataclass(frozen=True)
class QuestionArtifacts:
    """The folder of a question as an auditor gets it.

    Raises:
        ValueError: (``open``) the folder holds no question, or its manifest is damaged.
    """

    path: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, path: Path) -> QuestionArtifacts:
        manifest = read_json(Path(path) / "manifest.json")
        missing = [name for name in _NEEDED if name not in manifest]
        if manifest.get("kind") not in KINDS or missing:
            raise ValueError(f"{path}: manifest.json describes no question ({missing or 'kind'})")
        # The replay of a run's rounds asks a scenario for the clip: a device's answer has norm 1.
        return cls(Path(path), {**manifest, "scenario": {"clip_norm": manifest["asked"]["norm"]}})

    @property
    def title(self) -> str:
        return f"question {self.path.name}"

    @property
    def where(self) -> Path:
        return self.path / "manifest.json"

    @property
    def policy(self) -> dict[str, Any] | None:
        policy: dict[str, Any] = self.manifest["policy"]
        return policy

    @property
    def guarantee(self) -> dict[str, Any]:
        """What was derived from the policy, and published."""
        guarantee: dict[str, Any] = self.manifest["guarantee"]
        return guarantee

    @property
    def statements(self) -> dict[str, str]:
        statements: dict[str, str] = self.manifest["statements"]
        return statements

    @property
    def rounds(self) -> list[dict[str, Any]]:
        """A question writes no metrics."""
        return []


def is_question(path: Path) -> bool:
    """Tell whether a folder holds a question to phones, and no run."""
    manifest = Path(path) / "manifest.json"
    return manifest.is_file() and read_json(manifest).get("kind") in KINDS
