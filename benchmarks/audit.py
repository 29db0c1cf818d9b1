"""What an audit finds and what it costs, as rows for RESULTS.md.

    python benchmarks/audit.py RUN [--scenario FILE] [--start FILE] [--rounds 200]

Audits a run's four parts and prints guarantee, estimate, lower bounds, exposure with and without
noise, and seconds of each part. Then the power of the attack's estimators on ideal Gaussian
scores of a known ε, which no pipeline can beat.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from pfl_lm.audit.accounting.check import audit_accounting
from pfl_lm.audit.artifacts import RunArtifacts
from pfl_lm.audit.attack.check import CANARIES, audit_attack
from pfl_lm.audit.attack.estimators import one_run_bound_fdp
from pfl_lm.audit.attack.scores import Scores, bound_at_counts, gaussian_bound
from pfl_lm.audit.findings import Part
from pfl_lm.audit.gaussians import gaussian_mu
from pfl_lm.audit.ledger.check import audit_ledger
from pfl_lm.audit.mechanism.check import audit_mechanism
from pfl_lm.audit.mechanism.rebuild import rebuild_context
from pfl_lm.audit.page import verdict
from pfl_lm.numbers import format_epsilon


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--scenario", type=Path)
    parser.add_argument("--start", type=Path)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--phrase-rounds", type=int, default=20)
    chosen = parser.parse_args()
    artifacts = RunArtifacts.open(chosen.run)
    context = rebuild_context(artifacts, chosen.scenario, chosen.start)
    audits = (
        lambda: audit_accounting(artifacts),
        lambda: audit_ledger(artifacts),
        lambda: audit_mechanism(context),
        lambda: audit_attack(context, artifacts, chosen.rounds, chosen.phrase_rounds),
    )
    print("| part | findings that hold | fail | to judge | seconds | CPU |")
    print("|---|--:|--:|--:|--:|--:|")
    parts = []
    for audit in audits:
        began = time.process_time()
        parts.append(audit())
        spent = time.process_time() - began
        marks = [finding.holds for finding in parts[-1].findings]
        counts = " | ".join(str(marks.count(mark)) for mark in (True, False, None))
        row = f"| {parts[-1].name} | {counts} | {parts[-1].seconds:.1f} | {spent:.1f} |"
        print(row, flush=True)
    print(f"\n{verdict(parts)}")
    _attack_tables(parts[-1])
    print_power()


def _attack_tables(attack: Part) -> None:
    for table in attack.tables:
        print(f"\n{table.title}\n\n| {' | '.join(table.columns)} |")
        print("|---" * len(table.columns) + "|")
        for row in table.rows:
            print(f"| {' | '.join(row)} |")
        print(f"\n{table.note}")


def print_power(delta: float = 1e-6, runs: int = 20) -> None:
    """Print the median bound over seeded runs of ideal scores."""
    print(f"\nPower: {CANARIES} canaries, ideal Gaussian scores, median of {runs} seeds\n")
    print("| true ε | proven, any mechanism | proven, against a Gaussian | if Gaussian |")
    print("|--:|--:|--:|--:|")
    counts = [int(CANARIES * share) for share in (0.025, 0.1, 0.25, 0.45)]
    for epsilon in (1.0, 3.0, 8.0, 20.0):
        bounds = []
        for seed in range(runs):
            generator = np.random.default_rng([seed])
            mu, half = gaussian_mu(epsilon, delta), CANARIES // 2
            scores = Scores(generator.normal(mu, 1, half), generator.normal(0, 1, half))
            bounds.append(
                (
                    bound_at_counts(scores, counts, delta),
                    bound_at_counts(scores, counts, delta, bound=one_run_bound_fdp),
                    gaussian_bound(scores, delta, 0.05),
                )
            )
        medians = " | ".join(f"{value:.2f}" for value in np.median(bounds, axis=0))
        print(f"| {format_epsilon(epsilon)} | {medians} |")


if __name__ == "__main__":
    main()
