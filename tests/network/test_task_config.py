"""What a device insists on before it trains, and the model's way to it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pfl_lm.dp.policy import Policy
from pfl_lm.network import model_delta as broadcast
from pfl_lm.network.identity import DeviceKey, ServerKeys, enrol
from pfl_lm.network.participation_record import ParticipationRecord
from pfl_lm.network.store import Store
from pfl_lm.network.task_config import DeviceSetup, TaskConfig, own_tokens, served
from pfl_lm.payload.plan import PayloadPlan
from pfl_lm.recipes import load
from pfl_lm.run.context import choose_payload
from pfl_lm.run.setup import open_run
from pfl_lm.server.state import ServerState, close_round, open_round

RUN = "0" * 32
ROTATION = '{ kind = "rotation", min_separation = 1 }'
NOISE = '{ at = "device", kind = "skellam", tolerated_dropout = 0.4 }'


@pytest.fixture(scope="module")
def policy(policy_file):
    figures = {"population": "6", "report_goal": "6", "delta": "0.1", "rounds": "2"}
    return policy_file(**figures, noise=NOISE, participation=ROTATION)


@pytest.fixture(scope="module")
def context(small, policy, quick):
    scenario = small(
        policy=policy, reproducible=False, secure_aggregation="protocol", adversary="active"
    )
    return served(open_run(scenario), 6)


@pytest.fixture
def device_setup(context, policy, tmp_path) -> DeviceSetup:
    record = ParticipationRecord(tmp_path / "record", first_install=True)
    tokens = context.population.tokens("train", 0)
    return DeviceSetup(context.tokenizer, load(Policy, policy), tokens, record)


def test_both_sides_make_the_same_of_the_terms(context, device_setup):
    task_config = TaskConfig.of(context, RUN)
    theirs = TaskConfig.read(task_config.text()).context(device_setup)
    assert TaskConfig.read(task_config.text()).digest == task_config.digest
    payloads = [choose_payload(w, 1) for w in (context, theirs)]
    assert payloads[0].digest == payloads[1].digest
    grids = [w.privacy.grid(payloads[0].dim) for w in (context, theirs)]
    assert grids[0] == grids[1]
    assert theirs.privacy.device_share(grids[0], 6) == context.privacy.device_share(grids[0], 6)
    assert theirs.privacy.device_share(grids[0], 6).variance > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer": "0" * 64}, "vocabulary is not this device's"),
        ({"policy": "0" * 64}, "privacy policy is not this device's"),
        ({"reproducible": True}, "noise that can be repeated"),
        ({"cohort": 5}, "not the policy's report_goal"),
        ({"cohort": "many"}, "is damaged"),
        ({"run": "1"}, "no id of 32 hexadecimal digits"),
    ],
)
def test_terms_that_a_device_refuses(context, device_setup, change, message):
    task_config = TaskConfig.of(context, RUN)
    outside = {k: v for k, v in change.items() if hasattr(task_config, k)}
    inside = {k: v for k, v in change.items() if not hasattr(task_config, k)}
    changed = replace(task_config, scenario={**task_config.scenario, **inside}, **outside)
    with pytest.raises(ValueError, match=message):
        changed.context(device_setup)


def test_terms_without_a_policy_are_for_trials_only(small, device_setup, quick):
    context = served(
        open_run(small(secure_aggregation="protocol", reproducible=False)), 6, trial=True
    )
    task_config = TaskConfig.of(context, RUN)
    with pytest.raises(ValueError, match="no privacy policy"):
        task_config.context(replace(device_setup, policy=None))
    task_config.context(replace(device_setup, policy=None, trial=True))


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"scenario": 3}', "\x00"])
def test_terms_that_are_none(text):
    with pytest.raises(ValueError, match="cannot be read"):
        TaskConfig.read(text)


@pytest.mark.parametrize(
    "plan", [PayloadPlan(rows=100), PayloadPlan(), PayloadPlan(rows="none")], ids=str
)
def test_a_device_catches_up_from_any_round(small, plan, quick):
    """After rounds that moved what travelled: whole, or from where it was, the same model."""
    context = served(open_run(small(payload=plan, rounds=9)), 6, trial=True)
    states = [ServerState(0, context.start.parameters)]
    for number in range(4):
        opened = open_round(states[-1], choose_payload(context, number))
        mean = np.random.default_rng(number).normal(size=opened.payload.dim).astype(np.float32)
        states.append(close_round(states[-1], opened, mean, context.scenario.server))
    now = dict(states[4].parameters)
    whole = broadcast.values_for(context, now, -1, 4)
    for have in (-1, 0, 2, 4):
        values = broadcast.values_for(context, now, have, 4)
        before = {} if have < 0 else dict(states[have].parameters)
        found = broadcast.apply(context, before, values, have, 4)
        assert all(torch.equal(found[name], now[name]) for name in now)
        assert len(values) <= len(whole)
        with pytest.raises(ValueError, match="values came"):
            broadcast.apply(context, before, values + bytes(4), have, 4)
    cache = broadcast.ModelCache(context)
    cache.put(4, now)
    for have in range(-1, 300):
        if have in (-1, 0, 2, 4, 5):
            assert b"".join(cache.open(have)) == broadcast.values_for(context, now, have, 4)
        cache.open(have)
    assert len(cache._changed) <= 16
    task_config = TaskConfig.of(context, RUN)
    digests = {broadcast.model_digest(task_config, dict(s.parameters)) for s in states}
    assert len(digests) == 5
    other = replace(task_config, enrolled=7)
    assert broadcast.model_digest(other, now) not in digests


def test_own_text_is_a_stream_of_messages(context):
    words = context.tokenizer.words
    text = f"{words[10]} {words[11]}\n\n{words[12]}\n"
    bos, eos = context.tokenizer.bos_id, context.tokenizer.eos_id
    assert own_tokens(text, context.tokenizer).tolist() == [bos, 10, 11, eos, bos, 12, eos]


def test_keys_are_written_and_read(tmp_path):
    enrol(tmp_path / "keys", 3)
    keys = ServerKeys(tmp_path / "keys")
    for number, public in keys.enrolled().items():
        path = tmp_path / "keys" / "devices" / f"{number:05d}.json"
        assert DeviceKey.read(path).identity.public == public
        assert path.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "keys" / "server" / "tls.key").stat().st_mode & 0o777 == 0o600
    with pytest.raises(ValueError, match="exists already"):
        enrol(tmp_path / "keys", 3)
    with pytest.raises(ValueError, match="at least 3"):
        enrol(tmp_path / "two", 2)
    with pytest.raises(ValueError, match="is no device's key"):
        DeviceKey.read(tmp_path / "keys" / "authority.pub")
    with pytest.raises(ValueError, match="is missing"):
        ServerKeys(tmp_path).enrolled()


class TestStore:
    def test_a_round_is_opened_once_and_alone(self, tmp_path):
        store = Store.create(tmp_path / "s.sqlite", {0: b"k"})
        store.invited(0, b"c")
        for number in (0, 1):
            with pytest.raises(ValueError, match=f"round {number} cannot be opened"):
                store.invited(number, b"c")
        store.abandoned(0)
        store.invited(1, b"c")
        store.close()

    def test_states_follow_one_another(self, tmp_path):
        store = Store.create(tmp_path / "s.sqlite", {})
        store.invited(0, b"c")
        for leap in (lambda: store.opened(0, np.zeros(3)), lambda: store.closed(0)):
            with pytest.raises(ValueError, match="round 0 is not"):
                leap()
        store.asking(0, 5)
        with pytest.raises(ValueError, match="round 0 is not invited: it cannot be abandoned"):
            store.abandoned(0)  # devices may have answered: every end is a debit
        store.opened(0, np.ones(3, np.float32))
        with pytest.raises(ValueError, match="round 0 is not"):
            store.abandoned(0)
        store.closed(0)
        store.close()
        (row,) = Store.open(tmp_path / "s.sqlite").rounds()
        assert (row.state, row.reports, row.mean.tolist()) == ("closed", 5, [1, 1, 1])

    def test_a_store_with_rounds_is_never_started_over(self, tmp_path):
        store = Store.create(tmp_path / "s.sqlite", {})
        store.invited(0, b"c")
        store.close()
        with pytest.raises(ValueError, match="never started over"):
            Store.create(tmp_path / "s.sqlite", {})
        with pytest.raises(ValueError, match="no server has begun"):
            Store.open(tmp_path / "absent.sqlite")
