"""Comparisons, for programs and notebooks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pfl_lm.api.runs import Run
from pfl_lm.pages.html import framed
from pfl_lm.report.comparison.compare import Comparison
from pfl_lm.report.comparison.compare import compare as compare_folders
from pfl_lm.report.comparison.page import render
from pfl_lm.report.comparison.people import USERS
from pfl_lm.validate import whole


@dataclass(frozen=True)
class ShownComparison(Comparison):
    """A comparison that a notebook shows as its page."""

    def _repr_html_(self) -> str:
        return framed(render(self), 900)


def compare(*runs: Run | Path | str, users: int | None = USERS) -> ShownComparison:
    """Compare runs with the first one, all measured on the same held-out users.

    Args:
        runs: two or more, opened or as folders.
        users: held-out users to measure on, at most; None: all.

    Returns:
        The settings that differ; for each run but the first its differences, with intervals over
        users, and a sentence that judges each; a notebook shows the page.

    Raises:
        ValueError: fewer than two runs, a folder that holds none, or users that are not found.

    >>> import pfl_lm, tempfile
    >>> project = pfl_lm.new_project(tempfile.mkdtemp())
    >>> small = {"rounds": 2, "cohort": 4, "population.users": 60, "evaluation.final_users": 3}
    >>> def run(name, **changes):
    ...     scenario = pfl_lm.load_scenario(project / "scenario.toml", small | changes)
    ...     return pfl_lm.simulate(scenario, project / "runs" / name)
    >>> compared = pfl_lm.compare(run("first"), run("second", seed=2), users=5)
    >>> [setting.key for setting in compared.settings]
    ['seed']
    >>> compared.judged[0].verdicts[0].startswith("perplexity: no difference")
    True
    """
    if users is not None:
        whole(1, users=users)
    if any(isinstance(run, list | tuple) for run in runs):
        raise ValueError("runs: name them one by one, compare(first, second), not in a list")
    folders = [run.folder if isinstance(run, Run) else Path(run) for run in runs]
    return ShownComparison(**vars(compare_folders(folders, users)))
