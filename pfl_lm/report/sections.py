"""The chapters of the page: each a few charts and plain facts, left out where nothing is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from pfl_lm.numbers import (
    format_delta,
    format_epsilon,
    format_epsilon_bound,
    is_number,
    percent,
    short,
    significant,
    size,
    whole,
)
from pfl_lm.pages.charts import Level, Series, legend, line_chart, smoothed
from pfl_lm.report.fleet import fleet_charts, fleet_facts
from pfl_lm.report.headline import Bar
from pfl_lm.report.source import FEDERATED, Run, style_of
from pfl_lm.run.manifest_file import RecordedGraph, RecordedGuarantee

_SMOOTHING = 0.03  # share of the rounds, on either side, that the loss is averaged over


def _at_axis(value: float) -> str:
    return f"{100 * value:.4g}%"


_PERCENT: dict[str, Any] = {"format_y": percent, "tick_y": _at_axis}


@dataclass(frozen=True)
class Figure:
    """A chart with its title, a line that explains it, and its legend."""

    title: str
    note: str
    chart: Markup
    legend: Markup | None


@dataclass(frozen=True)
class Section:
    """One chapter: what it answers, facts as (name, value), figures."""

    anchor: str
    title: str
    note: str
    facts: tuple[tuple[str, str], ...]
    figures: tuple[Figure, ...]


def sections(run: Run) -> list[Section]:
    """Return the chapters that have something to tell."""
    chapters = [learning(run), privacy(run), payload(run), phones(run), people(run)]
    return [section for section in chapters if section.figures or section.facts]


def learning(run: Run) -> Section:
    """Loss on the devices and figures on held-out users, round by round."""
    raw = run.over_rounds("each round", "loss", "s0 faint", named=False)
    reach = round(_SMOOTHING * len(raw.y))
    trend = Series("average", raw.x, smoothed(raw.y, reach), "s0")
    figures = [
        _figure("Loss on the devices", "Mean training loss of a round, in nats per word.",
                [raw, trend], x_label="round", y_label="training loss"),
        _held_out(run, "perplexity", "Perplexity", log=True),
        _held_out(run, "top3", "Top-3 recall", **_PERCENT),
        _held_out(run, "keystrokes_saved", "Keystrokes saved", **_PERCENT),
    ]  # fmt: skip
    return Section("learning", "Learning", "", (), _present(figures))


def _held_out(run: Run, key: str, title: str, **settings: Any) -> Figure | None:
    """Draw a figure on validation users over the rounds, above the baselines' final ones."""
    line = run.over_evaluations(FEDERATED, key)
    rows = [row for row in run.baselines if is_number(row.get(key))]
    levels = [Level(str(row["name"]), row[key], style_of(row["name"])) for row in rows]
    note = "On held-out users while training."
    note += f" Lines across: baselines, {run.final.get('split')} users." if levels else ""
    return _figure(title, note, [line], x_label="round", y_label=title, levels=levels, **settings)


def privacy(run: Run) -> Section:
    """How the budget was spent, and what the figure rests on."""
    spent = run.over_rounds("one who sees the models", "epsilon", "s0")
    unamplified = run.over_rounds("one who also sees who took part", "epsilon_unamplified", "s1")
    policy = run.manifest.policy
    budget = None if policy is None else policy.epsilon
    levels = [] if budget is None else [Level(f"budget ε = {format_epsilon(budget)}", budget, "s2")]
    reach = [y for line in (spent, unamplified) for y in line.y if y]
    figure = _figure(
        "Privacy spent", "ε so far, against two adversaries; lower is more private.",
        [spent, unamplified], x_label="round", y_label="ε", format_y=format_epsilon,
        levels=levels, log=bool(reach) and max(reach) > 12 * min(reach),
    )  # fmt: skip
    return Section("privacy", "Privacy", "", _guaranteed(run), _present([figure]))


