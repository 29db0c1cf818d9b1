"""What a run says of its own model, held against what follows from the facts of its manifest."""

from __future__ import annotations

from typing import Any

from pfl_lm.audit.accounting.sentence import sentence_deviation
from pfl_lm.audit.accounting.stated import StatedGuarantee
from pfl_lm.audit.artifacts import RunArtifacts
from pfl_lm.audit.findings import Finding
from pfl_lm.numbers import format_epsilon

_NAME = "claim about this model"
_ALONE = (
    "This simulation stands alone; rounds of real devices add up, in their population's ledger."
)


def claim(artifacts: RunArtifacts) -> Finding:
    """Recompute both statements of a run: a simulation guarantees nothing, whatever it says."""
    said, policy, asked = artifacts.statements, artifacts.policy, _asked(artifacts.manifest)
    if policy is None:
        expected = "Nothing: this run has no privacy policy (ε = ∞)."
        return _compared(said["guaranteed"], expected + asked)
    sentence = artifacts.guarantee.get("statement", "")
    if wrong := _sentence_deviation(artifacts, sentence):
        return Finding(_NAME, False, wrong)
    reasons = shortfalls(artifacts.manifest)
    if not reasons:
        return _compared(said["guaranteed"], sentence + asked)
    finding = _compared(
        said["guaranteed"], "Nothing for this very model: " + "; ".join(reasons) + "." + asked
    )
    simulated = f"A deployment under the policy, of which this holds: {sentence} {_ALONE}{asked}"
    return finding if not finding.holds else _compared(said["simulated"], simulated)


def _asked(manifest: dict[str, Any]) -> str:
    """Return what the statements must add where users were asked before the run.

    Votes chose the text of the start, or users named words of the vocabulary.
    """
    votes = manifest.get("model", {}).get("start", {}).get("votes", [])
    words = manifest.get("vocabulary", {}).get("asked", [])
    text = "".join(
        f" Votes of {vote['population']} chose the public text that it starts from: "
        f"ε = {format_epsilon(vote['epsilon'])}, δ = {vote['delta']:g} per {vote['unit']} who was "
        "asked, on top of this."
        for vote in votes
    )
    return text + "".join(
        f" Words of its vocabulary come from a question to {each['population']}: "
        f"ε = {format_epsilon(each['epsilon'])}, δ = {each['delta']:g} per {each['unit']} who was "
        "asked, on top of this."
        for each in words
    )


def shortfalls(manifest: dict[str, Any]) -> list[str]:
    """Return why a run's own model falls short of its policy, from facts; empty: it does not."""
    policy, scenario = manifest["policy"], manifest["scenario"]
    rule, source = manifest["population"]["cohort_rule"], manifest["noise"]["source"]
    cohort, goal = scenario["cohort"], policy["report_goal"]
    apart = min(policy["participation"]["min_separation"] or 1, policy["rounds"])
    aggregator = scenario.get("aggregator", "exact")
    seeded = scenario["reproducible"] or source == "reproducible stream"
    trial = (manifest.get("served") or {}).get("trial", False)  # a simulation is no trial
    reasons = {
        "a trial, in which devices check nothing": trial,
        f"{cohort:,} reports a round stand for {goal:,}": cohort < goal,
        f"{rule['population']:,} users stand for {policy['population']:,}": (
            rule["population"] < policy["population"]
        ),
        f"two rounds of a user may be {rule['min_separation']:,} apart, in the deployment "
        f"{apart:,}": rule["min_separation"] < apart,
        "noise comes from a seeded stream": seeded,
        "cohorts follow from the scenario's seed, which is no secret": rule["kind"] != "rotation",
        "tensorflow-federated draws the noise, in floating point": (
            aggregator != "exact" or source == "tensorflow"
        ),
    }
    return [text for text, holds in reasons.items() if holds]


def _sentence_deviation(artifacts: RunArtifacts, sentence: str) -> str:
    """Return how the sentence to publish differs from the figures beside it, or ""."""
    guarantee = StatedGuarantee.of(artifacts)
    if guarantee is None:
        right = sentence.startswith("No differential privacy is guaranteed")
        return "" if right else "The run adds no noise, and its statement promises privacy."
    known = artifacts.guarantee.get("epsilon_unamplified")
    return sentence_deviation(sentence, guarantee, known)


def _compared(said: str, expected: str) -> Finding:
    if said == expected:
        return Finding(_NAME, True, "What the run says of its model follows from its facts.")
    text = f"The run says “{said}” From its own facts follows: “{expected}”"
    return Finding(_NAME, False, text)
