"""The fourteen points that an accounting report states, filled in from a run.

Source: Ponomareva et al. 2023, "How to DP-fy ML", arXiv 2303.00654, section 5.3; NIST SP 800-226.
"""

from __future__ import annotations

from pfl_lm.audit.evidence import Evidence
from pfl_lm.audit.findings import Table, figure
from pfl_lm.audit.methods import Row
from pfl_lm.audit.promise import Promise

_NEIGHBOURS = {
    "zero_out": "zero_out: one user's update is zero; sensitivity 1 clip norm",
    "add_remove": "add_remove: one user is absent; sensitivity 1 clip norm",
    "replace_one": "replace_one: one user's data is other data; sensitivity 2 clip norms",
}


def checklist(promise: Promise, evidence: Evidence, best: Row | None) -> Table:
    """Return the checklist; what a run cannot know is said to be open."""
    manifest, scenario = evidence.manifest, evidence.manifest["scenario"]
    on_device = promise.at == "device"
    trusted = (
        "secure aggregation opens sums only; the server is curious but honest"
        if on_device
        else "the server is trusted with every sum until it has added the noise"
    )
    who = {
        "poisson": "each device's own secret coin",
        "rotation": "each device counts its own rounds",
        "fixed": "the server draws cohorts of fixed size",
    }[promise.participation]
    sampled = promise.participation != "rotation"
    points = (
        ("setting", trusted),
        ("unit", promise.unit),
        ("adjacency, sensitivity", _NEIGHBOURS[promise.neighboring]),
        ("released to whom", "every round's model to everybody; metrics, counts: not covered"),
        (
            "data accesses",
            ("covered: local training. Not covered: vocabulary, eligibility, evaluation, tuning, "
            f"early stopping; start: {manifest.get('model', {}).get('start', {}).get('kind')}"),
        ),
        (
            "mechanism",
            (
                f"{promise.mechanism}, C = {scenario['clip_norm']:g}, z = "
                f"{promise.noise_multiplier:g} planned (achieved: see ledger), grid "
                f"{promise.grid_steps:g}·√d steps to the clip, d ≥ {promise.min_dim:,}, β = e^−½"
            ),
        ),
        ("sampling and what enforces it", f"{promise.participation}: {who}"),
        (
            "participation",
            (f"at most {promise.participations:,} rounds; min_separation "
            f"{promise.min_separation} (r₂ − r₁)"),
        ),
        (
            "composition",
            (f"run: {manifest['guarantee']['accountant']}; here: "
            f"{best.method.name if best else 'nothing'}"),
        ),
        (
            "ε, δ",
            (f"ε = {figure(promise.stated_epsilon)} at δ = {promise.delta:g}, population "
            f"{promise.population:,}; other δ in the table above"),
        ),
        ("cost of tuning", "open: not recorded; see the finding"),
        ("cost of adaptive clipping", "none: the clip is fixed"),
        (
            "amplification",
            f"with: {figure(promise.stated_epsilon)}; without: "
            f"{figure(promise.stated_server_epsilon)}" if sampled else "none claimed",
        ),
        ("audit results and power", "see mechanism and attack"),
    )  # fmt: skip
    return Table(
        "Reporting checklist",
        ("point", "answer"),
        [(f"{i}. {name}", answer) for i, (name, answer) in enumerate(points, start=1)],
    )
