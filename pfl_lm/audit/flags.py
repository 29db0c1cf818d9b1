"""What breaks guarantees in practice, looked for in what a policy or a run wrote down.

Each finding has a stable name; ``dangers`` says which of them answers which danger.
"""

from __future__ import annotations

import math
from dataclasses import replace

from pfl_lm.audit.evidence import Claim, Evidence
from pfl_lm.audit.findings import Finding, figure
from pfl_lm.audit.methods import quick_epsilon
from pfl_lm.audit.promise import Promise
from pfl_lm.audit.tuning import tuning

_TOLERANCE = 1e-6  # relative, between figures that went through JSON


def flags(promise: Promise, claim: Claim, trials: int | None = None) -> list[Finding]:
    """Return one finding for each way in which guarantees are known to break.

    Args:
        trials: trainings on these users among which this one was chosen; None: not stated.
    """
    found = [
        _delta(promise),
        _adjacency(promise),
        _honest(promise),
        _dropout(promise),
        tuning(promise, claim, trials),
    ]
    if not isinstance(claim, Evidence):
        return found
    return [
        _sampling(promise, claim),
        *found,
        _start(claim),
        _vocabulary(claim),
        _metrics(claim),
        Finding("this very model", None, claim.statements["guaranteed"]),
    ]


def _delta(promise: Promise) -> Finding:
    bound = 1 / promise.population
    holds = promise.delta <= bound * (1 + _TOLERANCE)
    text = (
        f"δ = {promise.delta:g} is {'at most' if holds else 'ABOVE'} one in the population "
        f"({bound:g}): a mechanism may {'not ' if holds else ''}publish one whole user by chance."
    )
    return Finding("δ against the population", holds, text)


def _sampling(promise: Promise, evidence: Evidence) -> Finding:
    """Hold the rule that drew cohorts against the sampling that was accounted for."""
    name = "sampling matches the accountant"
    rule = evidence.manifest["population"]["cohort_rule"]
    if rule["kind"] != promise.participation:
        text = f"{promise.participation} sampling is accounted for, the run drew by {rule['kind']}."
        return Finding(name, False, text)
    if promise.participation == "rotation":
        return Finding(name, True, "No amplification is claimed.")
    rate = rule["size_or_rate"] / (rule["population"] if promise.participation == "fixed" else 1)
    # A smaller simulated population is drawn from more often, and says that it protects nobody.
    if rule["population"] >= promise.population and rate > promise.rate * (1 + _TOLERANCE):
        text = f"A user was drawn with chance {rate:.3g} a round, not {promise.rate:.3g}."
        return Finding(name, False, text)
    text = (
        f"{promise.participation} sampling is accounted for and was run. In a deployment it holds "
        "only if phones draw themselves, in secret; else the unamplified figure is the truth."
    )
    return Finding(name, True, text)


def _adjacency(promise: Promise) -> Finding:
    """Look for an ε that counts one clip norm where a user can move the sum by two."""
    phase, name = promise.phase(), "adjacency"
    if phase.sensitivity == 2:
        true, once = (
            quick_epsilon(replace(phase, neighboring=neighbours), promise.delta)
            for neighbours in (promise.neighboring, "zero_out")
        )
        if promise.stated_epsilon < true * 0.99 and promise.stated_epsilon > once * 0.99:
            text = (
                f"The stated ε counts one clip norm for a user. Where neighbours differ by "
                f"{promise.neighboring} a user moves the sum by two: ε is {figure(true)}."
            )
            return Finding(name, False, text)
        text = f"Neighbours differ by {promise.neighboring}, and two clip norms are counted."
        return Finding(name, True, text)
    replaced = quick_epsilon(
        replace(phase.seen_by_server(), neighboring="replace_one"), promise.delta
    )
    text = (
        f"Neighbours differ by {promise.neighboring}: one clip norm, and one is counted. Whoever "
        "wants to replace a user's text by another's must count two: without sampling ε is then "
        f"{figure(replaced)}."
    )
    return Finding(name, True, text)


