"""The participation record in JavaScript: it refuses what Python's refuses."""

from __future__ import annotations

import numpy as np
import pytest

from pfl_lm.dp.policy import Policy
from pfl_lm.network.participation_rules import (
    NO_DATE,
    Installation,
    Participation,
    Task,
    cost,
    refusal,
)
from pfl_lm.network.task_config import served
from pfl_lm.network.web_task import web_task
from pfl_lm.recipes import load
from pfl_lm.run.setup import open_run
from tests.network.web.conftest import in_node, needs_node

pytestmark = needs_node
DAY, DAY_0 = 86_400.0, 1_700_000_000.0


@pytest.fixture(scope="module")
def policy(policy_file):
    rotation = '{ kind = "rotation", min_separation = 2 }'
    return load(Policy, policy_file(participation=rotation))


def test_the_record_refuses_what_pythons_refuses(policy, small, policy_file, quick):
    """Random records and invitations: the same sentence, or none."""
    path = policy_file(participation='{ kind = "rotation", min_separation = 2 }')
    context = served(open_run(small(policy=path)), 6, True)
    task, rng = Task("ab" * 16, "cd" * 32, 3), np.random.default_rng(5)
    cases, expected = [], []
    for _ in range(300):
        began, is_first = day(rng.choice([0, 100, 129])), bool(rng.integers(2))
        rounds = sorted(rng.choice(7, rng.integers(0, 4), replace=False).tolist())
        past = [
            Participation(day(100), *other(rng, task), number, 0.5, 2, 3, 2.0) for number in rounds
        ]
        now, number = day(rng.choice([99, 101, 131, 160])), int(rng.integers(-1, 8))
        expected.append(refusal(Installation(began, is_first), past, task, policy, number, now))
        content = {"began": began, "is_first": is_first, "participations": [vars(p) for p in past]}
        cases.append([content, {**vars(task), "seed": str(task.seed)}, number, now])
    about = web_task(context, True)["policy"]
    assert about["costs"] == [cost(policy, n + 1) for n in range(policy.participations + 1)]
    found = in_node(
        "const found = given.cases.map(([content, task, round, now]) =>"
        "record.refusal(content, task, given.policy, round, now));",
        {"cases": cases, "policy": about},
    )
    assert found == expected
    assert expected.count(None) > 20


def day(number: int) -> float:
    return DAY_0 + float(number) * DAY


@pytest.mark.parametrize("now", ["3600", "-1", "1e12", "1e300", "Infinity", "NaN"])
def test_a_clock_without_a_date_begins_no_record_and_enters_nothing(now):
    script = f"""
    let kept = null, clock = {now};
    const storage = {{ read: async () => kept, write: async (content) => {{ kept = content; }} }};
    const open = () => record.ParticipationRecord.open(storage, true, () => clock);
    const told = (error) => [error.constructor.name, error.message, kept?.participations?.length];
    const found = [await open().catch(told)];
    clock = {DAY_0};
    const one = await open();
    clock = {now};
    found.push(await one.enter(given, {{ ...given, trust_days: 30 }}, 3).catch(told));
    clock = {DAY_0};
    await (await open()).enter(given, {{ ...given, trust_days: 30 }}, 3);
    """
    policy = {"costs": [1, 2], "rounds": 5, "min_separation": 1, "participations": 2, "epsilon": 2}
    found = in_node(script, {"run": "a", "policy": "b", "seed": "c"} | policy)
    assert [text for _, text, _ in found] == [NO_DATE] * 2
    assert [kind for kind, _, _ in found] == ["InvitationRefused"] * 2
    assert [length for _, _, length in found] == [None, 0]


def other(rng, task: Task) -> tuple[str, str, str]:
    """Run, policy and seed of an earlier round, seldom of another task."""
    if rng.random() < 0.9:
        return task.run, task.policy, str(task.seed)
    return [
        ("ef" * 16, task.policy, str(task.seed)),
        (task.run, "01" * 32, str(task.seed)),
        (task.run, task.policy, "4"),
    ][rng.integers(3)]


SOUND = {"version": 1, "began": DAY_0, "is_first": True}
ENTRY = {"time": DAY_0, "run": "a", "policy": "b", "seed": "c", "round": 1, "epsilon": 1.0}
ENTRY |= {"min_separation": 2, "most_rounds": 3, "epsilon_limit": 2.0}
DAMAGED = [
    *[{}, {"version": 2}, {"version": 1, "began": "now"}, [], 5],
    {**SOUND, "began": 0.0, "participations": []},
    {**SOUND, "participations": [{**ENTRY, "time": 1e300}]},
    {**SOUND, "participations": [{**ENTRY, "round": 1.5}]},
]


def test_a_damaged_record_is_no_new_one():
    found = in_node(
        "const found = []; for (const kept of given)"
        "await record.ParticipationRecord.open({ read: async () => kept })"
        ".catch((error) => found.push(error.constructor.name));",
        DAMAGED,
    )
    assert found == ["DamagedRecord"] * len(DAMAGED)


def test_a_round_is_entered_once():
    script = """
    let kept = null;
    const storage = { read: async () => kept, write: async (content) => { kept = content; } };
    const one = await record.ParticipationRecord.open(storage, true, () => 1.7e9);
    const two = await record.ParticipationRecord.open(storage, true, () => 1.7e9);
    const policy = { costs: [1, 2], rounds: 5, min_separation: 1, participations: 2, epsilon: 2 };
    await one.enter(given, { ...policy, trust_days: 30 }, 3);
    const found = await two.enter(given, { ...policy, trust_days: 30 }, 3)
      .then(() => null, (error) => [error.message, kept.participations.length]);
    """
    found = in_node(script, {"run": "a", "policy": "b", "seed": "c"})
    assert found == ["this phone took part in round 3 already", 1]
