"""Was the promise of a question kept? Ledger verified, rounds replayed, result compared."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from pfl_lm.audit.accounting.methods import quick_epsilon
from pfl_lm.audit.accounting.stated import StatedGuarantee
from pfl_lm.audit.artifacts import RunArtifacts, digest_of
from pfl_lm.audit.chain import Chain, read_chain
from pfl_lm.audit.findings import Finding, Part
from pfl_lm.audit.ledger.known_records import KNOWN, unknown_entry
from pfl_lm.audit.ledger.population import population_budget
from pfl_lm.audit.ledger.replay import (
    Entry,
    deviation,
    is_complete,
    replayed_groups,
    round_groups_of,
)
from pfl_lm.audit.ledger.schema import ANY, not_ours
from pfl_lm.audit.question.artifacts import QuestionArtifacts
from pfl_lm.audit.question.groups import group_cells
from pfl_lm.files import sha256_of
from pfl_lm.numbers import format_epsilon

NOT_CHECKED = (
    "Whether devices really answered by the rule: see the mechanism part.",
    "Which people were asked: a ledger names none.",
    "What other runs and questions on these people did: their debits are believed; audit each.",
)


def audit_question_ledger(artifacts: QuestionArtifacts, ledgers: Path | None = None) -> Part:
    """Verify and replay the ledger of a question.

    Args:
        ledgers: folder of the populations' ledgers; None: not given to the auditor.
    """
    started = time.monotonic()
    chain = read_chain(artifacts.path / "ledger.jsonl")
    rounds = [entry for entry in chain.entries if entry.get("kind") == "round"]
    guarantee = StatedGuarantee.of(artifacts)
    fault = f"The chain breaks at {chain.fault}."
    findings = [
        Finding("hash chain", not chain.fault, fault if chain.fault else "Every entry vouches for "
                "the one before it."),
        _belongs(artifacts, chain),
        _known(chain),
        _result(artifacts, chain),
        _asked(artifacts, rounds),
        _secret(artifacts, chain),
        *group_cells(artifacts, chain.entries[0] if chain.entries else {}, rounds),
        *population_budget(
            artifacts.path,
            chain,
            ledgers,
            _alone(artifacts),
            replayed_groups(guarantee, chain),
        ),
    ]  # fmt: skip
    if guarantee is None:
        findings.append(Finding("spent within the budget", False, "The policy adds no noise."))
    else:
        findings += _costs(artifacts, guarantee, rounds)
    return Part(
        "ledger",
        "Was the promise kept, round by round?",
        (
            f"{len(chain.entries):,} entries: every hash, every link, their order and their end.",
            f"{len(rounds):,} rounds: reports, noise, clip, grid and ring of each.",
            "Manifest and result against the ledger.",
        ),
        findings,
        NOT_CHECKED,
        figures={"rounds": len(rounds), "head": (chain.hashes or ("",))[-1]},
        seconds=time.monotonic() - started,
        headline=f"{len(rounds):,} rounds are on record.",
    )


def _alone(artifacts: QuestionArtifacts) -> str:
    """Say why a question may name no ledger of its people."""
    if artifacts.manifest["asked"]["seed"] != "secret":
        return "A question with a printed seed protects nobody and spends nobody's budget."
    if artifacts.manifest.get("served", {}).get("trial"):
        return "A trial protects nobody and spends nobody's budget."
    return "The question names no ledger of its people: what else they paid is counted nowhere."


def _belongs(artifacts: QuestionArtifacts, chain: Chain) -> Finding:
    """Check that ledger and manifest are of the same question."""
    name = "manifest and ledger belong together"
    written = {key: value for key, value in artifacts.manifest.items() if key != "scenario"}
    genesis = chain.entries[0] if chain.entries else {}
    right = genesis.get("manifest_digest") == digest_of(written)
    right = right and genesis.get("policy_digest") == digest_of(artifacts.policy)
    text = "The ledger's first entry names this manifest and this policy."
    return Finding(name, right, text if right else "The ledger began with another manifest.")


def _known(chain: Chain) -> Finding:
    """Check that the ledger holds what a question records, and nothing else."""
    # The public labels that it asks by: held against the manifest with its cells.
    if name := unknown_entry(chain, {"groups": ANY}):
        return Finding(KNOWN, False, not_ours("The ledger", name))
    return Finding(KNOWN, True, "The ledger holds nothing of another name.")


def _result(artifacts: QuestionArtifacts, chain: Chain) -> Finding:
    """Hold what came out against the ledger's last entry."""
    name, file = "the result is the one that was paid for", artifacts.manifest["result"]
    path = artifacts.path / file
    ends = [entry for entry in chain.entries if entry.get("kind") == "end"]
    if not ends and not path.is_file():
        return Finding(name, None, "The question has not ended; there is no result.")
    if not ends:
        return Finding(name, False, f"{file} is there, and the ledger names no result.")
    if not path.is_file() or sha256_of(path) != ends[-1].get("result"):
        return Finding(name, False, f"{file} is not the one that the ledger's end names.")
    rounds = sum(entry.get("kind") == "round" for entry in chain.entries)
    if ends[-1].get("rounds") != rounds:
        text = f"The ledger's end counts {ends[-1].get('rounds')} rounds and holds {rounds}."
        return Finding(name, False, text)
    return Finding(name, True, f"{file} is the one that the ledger's last entry names.")


