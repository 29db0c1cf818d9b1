"""Was the promise kept? The chain verified, the rounds replayed, the cost recomputed.

Nothing is believed that can be derived: what a round cost follows from how many reports were
opened, the noise their shares carry, the clip and the grid, not from the event that the run wrote
beside them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from scipy import stats

from pfl_lm.audit.chain import Chain, read_chain
from pfl_lm.audit.evidence import Evidence, digest_of
from pfl_lm.audit.findings import Finding, Part, Plot, Table, figure
from pfl_lm.audit.methods import quick_epsilon
from pfl_lm.audit.promise import Promise
from pfl_lm.audit.replay import Entry, deviation, is_complete, phases_of

_UNLIKELY = 1e-6  # a run is called wrong by chance once in so many

NOT_CHECKED = (
    "Whether devices really added what the ledger says: see the mechanism part.",
    "Whether ledger, manifest and metrics were all rewritten to match: keep its last hash.",
    "Which people took part: a ledger names none.",
)


def audit_ledger(evidence: Evidence) -> Part:
    """Verify and replay the ledger of a run."""
    started = time.monotonic()
    chain = read_chain(evidence.folder.ledger_path)
    rounds = [entry for entry in chain.entries if entry.get("kind") == "round"]
    promise = Promise.of(evidence)
    findings = integrity(evidence, chain)
    tables: list[Table] = []
    plots: list[Plot] = []
    headline = f"{len(rounds):,} rounds are on record."
    figures: dict[str, Any] = {"rounds": len(rounds), "head": (chain.hashes or ("",))[-1]}
    if promise is None:
        findings.append(Finding("budget", None, "The run has no policy: nothing was promised."))
    elif rounds:
        findings.append(_replay(promise, evidence, rounds))
        if all(is_complete(entry) for entry in rounds):
            findings += [_divisor(evidence, rounds), _cohorts(evidence, rounds)]
            findings += _separation(evidence, promise)
            spent, table, plot = _spent(promise, evidence, rounds)
            findings.append(spent)
            headline = f"{spent.text.split(';')[0].rstrip('.')}."
            tables.append(table)
            plots += [plot, *_achieved(rounds)]
    return Part(
        "ledger",
        "Was the promise kept, round by round?",
        (
            f"{len(chain.entries):,} entries: every hash, every link, their order and their end.",
            f"{len(rounds):,} opened rounds: reports, noise, clip, grid, ring and divisor of each.",
            "Manifest, metrics and checkpoints against the ledger.",
        ),
        findings,
        NOT_CHECKED,
        tables,
        plots,
        figures,
        time.monotonic() - started,
        headline,
    )


def integrity(evidence: Evidence, chain: Chain) -> list[Finding]:
    """Check that the ledger is whole, is this run's, and ends where the run ended."""
    return [_chain_finding(chain), *_belongs(evidence, chain), _complete(evidence, chain)]


def _chain_finding(chain: Chain) -> Finding:
    if chain.fault:
        return Finding("hash chain", False, f"The chain breaks at {chain.fault}.")
    return Finding("hash chain", True, "Every entry vouches for the one before it.")


def _belongs(evidence: Evidence, chain: Chain) -> list[Finding]:
    """Check that ledger and manifest are of the same run."""
    if not chain.entries:
        return []
    genesis, manifest = chain.entries[0], evidence.manifest
    wrong = []
    if genesis.get("run") != manifest["run"]:
        wrong.append(f"it was written by run {genesis.get('run')!r}, not {manifest['run']!r}")
    if genesis.get("policy_digest") != digest_of(manifest.get("policy")):
        wrong.append("the manifest's policy is not the one that it names")
    if genesis.get("manifest_digest") != digest_of(manifest):
        wrong.append("the manifest was changed, or belongs to another run")
    if wrong:
        return [Finding("ledger of this run", False, f"The ledger: {'; '.join(wrong)}.")]
    return [Finding("ledger of this run", True, "Ledger, policy and manifest belong together.")]


def _complete(evidence: Evidence, chain: Chain) -> Finding:
    """Check that nothing is missing at the end, by what metrics and checkpoints remember."""
    known = [e["round"] for e in chain.entries if e.get("kind") in ("round", "abandoned")]
    told = [line["round"] for line in evidence.rounds]
    missing = sorted(set(told) - set(known))
    if missing:
        text = f"Round {missing[0]} is in the metrics but not in the ledger."
        return Finding("ledger is complete", False, text)
    # One more than told: a run may have been killed between debit and metrics.
    unknown = sorted(number for number in known if number > max(told, default=-1) + 1)
    if unknown:
        text = f"Round {unknown[0]} was appended: the run never told of it."
        return Finding("ledger is complete", False, text)
    for name, head in evidence.ledger_heads.items():
        if head not in chain.hashes:
            text = f"Checkpoint {name} remembers an entry that is gone: the end was cut off."
            return Finding("ledger is complete", False, text)
    return Finding("ledger is complete", True, "Metrics and checkpoints know no further round.")


