"""Phones: shares as stated, properties of the user, hours of the day, refusals."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from pfl_lm.phones.fleet import Failures, Fleet, Profile, phones
from pfl_lm.recipes import RecipeError, load
from pfl_lm.streams import uniforms

SHIPPED = sorted((Path(__file__).parents[2] / "simulations" / "fleets").glob("*.toml"))


def profile(share: float = 1.0, **chosen: float) -> Profile:
    usual = {"training_memory_mb": 100, "gflops": 5, "download_mbps": 30, "upload_mbps": 5}
    return Profile(share=share, **(usual | chosen))


def fleet(**chosen: object) -> Fleet:
    profiles = {"few": profile(0.2), "most": profile(0.8)}
    return Fleet(**({"source": "this test", "profiles": profiles} | chosen))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_shipped_fleets_cite_a_source(path: Path) -> None:
    loaded = load(Fleet, path)
    assert "et al." in loaded.source or "Kim" in loaded.source
    failures_of = [profile.failures for profile in loaded.profiles.values()]
    assert 0.05 <= max(map(lost_before_reporting, failures_of)) <= 0.35


def lost_before_reporting(failures: Failures) -> float:
    return 1 - math.prod(
        1 - chance for name, chance in failures.by_phase.items() if name != "answer"
    )


def test_three_fleets_are_shipped() -> None:
    assert len(SHIPPED) == 3


def test_shares_are_those_of_the_population() -> None:
    own = phones(fleet(time_zones=(0.25, 0.75)), 3, "train", np.arange(20_000))
    few = int((own.profile == 0).sum())
    assert stats.binomtest(few, 20_000, 0.2).pvalue > 1e-4
    assert stats.binomtest(int((own.zone == 0).sum()), 20_000, 0.25).pvalue > 1e-4
    spread = np.log(own.speed)
    assert abs(spread.mean()) < 0.01
    assert abs(spread.std() - 0.3) < 0.01


def test_a_phone_is_a_property_of_its_user_alone() -> None:
    everybody = phones(fleet(), 3, "train", np.arange(100))
    some = phones(fleet(), 3, "train", np.asarray([70, 7]))
    assert some.profile.tolist() == everybody.profile[[70, 7]].tolist()
    assert some.speed.tolist() == everybody.speed[[70, 7]].tolist()
    others = phones(fleet(), 4, "train", np.arange(100))
    assert not np.array_equal(everybody.speed, others.speed)


def test_classes_may_follow_groups_of_users() -> None:
    groups = np.linspace(0, 1, 1000, endpoint=False)
    own = phones(fleet(text_relation=1.0), 0, "train", np.arange(1000), groups)
    assert np.array_equal(own.profile, (groups >= 0.2).astype(int))
    with pytest.raises(ValueError, match="no groups"):
        phones(fleet(text_relation=1.0), 0, "train", np.arange(1000))


def test_idle_hours_may_span_midnight() -> None:
    night = profile(idle_from=22, idle_to=6, idle_inside=0.9, idle_outside=0.1)
    assert night.idle(np.asarray([23.0, 3.0, 6.0, 12.0])).tolist() == [0.9, 0.9, 0.1, 0.1]
    siesta = profile(idle_from=13, idle_to=15, idle_inside=0.9, idle_outside=0.1)
    assert siesta.idle(np.asarray([12.9, 13.0, 15.0])).tolist() == [0.1, 0.9, 0.1]


def test_uniforms_are_uniform_and_unrelated() -> None:
    items = np.arange(20_000)
    first, second = uniforms(items, 0, "a"), uniforms(items, 0, "b")
    assert stats.kstest(first, "uniform").pvalue > 1e-4
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.03
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.03


@pytest.mark.parametrize(
    ("chosen", "told"),
    [
        ({"profiles": {}}, "profiles is empty"),
        ({"profiles": {"a": profile(0.5)}}, "sum to 0.5"),
        ({"over_selection": 0.9}, "over_selection"),
        ({"check_in": 1.1}, "over_selection"),
        ({"time_zones": (0.5, 0.4)}, "time_zones"),
        ({"pause_minutes": -1}, "pause_minutes"),
        ({"text_relation": 2}, "text_relation"),
    ],
)
def test_a_fleet_that_cannot_be_is_refused(chosen: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        fleet(**chosen)


def test_a_profile_that_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="gflops"):
        profile(gflops=0)
    with pytest.raises(ValueError, match="training"):
        Failures(training=1.0)
    recipe = tmp_path / "fleet.toml"
    recipe.write_text('source = "x"\n[profiles.tablet]\nshare = 1.0\nram = 3\n')
    with pytest.raises(RecipeError, match=r"profiles\.tablet\.ram"):
        load(Fleet, recipe)
    recipe.write_text('source = "x"\n[profiles]\ntablet = 3\n')
    with pytest.raises(RecipeError, match=r"profiles\.tablet"):
        load(Fleet, recipe)
