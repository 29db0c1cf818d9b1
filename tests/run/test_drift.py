"""Invented users whose topics move: the language stays, the floor is known, the run follows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pfl_lm.run.scenario import PopulationConfig
from pfl_lm.run.setup import open_run
from pfl_lm.text.synthetic.population import SyntheticPopulation

PEOPLE = SyntheticPopulation({"train": 200, "test": 50}, 600, tokens_per_user=120)


def histogram(people: SyntheticPopulation) -> np.ndarray:
    text = np.concatenate([people.tokens("train", user) for user in range(200)])
    return np.bincount(text, minlength=600) / len(text)


def test_topics_move_with_the_era_and_the_language_stays() -> None:
    now, soon, later = (histogram(replace(PEOPLE, era=era)) for era in (0.0, 0.3, 1.0))
    assert np.abs(now - soon).sum() < np.abs(now - later).sum()
    assert np.abs(now - later).sum() > 0.1
    assert (now[later > 0.002] > 0).all()  # no word is new


def test_the_floor_is_that_of_the_era() -> None:
    """Reading text of one era with the prior of another costs more nats."""
    moved = replace(PEOPLE, era=1.0)
    right = sum(moved.log_probability("test", user).sum() for user in range(50))
    trace = [moved._trace("test", user) for user in range(50)]
    wrong = sum(PEOPLE._read("test", one).sum() for one in trace)
    assert right > wrong


def test_a_scenario_moves_its_people_round_by_round(tiny_scenario, quick) -> None:
    people = PopulationConfig("synthetic", users=200, tokens_per_user=40, drift=2.0)
    context = open_run(tiny_scenario(population=people, rounds=4))
    assert [context.people(round).era for round in (0, 2, 4)] == [0.0, 1.0, 2.0]
    still = open_run(tiny_scenario())
    assert still.people(3) is still.population


def test_stores_do_not_drift() -> None:
    with pytest.raises(ValueError, match="only invented users drift"):
        PopulationConfig("store", path=".", drift=0.5)
    with pytest.raises(ValueError, match="era = -1"):
        replace(PEOPLE, era=-1)
