"""Which settings differ between runs, from their manifests."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pfl_lm.run.manifest_file import Manifest

SEED = "seed"  # the one setting that changes chance and nothing else
_FOR_PEOPLE = ("description", "source")
_ABSENT = "–"
_PARTS = ("policy", "fleet")
_TOLD = ("policy.epsilon",)  # even where another run has no policy


@dataclass(frozen=True)
class Setting:
    """A key whose value is not the same in all runs, as text, run by run."""

    key: str
    values: tuple[str, ...]


def differing(manifests: Sequence[Manifest]) -> list[Setting]:
    """Return what is not alike: in scenarios, policies, fleets, vocabularies, and the code.

    Where one of the runs has no policy, or no fleet, the numbers of another's are left out.
    """
    tables = [dict(_settings(manifest)) for manifest in manifests]
    lacking = [part for part in _PARTS for m in manifests if not m.content.get(part)]
    keys = dict.fromkeys(
        key
        for table in tables
        for key in table
        if not any(key.startswith(f"{part}.") for part in lacking) or key in _TOLD
    )
    rows = [Setting(key, tuple(table.get(key, _ABSENT) for table in tables)) for key in keys]
    return [row for row in rows if len(set(row.values)) > 1]


def alike_but_for_seed(one: Manifest, other: Manifest) -> bool:
    """Say whether the settings of two runs differ in the seed, and in nothing else."""
    return [setting.key for setting in differing([one, other])] == [SEED]


def _settings(manifest: Manifest) -> Iterator[tuple[str, str]]:
    content = manifest.content
    yield from _flat(content["scenario"], "")
    for part in _PARTS:
        yield from _flat(content.get(part) or {}, f"{part}.")
    yield "population.digest", _short(manifest.population.digest)
    yield "population.public_text.digest", _short(manifest.population.public_text)
    yield "start.digest", _short(manifest.model.start_digest)
    yield "vocabulary", manifest.tokenizer.digest[:12]
    yield "pfl_lm", str(manifest.versions.get("code", manifest.versions["pfl_lm"]))[:12]


def _flat(table: dict[str, Any], within: str) -> Iterator[tuple[str, str]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{within}{key}.")
        elif key not in _FOR_PEOPLE:
            yield f"{within}{key}", value if isinstance(value, str) else _text(value)


def _short(digest: str | None) -> str:
    return _ABSENT if digest is None else digest[:12]


def _text(value: Any) -> str:
    return _ABSENT if value is None else json.dumps(value, ensure_ascii=False)
