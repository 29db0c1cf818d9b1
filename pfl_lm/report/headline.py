"""The first screen: what was trained, on whom, what is promised, and how good it came out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pfl_lm.report.numbers import epsilon, is_number, percent, power, short, significant, whole
from pfl_lm.report.source import FEDERATED, Run, style_of

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
    size = run.at("model.parameters")
    vocabulary = run.at("model.vocabulary_size") or run.at("scenario.model.vocabulary_size")
    kind = run.at("model.kind") or run.at("scenario.model.kind")
    sentence = f"A {_KINDS.get(str(kind), 'next-word model')}"
    details = [f"{short(size)} parameters"] if is_number(size) else []
    details += [f"{whole(vocabulary)} words"] if is_number(vocabulary) else []
    sentence += f" ({', '.join(details)})" if details else ""
    sentence += f", trained in {whole(len(run.rounds))} rounds"
    cohort = run.at("scenario.cohort")
    sentence += f" of {whole(cohort)} simulated phones" if is_number(cohort) else ""
    users, name = run.at("population.users"), run.at("population.name")
    users = users.get("train") if isinstance(users, dict) else users
    if is_number(users):
        sentence += f", drawn from {whole(users)}"
    return sentence + (f" ({name})." if name else ".")


def status(run: Run) -> str:
    """Say whether the run is over."""
    if run.finished:
        return "finished"
    planned = f" of {whole(run.planned_rounds)}" if run.planned_rounds else ""
    return f"round {whole(len(run.rounds))}{planned}"


def promise(run: Run) -> dict[str, Any]:
    """The guarantee in one sentence beside what is only simulated.

    A simulated run has a policy whose guarantee holds once deployed; its own model has none.
    """
    found = run.at("guarantee.epsilon")
    protected = is_number(found)
    sentence = run.at("guarantee.statement", "")
    guaranteed = run.at("statements.guaranteed", "") or sentence
    simulated = run.at("statements.simulated", "")
    deployed = protected and bool(sentence) and guaranteed != sentence
    nothing = "No guarantee is stated for this run."
    return {
        "protected": protected,
        "title": _promise_title(protected, deployed),
        "epsilon": epsilon(found),
        "delta": power(run.at("guarantee.delta")) if protected else "",
        "sentence": sentence if deployed else guaranteed or nothing,
        "aside_title": "This model: a simulation" if deployed else "Only simulated",
        "aside": guaranteed if deployed else simulated or "Nothing is stated.",
        "noise": _noise(run),
    }


def _promise_title(protected: bool, deployed: bool) -> str:
    if deployed:
        return "What the policy guarantees, once deployed"
    return "Guaranteed" if protected else "Not guaranteed"


def _noise(run: Run) -> str:
    """Say how the noise was drawn in the simulation."""
    drawn, source = run.at("noise.drawn"), run.at("noise.source")
    source = {
        "csprng": "the operating system's secure random source",
        "reproducible stream": "a reproducible stream, which protects nobody",
    }.get(str(source), source)
    return f"Noise drawn {drawn}, from {source}." if drawn and source else ""


def tiles(run: Run) -> list[Tile]:
    """The three headline figures against the public baselines."""
    return [
        _tile(
            run,
            "perplexity",
            "Perplexity",
            "as if guessing among so many words",
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
    value = run.trained.get(key)
    compared = [row for row in run.baselines if is_number(row.get(key))]
    change, better = _change(key, value, compared, higher)
    rows = [{"name": FEDERATED, key: value}, *compared] if is_number(value) else compared
    most = max((row[key] for row in rows), default=1) or 1
    bars = tuple(
        Bar(row["name"], text(row[key]), row[key] / most, style_of(row["name"])) for row in rows
    )
    return Tile(title, explained, text(value), change, better, bars if compared else ())


def _change(key: str, value: Any, compared: list[dict[str, Any]], higher: bool) -> tuple[str, bool]:
    """Compare with the best baseline: percentage points for shares, percent for perplexity."""
    if not compared or not is_number(value):
        return "", False
    best = (max if higher else min)(compared, key=lambda row: row[key])
    difference = value - best[key]
    better = difference > 0 if higher else difference < 0
    if key == "perplexity":
        ratio = difference / best[key] if best[key] else math.nan
        amount = f"{abs(ratio):.0%} {'lower' if ratio < 0 else 'higher'}"
    else:
        amount = f"{abs(100 * difference):.1f} points {'more' if difference > 0 else 'less'}"
    return f"{amount} than {best['name']}", better


def comparison(run: Run) -> list[dict[str, str]]:
    """The table of all models on the held-out users."""
    rows = []
    for row in run.rows:
        rows.append(
            {
                "name": str(row.get("name", "")),
                "style": style_of(str(row.get("name", ""))),
                "trained": "yes" if row.get("name") == FEDERATED else "",
                "perplexity": significant(row.get("perplexity")),
                "perplexity_known": significant(row.get("perplexity_known")),
                "top1": percent(row.get("top1")),
                "top3": percent(row.get("top3")),
                "top3_known": percent(row.get("top3_known")),
                "keystrokes": percent(row.get("keystrokes_saved")),
            }
        )
    return rows
