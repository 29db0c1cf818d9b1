"""The audit on runs of every kind: honest ones fail nothing, doctored ones are named by name.

The doctored runs here come on top of those in ``test_doctored_records`` and ``test_doctored_runs``:
a simulation that says "guaranteed", payload rows chosen by users' words, a replaced model, a run
cut back, an opened round called abandoned, noise from a printed seed, figures of users.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from pfl_lm.audit.artifacts import RunArtifacts
from pfl_lm.audit.mechanism.rebuild import rebuild_context
from pfl_lm.audit.mechanism.records import record_findings
from pfl_lm.distributed.processes import launch
from pfl_lm.dp.cohort import cohort as honest_cohort
from pfl_lm.dp.guarantee import guarantee
from pfl_lm.dp.policy import Policy
from pfl_lm.payload.plan import PayloadPlan
from pfl_lm.recipes import load
from pfl_lm.run import availability
from pfl_lm.run.manifest import _ALONE, _plain
from pfl_lm.run.scenario import EvaluationConfig
from pfl_lm.run.simulate import simulate
from tests.audit.conftest import CENTRAL, POLICY, ROTATION, Silence, run_tiny
from tests.audit.doctoring import (
    entries_of,
    failing,
    rewrite_ledger,
    rewrite_manifest,
    rewrite_metrics,
)

# As few users as tiny runs have; a fleet's server asks so many of them that they come again sooner.
OWN_SCALE = (
    ROTATION.replace("1_000_000", "400").replace("5_000", "20").replace("1e-6", "1e-3")
)  # fmt: skip
FLEETS = Path(__file__).parents[2] / "simulations" / "fleets"


def noise(text: str, policy: str = ROTATION) -> str:
    old = 'kind = "skellam", tolerated_dropout = 0.1'
    assert old in policy
    return policy.replace(old, text)


class Interrupted(BaseException):
    """What no handler of errors expects."""


class Stopper(Silence):
    def round_done(self, entry: dict, rounds: int) -> None:
        if entry["round"] == 1:
            raise Interrupted


def resumed(folder: Path) -> Path:
    with pytest.raises(Interrupted):
        run_tiny(folder, ROTATION, listener=Stopper(), rounds=4)
    return run_tiny(folder, ROTATION, rounds=4, resume=True)


def _as_rank(ranks, scenario, path) -> None:
    simulate(scenario, path, Silence(), ranks=ranks)


def shared_by_two(folder: Path) -> Path:
    return run_tiny(folder, ROTATION, rounds=3, start=lambda *args: launch(2, _as_rank, *args))


def tiny(policy: str | None, **changes) -> Callable[[Path], Path]:
    return lambda folder: run_tiny(folder, policy, **{"rounds": 3, **changes})


HONEST: dict[str, Callable[[Path], Path]] = {
    "poisson": tiny(POLICY),
    "rotation": tiny(ROTATION),
    "fixed": tiny(POLICY.replace('"poisson"', '"fixed"')),
    "discrete gaussian": tiny(noise('kind = "discrete_gaussian", tolerated_dropout = 0.1')),
    "excess removed": tiny(
        noise('kind = "skellam", tolerated_dropout = 0.3, excess = "removed"'), dropout=0.05
    ),
    "half are honest": tiny(noise('kind = "skellam", honest_fraction = 0.5')),
    "central, poisson": tiny(CENTRAL),
    "central, rotation": tiny(CENTRAL.replace('"poisson"', '"rotation", min_separation = 6')),
    "no policy": tiny(None),
    "reproducible": tiny(ROTATION, reproducible=True),
    "protocol": tiny(ROTATION, secure_aggregation="protocol", rounds=1),
    "own shares": tiny(ROTATION, separate_noise=True),
    "rows by frequency": tiny(ROTATION, payload=PayloadPlan(rows=100, draw="unigram")),
    "everything travels": tiny(ROTATION, payload=PayloadPlan()),
    "public groups": tiny(ROTATION + "groups = 4\n", cohort=24),
    "public groups, one closed": tiny(ROTATION + "groups = 4\n", cohort=24, dropout=0.05),
    "public groups, two left out": tiny(ROTATION + "groups = 4\n", cohort=24, trimmed_groups=1),
    "three invited on average": tiny(POLICY, cohort=3, rounds=6),
    "rotated updates": tiny(ROTATION, rotate=True),
    "fleet": tiny(ROTATION, fleet=FLEETS / "mixed.toml"),
    "at the policy's own scale": tiny(OWN_SCALE),
    "fleet at the policy's own scale": tiny(OWN_SCALE, fleet=FLEETS / "mixed.toml"),
    "lost rounds": tiny(ROTATION, dropout=0.15, rounds=6),
    "evaluated while it runs": tiny(
        ROTATION,
        evaluation=EvaluationConfig(every=1, users=5, final_users=5, tokens_per_user=50),
    ),
    "resumed": resumed,
    "two processes": shared_by_two,
}


def wrong(run: Path, *, accounting: bool = False) -> dict[str, str]:
    """Hold a run's words, records and files against each other; return what fails, by name."""
    artifacts = RunArtifacts.open(run)
    findings = record_findings(rebuild_context(artifacts), artifacts)
    found = {f.name: f.text for f in findings if f.holds is False}
    return found | failing(run, accounting=accounting)