def _honest(promise: Promise) -> Finding:
    """Check that shares of noise do not count on more honest devices than the policy does."""
    name, relied = "honest devices", promise.honest_reports
    if promise.at != "device":
        return Finding(name, None, "The server adds the noise and must be trusted.")
    if _is_short(promise, relied) and not _is_short(promise, promise.least_reports):
        text = (
            f"A device's share of noise is sized for {promise.least_reports:,} honest reports; "
            f"the policy relies on {relied:,}, whose noise is too little."
        )
        return Finding(name, False, text)
    fewer = ", ".join(
        f"{figure(_with_noise(promise, share))} with {share:.0%}" for share in (0.9, 0.75, 0.5)
    )
    text = (
        f"{relied:,} of the {promise.least_reports:,} reports that open a round are relied on for "
        f"noise. If fewer of these devices are honest, ε is {fewer}."
    )
    return Finding(name, None if relied == promise.least_reports else True, text)


def _dropout(promise: Promise) -> Finding:
    """Check that the fewest reports that open a round carry the noise that is accounted for."""
    name = "noise planned for dropout"
    if promise.at != "device":
        return Finding(name, True, "The server adds the noise: devices that drop out take none.")
    if _is_short(promise, promise.least_reports):
        text = (
            f"A round opens with {promise.least_reports:,} reports, but their shares add up to "
            "less noise than is accounted for: dropout was not planned for."
        )
        return Finding(name, False, text)
    text = (
        f"The shares of {promise.least_reports:,} reports, the fewest that open a round, carry the "
        f"noise. Were rounds opened with 10% less of it, ε would be "
        f"{figure(_with_noise(promise, 0.9))}; with 30% less, {figure(_with_noise(promise, 0.7))}."
    )
    return Finding(name, True, text)


def _is_short(promise: Promise, shares: int) -> bool:
    """Tell whether so many shares carry less noise than is accounted for."""
    if promise.share_multiplier is None:
        return False
    return promise.carried(shares) < promise.noise_multiplier * (1 - _TOLERANCE)


def _with_noise(promise: Promise, share: float) -> float:
    """Return ε if only this share of the counted devices adds noise."""
    fewer = promise.noise_multiplier * math.sqrt(share)
    return quick_epsilon(promise.phase(noise_multiplier=fewer), promise.delta)


def _start(evidence: Evidence) -> Finding:
    origin = evidence.manifest.get("model", {}).get("start", {}).get("kind", "unknown")
    name = "what training started from"
    if origin == "random":
        return Finding(name, True, "Training started from random weights.")
    if origin == "public":
        text = "Training started from a model of text that was declared public."
        return Finding(name, True, text)
    text = f"Training started from {origin!r} weights, whose privacy cost is not counted."
    return Finding(name, False, text)


def _vocabulary(evidence: Evidence) -> Finding:
    name, source = "where the words come from", evidence.manifest.get("vocabulary")
    if source is None or source["kind"] == "unknown":
        return Finding(name, None, "The manifest does not say: ask for the tokenizer's recipe.")
    if source["kind"] == "private_text":
        text = "The vocabulary was learnt from private text: it tells, without noise, who typed it."
        return Finding(name, False, text)
    return Finding(name, True, f"A public source was declared: {source['provenance']}")


def _metrics(evidence: Evidence) -> Finding:
    private = {"loss", "update_norm", "clipped_share", "tokens", "mean_norm"}
    told = sorted(private & {name for line in evidence.rounds[:1] for name in line})
    if not told:
        return Finding("metrics without noise", True, "The run wrote no figures of users.")
    text = (
        f"metrics.jsonl holds {', '.join(told)} of users without noise. ε covers the models "
        "only: keep the metrics inside, or do not publish them."
    )
    return Finding("metrics without noise", None, text)
