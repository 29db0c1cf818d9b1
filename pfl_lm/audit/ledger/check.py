"""Was the promise kept? The chain verified, the rounds replayed, the cost recomputed.

Nothing is believed that can be derived: what a round cost follows from how many reports were
opened, the noise their shares carry, the clip and the grid, not from the event that the run wrote
beside them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from pfl_lm.audit.accounting.methods import quick_epsilon
from pfl_lm.audit.accounting.stated import StatedGuarantee
from pfl_lm.audit.accounting.this_model import shortfalls
from pfl_lm.audit.artifacts import RunArtifacts, digest_of
from pfl_lm.audit.chain import Chain, read_chain
from pfl_lm.audit.findings import Finding, Part, Plot, TextTable
from pfl_lm.audit.ledger.clipping import clip_norms
from pfl_lm.audit.ledger.ending import abandoned, checkpoints, ending, installed_code
from pfl_lm.audit.ledger.known_records import known_records
from pfl_lm.audit.ledger.noise_states import noise_states
from pfl_lm.audit.ledger.participation import cohorts, divisor, public_groups, separation
from pfl_lm.audit.ledger.population import ONE_BUDGET, population_budget
from pfl_lm.audit.ledger.public_copies import public_copies
from pfl_lm.audit.ledger.published import held_out, published_figures, secret_counts
from pfl_lm.audit.ledger.replay import (
    Entry,
    deviation,
    is_complete,
    replayed_groups,
    round_groups_of,
)
from pfl_lm.audit.ledger.report_page import report_page
from pfl_lm.audit.ledger.reported_epsilon import reported_epsilon
from pfl_lm.audit.ledger.told_rounds import told_rounds
from pfl_lm.numbers import format_epsilon

NOT_CHECKED = (
    "Whether devices really added what the ledger says: see the mechanism part.",
    "Whether all files were rewritten to match, as a shorter run: keep the ledger's last hash.",
    "Whether the code that the manifest names is the code that ran: it is the run's own word.",
    "Which people took part: a ledger names none.",
    "What other runs and questions on these people did: their debits are believed; audit each.",
    "Whether a figure was measured; the mechanism part measures the model and its start again.",
    "Pages and files outside the run's folder; there report.html alone is compared.",
)


def audit_ledger(artifacts: RunArtifacts, ledgers: Path | None = None) -> Part:
    """Verify and replay the ledger of a run.

    Args:
        ledgers: folder of the populations' ledgers; None: not given to the auditor.
    """
    started = time.monotonic()
    chain = read_chain(artifacts.folder.ledger_path)
    rounds = [entry for entry in chain.entries if entry.get("kind") == "round"]
    guarantee = StatedGuarantee.of(artifacts)
    findings = [*integrity(artifacts, chain), *abandoned(artifacts, guarantee, chain)]
    findings += [published_figures(artifacts), *secret_counts(artifacts, guarantee)]
    findings += [*public_copies(artifacts, guarantee, chain), *known_records(artifacts, chain)]
    findings += [*told_rounds(artifacts, guarantee, chain), *report_page(artifacts, chain)]
    findings += [held_out(artifacts), *_people(artifacts, guarantee, chain, ledgers)]
    findings.append(installed_code(artifacts, chain))
    tables: list[TextTable] = []
    plots: list[Plot] = []
    headline = f"{len(rounds):,} rounds are on record."
    figures: dict[str, Any] = {"rounds": len(rounds), "head": (chain.hashes or ("",))[-1]}
    if guarantee is None:
        findings.append(Finding("budget", None, "The run has no policy: nothing was promised."))
    elif rounds:
        findings.append(_replay(guarantee, artifacts, rounds))
        if all(is_complete(entry) for entry in rounds):
            findings += [divisor(artifacts, rounds), cohorts(artifacts, rounds)]
            findings += separation(artifacts, guarantee)
            findings += public_groups(guarantee, rounds)
            findings += noise_states(guarantee, rounds)
            findings += clip_norms(guarantee, artifacts, rounds)
            spent, table, plot = _spent(guarantee, artifacts, rounds)
            findings += [spent, reported_epsilon(guarantee, artifacts, rounds)]
            headline = f"{spent.text.split(';')[0].rstrip('.')}."
            tables.append(table)
            plots += [plot, *_achieved(rounds)]
    return Part(
        "ledger",
        "Was the promise kept, round by round?",
        (
            f"{len(chain.entries):,} entries: every hash, every link, their order and their end.",
            f"{len(rounds):,} opened rounds: reports, noise, clip, grid, ring and divisor of each.",
            "Manifest, metrics, checkpoints and model against the ledger.",
            "Ledger, manifest, metrics, TensorBoard and evaluation: known names alone.",
            "The figures of each round against its record, and public files against the auditor's.",
        ),
        findings,
        NOT_CHECKED,
        tables,
        plots,
        figures,
        time.monotonic() - started,
        headline,
    )


def _people(
    artifacts: RunArtifacts,
    guarantee: StatedGuarantee | None,
    chain: Chain,
    ledgers: Path | None,
) -> list[Finding]:
    """Check the budget of the run's people, where it spends one."""
    if artifacts.policy is None or not chain.entries or shortfalls(artifacts.manifest):
        return []
    if "population_head" not in chain.entries[0] and (whose := _real_people(artifacts, guarantee)):
        text = f"{whose}, and the run names no ledger of their budget: what they spent is counted "
        return [Finding(ONE_BUDGET, False, text + "nowhere.")]
    alone = (
        "The run names no ledger of its population: right if its users are invented; else what "
        "else was done with the same people is counted nowhere."
    )
    replayed = replayed_groups(guarantee, chain)
    return population_budget(artifacts.folder.path, chain, ledgers, alone, replayed)


