"""A run with correlated noise: killed anywhere, no noise value serves two sums; what it refuses."""

from __future__ import annotations

import hashlib
import json
import stat
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pfl_lm.devices.local_training import LocalTraining
from pfl_lm.dp.accounting.accountant import compose
from pfl_lm.dp.correlated import stream
from pfl_lm.dp.correlated.buffers import Buffers
from pfl_lm.dp.events import RoundEvent
from pfl_lm.dp.ledger import verify
from pfl_lm.dp.mechanisms import MECHANISMS, Opened
from pfl_lm.dp.policy import Policy
from pfl_lm.dp.sampler.random_bits import reproducible_bits, secure_bits
from pfl_lm.payload.plan import PayloadPlan
from pfl_lm.recipes import load
from pfl_lm.run import round as privacy_path
from pfl_lm.run import simulate
from pfl_lm.run.folder import RunFolder
from pfl_lm.run.noise_state import NoiseStates
from pfl_lm.run.setup import open_run
from pfl_lm.secagg.errors import SumLost
from pfl_lm.streams import key
from tests.run.killing import POINTS, WRITE, killed

pytestmark = pytest.mark.usefixtures("quick")

ROUNDS = 5
SOME_ROWS = PayloadPlan(rows=100)


@pytest.fixture
def policy_of(policy_file):
    def write(kind: str = "blt", separation: int = 2, **changes) -> Path:
        rotation = f'{{ kind = "rotation", min_separation = {separation} }}'
        noise = f'{{ at = "server", kind = "{kind}" }}'
        return policy_file(
            **{"noise": noise, "participation": rotation, "epsilon": "8.0"} | changes
        )

    return write


@pytest.fixture
def scenario_of(tiny_scenario, policy_of):
    def make(kind: str = "blt", separation: int = 2, **changes):
        policy = policy_of(kind, separation)
        settings = {"policy": policy, "rounds": ROUNDS, "checkpoint_every": 2} | changes
        return tiny_scenario(**settings)

    return make


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def draws(monkeypatch, tmp_path):
    """Note which noise was added to which sums; a function returns them, by the noise."""
    notes, genuine = tmp_path / "draws", stream.add_on_lattice

    def noting(total, step, deviation, bits):
        noisy = genuine(total, step, deviation, bits)
        noise = noisy - np.rint(total / step) * step
        line = {"noise": digest(noise.tobytes()), "sums": digest(total.tobytes())}
        with notes.open("a") as file:
            file.write(json.dumps(line) + "\n")
        return noisy

    monkeypatch.setattr(stream, "add_on_lattice", noting)

    def read() -> dict[str, set[str]]:
        found = defaultdict(set)
        for line in map(json.loads, notes.read_text().splitlines()):
            found[line["noise"]].add(line["sums"])
        return found

    return read


def recorded(run: Path) -> list[dict]:
    return [entry for entry in verify(run / "ledger.jsonl") if entry["kind"] == "round"]


