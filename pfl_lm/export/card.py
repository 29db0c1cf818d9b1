"""What a bundle says of its model: for a person MODEL_CARD.md, for a program privacy.json."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from pfl_lm.export.bundle import (
    BLOCKLIST,
    CARD,
    LEDGER,
    MANIFEST,
    PRIVACY,
    TOKENIZER,
    counts_are_secret,
)
from pfl_lm.export.parity import HeldOutText
from pfl_lm.export.source import Source
from pfl_lm.export.vocabulary import BlockList
from pfl_lm.models.models import longest_text
from pfl_lm.numbers import (
    MISSING,
    format_delta,
    format_epsilon,
    percent,
    significant,
    size,
    whole,
)
from pfl_lm.run.folder import write_json
from pfl_lm.run.manifest_file import RecordedGuarantee, Statements

_TEMPLATE = Path(__file__).parent / "card.md"
_LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
_FIGURES = ("perplexity", "top1", "top3", "keystrokes_saved")


def write_provenance(folder: Path, source: Source) -> None:
    """Copy manifest and ledger, and write ``privacy.json``.

    The ledger of Poisson rounds stays with the run: it says how many reported, and sampling
    amplifies nothing for its readers.
    """
    (folder / MANIFEST).parent.mkdir()
    shutil.copyfile(source.folder.manifest_path, folder / MANIFEST)
    if not counts_are_secret(source.manifest.content):
        shutil.copyfile(source.folder.ledger_path, folder / LEDGER)
    manifest = source.manifest.content
    write_json(
        folder / PRIVACY,
        {
            "statements": manifest["statements"],
            "policy": manifest.get("policy"),
            "guarantee": manifest.get("guarantee"),
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
        "context": longest_text(spec),
        "trained_window": source.manifest.scenario.window,
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
    scenario, users = manifest.scenario, manifest.population
    return {
        "name": source.name,
        "description": scenario.description,
        "spec": source.model.spec,
        "parameters": manifest.model.parameters,
        "vocabulary": stated["vocabulary"],
        "words_are_private": _words_are_private(manifest.content.get("vocabulary", {})),
        "users": users.users,
        "population": users.name,
        "invented": scenario.population.kind == "synthetic",
        "start": manifest.model.start,
        "rounds": scenario.rounds,
        "cohort": scenario.cohort,
        "statements": manifest.statements,
        "guarantee": _guarantee(manifest.guarantee, manifest.statements),
        "assumptions": manifest.guarantee.assumptions if manifest.guarantee else (),
        "split": source.evaluation.get("split", "held-out"),
        "rows": [_row(row) for row in source.evaluation.get("rows", [])],
        "levels": [f"{level:.0%}" for level in _LEVELS],
        "quantiles": _quantiles(source.evaluation),
        "graphs": stated["graphs"],
        "ngram": stated["model"].get("ngram"),
        "text": text,
        "limits": stated["limits"],
        "identity": source.identity,
        "paths": {"blocklist": BLOCKLIST, "tokenizer": TOKENIZER, "ledger": LEDGER},
        "counts_are_secret": counts_are_secret(manifest.content),
        "ms": lambda value: f"{significant(value, 2)} ms",
        "significant": significant,
    }


def _words_are_private(vocabulary: dict[str, Any]) -> str:
    """Say whether the words come from what people typed."""
    if vocabulary.get("kind") == "private_text":
        return "yes, and no ε covers its words"
    return "some words: users were asked for them, see below" if vocabulary.get("asked") else "no"


def _guarantee(guarantee: RecordedGuarantee | None, statements: Statements) -> str:
    """Return ε in a sentence that says whether it is this model's or a deployment's."""
    if guarantee is None:
        return "ε = ∞: the run has no privacy policy."
    if statements.guaranteed.startswith(guarantee.statement):
        return _epsilons(guarantee)
    return (
        "ε = ∞ for this very model, which has no guarantee. Of a deployment under the policy it "
        f"would hold: {_epsilons(guarantee)}"
    )


def _epsilons(guarantee: RecordedGuarantee) -> str:
    delta = f"δ = {format_delta(guarantee.delta)}, per user"
    models, cohorts, server = (
        format_epsilon(value)
        for value in (guarantee.epsilon, guarantee.epsilon_unamplified, guarantee.epsilon_server)
    )
    if models == server:
        return f"ε = {models} against everyone, the honest-but-curious server included; {delta}."
    known = f"ε = {cohorts} against a person who learns who took part or how many reported; "
    return (
        f"ε = {server} against the server, which is trusted; {known if cohorts != models else ''}"
        f"ε = {models} against a person who sees the released models and nothing else; {delta}."
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
