"""The first screen: what was trained, on whom, what is promised, and how good it came out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pfl_lm.evaluation.labels import AS_TYPED
from pfl_lm.numbers import (
    format_delta,
    format_epsilon,
    is_number,
    percent,
    short,
    significant,
    whole,
)
from pfl_lm.report.source import FEDERATED, Run, style_of
from pfl_lm.run.folder import was_opened

_KINDS = {"cifg_lstm": "CIFG-LSTM", "lstm": "LSTM", "transformer": "transformer"}


@dataclass(frozen=True)
class Bar:
    """One model's value in a tile."""

    name: str
    text: str
    share: float  # of the tile's width, 0 to 1
    style: str


@dataclass(frozen=True)
class Tile:
    """One headline figure."""

    title: str
    explained: str
    value: str
    change: str  # against the best public baseline; empty where there is none
    better: bool
    bars: tuple[Bar, ...]


def lead(run: Run) -> str:
    """Say in one sentence what was trained, on whom, in how many rounds."""
    manifest = run.manifest
    kind = _KINDS.get(str(manifest.scenario.model.get("kind")), "next-word model")
    size, words = short(manifest.model.parameters), whole(manifest.tokenizer.vocabulary_size)
    users = manifest.population
    phones = f"simulated phones, drawn from {whole(users.users.get('train'))} ({users.name})"
    if manifest.served is not None:
        phones = f"phones, drawn from {whole(users.cohort_rule.population)} that are enrolled"
    rounds = "round" if len(run.rounds) == 1 else "rounds"
    return (
        f"A {kind} ({size} parameters, {words} words), trained in {rounds_opened(run)} {rounds} "
        f"of {whole(manifest.scenario.cohort)} {phones}."
    )


def rounds_opened(run: Run) -> str:
    """Return how many rounds there were, and of how many the sum was opened, if not of all."""
    opened = sum(map(was_opened, run.rounds))
    of = "" if opened == len(run.rounds) else f"{whole(opened)} opened of "
    return f"{of}{whole(len(run.rounds))}"


def status(run: Run) -> str:
    """Say whether the run is over."""
    if run.finished:
        return "finished"
    planned = f" of {whole(run.planned_rounds)}" if run.planned_rounds else ""
    return f"round {whole(len(run.rounds))}{planned}"


def guarantee(run: Run) -> dict[str, Any]:
    """The guarantee in one sentence beside what is only simulated.

    A simulated run has a policy whose guarantee holds once deployed; its own model has none.
    """
    statements, stated = run.manifest.statements, run.manifest.guarantee
    served = run.manifest.served
    kind = "trial" if served is not None and served.trial else "simulation"
    protected = stated is not None and stated.epsilon is not None
    sentence = stated.statement if stated is not None else ""
    deployed = protected and not statements.guaranteed.startswith(sentence)
    return {
        "protected": protected,
        "title": _guarantee_title(protected, deployed),
        "epsilon": format_epsilon(stated.epsilon if stated is not None else None),
        "delta": format_delta(stated.delta) if stated is not None and protected else "",
        "sentence": sentence if deployed else statements.guaranteed,
        "aside_title": f"This model: a {kind}" if deployed else "Only simulated",
        "aside": statements.guaranteed if deployed else statements.simulated,
        "noise": _noise(run),
        "beside": _beside(run),
    }


def _guarantee_title(protected: bool, deployed: bool) -> str:
    if deployed:
        return "What the policy guarantees, once deployed"
    return "Guaranteed" if protected else "Not guaranteed"


def _beside(run: Run) -> str:
    """Say that no ε covers the page's own figures; nothing where users are invented."""
    if run.manifest.scenario.population.kind == "synthetic":
        return ""
    return (
        "ε is of the models alone. The figures on this page that come from people's text (losses, "
        "lengths of updates, measures on held-out users) carry no noise: no ε covers them. Keep "
        "the page among those who may read the text."
    )


def _noise(run: Run) -> str:
    """Say how the noise was drawn in the simulation."""
    noise = run.manifest.noise
    source = {
        "csprng": "the operating system's secure random source",
        "reproducible stream": "a reproducible stream, which protects nobody",
    }.get(noise.source, noise.source)
    return f"Noise drawn {noise.drawn}, from {source}."


