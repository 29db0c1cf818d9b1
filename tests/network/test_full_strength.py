"""A device of full strength believes its own policy, not the server: each attack, by name."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from contextlib import suppress
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pfl_lm.dp.cohort import cohort
from pfl_lm.dp.ledger import verify
from pfl_lm.dp.policy import Policy
from pfl_lm.dp.population_ledger import BudgetSpent
from pfl_lm.network import requirements
from pfl_lm.network.device import Device
from pfl_lm.network.participation_record import ParticipationRecord
from pfl_lm.network.participation_rules import InvitationRefused, Task
from pfl_lm.network.rounds import run_round
from pfl_lm.network.server import serve
from pfl_lm.network.task_config import (
    DeviceSetup,
    TaskConfig,
    policy_digest,
    round_config,
    served,
)
from pfl_lm.network.transport import Limits, messages
from pfl_lm.payload.plan import PayloadPlan
from pfl_lm.recipes import load
from pfl_lm.run.aggregation import Aggregation
from pfl_lm.run.context import choose_payload
from pfl_lm.run.resume import check_free
from pfl_lm.run.setup import open_run
from pfl_lm.secagg.errors import Refused
from pfl_lm.secagg.parameters import Adversary, at_best
from pfl_lm.server.state import Broadcast, ServerState

RUN = "0123456789abcdef" * 2
QUICK = Limits(phase_seconds=60.0, training_seconds=4.0, grace_seconds=0.5, hold_seconds=2.0)
POLICY = {
    "population": "600",
    "report_goal": "6",
    "rounds": "400",
    "delta": "1e-3",
    "participation": '{ kind = "rotation", min_separation = 100 }',
    "noise": '{ at = "device", kind = "skellam", tolerated_dropout = 0.4 }',
}
STRONG = {
    "reproducible": False,
    "secure_aggregation": "protocol",
    "adversary": "active",
    "rounds": 400,
    "dropout": 0.0,
}


@pytest.fixture(scope="module")
def strong(small, policy_file, quick):
    """A function that returns what a server states: policy's lines, the run's fields."""

    def build(enrolled: int = 600, trial: bool = False, lines=(), **changes):
        path = policy_file(**{**POLICY, **dict(lines)})
        scenario = small(policy=path, **{**STRONG, **changes})
        context = served(open_run(scenario), enrolled, trial=True)  # the server does not check
        return TaskConfig.of(context, RUN, trial), context, load(Policy, path)

    return build


@pytest.fixture
def setup_of(strong, tmp_path):
    """A function that returns a device with the honest vocabulary and text, and that policy."""

    def build(policy, first_install: bool = True, clock=None) -> DeviceSetup:
        _, context, _ = strong()
        clocks = {} if clock is None else {"clock": clock}
        record = ParticipationRecord(tmp_path / "record", first_install, **clocks)
        return DeviceSetup(context.tokenizer, policy, context.population.tokens("train", 0), record)

    return build


def test_an_honest_run_is_accepted_with_the_policys_own_rule(strong, setup_of):
    task_config, _, policy = strong()
    context = TaskConfig.read(task_config.text()).context(setup_of(policy))
    assert context.privacy.rule.min_separation == 100
    assert not context.privacy.simulated


ATTACKS = {
    "enrolled 6 for 600": ({"enrolled": 6}, {}, "population: 6 devices are enrolled"),
    "enrolled 599 for 600": ({"enrolled": 599}, {}, "population: 599 devices"),
    "rounds 100,000 for 400": ({}, {"rounds": 100_000}, "rounds = 100,000 exceeds"),
    "rounds 401 for 400": ({}, {"rounds": 401}, "rounds = 401 exceeds"),
    "semi-honest under an active policy": (
        {},
        {"adversary": "semi-honest"},
        'adversary = "semi-honest" is weaker',
    ),
    "no adversary": ({}, {"adversary": None}, "is weaker"),
    "corrupt 0": ({}, {"corrupt": 0.0}, "corrupt = 0 is below the policy's 0.05"),
    "corrupt a little less": ({}, {"corrupt": 0.049}, "corrupt = 0.049 is below"),
    "a smaller cohort": ({}, {"cohort": 5}, "cohort = 5 is not the policy's report_goal = 6"),
    "a larger cohort": ({}, {"cohort": 7}, "cohort = 7 is not the policy's report_goal = 6"),
    "seeded noise": ({}, {"reproducible": True}, "noise that can be repeated"),
    "the ideal functionality": ({}, {"secure_aggregation": "ideal"}, "secure_aggregation"),
    "more dropout than tolerated": ({}, {"dropout": 0.5}, "dropout = 0.5 exceeds"),
    "a trial": ({"trial": True}, {}, "trial, which protects nobody"),
    "another policy": ({"policy": "0" * 64}, {}, "privacy policy is not this device's"),
    "no run id": ({"run": ""}, {}, "no id of 32 hexadecimal digits"),
    "a negative population": ({"enrolled": -600}, {}, "population"),
    "rounds of 0": ({}, {"rounds": 0}, "rounds = 0"),
    "NaN corrupt": ({}, {"corrupt": math.nan}, "corrupt"),
    "negative corrupt": ({}, {"corrupt": -0.05}, "corrupt"),
    "NaN clip norm": ({}, {"clip_norm": math.nan}, "clip_norm"),
    "negative clip norm": ({}, {"clip_norm": -1.0}, "clip_norm"),
    "infinite clip norm": ({}, {"clip_norm": math.inf}, "clip_norm"),
    "a fleet": ({}, {"fleet": "fleet.toml"}, "cannot be read: fleet"),
    "another aggregator": ({}, {"aggregator": "tff"}, "cannot be read: aggregator"),
}


@pytest.mark.parametrize(("outside", "inside", "message"), ATTACKS.values(), ids=ATTACKS)
def test_what_a_server_must_not_state(strong, setup_of, outside, inside, message):
    task_config, _, policy = strong()
    lie = replace(task_config, scenario={**task_config.scenario, **inside}, **outside)
    with pytest.raises(ValueError, match=message):
        TaskConfig.read(json.dumps(vars(lie))).context(setup_of(policy))


WEIRD = (
    None,
    True,
    0,
    -1,
    2,
    1e308,
    5e-324,
    math.nan,
    math.inf,
    1 << 64,
    -(1 << 200),
    "",
    "x",
    [],
    {},
)


def paths(content: dict, above: tuple = ()) -> list[tuple]:
    """Name every field of a task configuration."""
    found = []
    for name, value in content.items():
        found.append((*above, name))
        found += paths(value, (*above, name)) if isinstance(value, dict) else []
    return found


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_value_of_any_field_makes_a_device_report(strong, setup_of, data):
    """It is refused in one line, or it changes nothing that the guarantee stands on."""
    task_config, _, policy = strong()
    content = json.loads(task_config.text())
    *above, last = data.draw(st.sampled_from(paths(content)))
    place = content
    for name in above:
        place = place[name]
    place[last] = data.draw(st.sampled_from(WEIRD))
    client = Scripted(task_config, 50)
    client._text = json.dumps(content)
    client.model = lambda have, want, most_bytes: b""
    reported = 0
    with suppress(ValueError):
        reported = Device(client, Key(0), setup_of(policy)).run()
    assert reported == 0


POLICIES = {
    "Poisson, whose coins are public": ({"participation": '{ kind = "poisson" }'}, "poisson"),
    "fixed cohorts, whose seed is public": ({"participation": '{ kind = "fixed" }'}, "fixed"),
    "noise at the server": ({"noise": '{ at = "server", kind = "gaussian" }'}, "noise.at"),
    "no noise": ({"noise": '{ at = "none", kind = "none" }', "epsilon": "inf"}, "no privacy"),
}


@pytest.mark.parametrize(("lines", "message"), POLICIES.values(), ids=POLICIES)
def test_policies_that_do_not_hold_against_the_server(strong, setup_of, lines, message):
    if "poisson" in message:  # few enough reports that the policy itself is sound
        lines = lines | {"noise": '{ at = "device", kind = "skellam", tolerated_dropout = 0.8 }'}
        lines = lines | {"report_goal": "300", "rounds": "4"}
    task_config, _, policy = strong(lines=lines, rounds=4)
    with pytest.raises(ValueError, match=message):
        task_config.context(setup_of(policy))


def test_the_honest_fraction_raises_the_corrupt_share(strong, setup_of):
    noise = POLICY["noise"].replace("0.4", "0.4, honest_fraction = 0.7")
    task_config, _, policy = strong(lines={"noise": noise})
    with pytest.raises(ValueError, match=r"corrupt = 0\.05 is below the policy's 0\.3"):
        task_config.context(setup_of(policy))


def test_a_vocabulary_of_another_size_is_refused_under_the_same_digest(strong, setup_of):
    task_config, _, policy = strong()
    model = {**task_config.scenario["model"], "vocabulary_size": 24}
    lie = replace(task_config, scenario={**task_config.scenario, "model": model})
    with pytest.raises(ValueError, match=r"model\.vocabulary_size = 24"):
        lie.context(setup_of(policy))


def test_a_device_without_a_record_takes_no_part(strong, setup_of):
    task_config, _, policy = strong()
    with pytest.raises(ValueError, match="record"):
        task_config.context(replace(setup_of(policy), record=None))


def test_a_payload_below_min_dim_is_refused(strong, setup_of):
    """24 coordinates: the biases of a tiny model; the policy covers 1,024 and more."""
    task_config, _, policy = strong()
    plan = asdict(PayloadPlan(rows="none", dense="biases"))
    lie = replace(task_config, scenario={**task_config.scenario, "payload": plan})
    with pytest.raises(Refused, match=r"24 coordinates, the policy's noise\.min_dim is 1,024"):
        Device(Scripted(lie), Key(0), setup_of(policy))


def test_the_server_opens_no_round_with_a_payload_below_min_dim(strong):
    """Checked in every round: here in a later one, whose payload is small."""
    task_config, context, _ = strong()
    plan = PayloadPlan(rows="none", dense="biases")
    small_payload = replace(context, scenario=replace(context.scenario, payload=plan))
    parameters = context.start.parameters
    store, mailbox = object(), object()  # nothing is written, nobody is invited
    server = SimpleNamespace(
        context=small_payload, task_config=task_config, store=store, mailbox=mailbox
    )
    with pytest.raises(Refused, match=r"24 coordinates, the policy's noise\.min_dim is 1,024"):
        asyncio.run(run_round(server, ServerState(3, parameters)))


def test_neighbours_and_signatures_follow_from_the_policy(strong, setup_of):
    _, _, policy = strong()
    insists = requirements.device_policy(policy, b"a" * 32)
    assert insists.adversary is Adversary.ACTIVE
    assert insists.least_neighbours == 5  # everybody else
    assert insists.least_reports == policy.least_reports == 4
    more = replace(policy, report_goal=5_000, population=600_000, delta=1e-6)
    assert requirements.device_policy(more, b"").least_neighbours >= 100


@pytest.fixture
def large(small, policy_file):
    """A scenario for a million devices, which insist on more neighbours than would do."""
    sizes = {"population": "1000000", "report_goal": "5000", "delta": "1e-6"}
    rotation = {"participation": '{ kind = "rotation", min_separation = 200 }'}
    noise = {"noise": '{ at = "device", kind = "skellam", tolerated_dropout = 0.1 }'}
    devices = {"devices": "{ least_neighbours = 301 }"}
    path = policy_file(**{**POLICY, **sizes, **rotation, **noise, **devices})
    return small(policy=path, **{**STRONG, "cohort": 5000})


def test_rounds_have_the_neighbours_on_which_devices_insist(large):
    context = served(open_run(large, enrolled=10**6), 10**6)
    broadcast = Broadcast(0, choose_payload(context, 0), np.empty(0, np.float32))
    config = round_config(context, broadcast, 5000, bytes(32))
    requirements.device_policy(context.privacy.policy, bytes(32)).check(config)
    assert config.graph.neighbours == 302


def test_a_server_does_not_begin_rounds_that_devices_would_refuse(large, monkeypatch):
    fewer = replace(at_best(5000, 0.05, 0.1, Adversary.ACTIVE, 300), neighbours=298)
    monkeypatch.setattr(Aggregation, "graph", lambda self, cohort: fewer)
    with pytest.raises(ValueError, match="would refuse every round: 298 neighbours are fewer"):
        served(open_run(large, enrolled=10**6), 10**6)


class Key:
    """A device's key of which only the number is asked."""

    def __init__(self, number: int) -> None:
        self.number, self.authority, self.identity = number, b"a" * 32, None


