"""The fourteen points that an accounting report states, filled in from a run.

Source: Ponomareva et al. 2023, "How to DP-fy ML", arXiv 2303.00654, section 5.3; NIST SP 800-226.
"""

from __future__ import annotations

import math
from typing import Any

from pfl_lm.audit.accounting.methods import MethodResult
from pfl_lm.audit.accounting.renyi import rounded_norm
from pfl_lm.audit.accounting.stated import StatedGuarantee
from pfl_lm.audit.accounting.streams import sensitivity
from pfl_lm.audit.artifacts import AuditTarget, RunArtifacts
from pfl_lm.audit.findings import TextTable
from pfl_lm.numbers import format_epsilon

_NEIGHBOURS = {
    "zero_out": "zero_out: one user's update is zero; sensitivity 1 clip norm",
    "add_remove": "add_remove: one user is absent; sensitivity 1 clip norm",
    "replace_one": "replace_one: one user's data is other data; sensitivity 2 clip norms",
}


_WHO = {
    "poisson": "each device's own secret coin",
    "rotation": "each device counts its own rounds",
    "fixed": "the server draws cohorts of fixed size",
}


def checklist(
    guarantee: StatedGuarantee, target: AuditTarget, best: MethodResult | None
) -> TextTable:
    """Return the checklist; what cannot be known from what was written down is said to be open."""
    points = (*_setting(guarantee, target), *_arithmetic(guarantee, target, best))
    return TextTable(
        "Reporting checklist",
        ("point", "answer"),
        [(f"{i}. {name}", answer) for i, (name, answer) in enumerate(points, start=1)],
        'The points that "How to DP-fy ML" (section 5.3) and NIST SP 800-226 ask a statement of '
        "differential privacy to make.",
    )


def _setting(guarantee: StatedGuarantee, target: AuditTarget) -> tuple[tuple[str, str], ...]:
    """Points 1 to 8: who is trusted, who is protected, what is released, how noise is made."""
    on_device = guarantee.at == "device"
    trusted = (
        "secure aggregation opens sums only; the server is curious but honest"
        if on_device
        else "the server is trusted with every sum until it has added the noise"
    )
    return (
        ("setting", trusted),
        ("unit", guarantee.unit),
        ("adjacency, sensitivity", _NEIGHBOURS[guarantee.neighboring]),
        (
            "released to whom",
            "every round's model to everybody; losses, norms, counts, logs: not covered",
        ),
        ("data accesses", _accesses(target)),
        ("mechanism", _mechanism(guarantee, target)),
        (
            "sampling and what enforces it",
            (
                f"{guarantee.participation}: {_WHO[guarantee.participation]}; "
                "where nothing enforces it, no amplification"
            ),
        ),
        (
            "participation",
            (
                f"at most {guarantee.participations:,} rounds; min_separation "
                f"{guarantee.min_separation} (r₂ − r₁)"
            ),
        ),
    )


def _arithmetic(
    guarantee: StatedGuarantee, target: AuditTarget, best: MethodResult | None
) -> tuple[tuple[str, str], ...]:
    """Points 9 to 14: how the figures came about, and what was left out of them."""
    stated, plain = (
        format_epsilon(guarantee.stated_epsilon),
        format_epsilon(guarantee.stated_server_epsilon),
    )
    sampled = guarantee.participation != "rotation"
    return (
        (
            "composition",
            (
                f"run: {target.guarantee['accountant']}; here: "
                f"{best.method.name if best else 'nothing'}; one ledger entry a round"
            ),
        ),
        (
            "ε, δ",
            (
                f"ε = {stated} at δ = {guarantee.delta:g}, population {guarantee.population:,}; "
                "δ = 1e-5 to 1e-10 in the table of adversaries"
            ),
        ),
        ("cost of tuning", 'see the finding "hyperparameter tuning"'),
        ("cost of adaptive clipping", _clipping(guarantee)),
        ("amplification", f"with: {stated}; without: {plain}" if sampled else "none claimed"),
        ("audit results and power", "see mechanism and attack"),
    )


def _clipping(guarantee: StatedGuarantee) -> str:
    if (rule := guarantee.clipping) is None:
        return "none: the clip is fixed"
    weight = guarantee.indicator_weight
    more = 1 / math.sqrt(1 - weight**2) - 1
    return (
        f"no ε: an indicator of {weight:.4g} C is in the clipped vector, so updates carry "
        f"{more:.2g} times more noise; each round tells the share of short updates with noise of "
        f"{rule['indicator_noise']:g}"
    )


def _accesses(target: AuditTarget) -> str:
    training = (
        "covered: local training. Not covered: eligibility, evaluation, tuning, early stopping"
    )
    if not isinstance(target, RunArtifacts):
        return f"{training}, vocabulary, first weights, earlier models of the same users"
    start = target.manifest.get("model", {}).get("start", {}).get("kind", "unknown")
    words = (target.manifest.get("vocabulary") or {}).get("kind", "not stated")
    return (
        f"{training}, earlier models of the same users. Warm start: {start}; "
        f"vocabulary from: {words}"
    )


def _mechanism(guarantee: StatedGuarantee, target: AuditTarget) -> str:
    """State C, z, and of device noise the grid: what rounding adds, the ring, the dimension."""
    at_first = " at first" if guarantee.clipping else ""
    clip = (
        f"C = {target.manifest['scenario']['clip_norm']:g}{at_first}, "
        if isinstance(target, RunArtifacts)
        else ""
    )
    planned = f"z = {guarantee.noise_multiplier:g} planned (achieved: ledger)"
    text = f"{guarantee.mechanism}, {clip}{planned}"
    if (stream := guarantee.stream) is not None:
        moved = sensitivity(stream, guarantee.min_separation, guarantee.participations)
        text += (
            f", correlated over {stream['rounds']:,} rounds, which a user moves by {moved:.4f} C"
        )
    if guarantee.at != "device":
        return text
    steps = guarantee.grid_steps * math.sqrt(guarantee.min_dim)
    inflation = rounded_norm(steps, guarantee.min_dim) / steps - 1
    text += (
        f", grid {guarantee.grid_steps:g}·√d steps to the clip, d ≥ {guarantee.min_dim:,}, "
        f"β = e^−½, rounding lengthens an update by at most {inflation:.2%}"
    )
    first = target.first_round if isinstance(target, RunArtifacts) else None
    return text if first is None else text + _grid_of(first)


def _grid_of(entry: dict[str, Any]) -> str:
    try:
        grid, dim = entry["grid"], entry["payload"]["dim"]
        return f"; here d = {dim:,}, scale {grid['scale']:.6g}, ring of {grid['bits']} bits"
    except (KeyError, TypeError, ValueError):
        return ""  # the ledger part says what is wrong with it
