"""Does the model really leak no more? Canaries in the run's own pipeline, power first."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from pfl_lm.audit import canaries as placing
from pfl_lm.audit import secrets
from pfl_lm.audit.evidence import Evidence
from pfl_lm.audit.findings import Finding, Part, Plot, Table, figure
from pfl_lm.audit.one_shot import OneShot, one_shot
from pfl_lm.audit.probe import everybody_reports
from pfl_lm.audit.promise import Promise
from pfl_lm.audit.views import View, view_all
from pfl_lm.world import World

CANARIES = 400
MOST_ROUNDS = 200
_SEED = 20230508  # of coins, directions and invitations; the noise comes from the run's own source
_POWER = 3.0  # with the noise off, less than this says that the attack was blind

NOT_CHECKED = (
    "Stronger attacks than these: a lower bound can only grow.",
    "The full number of rounds, where the audit ran fewer than the policy allows.",
    "Devices that collude with the server, or with each other.",
)


def audit_attack(
    world: World,
    evidence: Evidence,
    rounds: int | None = None,
    phrase_rounds: int = secrets.ROUNDS,
) -> Part:
    """Attack the run's own rounds; first with the noise off, to see whether the attack can see.

    Args:
        rounds: to send canaries through; as many as the run has, at most 200, by default.
        phrase_rounds: to train on invented phrases, twice; 0 leaves them out.
    """
    started, world = time.monotonic(), summed_at_once(everybody_reports(world))
    promise = Promise.of(evidence)
    rounds = min(rounds or world.scenario.rounds, MOST_ROUNDS)
    placed = placing.place_canaries(world, CANARIES, rounds, _SEED)
    length = placing.strength(world)
    clip = world.protection.clip_norm
    loud = placing.run_canaries(placing.without_noise(world), placed, clip)
    seen = placing.run_canaries(world, placed, length)
    delta = 1e-6 if promise is None else promise.delta
    blind = view_all(world, promise, placed, loud, delta)
    views = view_all(world, promise, placed, seen, delta)
    dim = placed.directions.shape[1]
    estimate = one_shot(placed, seen, delta)
    phrase_rounds = min(rounds, phrase_rounds)
    told = secrets.tell(world, phrase_rounds, _SEED) if phrase_rounds else []
    findings = [_power(blind), *(_judge(view, promise) for view in views)]
    findings += secrets.findings_of(told, clip / length) if told else []
    return Part(
        "attack",
        "Does the model really leak no more?",
        (
            f"{len(placed.coins)} canaries, a fair coin each, {rounds} rounds of the run's code.",
            f"{int(placed.scheduled.sum())} of them in one round that the server knows.",
            f"The others in rounds as the policy draws them; all on {dim:,} coordinates.",
            "Three attackers: the server, one who sees every model, one who sees the last.",
            f"{len(told)} invented phrases, typed by a few users in {phrase_rounds} rounds.",
        ),
        findings,
        (*NOT_CHECKED, *_left_out(world, evidence, told)),
        [_table(views, blind, estimate), secrets.table_of(told, clip / length)],
        [_axis(views[0]), _axis(views[1], estimate), _histogram(views[0])],
        {
            "rounds": rounds,
            "canaries": len(placed.coins),
            "one_shot": asdict(estimate),
            "delta": delta,
            "views": {view.who: _numbers(view) for view in views},
            "without_noise": {view.who: _numbers(view) for view in blind},
            "secrets": [asdict(one) for one in told],
        },
        time.monotonic() - started,
        _headline(views, blind),
    )


def summed_at_once(world: World) -> World:
    """Return the world with ideal sums: what the protocol opens is the same to the byte."""
    return replace(world, scenario=replace(world.scenario, secure_aggregation="ideal"))


def _headline(views: Sequence[View], blind: Sequence[View]) -> str:
    server = views[0]
    proven, off = (max(view.bound, view.sharpened) for view in (server, blind[0]))
    return (
        f"The strongest attack proves a leak of ε ≥ {proven:.2f}; {figure(server.promised)} is "
        f"allowed there. With the noise switched off it proves {off:.2f}."
    )


def _left_out(world: World, evidence: Evidence, told: Sequence[secrets.Told]) -> list[str]:
    started = evidence.manifest.get("model", {}).get("start", {}).get("kind")
    other = "The model it started from: this audit starts from random weights (see --start)."
    return [other] * (started != world.start.origin["kind"]) + ["Invented phrases."] * (not told)


def _power(blind: Sequence[View]) -> Finding:
    best = max(max(view.bound, view.sharpened) for view in blind)
    if best < _POWER:
        text = (
            f"With the noise OFF the same attack proves only ε ≥ {best:.2f}: it had no power, and "
            "what it fails to find below means nothing."
        )
        return Finding("power of the attack", None, text)
    text = f"With the noise OFF the same attack proves ε ≥ {best:.2f}: it can see."
    return Finding("power of the attack", True, text)


def _judge(view: View, promise: Promise | None) -> Finding:
    proven = max(view.bound, view.sharpened)
    name = f"attack by {view.who}"
    if promise is None:
        text = f"ε ≥ {proven:.2f} is proven (95%); nothing was promised."
        return Finding(name, None, text)
    text = (
        f"ε ≥ {proven:.2f} is proven (95%); the scores' distance suggests {figure(view.fitted)}; "
        f"{figure(view.promised)} is guaranteed for the rounds attacked."
    )
    if not view.holds:
        text += " The run leaks MORE than it guarantees."
    return Finding(name, view.holds, text)


def _table(views: Sequence[View], blind: Sequence[View], estimate: OneShot) -> Table:
    return Table(
        "What canaries prove, at 95% confidence",
        (
            "attacker",
            "proven, any mechanism",
            "proven, against a Gaussian",
            "if scores are Gaussian",
            "estimate",
            "guaranteed",
            "proven with noise off",
        ),
        [
            (
                view.who,
                f"{view.bound:.2f}",
                f"{view.sharpened:.2f}",
                f"{view.assuming_gaussian:.2f}",
                figure(view.fitted),
                figure(view.promised),
                f"{max(off.bound, off.sharpened):.2f}",
            )
            for view, off in zip(views, blind, strict=True)
        ],
        estimate.in_words(),
    )


def _numbers(view: View) -> dict[str, Any]:
    return {k: v for k, v in vars(view).items() if k not in ("scores", "who")}


def _axis(view: View, estimate: OneShot | None = None) -> Plot:
    """Put lower bounds, estimates and the guarantee on one axis."""
    points = {
        "proven (one run)": view.bound,
        "proven (against a Gaussian)": view.sharpened,
        "estimate (distance of scores)": view.fitted,
    }
    if estimate is not None:
        points["estimate (one shot, last model)"] = estimate.final
        points["estimate (one shot, every model)"] = estimate.iterates
    points["guaranteed"] = view.promised
    return Plot(
        f"ε against {view.who}",
        "axis",
        {name: [value] for name, value in points.items() if math.isfinite(value)},
        "ε",
        "Proven figures must lie left of the guaranteed one; estimates prove nothing.",
    )


def _histogram(view: View) -> Plot:
    values = np.concatenate([view.scores.included, view.scores.excluded])
    edges = np.linspace(values.min(), values.max() + 1e-9, 31)
    middles = (edges[1:] + edges[:-1]) / 2
    lines: dict[str, Sequence[Sequence[float]]] = {}
    for name, part in (
        ("took part", view.scores.included),
        ("did not", view.scores.excluded),
    ):
        counts = np.histogram(part, edges)[0]
        lines[name] = list(zip(middles.tolist(), counts.tolist(), strict=True))
    return Plot(
        f"Scores of the canaries, as seen by {view.who}",
        "lines",
        lines,
        "score",
        "The more the two overlap, the less the attacker knows.",
    )