class Scripted:
    """A server that invites to given rounds and is never asked for more, or the test fails."""

    def __init__(self, task_config: TaskConfig, *rounds: int) -> None:
        self._text = task_config.text()
        self._items = [
            messages.Item(round=round, step=1, invitation=messages.Invitation()) for round in rounds
        ]
        self._items.append(messages.Item(round=1 << 62, step=255, finished="over"))

    def task_config(self) -> str:
        return self._text

    def fetch(self, round: int, step: int):
        return self._items.pop(0)

    def model(self, have: int, want: int, most_bytes: int) -> bytes:
        raise AssertionError("a refused invitation must not be answered")

    def send(self, round: int, frame: bytes) -> None:
        raise AssertionError("a refused invitation must not be answered")


def task_of(task_config: TaskConfig, policy) -> Task:
    return Task(task_config.run, policy_digest(policy), task_config.scenario["seed"])


DAY = 86_400.0
NOW = 1_700_000_000.0
INVITATIONS = {
    "the same round again": ([50], 50, "took part in round 50 already"),
    "inside min_separation": ([50], 149, "inside min_separation = 100 of round 50"),
    "a past round": ([150], 20, "round 20 is over"),
    "beyond k participations": ([0, 100, 200, 300], 399, "inside min_separation"),
    "a negative round": ([], -7, "none of the run's rounds"),
    "a round after the last": ([], 400, "none of the run's rounds 0 to 399"),
    "a huge round": ([], (1 << 62) - 1, "none of the run's rounds"),
}


