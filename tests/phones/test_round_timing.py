"""A round of a fleet: who is invited, who is lost where, when it closes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from pfl_lm.phones.fleet import Failures, Fleet, Profile, phones
from pfl_lm.phones.round_timing import (
    EXCHANGE_SECONDS,
    RETRY_SECONDS,
    Demand,
    RoundTiming,
    Selection,
    able,
)
from pfl_lm.secagg.config import MessageKind

DEMAND = Demand(50_000_000, 10e9, 1_000_000, 500_000)
PHONE = Profile(1.0, 100, 5, 8, 4, idle_inside=1.0, idle_outside=1.0, unmetered=1.0)
STEADY = Fleet("this test", {"all": PHONE}, speed_spread=0.0, network_spread=0.0)


def gather(fleet: Fleet, now: float = 0.0, goal: int = 100, **chosen: Any) -> RoundTiming:
    users = np.random.default_rng(1).permutation(10_000)[: int(goal * fleet.check_in)]
    own = phones(fleet, 0, "train", users)
    usual = {"users": users, "own": own, "demand": DEMAND, "goal": goal, "seed": 0, "round": 0}
    return Selection(fleet, **(usual | chosen)).simulate_round(now)


def with_phone(fleet: Fleet, **chosen: Any) -> Fleet:
    return replace(fleet, profiles={"all": replace(PHONE, **chosen)})


def test_a_round_takes_download_training_and_upload() -> None:
    found = gather(STEADY)
    # 1 s for 10^6 bytes at 8 Mbit/s, 2 s for 10^10 operations at 5 GFLOP/s, 1 s for the report.
    assert found.seconds == pytest.approx(1 + 2 + 1 + 4 * EXCHANGE_SECONDS)
    assert (len(found.invited), len(found.reporting), found.waited) == (130, 100, 0)
    assert found.lost["after the goal"] == 30
    assert found.joules == pytest.approx(130 * (2 * 2.0 + 2 * 1.0))
    assert found.transferred_bytes == 130 * 1_500_000


def test_a_round_is_a_function_of_its_labels() -> None:
    fleet = with_phone(STEADY, failures=Failures(training=0.2))
    first, again = gather(fleet), gather(fleet)
    assert first.reporting.tolist() == again.reporting.tolist()
    assert first.silent == again.silent
    assert gather(fleet, round=1).invited.tolist() != first.invited.tolist()


@pytest.mark.parametrize(
    ("phase", "step"),
    [
        ("download", MessageKind.KEYS),
        ("keys", MessageKind.SHARES),
        ("training", MessageKind.INPUT),
        ("upload", MessageKind.INPUT),
        ("answer", MessageKind.ANSWER),
    ],
)
def test_losses_have_their_rate_and_their_step(phase: str, step: MessageKind) -> None:
    fleet = with_phone(replace(STEADY, over_selection=9.0), failures=Failures(**{phase: 0.3}))
    found = gather(
        fleet, goal=900, users=np.arange(9000), own=phones(fleet, 0, "t", np.arange(9000))
    )
    lost = sum(1 for s in found.silent.values() if s == step)
    if phase == "answer":  # they report, so that only the reports after the goal are silent early
        assert set(found.reporting) & {place for place, s in found.silent.items() if s == step}
        return
    late = found.lost["after the goal"] if step == MessageKind.INPUT else 0
    assert stats.binomtest(lost - late, len(found.invited), 0.3).pvalue > 1e-4
    assert found.lost[phase] == lost - late
    assert not set(found.reporting) & set(found.silent)


def test_slow_phones_run_into_the_time_out() -> None:
    fleet = replace(with_phone(STEADY, gflops=0.01), time_out_minutes=5)
    found = gather(fleet)
    assert len(found.reporting) == 0
    assert found.lost["time-out"] == 130
    assert found.seconds == 300 + 2 * EXCHANGE_SECONDS


def test_the_first_reports_are_summed() -> None:
    fleet = replace(STEADY, speed_spread=0.5)
    users = np.arange(1000)
    own = phones(fleet, 0, "train", users)
    found = gather(fleet, users=users, own=own)
    late = sorted(set(range(130)) - set(found.reporting.tolist()))
    speed = own.speed[found.invited]
    assert speed[found.reporting].min() >= speed[late].max()
    assert all(found.silent[place] == MessageKind.INPUT for place in late)


def test_a_phone_over_its_memory_is_never_invited() -> None:
    small = replace(PHONE, share=0.5, training_memory_mb=49.9)
    fleet = replace(STEADY, profiles={"small": small, "large": replace(PHONE, share=0.5)})
    users = np.arange(1000)
    own = phones(fleet, 0, "train", users)
    found = gather(fleet, users=users, own=own)
    assert able(fleet, DEMAND) == {"small": False, "large": True}
    assert set(own.profile[found.invited]) == {1}
    assert found.rejected["too little memory"] == int((own.profile == 0).sum())


def test_the_server_waits_for_the_night() -> None:
    fleet = with_phone(STEADY, idle_from=6, idle_to=8, idle_inside=1.0, idle_outside=0.05)
    found = gather(fleet)
    assert found.waited == 6 * 3600
    assert found.opened % RETRY_SECONDS == 0
    assert gather(fleet, now=7 * 3600).waited == 0


def test_a_fleet_that_never_fills_a_round_says_so() -> None:
    with pytest.raises(ValueError, match="0 have the 50 MB that a round takes"):
        gather(with_phone(STEADY, training_memory_mb=10))
    with pytest.raises(ValueError, match="raise the fleet's check_in"):
        gather(with_phone(STEADY, idle_inside=0.1, idle_outside=0.1))
