"""Do proofs cover what a policy states? Without one there is no ε that could be confirmed."""

from __future__ import annotations

from collections.abc import Iterator

from pfl_lm.audit.accounting.stated import StatedGuarantee
from pfl_lm.audit.accounting.streams import STREAMS
from pfl_lm.audit.accounting.values import KINDS
from pfl_lm.audit.findings import Finding


def terms(guarantee: StatedGuarantee) -> Finding:
    """Say whether a proof covers these terms; without one there is no ε to confirm."""
    name = "terms that a proof covers"
    wrong = [*_unproven(guarantee)]
    if wrong:
        return Finding(name, False, f"No proof covers this policy: {'; '.join(wrong)}.")
    return Finding(name, True, "Noise, participation and population are of kinds with a proof.")


def _unproven(guarantee: StatedGuarantee) -> Iterator[str]:
    """Yield what no proof covers, in a reader's words."""
    kind, at = guarantee.mechanism, guarantee.at
    if kind not in KINDS[at]:
        yield f"noise.kind = {kind!r} is not added at the {at}"
    if at == "device" and guarantee.neighboring == "add_remove":
        yield "a device that is removed takes its share of the noise along (add_remove)"
    if guarantee.report_goal > guarantee.population:
        yield (
            f"{guarantee.report_goal:,} reports a round come from a population of "
            f"{guarantee.population:,}"
        )
    if guarantee.participation == "rotation":
        yield from _too_few_users(guarantee)
    else:
        if guarantee.min_separation > 1 or guarantee.max_participations:
            yield (
                f"{guarantee.participation} sampling keeps no min_separation or "
                "max_participations: a user may be in every round"
            )
        if kind in STREAMS:
            yield f"noise that is correlated between rounds ({kind}) needs rotation"
    if guarantee.excess == "removed" and (kind != "skellam" or not guarantee.tolerated_dropout):
        yield "excess noise is removed of skellam noise alone, and where dropout is tolerated"
    if guarantee.groups > 1:
        yield from _unproven_groups(guarantee)


def _too_few_users(guarantee: StatedGuarantee) -> Iterator[str]:
    turns = min(guarantee.min_separation, guarantee.rounds)
    if guarantee.report_goal * turns > guarantee.population >= guarantee.report_goal:
        yield (
            f"{guarantee.report_goal:,} reports in each of {turns:,} rounds need as many different "
            f"users, {guarantee.report_goal * turns:,}, and there are {guarantee.population:,}"
        )


def _unproven_groups(guarantee: StatedGuarantee) -> Iterator[str]:
    whole = guarantee.report_goal % guarantee.groups == 0
    parts = guarantee.participation == "rotation" and guarantee.at == "device"
    if not (whole and parts and guarantee.excess == "kept" and guarantee.clipping is None):
        yield (
            "public groups need a report_goal that they divide, rotation, noise at the device, "
            "no excess removed and a fixed clip norm"
        )