@pytest.mark.parametrize(("past", "round", "message"), INVITATIONS.values(), ids=INVITATIONS)
def test_invitations_refused_across_restarts(strong, setup_of, caplog, past, round, message):
    """The device object, the record and the connection are new: only the disk remembers."""
    task_config, _, policy = strong()
    setup = setup_of(policy)
    for number in past:
        setup.record.enter(task_of(task_config, policy), policy, number)
    setup.record.close()
    again = Device(Scripted(task_config, round), Key(0), setup_of(policy))
    assert again.run() == 0
    if round >= 0:  # a negative one is not newer than what the device has seen
        assert message in caplog.text
    assert len(setup_of(policy).record.participations()) == len(past)


def test_participations_beyond_k_and_epsilon_are_refused_across_restarts(strong, setup_of, caplog):
    """Four rounds are in the record, closer together than this policy has them: k is 4."""
    task_config, _, policy = strong()
    assert policy.participations == 4
    looser = replace(policy, participation=replace(policy.participation, min_separation=1))
    setup = setup_of(policy)
    for number in range(4):
        setup.record.enter(task_of(task_config, policy), looser, number)
    setup.record.close()
    assert Device(Scripted(task_config, 200), Key(0), setup_of(policy)).run() == 0
    assert "took part in 4 of the policy's 4 rounds, and epsilon would be" in caplog.text
    assert len(setup_of(policy).record.participations()) == 4