@pytest.mark.parametrize("fresh", [False, True], ids=["seeded", "fresh"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("point", POINTS)
def test_killed_anywhere_no_noise_value_serves_two_sums(
    scenario_of, draws, new_watcher, tmp_path, point, when, fresh
):
    scenario = scenario_of(reproducible=not fresh, payload=SOME_ROWS)
    run = tmp_path / "run"
    killed(lambda: simulate.simulate(scenario, run, new_watcher()), point, when, 3)
    simulate.simulate(scenario, run, new_watcher(), resume=True)
    entries = recorded(run)
    assert [entry["round"] for entry in entries] == list(range(ROUNDS))
    assert all(len(sums) == 1 for sums in draws().values())
    taken_up = digest(b"")
    for entry in entries:
        assert entry["noise_taken_up"] == taken_up
        taken_up = entry["noise_state"]
    policy = load(Policy, scenario.policy)
    spent = compose([RoundEvent(**entry["event"]) for entry in entries], policy.delta)
    assert spent.epsilon <= 8.0
    assert not (run / "noise").exists()
    if not fresh:
        straight = tmp_path / "straight" / "run"
        simulate.simulate(scenario, straight, new_watcher())
        assert (straight / "ledger.jsonl").read_bytes() == (run / "ledger.jsonl").read_bytes()
        assert (straight / "model.pt").read_bytes() == (run / "model.pt").read_bytes()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("write", [5, 6], ids=["record", "state"])
def test_killed_at_a_write_of_banded_noise_no_noise_value_serves_two_sums(
    scenario_of, draws, new_watcher, tmp_path, when, write
):
    """A round of banded noise writes two files: of the third round either is the last one."""
    scenario, run = scenario_of("banded", 6, payload=SOME_ROWS), tmp_path / "run"
    killed(lambda: simulate.simulate(scenario, run, new_watcher()), WRITE, when, write)
    left = {path.name: path.stat() for path in (run / "noise").iterdir()}
    assert len(left) == write - (when == "before")
    assert all(stat.S_IMODE(found.st_mode) == 0o600 for found in left.values())
    simulate.simulate(scenario, run, new_watcher(), resume=True)
    entries, taken_up = recorded(run), digest(b"")
    assert [entry["round"] for entry in entries] == list(range(ROUNDS))
    for entry in entries:
        assert entry["noise_taken_up"] == taken_up
        taken_up = entry["noise_state"]
    assert all(len(sums) == 1 for sums in draws().values())
    assert not (run / "noise").exists()


def test_a_record_of_banded_noise_is_written_once_and_must_be_as_it_was(
    scenario_of, new_watcher, tmp_path
):
    scenario, run = scenario_of("banded", 6, payload=SOME_ROWS), tmp_path / "run"
    killed(lambda: simulate.simulate(scenario, run, new_watcher()), "record", "after", 4)
    states = NoiseStates(RunFolder(run))
    parts = {path.name: path for path in (run / "noise").glob("part-*.bin")}
    named = [list(states.read(round).parts) for round in (3, 4)]
    assert named[1][1:] == named[0]
    assert len(named[1]) == 4
    assert {f"part-{name.hex()}.bin" for name in named[1]} == parts.keys()
    part = parts[f"part-{named[1][1].hex()}.bin"]
    content = part.read_bytes()
    part.write_bytes(content[::-1])
    with pytest.raises(ValueError, match=f"{part.name} is not the state that the ledger names"):
        simulate.simulate(scenario, run, new_watcher(), resume=True)
    part.unlink()
    with pytest.raises(ValueError, match=f"{part.name} is missing: without the state"):
        simulate.simulate(scenario, run, new_watcher(), resume=True)
    part.write_bytes(content)
    simulate.simulate(scenario, run, new_watcher(), resume=True)
    assert len(recorded(run)) == ROUNDS


@pytest.mark.parametrize("kind", ["banded", "banded_inverse_root", "tree"])
def test_every_kind_runs_and_goes_on_after_a_crash(scenario_of, draws, new_watcher, tmp_path, kind):
    payload = PayloadPlan() if kind == "tree" else SOME_ROWS
    scenario, run = scenario_of(kind, payload=payload), tmp_path / "run"
    killed(lambda: simulate.simulate(scenario, run, new_watcher()), "record", "after", 3)
    simulate.simulate(scenario, run, new_watcher(), resume=True)
    assert len(recorded(run)) == ROUNDS
    if kind != "tree":
        assert all(len(sums) == 1 for sums in draws().values())


def test_the_published_digest_of_a_state_tells_nothing_of_the_sums(scenario_of):
    """Whoever knows all sums and all releases could else try the sums with and without a user."""
    context = open_run(scenario_of())
    grid = context.privacy.grid(50)
    total = np.arange(50)
    mechanism = context.privacy.mechanism
    states = []
    for label in range(2):
        bits = reproducible_bits(key(0, "noise", label))
        opened = Opened(total, grid, 6, 1.0, bits, 0, None, 50)
        states.append(mechanism.mean(opened, b"")[1])
    assert states[0][:32] != states[1][:32]
    pasts = [Buffers.from_bytes(state[32:]) for state in states]
    assert (pasts[0].sums == pasts[1].sums).all()
    again = mechanism.mean(replace(opened, bits=secure_bits(), round=1), states[1])[1]
    assert again[:32] not in (states[0][:32], states[1][:32])


def test_the_manifest_and_the_ledger_name_the_numbers(scenario_of, new_watcher, tmp_path):
    scenario, run = scenario_of(), tmp_path / "run"
    simulate.simulate(scenario, run, new_watcher())
    manifest = json.loads((run / "manifest.json").read_text())
    stated = manifest["guarantee"]["stream"]
    assert stated["kind"] == "blt"
    assert stated["rounds"] == 6
    assert stated["weights"]
    assert all(entry["event"]["stream"] == stated for entry in recorded(run))
    sentence = manifest["statements"]["simulated"]
    assert "The server is trusted: it adds the noise and sees each sum without (ε = ∞)" in sentence
    assert manifest["guarantee"]["epsilon_server"] is None  # ∞


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("rows", ["none", 20])
def test_no_rounds_noise_is_sized_for_shorter_updates_than_another_rounds(
    scenario_of, new_watcher, tmp_path, monkeypatch, rows, layers
):
    """A small layer's round lengthens updates by more, and later rounds go on from its sum."""
    noised, genuine = [], stream.add_on_lattice

    def noting(total, step, deviation, bits):
        noised.append((step, step * deviation))
        return genuine(total, step, deviation, bits)

    monkeypatch.setattr(stream, "add_on_lattice", noting)
    scenario = scenario_of(payload=PayloadPlan(rows=rows, layers=layers))
    simulate.simulate(scenario, tmp_path / "run", new_watcher())
    entries = recorded(tmp_path / "run")
    assert len({entry["payload"]["dim"] for entry in entries}) > 1
    longest = max(entry["grid"]["norm_bound"] / entry["grid"]["scale"] for entry in entries)
    assert len(set(noised)) == 1
    assert noised[0][1] >= longest * open_run(scenario).privacy.sum_multiplier


def test_a_lost_round_passes_the_stream_by(scenario_of, new_watcher, tmp_path, monkeypatch):
    """Its row and column are struck: the next round is at its own number, and the cost stays."""
    genuine = privacy_path.check_sum

    def losing(privacy, opened, config, broadcast):
        if broadcast.round == 2:
            raise SumLost(opened.reports, "lost on purpose")
        return genuine(privacy, opened, config, broadcast)

    monkeypatch.setattr(privacy_path, "check_sum", losing)
    states = {}
    save = NoiseStates.save

    def saving(self, round, state):
        states[round] = Buffers.from_bytes(state[32:])
        save(self, round, state)

    monkeypatch.setattr(NoiseStates, "save", saving)
    scenario, run = scenario_of(payload=PayloadPlan()), tmp_path / "run"
    simulate.simulate(scenario, run, new_watcher())
    assert sorted(states) == [1, 2, 4, 5]
    assert [states[n].round for n in sorted(states)] == [1, 2, 4, 5]
    entries = recorded(run)
    assert [entry["released"] is None for entry in entries] == [False, False, True, False, False]
    spent = compose([RoundEvent(**entry["event"]) for entry in entries], 1e-7)
    assert spent.epsilon <= 8.0


def test_a_stream_that_is_reset_is_refused_by_its_budget(scenario_of, new_watcher, tmp_path):
    """Another policy's numbers in mid-run: ε is ∞, and the run ends before the round."""
    scenario, run = scenario_of(), tmp_path / "run"
    killed(lambda: simulate.simulate(scenario, run, new_watcher()), "record", "after", 3)
    blt = MECHANISMS["blt"]
    genuine = type(blt).planned

    def other(self, rounds, min_separation, participations):
        plan = genuine(self, rounds, min_separation, participations)
        return replace(plan, weights=tuple(0.9 * weight for weight in plan.weights))

    from pfl_lm.dp.guarantee import _derived

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(blt), "planned", other)
        _derived.cache_clear()
        with pytest.raises(ValueError, match="the budget ends here: round 3 would bring ε to ∞"):
            simulate.simulate(scenario, run, new_watcher(), resume=True)
    _derived.cache_clear()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rotate": True}, 'rotate: noise.kind = "blt" is correlated between rounds'),
        (
            {
                "payload": PayloadPlan(directions=16),
                "training": LocalTraining(0.5, window=8, method="zeroth_order"),
            },
            "payload.directions: noise.kind",
        ),
    ],
)
def test_what_a_stream_cannot_follow_is_refused_by_its_field(scenario_of, changes, message):
    with pytest.raises(ValueError, match=message):
        open_run(scenario_of(**changes))


def test_a_tree_needs_a_whole_payload(scenario_of):
    with pytest.raises(ValueError, match=r'payload: noise\.kind = "tree" needs one'):
        open_run(scenario_of("tree", payload=SOME_ROWS))


def test_participations_that_only_devices_count_are_refused(tiny_scenario, policy_of):
    counted = '{ kind = "rotation", min_separation = 2, max_participations = 2 }'
    policy = policy_of(participation=counted)
    with pytest.raises(ValueError, match=r"participation.max_participations = 2 is below the 3"):
        open_run(tiny_scenario(policy=policy))