def _guaranteed(run: Run) -> tuple[tuple[str, str], ...]:
    """Return what follows from the policy, as (name, value); nothing where no ε holds."""
    policy, guarantee = run.manifest.policy, run.manifest.guarantee
    if policy is None or guarantee is None or guarantee.epsilon is None:
        return ()
    facts = [
        ("ε, against the server", _server_epsilon(guarantee)),
        ("ε, cohorts or counts known", format_epsilon(guarantee.epsilon_unamplified)),
        ("ε, released models only", format_epsilon(guarantee.epsilon)),
        ("δ", format_delta(guarantee.delta)),
        ("zCDP ρ", _if_number(guarantee.rho, format_epsilon)),
        ("noise multiplier", significant(guarantee.noise_multiplier)),
        ("unit of privacy", policy.unit),
        ("reports per round, deployed", whole(policy.report_goal)),
        ("public groups of a round", whole(policy.groups) if policy.groups > 1 else ""),
        ("people, deployed", whole(policy.population)),
        ("accountant", guarantee.accountant),
        ("budget of these people", _budget(run)),
        ("spent by", _spent_by(run)),
        ("secure aggregation, here", _summed_here(run)),
        ("secure aggregation, deployed", _statement(run.manifest.secure_aggregation.deployed)),
    ]
    return _known(facts)


def _server_epsilon(guarantee: RecordedGuarantee) -> str:
    """Return ε against the server; a server that adds the noise is trusted, and none holds."""
    if guarantee.epsilon_server is None:
        return "∞: the server is trusted"
    return format_epsilon(guarantee.epsilon_server)


def _budget(run: Run) -> str:
    """Return what is left of the one budget that training and questions share."""
    budget = run.budget or {}
    names = ("epsilon", "total_epsilon", "total_delta", "left")
    figures = [float(budget[name]) for name in names if is_number(budget.get(name))]
    if len(figures) < len(names):
        return ""
    spent, total, delta, left = figures
    origin = "stated" if budget.get("total_stated") else "the least of their policies"
    return (
        f"ε = {format_epsilon(spent)} of {format_epsilon(total)} spent ({origin}, "
        f"δ = {format_delta(delta)}), {format_epsilon_bound(left)} left; training and questions "
        "share it"
    )


def _spent_by(run: Run) -> str:
    """Name the runs and questions that have spent the budget of these people."""
    spenders = (run.budget or {}).get("spent_by")
    return ", ".join(
        f"{spender.get('name')} ({spender.get('purpose')}, {whole(spender['rounds'])} rounds)"
        for spender in (spenders if isinstance(spenders, list) else [])
        if isinstance(spender, dict) and is_number(spender.get("rounds"))
    )


def _summed_here(run: Run) -> str:
    """Say what summed the reports, and with which graph."""
    summed = run.manifest.secure_aggregation
    stated = _statement(summed.simulated)
    return f"ideal functionality of: {stated}" if stated and summed.ran == "ideal" else stated


def _statement(graph: RecordedGraph | None) -> str:
    return "" if graph is None else graph.statement


def payload(run: Run) -> Section:
    """What travels, and how much noise it carries."""
    clipped = run.over_rounds("clipped", "clipped_share", "s0")
    device = run.over_rounds("one device's update, unclipped", "update_norm", "s2")
    bound = run.over_rounds("clip norm", "clip_norm", "s3")
    mean = run.over_rounds("mean update, noise included", "mean_norm", "s0")
    noise = run.over_rounds("noise in the mean", "noise_norm", "s1")
    noisy = any(noise.y)
    title = "Signal and noise" if noisy else "Length of updates"
    about = "Training needs the mean above its noise." if noisy else "Nobody adds noise."
    figures = [
        _figure(title, f"ℓ2 norms of a round. {about}",
                [device, mean, *([noise] if noisy else []), *([bound] if any(bound.y) else [])],
                x_label="round", y_label="ℓ2 norm", log=True),
        _figure("Clipped updates", "Share of the devices whose update was shortened to the bound.",
                [clipped], x_label="round", y_label="share of devices", zero=True, **_PERCENT),
    ]  # fmt: skip
    coordinates, total = run.manifest.payload.coordinates, run.manifest.model.parameters
    facts = [
        (
            "coordinates that travel",
            f"{short(coordinates)} ({percent(coordinates / total)})",
        ),
        ("sent by a device, a round", _if_number(run.latest("upload_bytes"), size)),
        ("received by a device", _if_number(run.latest("download_bytes"), size)),
        (
            "noise norm against all coordinates",
            _ratio(run.manifest.payload.noise_norm_ratio) if noisy else "no noise",
        ),
        ("clip norm, last round", _if_number(run.latest("clip_norm"), significant)),
        ("reports per round, simulated", _if_number(run.mean("reports"), whole)),
        ("seconds per round", _if_number(run.mean("seconds"), significant)),
    ]
    return Section("payload", "Payload and noise", "", _known(facts), _present(figures))


