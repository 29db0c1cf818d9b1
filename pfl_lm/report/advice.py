"""What the figures of a run say to change next: a sentence for each, with the setting to turn."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from pfl_lm.numbers import is_number, percent, significant
from pfl_lm.report.source import Run
from pfl_lm.run.update_length import is_long, is_short

_ALL, _NONE = 0.98, 0.02  # share of the updates that were clipped
_LOST = 0.05  # share of the rounds
_LOUD = 3.0  # times what all devices have in common
_MOVING = 0.02  # share by which perplexity moves from one evaluation to another


def advice(run: Run) -> list[str]:
    """Return what to try next; nothing before the first rounds are over."""
    if not run.rounds:
        return []
    return [*_of_lost_rounds(run), *_of_the_clip(run), *_of_the_noise(run), *_of_the_length(run)]


def _of_lost_rounds(run: Run) -> Iterator[str]:
    lost = sum(1 for entry in run.rounds if "mean_norm" in entry and entry["mean_norm"] is None)
    if lost > _LOST * len(run.rounds):
        yield (
            f"{lost:,} of {len(run.rounds):,} rounds opened no sum, because too few devices "
            "reported: lower dropout, or choose a policy that tolerates more "
            "(noise.tolerated_dropout)."
        )


def _of_the_clip(run: Run) -> Iterator[str]:
    clipped, norm = run.mean("clipped_share"), _median(run, "update_norm")
    bound = run.manifest.scenario.clip_norm
    policy = run.manifest.policy
    if clipped is None or (policy is not None and policy.clipping is not None):
        return
    about = f"{percent(clipped, 0)} of the updates were clipped to {significant(bound)}"
    if norm is None:
        if clipped >= _ALL:
            yield f"{about}, their norms were not finite: lower training.learning_rate."
    elif clipped >= _ALL and is_long(norm, bound):
        yield (
            f"{about}, their norm was {significant(norm)} at the median: raise clip_norm (the "
            "noise grows with it), or lower training.learning_rate."
        )
    elif clipped <= _NONE and is_short(norm, bound) and run.mean("noise_norm"):
        yield (
            f"{about}, their norm was {significant(norm)} at the median: lower clip_norm (the "
            "noise falls with it), or raise training.learning_rate."
        )


def _of_the_noise(run: Run) -> Iterator[str]:
    noise, mean = _median(run, "noise_norm"), _median(run, "mean_norm")
    if not noise or mean is None:
        return
    signal = max(mean**2 - noise**2, 0.0) ** 0.5
    if noise > _LOUD * max(signal, 1e-12):
        yield (
            f"The noise in a round's mean (norm {significant(noise)}) is far louder than what the "
            f"devices have in common ({significant(signal)}): raise the policy's report_goal, send "
            "fewer coordinates (payload.rows, payload.dense, lora), or lower "
            "server.learning_rate and run more rounds."
        )


def _of_the_length(run: Run) -> Iterator[str]:
    figures = [e["perplexity"] for e in run.evaluations if is_number(e.get("perplexity"))]
    if len(figures) < 3:
        return
    best = min(figures)
    if figures[-1] > (1 + _MOVING) * best:
        yield (
            f"Perplexity rose from {significant(best)} to {significant(figures[-1])} after its "
            "best evaluation: run fewer rounds, or let server.cooldown lower the rate at the end."
        )
    elif figures[-1] < (1 - _MOVING) * figures[-2]:
        yield (
            f"Perplexity was still falling at the end ({significant(figures[-2])} to "
            f"{significant(figures[-1])}): run more rounds."
        )


def _median(run: Run, key: str) -> float | None:
    values = [entry[key] for entry in run.rounds if is_number(entry.get(key))]
    return float(median(values)) if values else None
