"""Does the model really leak no more? Canaries in the run's own pipeline, power first."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pfl_lm.audit import canaries as placing
from pfl_lm.audit import secrets
from pfl_lm.audit.estimators import one_run_bound, one_run_bound_fdp
from pfl_lm.audit.evidence import Evidence
from pfl_lm.audit.findings import Finding, Part, Plot, Table, figure
from pfl_lm.audit.gaussians import GAUSSIAN_DIM, gaussian_epsilon, one_shot_estimate
from pfl_lm.audit.methods import quick_epsilon
from pfl_lm.audit.promise import Promise
from pfl_lm.audit.scores import Scores, bound_at_counts, gaussian_bound
from pfl_lm.world import World

CANARIES = 400
MOST_ROUNDS = 200
SIGNIFICANCE = 0.05
_SEED = 20230508  # of coins, directions and invitations; the noise comes from the run's own source
_DEVIATIONS = 5.0  # how far a fitted distance is pulled back before it may accuse
_POWER = 3.0  # with the noise off, less than this says that the attack was blind

NOT_CHECKED = (
    "Stronger attacks than these: a lower bound can only grow.",
    "The full number of rounds, where the audit ran fewer than the policy allows.",
    "Devices that collude with the server, or with each other.",
)


@dataclass(frozen=True)
class View:
    """One attacker's result.

    Attributes:
        who: in words; ``promised``: the ε that must not be exceeded in the audited rounds.
        bound, sharpened: one-run lower bounds, the second against a Gaussian trade-off.
        assuming_gaussian: a lower bound if scores are Gaussian.
        fitted: ε of the fitted distance of scores: an estimate; ``least``: pulled back by 5σ.
    """

    who: str
    scores: Scores
    promised: float
    bound: float
    sharpened: float
    assuming_gaussian: float
    fitted: float
    least: float

    @property
    def holds(self) -> bool:
        proven = max(self.bound, self.sharpened, self.least)
        return proven <= self.promised * (1 + 1e-9)


def audit_attack(
    world: World,
    evidence: Evidence,
    rounds: int | None = None,
    phrase_rounds: int = secrets.ROUNDS,
) -> Part:
    """Attack the run's own rounds; first with the noise off, to see whether the attack can see.

    Args:
        rounds: to send canaries through; as many as the run has, at most 200, by default.
        phrase_rounds: to train on invented phrases, twice; 0 leaves them out.
    """
    started = time.monotonic()
    promise = Promise.of(evidence)
    rounds = min(rounds or world.scenario.rounds, MOST_ROUNDS)
    placed = placing.place_canaries(world, CANARIES, rounds, _SEED)
    length = placing.strength(world)
    clip = world.protection.clip_norm
    loud = placing.run_canaries(placing.without_noise(world), placed, clip)
    seen = placing.run_canaries(world, placed, length)
    delta = 1e-6 if promise is None else promise.delta
    blind = _views(world, promise, placed, loud, delta)
    views = _views(world, promise, placed, seen, delta)
    dim = placed.directions.shape[1]
    estimate = math.nan
    if dim >= GAUSSIAN_DIM and np.any(seen.final):
        estimate = one_shot_estimate(seen.final[placed.coins & placed.scheduled], dim, delta)
    phrase_rounds = min(rounds, phrase_rounds)
    told = secrets.tell(world, phrase_rounds, _SEED) if phrase_rounds else []
    findings = [_power(blind), *(_judge(view, promise) for view in views)]
    findings += secrets.findings_of(told, clip / length) if told else []
    return Part(
        "attack",
        "Does the model really leak no more?",
        (
            f"{len(placed.coins)} canaries, a fair coin each, {rounds} rounds of the run's code.",
            f"{int(placed.scheduled.sum())} of them in one round that the server knows.",
            f"The others in rounds as the policy draws them; all on {dim:,} coordinates.",
            "Three attackers: the server, one who sees every model, one who sees the last.",
            f"{len(told)} invented phrases, typed by a few users in {phrase_rounds} rounds.",
        ),
        findings,
        (*NOT_CHECKED, *_left_out(world, evidence, told)),
        [_table(views, blind, estimate), secrets.table_of(told, clip / length)],
        [_axis(views[0], estimate), _histogram(views[0])],
        {
            "rounds": rounds,
            "canaries": len(placed.coins),
            "one_shot_estimate": estimate,
            "delta": delta,
            "views": {view.who: _numbers(view) for view in views},
            "without_noise": {view.who: _numbers(view) for view in blind},
            "secrets": [asdict(one) for one in told],
        },
        time.monotonic() - started,
    )


def _left_out(world: World, evidence: Evidence, told: Sequence[secrets.Told]) -> list[str]:
    started = evidence.manifest.get("model", {}).get("start", {}).get("kind")
    other = "The model it started from: this audit starts from random weights (see --start)."
    return [other] * (started != world.start.origin["kind"]) + ["Invented phrases."] * (not told)


def _views(
    world: World,
    promise: Promise | None,
    placed: placing.Canaries,
    seen: placing.Seen,
    delta: float,
) -> list[View]:
    rounds = placed.invited.shape[0]
    rate = _rate(world, promise)
    noise = 0.0 if promise is None else promise.noise_multiplier
    server, released = math.inf, math.inf
    if promise is not None:
        server = quick_epsilon(promise.phase(1).seen_by_server(), delta)
        sampled = placed.invited[:, ~placed.scheduled].sum(axis=0)
        touched = rounds if promise.participation != "rotation" else int(sampled.max())
        released = quick_epsilon(promise.phase(touched), delta)
    return [
        _view(
            "whoever knows who took part",
            placing.server_scores(placed, seen),
            server,
            delta,
        ),
        _view(
            "whoever sees every model",
            placing.released_scores(placed, seen, rate, noise),
            released,
            delta,
        ),
        _view("whoever sees the last model", placing.final_scores(placed, seen), released, delta),
    ]


def _rate(world: World, promise: Promise | None) -> float:
    """Return how likely a user is to be in a round, for one who does not know who is."""
    if promise is None:
        return min(1.0, world.protection.rule.size_or_rate)
    return 1 / promise.min_separation if promise.participation == "rotation" else promise.rate


def _view(who: str, scores: Scores, promised: float, delta: float) -> View:
    """Bound ε by these scores; how many guesses the attacker makes is fixed beforehand."""
    counts = [max(1, int(scores.canaries * share)) for share in (0.025, 0.1, 0.25, 0.45)]
    bound, sharpened = (
        bound_at_counts(scores, counts, delta, SIGNIFICANCE, method)
        for method in (one_run_bound, one_run_bound_fdp)
    )
    distance, error = _distance(scores)
    return View(
        who,
        scores,
        promised,
        bound,
        sharpened,
        gaussian_bound(scores, delta, SIGNIFICANCE),
        gaussian_epsilon(max(0.0, distance), delta),
        gaussian_epsilon(max(0.0, distance - _DEVIATIONS * error), delta),
    )


def _distance(scores: Scores) -> tuple[float, float]:
    """Return how far apart the scores lie, in deviations of the excluded, and its error."""
    spread = float(np.std(scores.excluded)) or 1e-12
    # Beyond 100 deviations ε is in the thousands and says what it says.
    distance = min(100.0, float(scores.included.mean() - scores.excluded.mean()) / spread)
    wide = float(np.std(scores.included)) / spread
    n1, n0 = len(scores.included), len(scores.excluded)
    return distance, min(100.0, math.sqrt(wide**2 / n1 + (1 + distance**2 / 2) / n0))


def _power(blind: Sequence[View]) -> Finding:
    best = max(max(view.bound, view.sharpened) for view in blind)
    if best < _POWER:
        text = (
            f"With the noise OFF the same attack proves only ε ≥ {best:.2f}: it had no power, and "
            "what it fails to find below means nothing."
        )
        return Finding("power of the attack", None, text)
    text = f"With the noise OFF the same attack proves ε ≥ {best:.2f}: it can see."
    return Finding("power of the attack", True, text)


def _judge(view: View, promise: Promise | None) -> Finding:
    proven = max(view.bound, view.sharpened)
    name = f"attack by {view.who}"
    if promise is None:
        text = f"ε ≥ {proven:.2f} is proven (95%); nothing was promised."
        return Finding(name, None, text)
    text = (
        f"ε ≥ {proven:.2f} is proven (95%); the scores' distance suggests {figure(view.fitted)}; "
        f"{figure(view.promised)} is guaranteed for the rounds attacked."
    )
    if not view.holds:
        text += " The run leaks MORE than it guarantees."
    return Finding(name, view.holds, text)


def _table(views: Sequence[View], blind: Sequence[View], estimate: float) -> Table:
    return Table(
        "What canaries prove, at 95% confidence",
        (
            "attacker",
            "proven, any mechanism",
            "proven, against a Gaussian",
            "if scores are Gaussian",
            "estimate",
            "guaranteed",
            "proven with noise off",
        ),
        [
            (
                view.who,
                f"{view.bound:.2f}",
                f"{view.sharpened:.2f}",
                f"{view.assuming_gaussian:.2f}",
                figure(view.fitted),
                figure(view.promised),
                f"{max(off.bound, off.sharpened):.2f}",
            )
            for view, off in zip(views, blind, strict=True)
        ],
        "One-shot estimate by cosines with the last model (Andrew et al. 2023; an estimate, not a "
        f"bound): {'not available' if math.isnan(estimate) else figure(estimate)}.",
    )


def _numbers(view: View) -> dict[str, Any]:
    return {k: v for k, v in vars(view).items() if k not in ("scores", "who")}


def _axis(view: View, estimate: float) -> Plot:
    points = {
        "proven (one run)": [view.bound],
        "proven (against a Gaussian)": [view.sharpened],
        "estimate (distance of scores)": [view.fitted],
        "guaranteed": [view.promised],
    }
    return Plot(
        f"ε against {view.who}",
        "axis",
        {name: value for name, value in points.items() if math.isfinite(value[0])},
        "ε",
        "Proven figures must lie left of the guaranteed one.",
    )


def _histogram(view: View) -> Plot:
    values = np.concatenate([view.scores.included, view.scores.excluded])
    edges = np.linspace(values.min(), values.max() + 1e-9, 31)
    middles = (edges[1:] + edges[:-1]) / 2
    lines: dict[str, Sequence[Sequence[float]]] = {}
    for name, part in (
        ("took part", view.scores.included),
        ("did not", view.scores.excluded),
    ):
        counts = np.histogram(part, edges)[0]
        lines[name] = list(zip(middles.tolist(), counts.tolist(), strict=True))
    return Plot(
        f"Scores of the canaries, as seen by {view.who}",
        "lines",
        lines,
        "score",
        "The more the two overlap, the less the attacker knows.",
    )
