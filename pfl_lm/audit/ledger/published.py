"""Which figures a run wrote beside its model: known names alone, and nothing per user.

A figure of one user under a new name would be a release that no ε covers, in the metrics, in
TensorBoard or in the evaluation.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pfl_lm.audit.accounting.stated import StatedGuarantee
from pfl_lm.audit.artifacts import RunArtifacts
from pfl_lm.audit.findings import Finding
from pfl_lm.audit.ledger.schema import NUMBER, TEXT, not_ours, numbers, unknown
from pfl_lm.run.folder import read_json

_DISTRIBUTION = {**numbers("mean standard_error"), "quantiles": [NUMBER]}
_EVALUATION = {
    **numbers("users predictions words perplexity perplexity_known top1 top3 top1_known"),
    **numbers("top3_known oov_rate keystrokes_saved keystrokes_saved_known"),
    **numbers("casing marks_top3 emoji_top1 emoji_top3 keys_saved spelled_offered"),
    "buckets": [{"name": TEXT, **numbers("words share top1 top3")}],
    "over_users": dict.fromkeys(("perplexity", "top1", "top3", "keystrokes_saved"), _DISTRIBUTION),
    "quantile_levels": [NUMBER],
}
_PROFILE = {"name": TEXT, **numbers("share able users perplexity top3")}
_FLEET = {
    **numbers("opened_hours waited_minutes minutes checked_in joules_per_report"),
    **numbers("bytes_per_report peak_memory_bytes training_flops"),
    "rejected": dict.fromkeys(
        ("too little memory", "not idle", "metered network", "not needed"), NUMBER
    ),
    "lost": {
        **numbers("download training keys upload answer"),
        **dict.fromkeys(("time-out", "after the goal"), NUMBER),
    },
}
_ROUND = {
    **numbers("round loss seconds invited reports tokens update_norm clipped_share mean_norm"),
    **numbers("trained_devices diverged_devices clip_norm short_share"),
    **numbers("noise_norm payload_dim download_bytes upload_bytes epsilon epsilon_unamplified"),
}

OF_NO_COUNT = numbers(
    "round mean_norm noise_norm payload_dim epsilon epsilon_unamplified clip_norm short_share"
)


def counts_are_secret(guarantee: StatedGuarantee | None) -> bool:
    """Whether ε holds only while nobody but the auditor learns how many reported."""
    return guarantee is not None and guarantee.amplified and guarantee.participation == "poisson"


def secret_counts(artifacts: RunArtifacts, guarantee: StatedGuarantee | None) -> list[Finding]:
    """Check that nobody but the auditor learns how many reported, where ε needs that.

    Given its size a Poisson cohort is a uniform subset: amplification by coins is gone for a
    reader of counts, of bytes or seconds of a round, or of a mean over its reports.
    """
    if not counts_are_secret(guarantee):
        return []
    name, folder = "counts of Poisson rounds are secret", artifacts.folder
    schema = {"round": {"kind": TEXT, **OF_NO_COUNT}}
    public = [line for line in folder.metrics() if line.get("kind") == "round"]
    told = [(folder.metrics_path.name, unknown(line, schema["round"])) for line in public]
    tags = {f"evaluation/{name}" for name in _EVALUATION} | {f"round/{n}" for n in OF_NO_COUNT}
    told += _unknown_tags(folder.tensorboard_path, tags)
    told += _times(folder.tensorboard_path)
    for where, figure in told:
        if figure:
            text = f"{where} publishes {figure}: its readers know more than the released models."
            return [Finding(name, False, text)]
    for path in (folder.ledger_path, folder.private_metrics_path):
        if path.exists() and path.stat().st_mode & 0o077:
            text = f"{path.name} counts the reports, and others may read it: chmod 600."
            return [Finding(name, False, text)]
    text = "Ledger and figures that tell of counts are for their owner; nothing else holds one."
    return [Finding(name, True, text)]


def held_out(artifacts: RunArtifacts) -> Finding:
    """Check that every evaluation says that it asked held-out users, and no more than there are."""
    name, folder = "evaluated on held-out users", artifacts.folder
    told = [
        ("validation", line.get("split"), [line.get("users")])
        for line in folder.metrics()
        if line.get("kind") == "evaluation"
    ]
    if folder.evaluation_path.is_file():
        final = read_json(folder.evaluation_path)
        rows = [row.get("users") for row in final.get("rows", [])]
        told.append(("test", final.get("split"), rows))
    there = artifacts.manifest["population"]["users"]
    for expected, split, counts in told:
        if split != expected:
            text = f"An evaluation asked {split} users where {expected} users are held out for it."
            return Finding(name, False, text)
        if any(isinstance(count, int) and count > there[expected] for count in counts):
            text = f"An evaluation counts more users than the {there[expected]} held out for it."
            return Finding(name, False, text)
    return Finding(name, True, f"{len(told)} evaluations say that they asked held-out users alone.")


def published_figures(artifacts: RunArtifacts) -> Finding:
    """Check that metrics, TensorBoard and evaluation hold figures of known names alone."""
    name = "figures of known names alone"
    known = _schemas(artifacts)
    for where, figure in _unknown_figures(artifacts, known):
        return Finding(name, False, not_ours(where, figure))
    return Finding(name, True, "Metrics, TensorBoard and evaluation hold nothing of another name.")


def _schemas(artifacts: RunArtifacts) -> dict[str, dict[str, Any]]:
    """Return what a line of each kind may hold; only a fleet's own profiles are counted."""
    profiles = (artifacts.manifest.get("fleet") or {}).get("profiles") or {}
    counts = dict.fromkeys(profiles, NUMBER)
    fleet = {**_FLEET, "reports_by_profile": counts}
    return {
        "round": {"kind": TEXT, **_ROUND, "fleet": fleet},
        "evaluation": {"kind": TEXT, "round": NUMBER, "split": TEXT, **_EVALUATION},
    }