def phones(run: Run) -> Section:
    """Who takes part on a fleet, and how long it takes; empty without one."""
    figures = tuple(
        Figure(title, note, chart, key) for title, note, chart, key in fleet_charts(run) if chart
    )
    fleet = run.manifest.fleet
    note = "" if fleet is None else fleet.description
    return Section("phones", "Phones", note, fleet_facts(run), figures)


def people(run: Run) -> Section:
    """How the figures are spread over users: the mean is nobody."""
    figures = [
        _over_users(run, "top3", "Top-3 recall, user by user"),
        _over_users(run, "keystrokes_saved", "Keystrokes saved, user by user"),
    ]
    facts = []
    spread = (run.trained.get("over_users") or {}).get("top3") or {}
    levels = run.trained.get("quantile_levels") or []
    at = dict(zip(levels, spread.get("quantiles") or [], strict=False))
    if is_number(at.get(0.5)):
        facts = [
            ("top-3 recall, median user", percent(at[0.5])),
            ("worst-served tenth, at most", percent(at.get(0.1))),
            ("best-served tenth, at least", percent(at.get(0.9))),
            ("mean over users", _plus_minus(spread.get("mean"), spread.get("standard_error"))),
            ("held-out users", whole(run.trained.get("users"))),
            ("words outside the vocabulary", percent(run.trained.get("oov_rate"))),
        ]  # fmt: skip
    return Section("people", "People", "", _known(facts), _present(figures))


def _over_users(run: Run, key: str, title: str) -> Figure | None:
    lines = []
    for row in run.rows or [{**run.trained, "name": FEDERATED}]:
        values = ((row.get("over_users") or {}).get(key) or {}).get("quantiles") or []
        levels = row.get("quantile_levels") or []
        if values and len(values) == len(levels):
            lines.append(Series(str(row["name"]), levels, values, style_of(row["name"])))
    note = "Users ordered from the worst served to the best, for each model."
    return _figure(title, note, lines, x_label="share of users", y_label=title, zero=True,
                   format_x=_at_axis, **_PERCENT)  # fmt: skip


def words(run: Run) -> list[dict[str, Any]]:
    """Recall by public word frequency: one group per bucket, one bar per model."""
    rows = [row for row in run.rows or [{**run.trained, "name": FEDERATED}] if row.get("buckets")]
    recalls = [b.get("top3") for row in rows for b in row["buckets"] if is_number(b.get("top3"))]
    longest = max(recalls, default=0) or 1
    return [
        {
            "name": bucket.get("name", ""),
            "share": percent(bucket.get("share"), 0),
            "bars": [
                Bar(str(row["name"]), percent(recall), recall / longest, style_of(row["name"]))
                for row in rows
                if is_number(recall := row["buckets"][place].get("top3"))
            ],
        }
        for place, bucket in enumerate(rows[0]["buckets"] if rows else [])
    ]


def _figure(title: str, note: str, series: Sequence[Series], **settings: Any) -> Figure | None:
    chart = line_chart(series, **settings)
    return Figure(title, note, chart, legend(series)) if chart else None


def _present(figures: Sequence[Figure | None]) -> tuple[Figure, ...]:
    return tuple(figure for figure in figures if figure)


def _known(facts: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    return tuple((name, value) for name, value in facts if value)


def _if_number(value: Any, text: Callable[[Any], str]) -> str:
    return text(value) if is_number(value) else ""


def _plus_minus(value: Any, error: Any) -> str:
    return f"{percent(value)} ± {percent(error)}" if is_number(error) else percent(value)


def _ratio(value: Any) -> str:
    return f"× {significant(value)}" if is_number(value) else ""