@pytest.mark.parametrize("field", ["run", "seed", "policy"])
def test_another_run_seed_or_policy_is_refused_across_restarts(strong, setup_of, field):
    task_config, _, policy = strong()
    setup = setup_of(policy)
    setup.record.enter(task_of(task_config, policy), policy, 7)
    setup.record.close()
    if field == "run":
        task_config = replace(task_config, run="f" * 32)
    elif field == "seed":
        task_config = replace(task_config, scenario={**task_config.scenario, "seed": 4})
    else:
        task_config, _, policy = strong(lines={"epsilon": "3.0"})
    with pytest.raises(InvitationRefused, match=f"under another {field}"):
        Device(Scripted(task_config, 200), Key(0), setup_of(policy))


def test_a_reinstalled_phone_waits_for_the_trust_period(strong, setup_of, caplog):
    task_config, _, policy = strong()
    now = [NOW]
    setup_of(policy, first_install=False, clock=lambda: now[0]).record.close()
    now[0] += 29.9 * DAY
    device = Device(Scripted(task_config, 5), Key(0), setup_of(policy, clock=lambda: now[0]))
    assert device.run() == 0
    assert "record began on 2023-11-14: it takes part from 2023-12-14 on" in caplog.text
    now[0] += 0.2 * DAY
    record = setup_of(policy, clock=lambda: now[0]).record
    record.check(task_of(task_config, policy), policy, 5)