def _real_people(artifacts: RunArtifacts, guarantee: StatedGuarantee | None) -> str:
    """Say why a run at its policy's own scale spends a budget of people's, or ""."""
    manifest = artifacts.manifest
    if manifest.get("served"):
        return "Devices took part over the network"
    if guarantee is not None and manifest["scenario"]["population"]["kind"] == "store":
        return "The run guarantees its policy's ε to people whose text a store holds"
    return ""


def integrity(artifacts: RunArtifacts, chain: Chain) -> list[Finding]:
    """Check that the ledger is whole, is this run's, and ends where the run ended."""
    return [
        _chain_finding(chain),
        *_belongs(artifacts, chain),
        _complete(artifacts, chain),
        checkpoints(artifacts, chain),
        ending(artifacts, chain),
    ]


def _chain_finding(chain: Chain) -> Finding:
    if chain.fault:
        return Finding("hash chain", False, f"The chain breaks at {chain.fault}.")
    return Finding("hash chain", True, "Every entry vouches for the one before it.")


def _belongs(artifacts: RunArtifacts, chain: Chain) -> list[Finding]:
    """Check that ledger and manifest are of the same run."""
    if not chain.entries:
        return []
    genesis, manifest = chain.entries[0], artifacts.manifest
    wrong = []
    if genesis.get("run") != manifest["run"]:
        wrong.append(f"it was written by run {genesis.get('run')!r}, not {manifest['run']!r}")
    if genesis.get("policy_digest") != digest_of(manifest.get("policy")):
        wrong.append("the manifest's policy is not the one that it names")
    if genesis.get("manifest_digest") != digest_of(manifest):
        wrong.append("the manifest was changed, or belongs to another run")
    if genesis.get("statements") != manifest["statements"]:
        wrong.append("it began with other statements than the manifest's")
    if wrong:
        return [Finding("ledger of this run", False, f"The ledger: {'; '.join(wrong)}.")]
    return [Finding("ledger of this run", True, "Ledger, policy and manifest belong together.")]


def _complete(artifacts: RunArtifacts, chain: Chain) -> Finding:
    """Check that nothing is missing at the end, by what the metrics remember."""
    known = [e["round"] for e in chain.entries if e.get("kind") in ("round", "abandoned")]
    for before, after in pairwise(known):
        if after < before:
            text = f"Round {after} is recorded after round {before}: the order was changed."
            return Finding("ledger is complete", False, text)
    reported = [line["round"] for line in artifacts.rounds]
    missing = sorted(set(reported) - set(known))
    if missing:
        text = f"Round {missing[0]} is in the metrics but not in the ledger."
        return Finding("ledger is complete", False, text)
    # One more than told: a run may have been killed between debit and metrics.
    unknown = sorted(number for number in known if number > max(reported, default=-1) + 1)
    if unknown:
        text = f"Round {unknown[0]} was appended: the run never told of it."
        return Finding("ledger is complete", False, text)
    return Finding("ledger is complete", True, "The metrics know no further round.")


def _replay(
    guarantee: StatedGuarantee, artifacts: RunArtifacts, rounds: Sequence[Entry]
) -> Finding:
    """Find the first round whose record deviates from the promise or contradicts itself."""
    lines = {line["round"]: line for line in artifacts.rounds}
    earlier: dict[str, int] = {}
    for entry in rounds:
        try:
            wrong = deviation(guarantee, artifacts, entry)
        except (KeyError, TypeError) as error:
            wrong = f"its record is incomplete ({error})"
        wrong = _miscounted(entry, lines.get(entry["round"], {})) or wrong
        wrong = wrong or _released_otherwise(entry, earlier)
        if wrong:
            text = f"Round {entry['round']} is the first that deviates: {wrong}."
            return Finding("every round as promised", False, text)
    return Finding("every round as promised", True, "No round deviates from the promise.")