def test_there_are_twenty_kinds():
    assert len(HONEST) >= 20


@pytest.mark.parametrize("kind", HONEST)
def test_an_honest_run_fails_nothing(kind, tmp_path):
    run = HONEST[kind](tmp_path)
    # How the figures of central noise are recomputed is tested with its counts.
    assert wrong(run, accounting=not kind.startswith("central")) == {}
    if kind == "public groups, one closed":
        groups = [g for entry in entries_of(run) for g in entry.get("groups", ())]
        assert any(group["reports"] and not group["asked"] for group in groups)
    if kind == "lost rounds":
        assert "abandoned" in {entry["kind"] for entry in entries_of(run)}


@pytest.fixture(scope="module")
def rotated(tmp_path_factory) -> Path:
    return run_tiny(tmp_path_factory.mktemp("rotated"), ROTATION, rounds=8)


@pytest.fixture(scope="module")
def another(tmp_path_factory) -> Path:
    return run_tiny(tmp_path_factory.mktemp("another"), ROTATION, rounds=8, seed=1)


@pytest.fixture
def run(rotated, tmp_path) -> Path:
    return Path(shutil.copytree(rotated, tmp_path / "run"))


def test_the_run_that_is_doctored_is_honest(run):
    assert wrong(run, accounting=True) == {}


def test_1_two_rounds_in_the_other_order(run):
    def swap(entries):
        entries[3], entries[4] = entries[4], entries[3]

    rewrite_ledger(run, swap)
    assert "the order was changed" in wrong(run)["ledger is complete"]


def test_2_what_two_rounds_sent_exchanged(run):
    def swap(entries):
        entries[3]["round"], entries[4]["round"] = entries[4]["round"], entries[3]["round"]
        entries[3], entries[4] = entries[4], entries[3]

    rewrite_ledger(run, swap)
    assert "payload is the public draw" in wrong(run)


def test_3_more_noise_in_the_ledger_than_there_was(run):
    def louder(entries):
        entries[3]["event"]["noise_multiplier"] *= 1.2
        entries[3]["noise"] = {name: 1.2 * x for name, x in entries[3]["noise"].items()}

    rewrite_ledger(run, louder)
    assert "it claims a noise multiplier" in wrong(run)["every round as promised"]


@pytest.mark.parametrize("epsilon", ["1.0", "8.0"])
def test_4_a_policy_replaced_with_all_that_follows_from_it(run, tmp_path, epsilon):
    path = tmp_path / "other.toml"
    path.write_text(ROTATION.replace("epsilon = 2.0", f"epsilon = {epsilon}"))
    policy = load(Policy, path)

    def replaced(manifest):
        manifest["policy"] = _plain(asdict(policy))
        manifest["guarantee"] = _plain(asdict(guarantee(policy)))
        manifest["statements"]["simulated"] = (
            "A deployment under the policy, of which this holds: "
            f"{guarantee(policy).statement} {_ALONE}"
        )

    rewrite_manifest(run, replaced)
    found = failing(run)
    assert "claim about this model" not in found  # every sentence fits the new policy
    assert "every round as promised" in found


def test_5_users_invited_again_within_the_separation(tmp_path, monkeypatch):
    def soon(rule, seed, round):
        return honest_cohort(rule, seed, round - round % 2)  # two rounds running

    monkeypatch.setattr(availability.rules, "cohort", soon)
    run = run_tiny(tmp_path, ROTATION, rounds=3)
    assert "1 rounds after the last time" in wrong(run)["separation of a user's rounds"]


