"""The protocol in a simulation: the same model as the ideal functionality, whoever vanishes."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from pfl_lm.dp.events import RoundEvent
from pfl_lm.dp.ledger import Ledger, verify
from pfl_lm.dp.sampler.discrete_noise import add_noise
from pfl_lm.models.models import ModelSpec
from pfl_lm.payload.plan import PayloadPlan
from pfl_lm.run.aggregation import Aggregation, absences
from pfl_lm.run.availability import invite
from pfl_lm.run.context import choose_payload
from pfl_lm.run.folder import RunFolder
from pfl_lm.run.recorder import RoundRecorder
from pfl_lm.run.scenario import PopulationConfig
from pfl_lm.run.setup import open_run
from pfl_lm.run.simulate import Ends, run_round, simulate
from pfl_lm.run.sum_check import check_sum
from pfl_lm.secagg.config import MessageKind
from pfl_lm.secagg.errors import SumLost
from pfl_lm.secagg.ideal import OpenedSum
from pfl_lm.server.state import ServerState, open_round
from pfl_lm.text.population import SPLITS
from pfl_lm.text.population_build import Input, build_population
from pfl_lm.text.tokenizer_build import build_tokenizer
from pfl_lm.text.tokenizer_recipe import TokenizerRecipe, VocabularySource

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def vanishing(tiny_scenario, policy_file):
    """Cohorts of twelve of which three vanish somewhere on the way."""
    rotation = policy_file(
        participation='{ kind = "rotation", min_separation = 3 }',
        noise='{ at = "device", kind = "skellam", tolerated_dropout = 0.3 }',
    )
    changes = {"cohort": 12, "dropout": 0.25, "rounds": 4, "separate_noise": True}
    return tiny_scenario(policy=rotation, reproducible=True, **changes)


@pytest.mark.parametrize("adversary", ["semi-honest", "active"])
def test_protocol_and_ideal_train_the_same_model(vanishing, adversary, new_watcher, tmp_path):
    runs = {}
    for kind in ("ideal", "protocol"):
        scenario = replace(vanishing, secure_aggregation=kind, adversary=adversary)
        runs[kind] = simulate(scenario, tmp_path / kind, new_watcher())
    ideal, protocol = runs["ideal"], runs["protocol"]
    assert ideal.model_path.read_bytes() == protocol.model_path.read_bytes()
    entries = [verify(run.ledger_path)[1:] for run in (ideal, protocol)]
    assert entries[0] == entries[1]
    assert any(entry["kind"] == "round" for entry in entries[0])
    assert all(9 <= entry["reports"] <= 12 for entry in entries[0] if entry["kind"] == "round")
    stated, sent = (run.metrics()[0] for run in (ideal, protocol))
    assert stated["upload_bytes"] == pytest.approx(sent["upload_bytes"], rel=0.02)
    assert stated["download_bytes"] == pytest.approx(sent["download_bytes"], rel=0.05)
    assert protocol.manifest()["secure_aggregation"]["ran"] == "protocol"


def test_without_dropout_the_stated_bytes_are_those_sent(vanishing, new_watcher, tmp_path):
    rounds = []
    for kind in ("ideal", "protocol"):
        scenario = replace(vanishing, secure_aggregation=kind, dropout=0.0, rounds=1)
        rounds.append(simulate(scenario, tmp_path / kind, new_watcher()).metrics()[0])
    for name in ("upload_bytes", "download_bytes", "reports"):
        assert rounds[0][name] == rounds[1][name]


def test_beyond_the_threshold_both_abandon_the_same_rounds(
    vanishing, policy_file, new_watcher, tmp_path
):
    noise = '{ at = "device", kind = "skellam", tolerated_dropout = 0.1 }'
    policy = policy_file(participation='{ kind = "fixed" }', noise=noise)
    entries = []
    for kind in ("ideal", "protocol"):
        scenario = replace(vanishing, secure_aggregation=kind, policy=policy, rounds=6)
        run = simulate(scenario, tmp_path / kind, new_watcher())
        entries.append(verify(run.ledger_path)[1:])
    assert entries[0] == entries[1]
    kinds = Counter(entry["kind"] for entry in entries[0])
    assert min(kinds["abandoned"], kinds["round"]) >= 1
    assert all(m["loss"] is None or m["loss"] > 0 for m in run.metrics())


def test_poisson_rounds_beyond_the_tolerated_dropout_stay_shut(
    vanishing, policy_file, new_watcher, tmp_path
):
    """The spread of a small cohort hides no dropout: 40% vanish where 10% are tolerated."""
    poisson = replace(vanishing, policy=policy_file(), dropout=0.4, rounds=3)
    run = simulate(poisson, tmp_path / "run", new_watcher())
    entries = verify(run.ledger_path)[1:]
    assert [entry["kind"] for entry in entries] == ["abandoned"] * 3 + ["end"]


@pytest.mark.parametrize("kind", ["ideal", "protocol"])
def test_a_sum_that_devices_were_asked_to_open_is_paid_for(kind, vanishing, policy_file, tmp_path):
    """All report, and none answers: a server that lies about the answers knows the sum."""
    scenario = replace(vanishing, secure_aggregation=kind, dropout=0.0, policy=policy_file())
    context = open_run(scenario)
    state = ServerState(0, context.start.parameters)

    def mute(context, broadcast, clock):
        cohort = invite(context, broadcast, clock)
        return replace(cohort, silent=dict.fromkeys(range(len(cohort)), MessageKind.ANSWER))

    with Ledger.create(tmp_path / "ledger.jsonl", {"run": "x", "policy_digest": "x"}) as ledger:
        after, line = run_round(context, state, RoundRecorder(ledger), ends=Ends(invite=mute))
        entry = ledger.entries()[-1]
    assert (entry["kind"], entry["round"], entry["released"]) == ("round", 0, None)
    assert entry["reports"] == line["reports"] > 0
    cost = context.privacy.deployment.compose([RoundEvent(**entry["event"])])
    assert cost is not None
    assert cost.epsilon > 0
    assert after.round == 1
    assert all(torch.equal(after.parameters[n], v) for n, v in state.parameters.items())


def test_a_cohort_that_cannot_survive_its_dropout_does_not_start(vanishing):
    small = replace(vanishing, secure_aggregation="protocol", cohort=4, dropout=0.5)
    with pytest.raises(ValueError, match="raise cohort"):
        open_run(small)
    open_run(replace(small, secure_aggregation="ideal"))


def test_the_manifest_states_graph_and_bounds(vanishing, new_watcher, tmp_path):
    scenario = replace(vanishing, rounds=1, corrupt=0.1)
    stated = RunFolder(simulate(scenario, tmp_path / "run", new_watcher()).path).manifest()
    said = stated["secure_aggregation"]
    json.dumps(said, allow_nan=False)
    assert said["dropout"] == {"simulated": 0.25, "planned": 0.3}
    assert (said["simulated"]["cohort"], said["simulated"]["complete"]) == (12, True)
    deployed = said["deployed"]
    assert deployed["cohort"] == 5000
    assert deployed["neighbours"] < 400
    assert deployed["threshold"] > deployed["neighbours"] / 2
    bits = deployed["failure_bits"]
    assert bits["connected"] >= 40
    assert bits["secret"] >= 40
    assert bits["correct"] >= 30


def test_a_ring_that_is_too_narrow_does_not_start(vanishing):
    for rotate in (False, True):
        wide = open_run(replace(vanishing, rotate=rotate))
        dim = choose_payload(wide, 0).dim
        need = wide.privacy.grid(dim).modulus_bits
        fixed = replace(vanishing, rotate=rotate, modulus_bits=need)
        assert open_run(fixed).privacy.grid(dim).modulus_bits == need
        with pytest.raises(ValueError, match=f"needs {need} bits"):
            open_run(replace(fixed, modulus_bits=need - 1))


def test_rotated_rounds_train_as_well_and_send_less(vanishing, new_watcher, tmp_path):
    """Without a policy only rounding differs: after a few rounds the models are all but alike."""
    plain = replace(vanishing, policy=None, separate_noise=False, dropout=0.0, clip_norm=5.0)
    runs = [
        simulate(replace(plain, rotate=rotate), tmp_path / str(rotate), new_watcher())
        for rotate in (False, True)
    ]
    losses = [[m["loss"] for m in run.metrics() if m["loss"] is not None] for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)
    assert losses[0] != losses[1]
    rings = [run.manifest()["secure_aggregation"]["ring"] for run in runs]
    assert [ring["rotated"] for ring in rings] == [False, True]
    assert rings[1]["bits"] <= rings[0]["bits"] - 2
    assert runs[1].metrics()[0]["upload_bytes"] < runs[0].metrics()[0]["upload_bytes"]


def test_the_share_of_dishonest_devices_counts_as_corrupt(vanishing, policy_file):
    noise = '{ at = "device", kind = "skellam", honest_fraction = 0.8 }'
    policy = policy_file(participation='{ kind = "fixed" }', noise=noise)
    context = open_run(replace(vanishing, policy=policy, dropout=0.0))
    assert context.aggregation.corrupt == pytest.approx(0.2)
    assert Aggregation.of(replace(context.scenario, corrupt=0.3), context.privacy).corrupt == 0.3


def test_absences_are_the_stated_share_in_every_phase():
    found: Counter[MessageKind] = Counter()
    places = np.zeros(50)
    for number in range(400):
        silent = absences(0.2, 7, number, 50)
        assert len(silent) == 10
        found.update(silent.values())
        places[list(silent)] += 1
    assert set(found) == set(MessageKind)
    assert min(found.values()) > 0.8 * 4000 / len(MessageKind)
    assert places.min() > 40
    assert absences(0.2, 7, 3, 50) == absences(0.2, 7, 3, 50) != absences(0.2, 7, 4, 50)
    assert absences(0.0, 7, 3, 50) == {}


def test_real_text_trains_the_same_model_through_the_protocol(
    shared, tiny_scenario, new_watcher, tmp_path
):
    """Short messages of real people; fifty rounds of it are ``benchmarks/secagg_run.py``."""
    source = VocabularySource("wordfreq", "the package's list", "CC-BY-SA-4.0")
    tokenizer = build_tokenizer(TokenizerRecipe("en", 10_000, source), tmp_path / "tokenizer")
    files = [(shared / "data" / "sms" / f"{split}.jsonl.gz", split) for split in SPLITS]
    build_population([Input(*file) for file in files], tokenizer, tmp_path / "people")
    vanishing = {"cohort": 15, "dropout": 0.2, "rounds": 3, "reproducible": True}
    scenario = tiny_scenario(
        population=PopulationConfig("store", path=tmp_path / "people"),
        tokenizer=tmp_path / "tokenizer",
        model=ModelSpec("cifg_lstm", 10_000, embedding_dim=8, hidden_dim=8),
        payload=PayloadPlan(rows=200),
        rotate=True,
        separate_noise=True,
        **vanishing,
    )
    models = set()
    for kind in ("ideal", "protocol"):
        chosen = replace(scenario, secure_aggregation=kind)
        models.add(simulate(chosen, tmp_path / kind, new_watcher()).model_path.read_bytes())
    assert len(models) == 1


def sum_of(context, total: np.ndarray, reports: int) -> None:
    broadcast = open_round(ServerState(0, context.start.parameters), choose_payload(context, 0))
    config = context.aggregation.config(broadcast, context.privacy.cohort)
    check_sum(context.privacy, OpenedSum(total, reports), config, broadcast)


def test_a_device_that_sends_more_than_its_bound_is_seen_in_the_sum(vanishing, policy_file):
    """It adds 1,021 times the bound: the round is paid for, and the model does not move."""
    for at in ("device", "server"):
        noise = '{ at = "server", kind = "gaussian" }'
        policy = policy_file() if at == "device" else policy_file(noise=noise)
        context = open_run(replace(vanishing, policy=policy, separate_noise=at == "device"))
        grid = context.privacy.grid(choose_payload(context, 0).dim)
        honest = np.zeros(grid.dim, dtype=np.int64)
        honest[0] = 12 * int(grid.norm_bound)
        sum_of(context, honest, 12)  # twelve reports that all point one way
        poisoned = honest.copy()
        poisoned[1] = 1021 * int(grid.norm_bound)
        with pytest.raises(SumLost, match=r"norm of the sum .* a device sent more than its bound"):
            sum_of(context, poisoned, 12)


@pytest.mark.parametrize("kind", ["skellam", "discrete_gaussian"])
def test_honest_noise_does_not_reach_the_bound(kind, vanishing, policy_file):
    noise = f'{{ at = "device", kind = "{kind}", tolerated_dropout = 0.2 }}'
    policy = policy_file(participation='{ kind = "rotation", min_separation = 3 }', noise=noise)
    context = open_run(replace(vanishing, policy=policy, separate_noise=True))
    grid = context.privacy.grid(choose_payload(context, 0).dim)
    share = context.privacy.device_share(grid, context.privacy.cohort)
    for round in range(20):
        total = np.zeros(grid.dim, dtype=np.int64)
        for user in range(12):
            add_noise(share.kind, share.variance, total, context.privacy.bits("x", round, user))
        sum_of(context, total, 12)


def test_a_poisoned_round_is_debited_and_not_stepped(vanishing, policy_file, tmp_path):
    scenario = replace(vanishing, dropout=0.0, policy=policy_file())
    context = open_run(scenario)
    state = ServerState(0, context.start.parameters)
    total = context.aggregation.open

    def poisoned(broadcast, invited, silent):
        aggregator = total(broadcast, invited, silent)
        submit, bound = aggregator.submit, context.privacy.grid(broadcast.payload.dim).norm_bound

        def lying(vectors, places):
            vectors[0] += int(1021 * bound / np.sqrt(vectors.shape[1]))  # no coordinate wraps
            return submit(vectors, places)

        aggregator.submit = lying
        return aggregator

    object.__setattr__(context.aggregation, "open", poisoned)
    with Ledger.create(tmp_path / "ledger.jsonl", {"run": "x", "policy_digest": "x"}) as ledger:
        after, _ = run_round(context, state, RoundRecorder(ledger))
        entry = ledger.entries()[-1]
    assert (entry["kind"], entry["released"]) == ("round", None)
    assert "sent more than its bound" in entry["failure"]
    assert all(torch.equal(after.parameters[n], v) for n, v in state.parameters.items())