def _unknown_figures(
    artifacts: RunArtifacts, known: dict[str, dict[str, Any]]
) -> Iterator[tuple[str, str]]:
    """Yield (file, name) of each figure that no version of pfl-lm writes."""
    folder = artifacts.folder
    for line in folder.metrics():
        kind = line.get("kind")
        if kind not in known:
            yield folder.metrics_path.name, f"a line of kind {kind!r}"
        elif found := unknown(line, known[kind]):
            yield folder.metrics_path.name, found
    if folder.evaluation_path.is_file():
        evaluation = {
            "split": TEXT,
            "rows": [{"name": TEXT, **_EVALUATION}],
            "entropy_floor": NUMBER,
            "profiles": [_PROFILE],
            "suggestions": [{"text": TEXT, "before": [TEXT], "after": [TEXT]}],
        }
        if found := unknown(read_json(folder.evaluation_path), evaluation):
            yield folder.evaluation_path.name, found
    tags = {f"{kind}/{name}" for kind, names in known.items() for name in names}
    yield from _unknown_tags(folder.tensorboard_path, tags)


def _unknown_tags(folder: Path, known: set[str]) -> Iterator[tuple[str, str]]:
    """Yield what TensorBoard's files hold beside the figures of the metrics."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if not path.name.startswith("events.out.tfevents.") or path.parent != folder:
            yield folder.name, str(path.relative_to(folder))
            continue
        for event in events_of(path):
            for value in event.summary.value:
                if value.tag not in known or value.WhichOneof("value") != "simple_value":
                    yield folder.name, value.tag


def _times(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield what says when a round was over: its time grows with the number of reports."""
    for path in sorted(folder.glob("events.out.tfevents.*")):
        for event in events_of(path):
            if event.summary.value and event.wall_time != event.step:
                yield folder.name, f"the time of round {event.step}"


def events_of(path: Path) -> Iterator[Any]:
    """Yield the events of a file of TensorBoard's."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    for record in RawEventFileLoader(str(path)).Load():
        yield Event.FromString(record)