@pytest.mark.parametrize(
    ("lines", "changes", "message"),
    [
        ({}, {}, "population: 6 devices are enrolled, the policy needs 600"),
        ({"population": "6", "rounds": "1", "delta": "0.1"}, {"cohort": 5}, "report_goal = 6"),
        (
            {"participation": '{ kind = "fixed" }', "population": "6", "delta": "0.1"},
            {},
            "choose a policy of kind",
        ),
        ({"population": "6", "rounds": "1", "delta": "0.1"}, {"corrupt": 0.0}, "corrupt = 0"),
    ],
    ids=["too few are enrolled", "cohort", "fixed", "corrupt"],
)
def test_a_server_of_real_devices_refuses_to_begin(
    small, policy_file, keys_of, quick, tmp_path, trial, new_watcher, lines, changes, message
):
    path = policy_file(**{**POLICY, **lines})
    run = trial(policy=path, **{**STRONG, "rounds": 1, **changes})
    with pytest.raises(ValueError, match=message):
        serve(run.scenario, run.folder, run.serving(trial=False), new_watcher())
    assert not run.folder.exists()


def test_real_devices_train_at_full_strength_and_once(trial, policy_file, new_watcher, tmp_path):
    """Signed rounds by default; the record is there before the report; a second run is refused."""
    lines = {
        "population": "6",
        "rounds": "2",
        "delta": "0.1",
        "participation": '{ kind = "rotation", min_separation = 1 }',
        # Full attendance is the least count: it carries no more noise than was planned.
        "noise": '{ at = "device", kind = "skellam" }',
    }
    path = policy_file(**{**POLICY, **lines})
    run = trial(policy=path, reproducible=False, adversary=None)
    run.is_trial = False
    policy = load(Policy, path)
    before: dict[tuple[int, int], list[int]] = {}

    def real(number: int, trial_run) -> None:
        record = ParticipationRecord(tmp_path / str(number), first_install=True)
        setup = replace(trial_run.setup(number), trial=False, record=record)

        def sending(round: int, kind: int) -> None:
            before[number, kind] = [entry.round for entry in record.participations()]

        Device(trial_run.client(number), trial_run.key(number), setup, sending).run()

    for number in range(6):
        run.start(real, number, run)
    watcher = new_watcher()
    folder = run.serve(watcher)
    run.join()
    assert [entry["reports"] for entry in watcher.rounds] == [6, 6]
    assert folder.manifest()["secure_aggregation"]["adversary"] == "active"
    assert not folder.manifest()["statements"]["guaranteed"].startswith("None")
    for number in range(6):
        assert before[number, 3] == [0]  # dealing shares in round 1: the last report was in round 0
        assert before[number, 5] == [0, 1]  # reporting in round 1: that round is on the disk
        spent = ParticipationRecord(tmp_path / str(number)).participations()
        assert [entry.round for entry in spent] == [0, 1]
        assert 0 < spent[0].epsilon < spent[1].epsilon <= policy.epsilon
    debits = [e for e in verify(folder.ledger_path) if e["kind"] == "round"]
    assert len(debits) == 2

    other = trial(policy=path, reproducible=False, adversary=None)
    other.is_trial = False
    other.ledgers = run.ledgers
    with pytest.raises(BudgetSpent, match="the budget of these people ends here"):
        other.serve(new_watcher())
    assert not other.folder.exists()
    with pytest.raises(ValueError, match="2 rounds that were opened over people's text"):
        check_free(folder, overwrite=True)

    other.ledgers = tmp_path / "ledgers"  # a server that forgets; devices do not
    refused = []

    def again() -> None:
        try:
            real(0, other)
        except InvitationRefused as error:
            refused.append(error)
        other.start(lambda: other.device(0).run())

    other.start(again)
    other.start_devices(range(1, 6))  # trial devices: accept any strength
    other.serve(new_watcher())
    other.join()
    assert "under another run" in str(refused[0])


