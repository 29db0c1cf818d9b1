"""What breaks guarantees in practice, looked for in what a run wrote down."""

from __future__ import annotations

import math
from dataclasses import replace

from pfl_lm.audit.evidence import Evidence
from pfl_lm.audit.findings import Finding, figure
from pfl_lm.audit.methods import quick_epsilon
from pfl_lm.audit.promise import Promise

TRIALS = 10  # of hyperparameters, an officer's rule of thumb


def flags(promise: Promise, evidence: Evidence) -> list[Finding]:
    """Return one finding for each way in which guarantees are known to break."""
    return [
        _delta(promise),
        _sampling(promise, evidence),
        _adjacency(promise),
        _honest(promise),
        _tuning(promise, evidence),
        _public(evidence),
        _metrics(evidence),
        _simulated(evidence),
    ]


def _delta(promise: Promise) -> Finding:
    bound = 1 / promise.population
    holds = promise.delta <= bound
    text = (
        f"δ = {promise.delta:g} is {'at most' if holds else 'ABOVE'} one in the population "
        f"({bound:g}): a mechanism may {'not ' if holds else ''}publish one whole user by chance."
    )
    return Finding("δ against the population", holds, text)


def _sampling(promise: Promise, evidence: Evidence) -> Finding:
    """Hold the rule that drew cohorts against the sampling that was accounted for."""
    run = evidence.manifest["population"]["cohort_rule"]["kind"]
    if run != promise.participation:
        text = f"{promise.participation} sampling is accounted for, but the run drew by {run}."
        return Finding("sampling matches the accountant", False, text)
    if promise.participation == "rotation":
        return Finding("sampling matches the accountant", True, "No amplification is claimed.")
    text = (
        f"{promise.participation} sampling is accounted for and was run. In a deployment it holds "
        "only if phones draw themselves, in secret; else the unamplified figure is the truth."
    )
    return Finding("sampling matches the accountant", True, text)


def _adjacency(promise: Promise) -> Finding:
    if promise.neighboring == "replace_one":
        text = "Neighbours differ by replacing one user: the strictest of the usual readings."
        return Finding("adjacency", True, text)
    replaced = quick_epsilon(
        replace(promise.phase().seen_by_server(), neighboring="replace_one"), promise.delta
    )
    text = (
        f"Neighbours differ by {promise.neighboring}: one clip norm. A reader who takes it as "
        "replacing one user's text by another's must halve the noise multiplier: the figure "
        f"without sampling is then {figure(replaced)}."
    )
    return Finding("adjacency", None, text)


def _honest(promise: Promise) -> Finding:
    if promise.at != "device":
        return Finding("honest devices", None, "The server adds the noise and must be trusted.")
    parts = []
    for share in (0.9, 0.75, 0.5):
        fewer = promise.noise_multiplier * math.sqrt(share)
        phase = promise.phase(noise_multiplier=fewer)
        parts.append(f"{figure(quick_epsilon(phase, promise.delta))} with {share:.0%}")
    text = (
        f"{promise.honest_reports:,} of the {promise.least_reports:,} reports that open a round "
        f"are relied on for noise. If fewer devices of these are honest, ε is {', '.join(parts)}."
    )
    return Finding("honest devices", None, text)


def _tuning(promise: Promise, evidence: Evidence) -> Finding:
    tuned = replace(promise.phase(), rounds=promise.participations * TRIALS)
    text = (
        "The run records no tuning. If recipes had been chosen by training on these users "
        f"{TRIALS} times, all runs would count: ε = {figure(quick_epsilon(tuned, promise.delta))}."
    )
    return Finding("hyperparameter tuning", None, text)


def _public(evidence: Evidence) -> Finding:
    origin = evidence.manifest.get("model", {}).get("start", {}).get("kind", "unknown")
    name = "what training started from"
    if origin == "random":
        return Finding(name, True, "Training started from random weights.")
    if origin == "public":
        text = "Training started from a model of text that was declared public."
        return Finding(name, True, text)
    text = f"Training started from {origin!r} weights, whose privacy cost is not counted."
    return Finding(name, False, text)


def _metrics(evidence: Evidence) -> Finding:
    released = sorted({"loss", "update_norm", "clipped_share"} & set((evidence.rounds or [{}])[0]))
    if not released:
        return Finding("metrics without noise", True, "The run wrote no figures of users.")
    text = (
        f"metrics.jsonl holds {', '.join(released)} of users without noise. ε covers the models "
        "only: keep the metrics inside, or do not publish them."
    )
    return Finding("metrics without noise", None, text)


def _simulated(evidence: Evidence) -> Finding:
    return Finding("this very model", None, evidence.manifest["statements"]["guaranteed"])
