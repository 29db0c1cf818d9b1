"""A search by Optuna: what to try next follows from what earlier trials brought.

``study.sqlite`` is Optuna's own storage of the trials that have ended; its other tools read it. A
suggestion is a function of those trials and of the scenario's seed, and is kept there before its
run begins: a search that was killed goes on with the same suggestions, and begun runs go on too.

Source: Akiba et al. 2019, "Optuna: a next-generation hyperparameter optimization framework";
Bergstra et al. 2011, "Algorithms for hyper-parameter optimization" (the sampler, TPE).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from pfl_lm.api.sweep.cost import all_begun, cost
from pfl_lm.api.sweep.folder import Runs, SweepFolder
from pfl_lm.api.sweep.plan import MOST_TRIALS, Trial, shown
from pfl_lm.api.sweep.pruning import NO_TRIALS, Medians
from pfl_lm.api.sweep.run import Sweep, check, identity
from pfl_lm.api.sweep.space import Space
from pfl_lm.recipes import load
from pfl_lm.run.scenario import Scenario
from pfl_lm.streams import stream

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution

TRIALS = 20
_NAME = "pfl-lm"


@dataclass(frozen=True)
class Budget:
    """How much a search tries.

    Attributes:
        trials: suggestions, those of earlier calls among them.
        seeds: runs of each, which differ in the seed alone; their mean is what is searched by.
        prune: stop a run that is worse than the median of earlier ones.
    """

    trials: int = TRIALS
    seeds: int = 1
    prune: bool = False


def search(space: Space, folder: Path, runs: Runs, budget: Budget = Budget()) -> Sweep:
    """Search for the settings with the least perplexity on validation users.

    Args:
        folder: of the search; new, or that of the same search, which then goes on.
        runs: the scenario, and how it is run.

    Raises:
        ValueError: Optuna is not installed, a setting is refused, or the folder belongs to another
            search.
    """
    _require_optuna()
    base = _check(space, runs, budget)
    folder = Path(folder)
    stated = {**identity(runs.recipe, budget.seeds), "search": _stated(space)}
    with SweepFolder.open(folder, stated) as kept:
        study = _open_study(folder)
        tried = _try(space, study, kept, runs, budget, base.seed)
        spent = cost(all_begun(kept), adaptive=True)
    problems = kept.failed | kept.unfinished
    return Sweep(folder, tuple(tried), kept.scores, problems, spent, _importance(study))


def _try(
    space: Space, study: Study, kept: SweepFolder, runs: Runs, budget: Budget, seed: int
) -> list[Trial]:
    """Try one suggestion after the other; return their runs, and those of earlier calls."""
    tried: list[Trial] = []
    for number in range(max(budget.trials, len(study.trials))):
        suggested = _suggestion(study, space, number, seed)
        trials = space.trials(suggested, number, budget.seeds, seed)
        if trials[0].label in {trial.label for trial in tried}:
            trials = [trial for trial in tried if trial.label == trials[0].label]
        else:
            if number < budget.trials:
                _run(trials, tried, kept, runs, budget, number)
            tried += trials
        if number == len(study.trials):
            _record(study, space, suggested, _value(trials, kept))
    return tried


def _check(space: Space, runs: Runs, budget: Budget) -> Scenario:
    """Refuse, before anything runs, what no trial could run; return the scenario."""
    for settings in space.corners():
        check(runs.recipe, settings)
    base = load(Scenario, runs.recipe, space.fixed)
    if budget.trials * budget.seeds > MOST_TRIALS:
        raise ValueError(f"{budget.trials * budget.seeds:,} runs; a search has {MOST_TRIALS:,}")
    if budget.prune and not base.evaluation.every:
        raise ValueError("--prune needs figures while a run goes on: --set evaluation.every=…")
    if budget.prune and "rounds" in {*space.ranges, *space.choices}:
        raise ValueError("--prune compares trials of the same length, and rounds vary")
    return base


def _run(
    trials: Sequence[Trial],
    earlier: Sequence[Trial],
    kept: SweepFolder,
    runs: Runs,
    budget: Budget,
    number: int,
) -> None:
    """Run what of a suggestion has not ended yet."""
    for trial in trials:
        if kept.has_ended(trial):
            continue
        runs.say(f"trial {number + 1} of {budget.trials}: {trial.label}")
        medians = NO_TRIALS
        if budget.prune:
            rounds = load(Scenario, runs.recipe, trial.settings).rounds
            medians = Medians.of([kept.path / before.name for before in earlier], rounds)
        kept.run(trial, runs, medians)


def _suggestion(study: Study, space: Space, number: int, seed: int) -> dict[str, Any]:
    """Return what trial ``number`` tries, as it was suggested before or from what has ended."""
    import optuna

    if number < len(study.trials):
        return dict(study.trials[number].params)
    begun = study.user_attrs.get("next", {})
    if begun.get("number") == number:
        return dict(begun["suggested"])
    sampler = optuna.samplers.TPESampler(seed=int(stream(seed, "search", number).integers(2**31)))
    memory = optuna.create_study(sampler=sampler)
    memory.add_trials(study.trials)
    suggested = memory.ask(_distributions(space)).params
    settings = space.settings(suggested)
    suggested |= {key: settings[key] for key in space.ranges}  # rounded, as they are tried
    study.set_user_attr("next", {"number": number, "suggested": suggested})
    return suggested


def _value(trials: Sequence[Trial], kept: SweepFolder) -> float | None:
    """Return the mean perplexity of a suggestion's runs; None where one of them has none."""
    values = [
        kept.scores[trial.name]["perplexity"] for trial in trials if trial.name in kept.scores
    ]
    return fmean(values) if len(values) == len(trials) and all(map(math.isfinite, values)) else None