def _replay(promise: Promise, evidence: Evidence, rounds: Sequence[Entry]) -> Finding:
    """Find the first round whose record deviates from the promise or contradicts itself."""
    reports = {line["round"]: line.get("reports") for line in evidence.rounds}
    for entry in rounds:
        try:
            wrong = deviation(promise, evidence, entry)
        except (KeyError, TypeError) as error:
            wrong = f"its record is incomplete ({error})"
        told = reports.get(entry["round"], entry.get("reports"))
        if told != entry.get("reports"):
            wrong = f"the metrics tell of {told} reports, the ledger of {entry.get('reports')}"
        if wrong:
            text = f"Round {entry['round']} is the first that deviates: {wrong}."
            return Finding("every round as promised", False, text)
    return Finding("every round as promised", True, "No round deviates from the promise.")


def _divisor(evidence: Evidence, rounds: Sequence[Entry]) -> Finding:
    cohort = evidence.manifest["scenario"]["cohort"]
    for entry in rounds:
        if entry["divisor"] != cohort:
            text = (
                f"Round {entry['round']} divided by {entry['divisor']} where the public constant "
                f"is {cohort}: a divisor that follows the reports tells how many came."
            )
            return Finding("divisor is a public constant", False, text)
    return Finding("divisor is a public constant", True, f"Every mean divides by {cohort:,}.")


def _cohorts(evidence: Evidence, rounds: Sequence[Entry]) -> Finding:
    """Test whether the numbers of reports look like the sampling that was declared.

    Under Poisson sampling counts are Binomial(population, rate); a cohort of fixed or capped size
    varies too little. Dispersion Σ(n − Nq)²/Nq(1 − q) is χ² of as many degrees as rounds.
    """
    name = "sampling as declared"
    rule = evidence.manifest["population"]["cohort_rule"]
    declared = (evidence.policy or {})["participation"]["kind"]
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
            f"Poisson sampling was declared, but cohorts of {min(counts)} to {max(counts)} reports "
            f"do not vary as independent coins do (chance {min(too_regular, capped):.0e}): they "
            "were fixed or capped, and the amplified ε does not hold."
        )
        return Finding(name, False, text)
    text = f"{min(counts)} to {max(counts)} reports a round vary as independent coins do."
    return Finding(name, True, text)


def _separation(evidence: Evidence, promise: Promise) -> list[Finding]:
    rule = evidence.manifest["population"]["cohort_rule"]
    if promise.participation != "rotation" or rule["min_separation"] >= promise.min_separation:
        return []
    text = (
        f"The simulation invites a user again after {rule['min_separation']} rounds, the "
        f"deployment after {promise.min_separation}: the cost below is the deployment's."
    )
    return [Finding("separation", None, text)]


def _spent(
    promise: Promise, evidence: Evidence, rounds: Sequence[Entry]
) -> tuple[Finding, Table, Plot]:
    """Recompute what the recorded rounds cost, against the budget and the run's own last figure."""
    found = quick_epsilon(phases_of(promise, rounds), promise.delta)
    server = quick_epsilon(
        [phase.seen_by_server() for phase in phases_of(promise, rounds)], promise.delta
    )
    told = [line["epsilon"] for line in evidence.rounds if line.get("epsilon") is not None]
    claimed = told[-1] if told else None
    if found > promise.epsilon * (1 + 1e-3):
        finding = Finding(
            "spent within the budget",
            False,
            f"The recorded rounds cost ε = {figure(found)}, above {figure(promise.epsilon)}.",
        )
    elif claimed is not None and found > claimed * (1 + 1e-2) + 1e-3:
        finding = Finding(
            "spent within the budget",
            False,
            f"The run says it spent {figure(claimed)}; its own records cost {figure(found)}.",
        )
    else:
        finding = Finding(
            "spent within the budget",
            True,
            f"The recorded rounds cost ε = {figure(found)} of {figure(promise.epsilon)} "
            f"(δ = {promise.delta:g}); the run says {figure(claimed)}.",
        )
    table = Table(
        "Spent, recomputed from the records",
        ("who", "ε"),
        (
            ("whoever sees every released model", figure(found)),
            (
                "a server that also sees who took part, for a user in every round counted",
                figure(server if promise.at == "device" else math.inf),
            ),
            ("budget of the policy", figure(promise.epsilon)),
            ("what the run itself reported", figure(claimed)),
        ),
    )
    return finding, table, _over_rounds(promise, evidence)


def _over_rounds(promise: Promise, evidence: Evidence) -> Plot:
    told = [(e["round"] + 1, e["epsilon"]) for e in evidence.rounds if e.get("epsilon") is not None]
    return Plot(
        "ε over rounds, as the run reported it",
        "lines",
        {
            "ε spent": told,
            "budget": [(0, promise.epsilon), (promise.rounds, promise.epsilon)],
        },
        "rounds",
    )


def _achieved(rounds: Sequence[Entry]) -> list[Plot]:
    """Plot the noise that each round's sum carried against the planned one, where recorded."""
    told = [(entry["round"] + 1, entry.get("noise")) for entry in rounds]
    points = [(number, n["achieved"] / n["planned"]) for number, n in told if n and n["planned"]]
    if not points:
        return []
    return [
        Plot(
            "Noise on each round's sum, as a share of the planned",
            "lines",
            {
                "carried by the reports": points,
                "planned": [(points[0][0], 1.0), (points[-1][0], 1.0)],
            },
            "rounds",
            "The planned noise is that of the fewest reports that open a round in the deployment; "
            "a small simulated cohort varies more than the deployment's.",
        )
    ]