def _asked(artifacts: QuestionArtifacts, rounds: Sequence[Entry]) -> Finding:
    """Check that nobody can have been asked more often than the policy accounts for."""
    name = "nobody is asked too often"
    question, policy = artifacts.manifest["asked"], artifacts.policy
    assert policy is not None
    separation = policy["participation"]["min_separation"] or 1
    turns = min(separation, policy["rounds"])
    users, cohort = artifacts.manifest["population"]["users"], question["cohort"]
    # A fleet's server asks more users than it needs, and each of them may answer.
    asked = math.ceil(cohort * ((question.get("fleet") or {}).get("check_in") or 1))
    numbers = [entry["round"] for entry in rounds]
    if len(set(numbers)) < len(numbers):
        return Finding(name, False, "A round is recorded twice with different sums.")
    if len(numbers) > policy["rounds"]:
        text = f"{len(numbers)} rounds are recorded; the policy pays for {policy['rounds']}."
        return Finding(name, False, text)
    if asked * turns > users:
        text = (
            f"{asked:,} users in each of {turns} rounds in a row are more than the {users:,} "
            "there are: somebody was asked twice."
        )
        return Finding(name, False, text)
    if any(entry["reports"] > cohort for entry in rounds):
        return Finding(name, False, f"A round summed more reports than its cohort of {cohort:,}.")
    return Finding(name, True, f"{asked:,} of {users:,} users a round, once in {turns} rounds.")


def _secret(artifacts: QuestionArtifacts, chain: Chain) -> Finding:
    """Check that the seed of the noise is gone once the result is out, and was no public number."""
    name = "the noise cannot be had again"
    ended = any(entry.get("kind") == "end" for entry in chain.entries)
    if artifacts.manifest["asked"]["seed"] != "secret":
        text = "A seed that the manifest prints gives the noise again: nothing is protected."
        return Finding(name, None, text)
    if ended and (artifacts.path / "noise.secret").exists():
        text = "noise.secret is still there; it gives the noise again: erase it."
        return Finding(name, False, text)
    if "served" in artifacts.manifest:
        return Finding(name, True, "Every device drew its own noise, which no file ever held.")
    return Finding(name, True, "The noise came from a secret seed that no file holds any more."
                   if ended else "The question goes on; its seed is a secret.")  # fmt: skip


def _costs(
    artifacts: QuestionArtifacts, guarantee: StatedGuarantee, rounds: Sequence[Entry]
) -> list[Finding]:
    """Replay the rounds, and recompute what they cost by the auditor's own arithmetic."""
    if not all(is_complete(entry) for entry in rounds):
        return [Finding("every round as promised", False, "A round's record lacks figures.")]
    found = [(e["round"], deviation(guarantee, cast(RunArtifacts, artifacts), e)) for e in rounds]
    wrong = [f"round {number}: {reason}" for number, reason in found if reason]
    text = f"{len(rounds):,} rounds had the noise, clip and grid that were promised."
    kept = Finding("every round as promised", not wrong, "; ".join(wrong) or text)
    if not rounds:
        return [kept]
    groups = round_groups_of(guarantee, rounds)
    costs = quick_epsilon(groups, guarantee.delta)
    shown, budget = format_epsilon(costs), format_epsilon(guarantee.epsilon)
    right = costs <= guarantee.epsilon * (1 + 1e-3) and math.isfinite(costs)
    text = f"The recorded rounds cost ε = {shown} of {budget} (δ = {guarantee.delta:g})."
    return [kept, Finding("spent within the budget", right, text)]