def test_6_a_clip_norm_loosened_in_the_manifest(run):
    rewrite_manifest(run, lambda m: m["scenario"].update(clip_norm=1.0))
    assert "updates were clipped to 0.5, not to 1.0" in wrong(run)["every round as promised"]


def test_7_a_ledger_cut_back_and_closed_again(run):
    def cut(entries):
        del entries[-4:-1]
        entries[-1]["rounds"] -= 3

    rewrite_ledger(run, cut)
    rewrite_metrics(run, lambda lines: lines.__delitem__(slice(-3, None)))
    shutil.rmtree(run / "checkpoints")
    assert "rounds were cut off or added" in wrong(run)["how the run ended"]


def test_8_a_seeded_run_that_says_csprng(tmp_path):
    run = run_tiny(tmp_path, ROTATION, rounds=2, reproducible=True)

    def hide(manifest):
        manifest["scenario"]["reproducible"] = False
        manifest["noise"]["source"] = "csprng"
        said = manifest["statements"]["guaranteed"]
        manifest["statements"]["guaranteed"] = said.replace(
            "; noise comes from a seeded stream", ""
        )

    rewrite_manifest(run, hide)
    rewrite_ledger(run, lambda entries: entries[0].update(nonce=os.urandom(32).hex()))
    assert "repeated to the byte" in wrong(run)["noise of no printed seed"]


def test_9_an_evaluation_of_training_users(run):
    path = run / "evaluation.json"
    evaluation = json.loads(path.read_text())
    path.write_text(json.dumps({**evaluation, "split": "train"}))
    assert "asked train users" in wrong(run)["evaluated on held-out users"]
    evaluation["rows"][0]["users"] = 400
    path.write_text(json.dumps(evaluation))
    assert "more users than" in wrong(run)["evaluated on held-out users"]


def test_10_the_model_of_another_run(run, another):
    shutil.copy(another / "model.pt", run / "model.pt")
    digest = hashlib.sha256((run / "model.pt").read_bytes()).hexdigest()
    rewrite_ledger(run, lambda entries: entries[-1].update(model=digest))
    assert "replaced" in wrong(run)["model of the last checkpoint"]


def test_11_the_checkpoints_of_another_run(run, another):
    shutil.rmtree(run / "checkpoints")
    shutil.copytree(another / "checkpoints", run / "checkpoints")
    assert "checkpoints of this ledger" in wrong(run)


def test_12_a_debit_taken_out_of_the_middle(run):
    rewrite_ledger(run, lambda entries: entries.__delitem__(4))
    found = wrong(run)
    assert "how the run ended" in found
    assert "ledger is complete" in found


def test_13_reports_that_never_came(run):
    def more(entries):
        for entry in entries:
            if entry["kind"] == "round":
                entry["divisor"] = entry["reports"] = 25

    rewrite_ledger(run, more)
    assert {"divisor is a public constant", "every round as promised"} <= wrong(run).keys()


def test_14_a_ledger_of_another_run(run, another):
    shutil.copy(another / "ledger.jsonl", run / "ledger.jsonl")
    assert "ledger of this run" in wrong(run)


def test_15_a_fleet_whose_users_come_again_too_soon_and_a_claim(tmp_path):
    run = run_tiny(tmp_path, OWN_SCALE, rounds=3, fleet=FLEETS / "mixed.toml")
    artifacts = RunArtifacts.open(run)
    assert "may be 1 apart, in the deployment 6" in artifacts.statements["guaranteed"]
    claims = {"guaranteed": artifacts.guarantee["statement"]}
    rewrite_manifest(run, lambda manifest: manifest["statements"].update(claims))
    found = wrong(run, accounting=True)
    assert "may be 1 apart" in found["claim about this model"]
    assert "by the policy 6" in found["separation"]
    assert "again after 1 rounds, not 6" in found["separation of a user's rounds"]


@pytest.mark.parametrize("kind", ["poisson", "rotation"])
def test_dropout_beyond_the_tolerated_opens_no_round(tmp_path, kind):
    policy = POLICY if kind == "poisson" else ROTATION
    run = run_tiny(tmp_path, policy, rounds=6, dropout=0.4, cohort=40)
    rounds = [entry for entry in entries_of(run) if entry["kind"] in ("round", "abandoned")]
    assert [entry["kind"] for entry in rounds].count("abandoned") >= 5
    for entry in rounds:
        if entry["kind"] == "round":  # by luck within the tolerated
            assert entry["noise"]["achieved"] >= entry["noise"]["planned"] * (1 - 1e-9)
    assert failing(run, accounting=False) == {}