def _miscounted(entry: Entry, line: Entry) -> str:
    """Return how the metrics' count of reports contradicts a round's record, or "".

    Of a group that was never asked to open its sum, the reports came or were never submitted. A
    server counts no reports of a round whose sum was lost.
    """
    counted, groups = line.get("reports"), entry.get("groups")
    if counted is None or (counted == 0 and entry.get("released") is None):
        return ""
    if groups is None:
        least = most = entry.get("reports")
    else:
        least = sum(group["reports"] for group in groups if group["asked"])
        most = sum(group["reports"] for group in groups)
    if least is not None and least <= counted <= most:
        return ""
    return f"the metrics tell of {counted} reports, the ledger of {most}"


def _released_otherwise(entry: Entry, earlier: dict[str, int]) -> str:
    """Return what is wrong with the digest of what a round released, or "".

    Args:
        earlier: digest → round, of the rounds before; this one is added.
    """
    released = entry.get("released")
    if "released" not in entry or (released is None and not entry.get("failure")):
        return "it names neither what it released nor why it released nothing"
    if released in earlier:
        return f"it released, noise included, what round {earlier[released]} did"
    if released is not None:
        earlier[released] = entry["round"]
    return ""


def _spent(
    guarantee: StatedGuarantee, artifacts: RunArtifacts, rounds: Sequence[Entry]
) -> tuple[Finding, TextTable, Plot]:
    """Recompute what the recorded rounds cost, against the budget and the run's own last figure."""
    cost = quick_epsilon(round_groups_of(guarantee, rounds), guarantee.delta)
    server = quick_epsilon(
        [group.seen_by_server() for group in round_groups_of(guarantee, rounds)], guarantee.delta
    )
    figures = [line["epsilon"] for line in artifacts.rounds if line.get("epsilon") is not None]
    reported = figures[-1] if figures else None
    shown, budget = format_epsilon(cost), format_epsilon(guarantee.epsilon)
    said = format_epsilon(reported, "–")
    if not cost <= guarantee.epsilon * (1 + 1e-3):
        finding = Finding(
            "spent within the budget",
            False,
            f"The recorded rounds cost ε = {shown}, above {budget}.",
        )
    elif reported is not None and not cost <= reported * (1 + 1e-2) + 1e-3:
        finding = Finding(
            "spent within the budget",
            False,
            f"The run says it spent {said}; its own records cost {shown}.",
        )
    else:
        finding = Finding(
            "spent within the budget",
            True,
            f"The recorded rounds cost ε = {shown} of {budget} (δ = {guarantee.delta:g}); the run "
            f"says {said}.",
        )
    table = TextTable(
        "Spent, recomputed from the records",
        ("who", "ε"),
        (
            (
                "a server that also sees who took part, for a user in every round counted",
                format_epsilon(server if guarantee.at == "device" else math.inf),
            ),
            *_to_readers_of_counts(guarantee, server),
            ("a person who sees every released model and nothing else", shown),
            ("budget of the policy", budget),
            ("what the run itself reported", said),
        ),
    )
    return finding, table, _over_rounds(guarantee, artifacts)


def _to_readers_of_counts(guarantee: StatedGuarantee, known: float) -> list[tuple[str, str]]:
    """Return the row of a reader of counts, for whom sampling amplifies nothing that is claimed."""
    if not guarantee.amplified:
        return []
    return [("a person who learns who took part or how many reported", format_epsilon(known))]


def _over_rounds(guarantee: StatedGuarantee, artifacts: RunArtifacts) -> Plot:
    points = [
        (e["round"] + 1, e["epsilon"]) for e in artifacts.rounds if e.get("epsilon") is not None
    ]
    return Plot(
        "ε over rounds, as the run reported it",
        "lines",
        {
            "ε spent": points,
            "budget": [(0, guarantee.epsilon), (guarantee.rounds, guarantee.epsilon)],
        },
        "rounds",
    )


def _achieved(rounds: Sequence[Entry]) -> list[Plot]:
    """Plot the noise that each round's sum carried against the planned one, where recorded."""
    noises = [(entry["round"] + 1, entry.get("noise")) for entry in rounds]
    points = [(number, n["achieved"] / n["planned"]) for number, n in noises if n and n["planned"]]
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
