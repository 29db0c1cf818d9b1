"""A run looks at itself: noise against the bound, a probe on public text, a model that is lost."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from pfl_lm.dp.ledger import verify
from pfl_lm.run import look
from pfl_lm.run.divergence import Diverged, check_loss
from pfl_lm.run.folder import RunFolder
from pfl_lm.run.look import Foresight, Probe, foresee, judge
from pfl_lm.run.setup import open_run
from pfl_lm.run.simulate import simulate

pytestmark = pytest.mark.usefixtures("quick")

PROBE = Probe(8, median_norm=1.0, clipped=0.5, signal=0.3, seconds=0.1)
QUIET = Foresight(0.1, 0.5, rounds=100, cohort=50, epsilon=2.0, probe=PROBE)


def said(foresight: Foresight, anyway: bool = False) -> list[str]:
    lines: list[str] = []
    judge(foresight, anyway, lines.append)
    return lines


def test_a_sound_run_says_what_is_to_come():
    (line,) = said(QUIET)
    assert line.startswith("Before the first round, from public text: ε to come 2.000; noise 0.1")
    assert "50% of 8 probed updates clipped; about 8 min 20 s" in line


def test_noise_that_outweighs_everything_is_refused():
    """Noise of 25.4 against a clip norm of 0.5, over 30 rounds: nothing can be learnt."""
    drowned = replace(QUIET, noise_norm=25.4, rounds=30)
    with pytest.raises(ValueError, match=r"norm 25.4, clip_norm is 0.5.*--anyway runs it"):
        said(drowned)
    assert any(
        line.startswith("warning: the noise in a round's mean") for line in said(drowned, True)
    )
    just = replace(QUIET, noise_norm=0.5 * math.sqrt(100) * 0.99, probe=None)
    assert len(said(just)) == 1


def test_noise_that_outweighs_what_devices_share_is_a_warning():
    lines = said(replace(QUIET, noise_norm=3.1))
    assert any("what devices have in common has norm 0.3" in line for line in lines)


@pytest.mark.parametrize(
    ("probe", "told"),
    [
        (replace(PROBE, median_norm=9.0, clipped=1.0), "raise clip_norm"),
        (replace(PROBE, median_norm=0.05, clipped=0.0), "lower clip_norm"),
    ],
)
def test_a_bound_that_does_not_fit_is_a_warning(probe, told):
    lines = said(replace(QUIET, probe=probe))
    assert [told in line for line in lines] == [False, True]
    assert len(said(replace(QUIET, probe=probe, noise_norm=0.0))) == 1  # nothing to scale


def test_dropout_that_loses_rounds_is_a_warning():
    lines = said(replace(QUIET, reports=1, least_reports=9))
    assert any("dropout leaves 1 of" in line and "opens with 9 reports" in line for line in lines)
    assert len(said(replace(QUIET, reports=9, least_reports=9))) == 1


def test_the_noise_is_that_of_the_rounds(tiny_scenario, policy_file, tmp_path, new_watcher):
    policy = policy_file(participation='{ kind = "rotation", min_separation = 6 }')
    scenario = tiny_scenario(policy=policy, rounds=2)
    foresight = foresee(open_run(scenario))
    watcher = new_watcher()
    simulate(scenario, tmp_path / "run", watcher)
    assert [entry["noise_norm"] for entry in watcher.rounds] == pytest.approx(
        [foresight.noise_norm] * 2
    )
    assert foresight.epsilon <= 2.0
    assert foresight.probe.devices == 8


def test_the_probe_reads_public_text_alone(tiny_scenario, monkeypatch):
    context = open_run(tiny_scenario())
    read = []
    tokens = type(context.population).tokens

    def watched(self, split, user):
        read.append(split)
        return tokens(self, split, user)

    monkeypatch.setattr(type(context.population), "tokens", watched)
    assert foresee(context).probe is not None
    assert set(read) == {"public"}
    assert foresee(replace(context, public=None)).probe is None


def test_the_probe_times_devices_when_all_is_loaded(tiny_scenario, monkeypatch):
    clock, calls = [0.0], []

    def first_slow(*task):
        clock[0] += 8.0 if calls else 80.0
        calls.append(task)
        return train(*task)

    train = look.train
    monkeypatch.setattr(look, "train", first_slow)
    monkeypatch.setattr(look.time, "process_time", lambda: clock[0])
    assert foresee(open_run(tiny_scenario())).probe.seconds == 1.0  # of each of eight devices


def test_what_updates_share_is_estimated_without_what_each_brings():
    random = np.random.default_rng(0)
    shared = np.zeros(4000)
    shared[0] = 0.5
    alone = random.normal(0, 1 / math.sqrt(4000), size=(400, 4000))
    assert look._common(shared + alone) == pytest.approx(0.5, abs=0.05)
    assert look._common(alone[:8]) < 0.2
    assert look._common(alone[:1]) == 0.0


@pytest.mark.parametrize(
    ("loss", "stops"), [(5.0, False), (None, False), (56.0, False), (58.0, True), (5e27, True),
                        (math.nan, True), (math.inf, True)]
)  # fmt: skip
def test_a_loss_far_above_guessing_stops_the_run(tiny_scenario, loss, stops):
    context = open_run(tiny_scenario())  # ln 300 = 5.70
    if not stops:
        check_loss(context, 7, loss, 5.0)
        return
    with pytest.raises(Diverged, match=r"round 8: .*lower server.learning_rate \(1\)") as caught:
        check_loss(context, 7, loss, 5.0)
    assert "The 8 rounds so far are recorded and stay spent" in str(caught.value)
    check_loss(context, 7, 58.0, 6.0)  # an objective whose first loss was higher


def test_a_diverged_run_stops_and_keeps_its_record(tiny_scenario, tmp_path, new_watcher):
    base = tiny_scenario(rounds=5, clip_norm=1e6)
    training = replace(base.training, learning_rate=1e4)
    scenario = replace(base, training=training)
    with pytest.raises(Diverged, match="diverged"):
        simulate(scenario, tmp_path / "run", new_watcher())
    rounds = [e for e in verify(tmp_path / "run" / "ledger.jsonl") if e["kind"] == "round"]
    assert 1 <= len(rounds) < 5
    assert RunFolder.open(tmp_path / "run").checkpoints()
    assert not (tmp_path / "run" / "model.pt").exists()


def test_a_refused_run_writes_nothing(tiny_scenario, tmp_path, new_watcher):
    def refuse(context):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        simulate(tiny_scenario(), tmp_path / "run", new_watcher(), before=refuse)
    assert list(tmp_path.iterdir()) == []


def test_a_clip_norm_that_follows_the_updates_is_judged_where_it_leads(tiny_scenario, policy_file):
    """It begins a thousand times too large; noise and clip are those at the probe's median."""
    noise = '{ at = "device", kind = "skellam", tolerated_dropout = 0.1 }'
    rotation = '{ kind = "rotation", min_separation = 2 }'
    table = "{ lowest = 1e-3, highest = 1e4 }"
    policy = policy_file(noise=noise, participation=rotation, clipping=table)
    context = open_run(tiny_scenario(policy=policy, clip_norm=500.0))
    foresight = foresee(context)
    assert foresight.clip_norm == foresight.probe.median_norm < 5
    assert foresight.noise_norm < foresight.clip_norm
    assert 0.3 < foresight.probe.clipped < 0.7
    assert not any("lower clip_norm" in line for line in said(foresight))
