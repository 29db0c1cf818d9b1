"""What a run left behind, read without trusting it and without torch."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from pfl_lm.audit.chain import read_chain
from pfl_lm.files import check_zip
from pfl_lm.run.folder import RunFolder
from pfl_lm.run.manifest_file import Manifest


class AuditTarget(Protocol):
    """What an accounting is checked of: a run, or a policy that nothing was run under."""

    @property
    def title(self) -> str: ...

    @property
    def where(self) -> Path: ...

    @property
    def policy(self) -> dict[str, Any] | None: ...

    @property
    def guarantee(self) -> dict[str, Any]: ...

    @property
    def statements(self) -> dict[str, str]: ...


_FIGURE = (int, float, type(None))
_AUDITED: dict[str, tuple[type, ...]] = {  # figures of the metrics that an audit computes with
    **dict.fromkeys(("reports", "invited", "trained_devices"), (int,)),
    **dict.fromkeys(
        ("epsilon", "epsilon_unamplified", "clipped_share", "mean_norm", "noise_norm"), _FIGURE
    ),
}


@dataclass(frozen=True)
class RunArtifacts:
    """A run folder as an auditor gets it.

    Raises:
        ValueError: (``open``) the folder is no run folder, or its manifest is damaged.
    """

    folder: RunFolder
    manifest: dict[str, Any]  # all that was written: a doctored one is read like any other

    @classmethod
    def open(cls, path: Path) -> RunArtifacts:
        folder = RunFolder.open(path)
        return cls(folder, Manifest.read(folder).content)

    @property
    def title(self) -> str:
        return f"run {self.manifest['run']}"

    @property
    def where(self) -> Path:
        return self.folder.manifest_path

    @property
    def policy(self) -> dict[str, Any] | None:
        return self.manifest.get("policy")

    @property
    def guarantee(self) -> dict[str, Any]:
        """What the run derived from its policy, and published."""
        return self.manifest.get("guarantee") or {}

    @property
    def statements(self) -> dict[str, str]:
        """What the run says is guaranteed of its model, and what it only simulates."""
        return self.manifest["statements"]

    @property
    def claims_its_model(self) -> bool:
        """Whether the run says that something is guaranteed of its own model."""
        return not self.statements["guaranteed"].startswith("Nothing")

    @cached_property
    def rounds(self) -> list[dict[str, Any]]:
        """The rounds as the metrics tell of them, with what is kept for the auditor.

        Raises:
            ValueError: a figure is no number; names the round and the key.
        """
        lines = [line for line in self.folder.all_metrics() if line.get("kind") == "round"]
        for line in lines:
            for name, value in line.items():
                if name in _AUDITED and type(value) not in _AUDITED[name]:
                    raise ValueError(
                        f"{self.folder.metrics_path}: {name} = {value!r} of round {line['round']} "
                        "is no number; bring another copy of the run"
                    )
        return lines

    @cached_property
    def first_round(self) -> dict[str, Any] | None:
        """The first opened round that the ledger's sound beginning records."""
        entries = read_chain(self.folder.ledger_path).entries
        return next((entry for entry in entries if entry.get("kind") == "round"), None)

    @cached_property
    def ledger_heads(self) -> dict[str, str]:
        """The ledger heads that checkpoints kept, by file name; damaged files are left out."""
        heads = {}
        for path in self.folder.checkpoints().values():
            head = _head_in_checkpoint(path)
            if head is not None:
                heads[path.name] = head
        return heads


def digest_of(content: Any) -> str:
    """Return the SHA-256 of JSON content with sorted keys, as the genesis entry names it."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class _Inert:
    """Stands for every class that a checkpoint names; nothing of it is ever executed."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...

    def __setitem__(self, *_: Any) -> None: ...


class _InertUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return _Inert

    def persistent_load(self, _: Any) -> Any:
        return _Inert()


def _head_in_checkpoint(path: Path) -> str | None:
    """Read ``ledger_head`` out of a torch file: a zip with one pickle, read with inert classes."""
    try:
        with zipfile.ZipFile(path) as archive:
            check_zip(archive, path, expansion=1)
            (name,) = (n for n in archive.namelist() if n.endswith("/data.pkl"))
            content = _InertUnpickler(io.BytesIO(archive.read(name))).load()
        head = content.get("ledger_head")
    except (OSError, ValueError, KeyError, AttributeError, TypeError, zipfile.BadZipFile,
            pickle.UnpicklingError):  # fmt: skip
        return None
    return head if isinstance(head, str) else None
