"""What a bundle says of its model: for a person MODEL_CARD.md, for a program privacy.json."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from pfl_lm.export.bundle import BLOCKLIST, CARD, LEDGER, MANIFEST, PRIVACY, TOKENIZER
from pfl_lm.export.parity import HeldOutText
from pfl_lm.export.source import Source
from pfl_lm.export.words import BlockList
from pfl_lm.report.numbers import MISSING, epsilon, percent, power, significant, size, whole
from pfl_lm.runs import write_json

_TEMPLATE = Path(__file__).parent / "card.md"
_LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
_FIGURES = ("perplexity", "top1", "top3", "keystrokes_saved")


def write_provenance(folder: Path, source: Source) -> None:
    """Copy manifest and ledger, and write ``privacy.json``."""
    (folder / MANIFEST).parent.mkdir()
    shutil.copyfile(source.folder.manifest_path, folder / MANIFEST)
    shutil.copyfile(source.folder.ledger_path, folder / LEDGER)
    guarantee = source.manifest.get("guarantee")
    write_json(
        folder / PRIVACY,
        {
            "statements": source.manifest["statements"],
            "policy": source.manifest.get("policy"),
            "guarantee": guarantee,
            "ledger": {
                "head": source.identity["ledger_head"],
                "entries": source.identity["ledger_entries"],
            },
            "model_text": source.model.origin,
        },
    )


def limits(source: Source, blocked: BlockList) -> dict[str, Any]:
    """Return what the model is not good for."""
    spec = source.model.spec
    return {
        "context": spec.context if spec.kind == "transformer" else None,
        "trained_window": source.at("scenario", "training", "window"),
        "language": source.tokenizer.manifest.get("locale", ""),
        "vocabulary_size": spec.vocabulary_size,
        "never_suggested": len(blocked.ids),
        "casing": source.tokenizer.normalisation.casing,
        "punctuation": source.tokenizer.normalisation.punctuation,
    }


def write_card(folder: Path, source: Source, stated: dict[str, Any], text: HeldOutText) -> None:
    """Write the model card from what the index states and the run found."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATE.parent),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    for name, show in (("percent", percent), ("whole", whole), ("size", size)):
        environment.filters[name] = show
    page = environment.get_template(_TEMPLATE.name).render(_content(source, stated, text))
    (folder / CARD).write_text(page, encoding="utf-8")


def _content(source: Source, stated: dict[str, Any], text: HeldOutText) -> dict[str, Any]:
    manifest = source.manifest
    start = source.at("model", "start") or {}
    return {
        "name": source.name,
        "description": source.at("scenario", "description") or "",
        "spec": source.model.spec,
        "parameters": source.at("model", "parameters"),
        "words": stated["words"],
        "users": source.at("population", "users") or {},
        "population": source.at("population", "name"),
        "invented": source.at("scenario", "population", "kind") == "synthetic",
        "start": start,
        "rounds": source.at("scenario", "rounds"),
        "cohort": source.at("scenario", "cohort"),
        "statements": manifest["statements"],
        "promise": _promise(manifest),
        "assumptions": (manifest.get("guarantee") or {}).get("assumptions", ()),
        "split": source.evaluation.get("split", "held-out"),
        "rows": [_row(row) for row in source.evaluation.get("rows", [])],
        "levels": [f"{level:.0%}" for level in _LEVELS],
        "quantiles": _quantiles(source.evaluation),
        "graphs": stated["graphs"],
        "text": text,
        "limits": stated["limits"],
        "identity": source.identity,
        "paths": {"blocklist": BLOCKLIST, "tokenizer": TOKENIZER, "ledger": LEDGER},
        "ms": lambda value: f"{significant(value, 2)} ms",
        "significant": significant,
    }


def _promise(manifest: dict[str, Any]) -> str:
    guarantee = manifest.get("guarantee")
    if not guarantee:
        return "ε = ∞: the run has no privacy policy."
    return (
        f"ε = {epsilon(guarantee['epsilon'])} for whoever sees every released model, "
        f"ε = {epsilon(guarantee['epsilon_unamplified'])} against the server that sees each sum "
        f"and who took part; δ = {power(guarantee['delta'])}, per user."
    )


def _row(row: dict[str, Any]) -> dict[str, str]:
    return {
        "name": row.get("name", ""),
        "users": whole(row.get("users")),
        "perplexity": significant(row.get("perplexity")),
        "top1": percent(row.get("top1")),
        "top3": percent(row.get("top3")),
        "keystrokes_saved": percent(row.get("keystrokes_saved")),
    }


def _quantiles(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a line for each figure of the trained model: its value at the stated quantiles."""
    trained: dict[str, Any] = next(
        (row for row in evaluation.get("rows", []) if row.get("name") == "federated model"), {}
    )
    stated = trained.get("quantile_levels") or []
    lines = []
    for name in _FIGURES:
        spread = (trained.get("over_users") or {}).get(name)
        if not spread or not stated:
            continue
        show = significant if name == "perplexity" else percent
        nearest = [min(range(len(stated)), key=lambda i: abs(stated[i] - q)) for q in _LEVELS]
        values = [show(spread["quantiles"][i]) if spread["quantiles"] else MISSING for i in nearest]
        label = name.replace("top", "top-").replace("_", " ")
        lines.append({"name": label, "values": values})
    return lines