def test_devices_in_the_network_refuse_by_their_records(
    trial, policy_file, new_watcher, tmp_path, caplog
):
    """Two rounds of six of twelve: who refuses and why, while the others go on without them."""
    lines = {
        "population": "12",
        "rounds": "4",
        "delta": "0.05",
        "participation": '{ kind = "rotation", min_separation = 2 }',
    }
    path = policy_file(**{**POLICY, **lines})
    changes = {"reproducible": False, "adversary": None, "rounds": 2, "cohort": 6}
    run = trial(devices=12, limits=QUICK, policy=path, **changes)
    run.is_trial = False
    caplog.set_level(logging.INFO, "pfl_lm.network")
    policy = load(Policy, path)
    rule = served(run.context, 12, trial=True).privacy.rule
    even, odd = (cohort(rule, run.scenario.seed, number).tolist() for number in (0, 1))
    past = {even[0]: [], even[1]: [0], odd[0]: [0], odd[1]: [1]}
    looser = replace(policy, participation=replace(policy.participation, min_separation=1))
    refused = {}

    def real(number: int) -> None:
        client, file = run.client(number), tmp_path / str(number)
        task = task_of(TaskConfig.read(client.task_config()), policy)
        if number == even[1]:
            task = replace(task, seed=task.seed + 1)
        record = ParticipationRecord(file, first_install=number != even[0])
        for earlier in past[number]:
            record.enter(task, looser, earlier)
        record.close()  # the phone was switched off
        setup = replace(run.setup(number), trial=False, record=ParticipationRecord(file))
        try:
            Device(client, run.key(number), setup).run()
        except InvitationRefused as error:
            refused[number] = str(error)

    for number in range(12):
        run.start(real, number) if number in past else run.start_devices([number])
    watcher = new_watcher()
    run.serve(watcher)
    run.join()
    assert [entry["reports"] for entry in watcher.rounds] == [4, 4]
    assert "under another seed" in refused[even[1]]
    for line in (
        f"device {even[0]} leaves round 0: this phone's record began",
        f"device {odd[0]} leaves round 1: round 1 is inside min_separation = 2 of round 0",
        f"device {odd[1]} leaves round 1: this phone took part in round 1 already",
    ):
        assert line in caplog.text
