"""Who took part, by the ledger's counts: the divisor, the sampling, the separation."""

from __future__ import annotations

from collections.abc import Sequence

from scipy import stats

from pfl_lm.audit.accounting.stated import StatedGuarantee
from pfl_lm.audit.artifacts import RunArtifacts
from pfl_lm.audit.findings import Finding
from pfl_lm.audit.ledger.replay import Entry

_UNLIKELY = 1e-6  # a run is called wrong by chance once in so many


def divisor(artifacts: RunArtifacts, rounds: Sequence[Entry]) -> Finding:
    """Check that every mean divides by the public constant, not by how many came."""
    cohort = artifacts.manifest["scenario"]["cohort"]
    for entry in rounds:
        if entry["divisor"] != cohort:
            text = (
                f"Round {entry['round']} divided by {entry['divisor']} where the public constant "
                f"is {cohort}: a divisor that follows the reports tells how many came."
            )
            return Finding("divisor is a public constant", False, text)
    return Finding("divisor is a public constant", True, f"Every mean divides by {cohort:,}.")


def cohorts(artifacts: RunArtifacts, rounds: Sequence[Entry]) -> Finding:
    """Test whether the numbers of reports look like the sampling that was declared.

    Under Poisson sampling counts are Binomial(population, rate); a cohort of fixed or capped size
    varies too little. Dispersion Σ(n − Nq)²/Nq(1 − q) is χ² of as many degrees as rounds.
    """
    name = "sampling as declared"
    rule = artifacts.manifest["population"]["cohort_rule"]
    declared = (artifacts.policy or {})["participation"]["kind"]
    counts = [entry["reports"] for entry in rounds]
    if rule["kind"] != declared:
        return Finding(name, False, f"{declared} was promised, {rule['kind']} was run.")
    if declared != "poisson":
        return Finding(name, True, f"{declared}: {min(counts):,} to {max(counts):,} reports.")
    mean = rule["population"] * rule["size_or_rate"]
    spread = mean * (1 - rule["size_or_rate"])
    if spread == 0 or len(counts) < 8:
        return Finding(name, None, f"{len(counts)} rounds are too few to test the sampling.")
    dispersion = sum((count - mean) ** 2 for count in counts) / spread
    too_regular = float(stats.chi2.cdf(dispersion, len(counts)))
    never_above = float(stats.binom.cdf(mean, rule["population"], rule["size_or_rate"]))
    capped = never_above ** len(counts) if max(counts) <= mean else 1.0
    if min(too_regular, capped) < _UNLIKELY:
        text = (
            "Poisson sampling was declared, but the numbers of reports do not vary as independent "
            f"coins do (chance {min(too_regular, capped):.0e}): cohorts were fixed or capped, and "
            "an amplified ε does not hold."
        )
        return Finding(name, False, text)
    text = f"The numbers of reports in {len(counts)} rounds vary as independent coins do."
    return Finding(name, True, text)


def public_groups(guarantee: StatedGuarantee, rounds: Sequence[Entry]) -> list[Finding]:
    """Check that a round was opened in the policy's groups, and is charged for the smallest sum."""
    name = "sums by public groups"
    if guarantee.groups == 1 and not any("groups" in entry for entry in rounds):
        return []
    for entry in rounds:
        if entry["released"] is not None and (wrong := _wrong_groups(guarantee, entry)):
            return [Finding(name, False, f"Round {entry['round']}: {wrong}.")]
    text = f"Each round opened at most {guarantee.groups} sums, and every user is in one of them."
    return [Finding(name, True, text)]


def _wrong_groups(guarantee: StatedGuarantee, entry: Entry) -> str:
    groups = entry.get("groups") or []
    if len(groups) != guarantee.groups:
        return f"{len(groups)} groups are on record, {guarantee.groups} were promised"
    asked = [group["reports"] for group in groups if group["asked"]]
    if max(asked, default=0) * guarantee.groups > entry["divisor"]:
        return "a group had more reports than its share of the cohort"
    if min(asked, default=0) != entry["reports"]:
        return f"it is charged for {entry['reports']} reports, its smallest sum had {min(asked)}"
    opened = sum(not group["failure"] for group in groups)
    return "" if opened > 2 * entry["trimmed"] else "no group was left after trimming"


def separation(artifacts: RunArtifacts, guarantee: StatedGuarantee) -> list[Finding]:
    """Hold the run's separation against the policy's: a simulation may fall short, and says so."""
    kept = artifacts.manifest["population"]["cohort_rule"]["min_separation"]
    if guarantee.participation != "rotation" or kept >= guarantee.least_separation:
        return []
    text = f"two rounds of a user may be {kept} apart, by the policy {guarantee.least_separation}"
    if artifacts.claims_its_model:
        text = f"The run claims its policy's ε for its own model, and {text}: ε does not hold."
        return [Finding("separation", False, text)]
    text = f"In this simulation {text}: the cost below is the deployment's."
    return [Finding("separation", None, text)]
