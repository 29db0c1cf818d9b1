"""The fourteen points that an accounting report states, filled in from a run.

Source: Ponomareva et al. 2023, "How to DP-fy ML", arXiv 2303.00654, section 5.3; NIST SP 800-226.
"""

from __future__ import annotations

import math
from typing import Any

from pfl_lm.audit.evidence import Claim, Evidence
from pfl_lm.audit.findings import Table, figure
from pfl_lm.audit.methods import Row
from pfl_lm.audit.promise import Promise
from pfl_lm.audit.renyi import rounded_norm

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


def checklist(promise: Promise, claim: Claim, best: Row | None) -> Table:
    """Return the checklist; what cannot be known from what was written down is said to be open."""
    points = (*_setting(promise, claim), *_arithmetic(promise, claim, best))
    return Table(
        "Reporting checklist",
        ("point", "answer"),
        [(f"{i}. {name}", answer) for i, (name, answer) in enumerate(points, start=1)],
        'The points that "How to DP-fy ML" (section 5.3) and NIST SP 800-226 ask a statement of '
        "differential privacy to make.",
    )


def _setting(promise: Promise, claim: Claim) -> tuple[tuple[str, str], ...]:
    """Points 1 to 8: who is trusted, who is protected, what is released, how noise is made."""
    on_device = promise.at == "device"
    trusted = (
        "secure aggregation opens sums only; the server is curious but honest"
        if on_device
        else "the server is trusted with every sum until it has added the noise"
    )
    return (
        ("setting", trusted),
        ("unit", promise.unit),
        ("adjacency, sensitivity", _NEIGHBOURS[promise.neighboring]),
        (
            "released to whom",
            "every round's model to everybody; losses, norms, counts, logs: not covered",
        ),
        ("data accesses", _accesses(claim)),
        ("mechanism", _mechanism(promise, claim)),
        (
            "sampling and what enforces it",
            (
                f"{promise.participation}: {_WHO[promise.participation]}; "
                "where nothing enforces it, no amplification"
            ),
        ),
        (
            "participation",
            (
                f"at most {promise.participations:,} rounds; min_separation "
                f"{promise.min_separation} (r₂ − r₁)"
            ),
        ),
    )


def _arithmetic(promise: Promise, claim: Claim, best: Row | None) -> tuple[tuple[str, str], ...]:
    """Points 9 to 14: how the figures came about, and what was left out of them."""
    stated, plain = figure(promise.stated_epsilon), figure(promise.stated_server_epsilon)
    sampled = promise.participation != "rotation"
    return (
        (
            "composition",
            (
                f"run: {claim.guarantee['accountant']}; here: "
                f"{best.method.name if best else 'nothing'}; one ledger entry a round"
            ),
        ),
        (
            "ε, δ",
            (
                f"ε = {stated} at δ = {promise.delta:g}, population {promise.population:,}; "
                "δ = 1e-5 to 1e-10 in the table of adversaries"
            ),
        ),
        ("cost of tuning", 'see the finding "hyperparameter tuning"'),
        ("cost of adaptive clipping", "none: the clip is fixed"),
        ("amplification", f"with: {stated}; without: {plain}" if sampled else "none claimed"),
        ("audit results and power", "see mechanism and attack"),
    )


def _accesses(claim: Claim) -> str:
    found = "covered: local training. Not covered: eligibility, evaluation, tuning, early stopping"
    if not isinstance(claim, Evidence):
        return f"{found}, vocabulary, first weights, earlier models of the same users"
    start = claim.manifest.get("model", {}).get("start", {}).get("kind", "unknown")
    words = (claim.manifest.get("vocabulary") or {}).get("kind", "not stated")
    return (
        f"{found}, earlier models of the same users. Warm start: {start}; vocabulary from: {words}"
    )


def _mechanism(promise: Promise, claim: Claim) -> str:
    """State C, z, and of device noise the grid: what rounding adds, the ring, the dimension."""
    clip = (
        f"C = {claim.manifest['scenario']['clip_norm']:g}, " if isinstance(claim, Evidence) else ""
    )
    text = f"{promise.mechanism}, {clip}z = {promise.noise_multiplier:g} planned (achieved: ledger)"
    if promise.at != "device":
        return text
    steps = promise.grid_steps * math.sqrt(promise.min_dim)
    inflation = rounded_norm(steps, promise.min_dim) / steps - 1
    text += (
        f", grid {promise.grid_steps:g}·√d steps to the clip, d ≥ {promise.min_dim:,}, β = e^−½, "
        f"rounding lengthens an update by at most {inflation:.2%}"
    )
    first = claim.first_round if isinstance(claim, Evidence) else None
    return text if first is None else text + _grid_of(first)


def _grid_of(entry: dict[str, Any]) -> str:
    try:
        grid, dim = entry["grid"], entry["payload"]["dim"]
        return f"; here d = {dim:,}, scale {grid['scale']:.6g}, ring of {grid['bits']} bits"
    except (KeyError, TypeError, ValueError):
        return ""  # the ledger part says what is wrong with it
