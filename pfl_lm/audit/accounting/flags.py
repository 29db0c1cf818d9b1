"""What breaks guarantees in practice, looked for in what a policy or a run wrote down.

Each finding has a stable name; ``hazards`` says which of them answers which hazard.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from pfl_lm.audit.accounting.methods import quick_epsilon
from pfl_lm.audit.accounting.stated import StatedGuarantee
from pfl_lm.audit.accounting.tuning import tuning
from pfl_lm.audit.artifacts import AuditTarget, RunArtifacts
from pfl_lm.audit.findings import Finding
from pfl_lm.numbers import format_epsilon

_TOLERANCE = 1e-6  # relative, between figures that went through JSON
_WITHOUT_NOISE = {"loss", "update_norm", "clipped_share", "tokens", "diverged_devices"}


def flags(
    guarantee: StatedGuarantee,
    target: AuditTarget,
    trials: int | None = None,
    ledgers: Path | None = None,
) -> list[Finding]:
    """Return one finding for each way in which guarantees are known to break.

    Args:
        trials: trainings on these users among which this one was chosen; None: not stated.
        ledgers: folder of the populations' ledgers; None: not given to the auditor.
    """
    findings = [
        _delta(guarantee),
        _adjacency(guarantee),
        _honest(guarantee),
        _dropout(guarantee),
        tuning(guarantee, target, trials, ledgers),
    ]
    if not isinstance(target, RunArtifacts):
        return findings
    return [
        _sampling(guarantee, target),
        *findings,
        _start(target),
        _vocabulary(target),
        _metrics(target),
        Finding("this very model", None, target.statements["guaranteed"]),
    ]


def _delta(guarantee: StatedGuarantee) -> Finding:
    bound = 1 / guarantee.population
    holds = guarantee.delta <= bound * (1 + _TOLERANCE)
    text = (
        f"δ = {guarantee.delta:g} is {'at most' if holds else 'ABOVE'} one in the population "
        f"({bound:g}): a mechanism may {'not ' if holds else ''}publish one whole user by chance."
    )
    return Finding("δ against the population", holds, text)


def _sampling(guarantee: StatedGuarantee, artifacts: RunArtifacts) -> Finding:
    """Hold the rule that drew cohorts against the sampling that was accounted for."""
    name = "sampling matches the accountant"
    rule = artifacts.manifest["population"]["cohort_rule"]
    if rule["kind"] != guarantee.participation:
        text = (
            f"{guarantee.participation} sampling is accounted for, the run drew by {rule['kind']}."
        )
        return Finding(name, False, text)
    if not guarantee.amplified:
        return Finding(name, True, "No amplification is claimed.")
    rate = rule["size_or_rate"] / (rule["population"] if guarantee.participation == "fixed" else 1)
    # A smaller simulated population is drawn from more often, and says that it protects nobody.
    if rule["population"] >= guarantee.population and rate > guarantee.rate * (1 + _TOLERANCE):
        text = f"A user was drawn with chance {rate:.3g} a round, not {guarantee.rate:.3g}."
        return Finding(name, False, text)
    text = (
        f"{guarantee.participation} sampling is accounted for and was run. In a deployment it "
        "holds only if phones draw themselves, in secret; else the unamplified figure is the truth."
    )
    return Finding(name, True, text)


def _adjacency(guarantee: StatedGuarantee) -> Finding:
    """Look for an ε that counts one clip norm where a user can move the sum by two."""
    group, name = guarantee.round_group(), "adjacency"
    if group.sensitivity == 2:
        true, once = (
            quick_epsilon(replace(group, neighboring=neighbours), guarantee.delta)
            for neighbours in (guarantee.neighboring, "zero_out")
        )
        if guarantee.stated_epsilon < true * 0.99 and guarantee.stated_epsilon > once * 0.99:
            text = (
                f"The stated ε counts one clip norm for a user. Where neighbours differ by "
                f"{guarantee.neighboring} a user moves the sum by two: ε is {format_epsilon(true)}."
            )
            return Finding(name, False, text)
        text = f"Neighbours differ by {guarantee.neighboring}, and two clip norms are counted."
        return Finding(name, True, text)
    replaced = quick_epsilon(
        replace(group.seen_by_server(), neighboring="replace_one"), guarantee.delta
    )
    text = (
        f"Neighbours differ by {guarantee.neighboring}: one clip norm, and one is counted. "
        "Replacing a user's text by another's counts two: without sampling ε is then "
        f"{format_epsilon(replaced)}."
    )
    return Finding(name, True, text)


def _honest(guarantee: StatedGuarantee) -> Finding:
    """Check that shares of noise do not count on more honest devices than the policy does."""
    name, relied = "honest devices", guarantee.honest_reports
    if guarantee.at != "device":
        return Finding(name, None, "The server adds the noise and must be trusted.")
    if _is_short(guarantee, relied) and not _is_short(guarantee, guarantee.least_reports):
        text = (
            f"A device's share of noise is sized for {guarantee.least_reports:,} honest reports; "
            f"the policy relies on {relied:,}, whose noise is too little."
        )
        return Finding(name, False, text)
    fewer = ", ".join(
        f"{format_epsilon(_with_noise(guarantee, share))} with {share:.0%}"
        for share in (0.9, 0.75, 0.5)
    )
    text = (
        f"{relied:,} of the {guarantee.least_reports:,} reports that open a round are relied on "
        f"for noise. If fewer of these devices are honest, ε is {fewer}."
    )
    return Finding(name, None if relied == guarantee.least_reports else True, text)


def _dropout(guarantee: StatedGuarantee) -> Finding:
    """Check that the fewest reports that open a round carry the noise that is accounted for."""
    name = "noise planned for dropout"
    if guarantee.at != "device":
        return Finding(name, True, "The server adds the noise: devices that drop out take none.")
    if _is_short(guarantee, guarantee.least_reports):
        text = (
            f"A round opens with {guarantee.least_reports:,} reports, but their shares add up to "
            "less noise than is accounted for: dropout was not planned for."
        )
        return Finding(name, False, text)
    with_90, with_70 = (format_epsilon(_with_noise(guarantee, share)) for share in (0.9, 0.7))
    text = (
        f"The shares of {guarantee.least_reports:,} reports, the fewest that open a round, carry "
        f"the noise. Were rounds opened with 10% less of it, ε would be {with_90}; with 30% less, "
        f"{with_70}."
    )
    return Finding(name, True, text)


def _is_short(guarantee: StatedGuarantee, shares: int) -> bool:
    """Tell whether so many shares carry less noise than is accounted for."""
    if guarantee.share_multiplier is None:
        return False
    return guarantee.carried(shares) < guarantee.noise_multiplier * (1 - _TOLERANCE)


def _with_noise(guarantee: StatedGuarantee, share: float) -> float:
    """Return ε if only this share of the counted devices adds noise."""
    fewer = guarantee.noise_multiplier * math.sqrt(share)
    return quick_epsilon(guarantee.round_group(noise_multiplier=fewer), guarantee.delta)


def _start(artifacts: RunArtifacts) -> Finding:
    start = artifacts.manifest.get("model", {}).get("start", {})
    origin, name = start.get("kind", "unknown"), "what training started from"
    if origin == "random":
        return Finding(name, True, "Training started from random weights.")
    if origin == "public" and (votes := start.get("votes")):
        spent = " and ".join(f"ε = {format_epsilon(vote['epsilon'])}" for vote in votes)
        text = (
            f"Training started from a model of public text that votes of users chose. That cost "
            f"those who were asked {spent} on top of this run's ε: the ledger of these people has "
            "both."
        )
        return Finding(name, None, text)
    if origin == "public":
        text = "Training started from a model of text that was declared public."
        return Finding(name, True, text)
    text = f"Training started from {origin!r} weights, whose privacy cost is not counted."
    return Finding(name, False, text)


def _vocabulary(artifacts: RunArtifacts) -> Finding:
    name, source = "where the words come from", artifacts.manifest.get("vocabulary")
    if source is None or source["kind"] == "unknown":
        return Finding(name, None, "The manifest does not say: ask for the tokenizer's recipe.")
    if source["kind"] == "private_text":
        text = "The vocabulary was learnt from private text: it tells, without noise, who typed it."
        return Finding(name, False, text)
    if source["kind"] == "discovered":
        text = (
            "The vocabulary holds words that users were asked for. What that cost them comes on "
            "top of this run's ε for those who were asked: the ledger of these people has both."
        )
        return Finding(name, None, text)
    return Finding(name, True, f"A public source was declared: {source['provenance']}")


def _metrics(artifacts: RunArtifacts) -> Finding:
    """Name the figures that come from people's text without noise, and where they stand.

    The norm of a mean is none of them: it follows from the noisy mean.
    """
    name, folder = "metrics without noise", artifacts.folder
    lines, told = folder.metrics(), []
    rounds = {key for line in lines if line.get("kind") == "round" for key in line}
    if of_rounds := sorted(_WITHOUT_NOISE & rounds):
        told.append(f"metrics.jsonl holds {', '.join(of_rounds)} of users")
    if any(line.get("kind") == "evaluation" for line in lines):
        told.append("metrics.jsonl holds measures on validation users")
    if folder.evaluation_path.is_file():
        told.append("evaluation.json holds measures on test users")
    if not told:
        return Finding(name, True, "The run wrote no figures of users.")
    text = (
        f"{'; '.join(told)}: without noise. ε covers the models only. Keep these files inside, and "
        "what shows them: TensorBoard, trackers, report.html, comparisons, the card of a bundle."
    )
    return Finding(name, None, text)
