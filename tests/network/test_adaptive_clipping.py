"""A clip norm that follows the updates, over the network: the same run, and what devices refuse."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

import pfl_lm.run.simulate as simulation
from pfl_lm.dp.clipping import Clip, clip_before
from pfl_lm.dp.ledger import verify
from pfl_lm.models.file import load_model
from pfl_lm.network import requirements
from pfl_lm.network.device import Device
from pfl_lm.network.store import Store
from pfl_lm.network.task_config import policy_digest, served
from pfl_lm.network.transport import messages
from pfl_lm.recipes import load
from pfl_lm.run.checkpoints import newest_checkpoint
from pfl_lm.run.context import choose_payload
from pfl_lm.run.folder import RunFolder
from pfl_lm.run.resume import begin_run
from pfl_lm.run.setup import open_run
from pfl_lm.secagg.errors import Refused
from pfl_lm.server.state import Broadcast, open_round
from tests.network.test_full_strength import POLICY, Key, Scripted, setup_of, strong  # noqa: F401
from tests.network.test_recovery import ServerOnDisk

TABLE = "{ lowest = 1e-2, highest = 4.0, indicator_noise = 0.5 }"


@pytest.fixture
def small_policy(policy_file):
    return policy_file(
        population="6",
        report_goal="6",
        delta="0.1",
        rounds="4",
        noise='{ at = "device", kind = "skellam", tolerated_dropout = 0.4 }',
        participation='{ kind = "rotation", min_separation = 1 }',
        clipping=TABLE,
    )


def test_devices_follow_the_clip_norm_and_give_the_simulations_model_to_the_byte(
    trial, new_watcher, tmp_path, monkeypatch, same_model, small_policy
):
    run = trial(rounds=3, rotate=True, policy=small_policy, separate_noise=True)
    run.start_devices()
    watcher = new_watcher()
    folder = run.serve(watcher)
    run.join()
    monkeypatch.setattr(simulation, "devices_at_once", lambda *arguments: 1)
    simulated = simulation.simulate(run.scenario, tmp_path / "simulated", new_watcher())
    told = [
        [(e["released"], e["clip_norm"], e["clipping"]) for e in verify(f.ledger_path)
         if e["kind"] == "round"]
        for f in (folder, simulated)
    ]  # fmt: skip
    assert told[0] == told[1]
    assert len({clip for _, clip, _ in told[0]}) == 3
    assert [line["clip_norm"] for line in watcher.rounds] == [clip for _, clip, _ in told[0]]
    assert [line["short_share"] for line in watcher.rounds] == [c["share"] for *_, c in told[0]]
    assert same_model(*(load_model(f.model_path).parameters for f in (folder, simulated)))


RULE = "lowest = 0.1, highest = 2.0, rate = 0.2, first_rate = 0.4, indicator_noise = 1.0"
ADAPTIVE = {"clipping": f"{{ {RULE} }}"}
STATED = {  # round, what the server states, what the device says
    "above the policy's bounds": (300, 2.1, "in round 300 the policy allows 0.1 to 2"),
    "below the policy's bounds": (300, 0.09, "in round 300 the policy allows 0.1 to 2"),
    "further than three rounds lead": (3, 1.0, "in round 3 the policy allows 0.27.* to 0.91"),
    "another one in round 0": (0, 0.6, "in round 0 the policy allows 0.5 to 0.5"),
    "infinity": (300, math.inf, "clip_norm = inf"),
    "NaN": (300, math.nan, "clip_norm = nan"),
    "below 0": (300, -0.5, "clip_norm = -0.5"),
}


@pytest.mark.parametrize(("round", "clip", "message"), STATED.values(), ids=STATED)
def test_a_clip_norm_that_the_policy_does_not_allow(strong, round, clip, message):  # noqa: F811
    _, context, _ = strong(lines=ADAPTIVE)
    with pytest.raises(Refused, match=message):
        requirements.check_clip(context.privacy, round, clip)


def test_a_clip_norm_that_the_policy_allows(strong):  # noqa: F811
    _, context, _ = strong(lines=ADAPTIVE)
    assert requirements.check_clip(context.privacy, 0, 0.0) is None
    assert requirements.check_clip(context.privacy, 3, 0.6) == Clip(0.6)
    assert requirements.check_clip(context.privacy, 300, 2.0) == Clip(2.0)


@pytest.mark.parametrize("lines", [{}, ADAPTIVE], ids=["fixed", "adaptive"])
def test_the_device_leaves_the_round_before_it_trains(strong, setup_of, caplog, lines):  # noqa: F811
    task_config, _, policy = strong(lines=lines)
    server = Scripted(task_config, 50)
    server._items[0].invitation.clip_norm = 3.0
    assert Device(server, Key(0), setup_of(policy)).run() == 0
    assert "the server states clip_norm = 3" in caplog.text
    expected = "the policy allows 0.1 to 2" if lines else "the policy's does not move"
    assert expected in caplog.text


def test_a_run_that_begins_outside_the_bounds(strong, setup_of):  # noqa: F811
    task_config, _, policy = strong(lines=ADAPTIVE)
    lie = replace(task_config, scenario={**task_config.scenario, "clip_norm": 3.0})
    with pytest.raises(
        ValueError, match=r"clip_norm = 3 lies outside the policy's clipping.lowest"
    ):
        lie.context(setup_of(policy))


def test_devices_that_are_told_different_clip_norms_share_no_mask(strong):  # noqa: F811
    """The clip norm is in what every message of the round is bound to."""
    _, context, _ = strong(lines=ADAPTIVE)
    payload = choose_payload(context, 1)
    values = np.zeros(payload.dim, np.float32)
    rounds = [
        context.aggregation.config(Broadcast(1, payload, values, clip), 6)
        for clip in (None, Clip(0.5), Clip(0.6))
    ]
    assert len({config.context for config in rounds}) == 3


def test_whatever_clip_norm_is_stated_bound_and_noise_are_the_same_on_the_grid(strong):  # noqa: F811
    _, context, _ = strong(lines=ADAPTIVE)
    shares, bounds = set(), set()
    for clip in (0.1, 0.5, 2.0):
        privacy = context.privacy.at_clip(clip)
        grid = privacy.grid(2000)
        shares.add(privacy.device_share(grid, 6))
        bounds.add(grid.norm_bound)
    assert len(shares) == len(bounds) == 1


def test_policies_without_the_table_keep_their_digest(strong):  # noqa: F811
    _, _, policy = strong()
    _, _, adaptive = strong(lines=ADAPTIVE)
    assert policy_digest(policy) != policy_digest(adaptive)
    assert policy_digest(replace(adaptive, clipping=None)) == policy_digest(policy)


def test_an_invitation_of_an_older_server_states_none():
    assert messages.Invitation().clip_norm == 0.0


class AdaptiveOnDisk(ServerOnDisk):
    def broadcast(self, number: int):
        state, _ = newest_checkpoint(self.folder)
        clip = clip_before(number, self.ledger.entries())
        state = replace(state, round=number, clip=clip)
        return open_round(state, choose_payload(self.context, number))

    def mean(self, number: int) -> np.ndarray:
        dim = choose_payload(self.context, number).dim + 1
        return np.random.default_rng(number).normal(0, 0.01, dim).astype(np.float32)


@pytest.mark.parametrize("steps", [("opened",), ("opened", "debited")], ids=str)
def test_a_killed_server_ends_the_round_at_its_clip_norm(
    small, keys_of, small_policy, tmp_path, quick, steps
):
    context = served(open_run(small(policy=small_policy, rounds=4, reproducible=False)), 6, True)
    folder = RunFolder(tmp_path / "run")
    _, ledger = begin_run(context, folder)
    with ledger:
        store = Store.create(folder.path / "rounds.sqlite", keys_of(6).enrolled())
        disk = AdaptiveOnDisk(context, folder, ledger, store)
        disk.write(0, "invited", "asking", "opened", "debited", "closed")
        disk.write(1, "invited", "asking", *steps)
        state = disk.recover()
        rounds = [entry for entry in ledger.entries() if entry["kind"] == "round"]
        assert [entry["round"] for entry in rounds] == [0, 1]
        assert rounds[1]["clip_norm"] == rounds[0]["clipping"]["next"]["norm"] != 0.5
        assert state.clip == Clip(**rounds[1]["clipping"]["next"])
        store.close()


def test_the_policy_of_the_trial_is_loaded(small_policy):
    from pfl_lm.dp.policy import Policy

    assert load(Policy, small_policy).clipping.highest == 4.0