def tiles(run: Run) -> list[Tile]:
    """The three headline figures against the public baselines."""
    return [
        _tile(
            run,
            "perplexity",
            "Perplexity",
            "as hard as guessing among this many words",
            significant,
            False,
        ),
        _tile(
            run,
            "top3",
            "Top-3 recall",
            "typed words that were among three suggestions before the first letter",
            percent,
            True,
        ),
        _tile(
            run,
            "keystrokes_saved",
            "Keystrokes saved",
            "with three suggestions, completed while typing",
            percent,
            True,
        ),
    ]


def _tile(
    run: Run, key: str, title: str, explained: str, text: Callable[[Any], str], higher: bool
) -> Tile:
    value = _measured(run.trained, key)
    compared = [row for row in run.baselines if is_number(row.get(key))]
    change, better = _change(key, value, compared, higher)
    rows = [{"name": FEDERATED, key: value}, *compared] if is_number(value) else compared
    most = max((row[key] for row in rows), default=1) or 1
    bars = tuple(
        Bar(row["name"], text(row[key]), min(1.0, max(0.0, row[key] / most)), style_of(row["name"]))
        for row in rows
    )
    return Tile(title, explained, text(value), change, better, bars if compared else ())


def _measured(row: dict[str, Any], key: str) -> Any:
    """Return a figure of a row; a perplexity that was measured and is no number is infinite."""
    value = row.get(key)
    return math.inf if value is None and key in row and "perplexity" in key else value


def _change(key: str, value: Any, compared: list[dict[str, Any]], higher: bool) -> tuple[str, bool]:
    """Compare with the best baseline: percentage points for shares, percent for perplexity."""
    best = (max if higher else min)(compared, key=lambda row: row[key], default=None)
    if best is not None and value == math.inf:
        return f"worse than {best['name']}: the training diverged", False
    if best is None or not is_number(value):
        return "", False
    difference = value - best[key]
    better = difference > 0 if higher else difference < 0
    if key == "perplexity":
        ratio = difference / best[key] if best[key] else math.nan
        amount = f"{abs(ratio):.0%}" if abs(ratio) < 100 else f"{significant(100 * abs(ratio))}%"
        way = "lower" if ratio < 0 else "higher"
    else:
        points = "more" if difference > 0 else "less"
        amount, way = f"{abs(100 * difference):.1f}", f"points {points}"
    if amount in ("0%", "0.0"):  # a difference that the figures shown do not have
        return f"the same as {best['name']}", True
    return f"{amount} {way} than {best['name']}", better


def suggestions(run: Run) -> list[dict[str, Any]]:
    """What the keyboard suggests after a dozen public texts: by the start, by the trained model."""
    return [
        {"text": row["text"], "before": row["before"], "after": row["after"]}
        for row in run.final.get("suggestions", [])
        if isinstance(row, dict) and {"text", "before", "after"} <= row.keys()
    ]


def comparison(run: Run) -> list[dict[str, str]]:
    """The table of all models on the held-out users."""
    rows = []
    for row in run.rows:
        rows.append(
            {
                "name": str(row.get("name", "")),
                "style": style_of(str(row.get("name", ""))),
                "trained": "yes" if row.get("name") == FEDERATED else "",
                "perplexity": significant(_measured(row, "perplexity")),
                "perplexity_known": significant(_measured(row, "perplexity_known")),
                "top1": percent(row.get("top1")),
                "top3": percent(row.get("top3")),
                "top3_known": percent(row.get("top3_known")),
                "keystrokes": percent(row.get("keystrokes_saved")),
            }
        )
    return rows


def as_typed_figures(run: Run) -> dict[str, list[str]]:
    """What the text as it was typed has figures for: the heading, and a cell for each model."""
    return {
        label[0].upper() + label[1:]: [percent(row.get(name)) for row in run.rows]
        for name, label in AS_TYPED.items()
        if any(is_number(row.get(name)) for row in run.rows)
    }