def _record(study: Study, space: Space, suggested: dict[str, Any], value: float | None) -> None:
    """Tell Optuna what a suggestion brought; without a figure it ranks below all others."""
    from optuna.trial import TrialState, create_trial

    state = TrialState.PRUNED if value is None else TrialState.COMPLETE
    study.add_trial(
        create_trial(
            params=suggested, distributions=_distributions(space), value=value, state=state
        )
    )


def _distributions(space: Space) -> dict[str, BaseDistribution]:
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    known: dict[str, BaseDistribution] = {}
    for key, each in space.ranges.items():
        if each.whole:
            known[key] = IntDistribution(int(each.low), int(each.high), log=each.log)
        else:
            known[key] = FloatDistribution(each.low, each.high, log=each.log)
    for key, values in space.choices.items():
        known[key] = CategoricalDistribution([shown(value) for value in values])
    return known


def _importance(study: Study) -> dict[str, float]:
    """Return how much of the differences between trials each setting explains, by PED-ANOVA.

    Source: Watanabe et al. 2023, "PED-ANOVA: efficiently quantifying hyperparameter importance in
    arbitrary subspaces".
    """
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
    from optuna.trial import TrialState

    ended = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    keys = {key for trial in ended for key in trial.params}
    if len(ended) < 2 * len(keys) or len({trial.value for trial in ended}) < 2:
        return {}
    shares = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    return {key: share for key, share in shares.items() if math.isfinite(share)}


def _open_study(folder: Path) -> Study:
    import optuna
    from sqlalchemy import URL

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = URL.create("sqlite", database=str(folder / "study.sqlite"))
    storage = optuna.storages.RDBStorage(path.render_as_string())
    return optuna.create_study(storage=storage, study_name=_NAME, load_if_exists=True)


def _stated(space: Space) -> dict[str, Any]:
    """Return what a search's folder keeps of what it varies and sets."""
    return {
        "ranges": {key: [r.low, r.high, r.log] for key, r in space.ranges.items()},
        "choices": {key: list(map(shown, values)) for key, values in space.choices.items()},
        "set": {key: shown(value) for key, value in space.fixed.items()},
    }


def _require_optuna() -> None:
    from importlib.util import find_spec

    if find_spec("optuna") is None:
        raise ValueError('a search needs optuna, not installed here: pip install "pfl-lm[search]"')
