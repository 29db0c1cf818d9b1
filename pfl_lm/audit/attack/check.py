"""Does the model really leak no more? Canaries in the run's own pipeline, power first."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from pfl_lm.audit.accounting.stated import StatedGuarantee
from pfl_lm.audit.artifacts import RunArtifacts
from pfl_lm.audit.attack import canaries, text_canaries
from pfl_lm.audit.attack.attackers import AttackResult, attack_all
from pfl_lm.audit.attack.one_shot import OneShot, one_shot
from pfl_lm.audit.findings import Finding, Part, Plot, TextTable
from pfl_lm.audit.mechanism.harness import at_one_clip, everybody_reports, most_probed
from pfl_lm.numbers import format_epsilon, format_epsilon_bound
from pfl_lm.run.context import RunContext

CANARIES = 400
MOST_ROUNDS = 200
_SEED = 20230508  # of coins, directions and invitations; the noise comes from the run's own source
_POWER = 3.0  # with the noise off, less than this says that the attack was blind

_NAME, _QUESTION = "attack", "Does the model really leak no more?"
NOT_CHECKED = (
    "Stronger attacks than these: a lower bound can only grow.",
    "The full number of rounds, where the audit ran fewer than the policy allows.",
    "Devices that collude with the server, or with each other.",
)


def audit_attack(
    context: RunContext,
    artifacts: RunArtifacts,
    rounds: int | None = None,
    phrase_rounds: int = text_canaries.ROUNDS,
) -> Part:
    """Attack the run's own rounds; first with the noise off, to see whether the attack can see.

    Args:
        rounds: to send canaries through; as many as the run has, at most 200, by default.
        phrase_rounds: to train on invented phrases, twice; 0 leaves them out.
    """
    started, context = time.monotonic(), summed_at_once(everybody_reports(context))
    # Silent devices beside the canaries would lower a clip norm that follows, until canaries are
    # longer than it allows.
    context = at_one_clip(context)
    guarantee = StatedGuarantee.of(artifacts)
    rounds = most_probed(context, min(rounds or context.scenario.rounds, MOST_ROUNDS))
    try:
        placed = canaries.place_canaries(context, CANARIES, rounds, _SEED)
    except canaries.TooFewCoordinates as reason:
        return _not_attacked(f"{reason}; no attack was tried.")
    if not placed.can_be_told_apart:
        return _too_few(len(placed.coins), rounds)
    length = canaries.strength(context)
    clip = context.privacy.clip_norm
    loud = canaries.run_canaries(canaries.without_noise(context), placed, clip)
    seen = canaries.run_canaries(context, placed, length)
    delta = 1e-6 if guarantee is None else guarantee.delta
    blind = attack_all(context, guarantee, placed, loud, delta)
    results = attack_all(context, guarantee, placed, seen, delta)
    dim = placed.directions.shape[1]
    estimate = one_shot(placed, seen, delta)
    phrase_rounds = min(rounds, phrase_rounds)
    recalls = text_canaries.recall_pairs(context, phrase_rounds, _SEED) if phrase_rounds else []
    findings = [_power(blind), *(_judge(result, guarantee) for result in results)]
    findings += text_canaries.findings_of(recalls, clip / length) if recalls else []
    return Part(
        _NAME,
        _QUESTION,
        (
            f"{len(placed.coins)} canaries, a fair coin each, {rounds} rounds of the run's code.",
            f"{int(placed.scheduled.sum())} of them in one round that the server knows.",
            f"The others in rounds as the policy draws them; all on {dim:,} coordinates.",
            "Three attackers: the server, one who sees every model, one who sees the last.",
            f"{len(recalls)} invented phrases, typed by a few users in {phrase_rounds} rounds.",
        ),
        findings,
        (*NOT_CHECKED, *_left_out(context, artifacts, recalls)),
        [_table(results, blind, estimate), text_canaries.table_of(recalls, clip / length)],
        [_axis(results[0]), _axis(results[1], estimate), _histogram(results[0])],
        {
            "rounds": rounds,
            "canaries": len(placed.coins),
            "one_shot": asdict(estimate),
            "delta": delta,
            "attackers": {result.who: _numbers(result) for result in results},
            "without_noise": {result.who: _numbers(result) for result in blind},
            "text_canaries": [asdict(pair) for pair in recalls],
        },
        time.monotonic() - started,
        _headline(results, blind),
    )


def _too_few(count: int, rounds: int) -> Part:
    text = (
        f"In the rounds attacked ({rounds}) this cohort has room for {count} canaries, too few to "
        "tell those that took part from the others; --rounds attacks more rounds."
    )
    return _not_attacked(text)


def _not_attacked(text: str) -> Part:
    finding = Finding("power of the attack", None, text)
    checked = ("Whether there is room for enough canaries.",)
    return Part(_NAME, _QUESTION, checked, [finding], (*NOT_CHECKED, "Any attack."))


def summed_at_once(context: RunContext) -> RunContext:
    """Return the run context with ideal sums: what the protocol opens is the same to the byte."""
    return replace(context, scenario=replace(context.scenario, secure_aggregation="ideal"))


def _headline(results: Sequence[AttackResult], blind: Sequence[AttackResult]) -> str:
    server = results[0]
    proven, off = (max(result.bound, result.sharpened) for result in (server, blind[0]))
    return (
        f"The strongest attack proves a leak of ε ≥ {format_epsilon_bound(proven)}; "
        f"{format_epsilon(server.guaranteed)} is allowed there. With the noise switched off it "
        f"proves {format_epsilon_bound(off)}."
    )


def _left_out(
    context: RunContext, artifacts: RunArtifacts, recalls: Sequence[text_canaries.RecallPair]
) -> list[str]:
    started = artifacts.manifest.get("model", {}).get("start", {}).get("kind")
    other = "The model it started from: this audit starts from random weights (see --start)."
    return [other] * (started != context.start.origin["kind"]) + ["Invented phrases."] * (
        not recalls
    )


def _power(blind: Sequence[AttackResult]) -> Finding:
    best = max(max(result.bound, result.sharpened) for result in blind)
    shown = format_epsilon_bound(best)
    if best < _POWER:
        text = (
            f"With the noise OFF the same attack proves only ε ≥ {shown}: it had no power, and "
            "what it fails to find below means nothing."
        )
        return Finding("power of the attack", None, text)
    text = f"With the noise OFF the same attack proves ε ≥ {shown}: it can see."
    return Finding("power of the attack", True, text)


def _judge(result: AttackResult, guarantee: StatedGuarantee | None) -> Finding:
    proven = format_epsilon_bound(max(result.bound, result.sharpened))
    name = f"attack by {result.who}"
    if guarantee is None:
        text = f"ε ≥ {proven} is proven (95%); nothing was promised."
        return Finding(name, None, text)
    text = (
        f"ε ≥ {proven} is proven (95%); the scores' distance suggests "
        f"{format_epsilon(result.fitted)}; "
        f"{format_epsilon(result.guaranteed)} is guaranteed for the rounds attacked."
    )
    if not result.holds:
        text += " The run leaks MORE than it guarantees."
    return Finding(name, result.holds, text)


def _table(
    results: Sequence[AttackResult], blind: Sequence[AttackResult], estimate: OneShot
) -> TextTable:
    return TextTable(
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
                result.who,
                format_epsilon_bound(result.bound),
                format_epsilon_bound(result.sharpened),
                format_epsilon_bound(result.assuming_gaussian),
                format_epsilon(result.fitted),
                format_epsilon(result.guaranteed),
                format_epsilon_bound(max(off.bound, off.sharpened)),
            )
            for result, off in zip(results, blind, strict=True)
        ],
        estimate.in_words(),
    )


def _numbers(result: AttackResult) -> dict[str, Any]:
    return {k: v for k, v in vars(result).items() if k not in ("scores", "who")}


def _axis(result: AttackResult, estimate: OneShot | None = None) -> Plot:
    """Put lower bounds, estimates and the guarantee on one axis."""
    points = {
        "proven (one run)": result.bound,
        "proven (against a Gaussian)": result.sharpened,
        "estimate (distance of scores)": result.fitted,
    }
    if estimate is not None:
        points["estimate (one shot, last model)"] = estimate.final
        points["estimate (one shot, every model)"] = estimate.iterates
    points["guaranteed"] = result.guaranteed
    return Plot(
        f"ε against {result.who}",
        "axis",
        {name: [value] for name, value in points.items() if math.isfinite(value)},
        "ε",
        "Proven figures must lie left of the guaranteed one; estimates prove nothing.",
    )


def _histogram(result: AttackResult) -> Plot:
    values = np.concatenate([result.scores.included, result.scores.excluded])
    edges = np.linspace(values.min(), values.max() + 1e-9, 31)
    middles = (edges[1:] + edges[:-1]) / 2
    lines: dict[str, Sequence[Sequence[float]]] = {}
    for name, part in (
        ("took part", result.scores.included),
        ("did not", result.scores.excluded),
    ):
        counts = np.histogram(part, edges)[0]
        lines[name] = list(zip(middles.tolist(), counts.tolist(), strict=True))
    return Plot(
        f"Scores of the canaries, as seen by {result.who}",
        "lines",
        lines,
        "score",
        "The more the two overlap, the less the attacker knows.",
    )
