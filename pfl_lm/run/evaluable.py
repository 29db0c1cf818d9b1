"""Whether a run can be evaluated at its end: looked at before its first round is spent."""

from __future__ import annotations

from pfl_lm.evaluation.held_out import choose_users
from pfl_lm.run.scenario import Scenario
from pfl_lm.text.population import Population


def require_held_out(scenario: Scenario, population: Population) -> None:
    """Refuse a population on whose held-out users the run could not be measured.

    Raises:
        ValueError: nobody is in a split that the run will need, or those whom it will draw typed
            nothing.
    """
    chosen = scenario.evaluation
    needed = {"test": chosen.final_users}
    if chosen.every:
        needed["validation"] = chosen.users
    for split, most in needed.items():
        count = population.users(split)
        users = choose_users(count, split, most, scenario.seed).tolist() if count else []
        if not any(len(population.tokens(split, user)) > 1 for user in users):
            lacking = f"the population has no users in {split}"
            if users:
                lacking = f"the {len(users)} users drawn from {split} typed nothing"
            raise ValueError(
                f"{lacking}, so the run could not be evaluated; build the population from more "
                f"users, or name a file with --{split}. No round was run"
            )
