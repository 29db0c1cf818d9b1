"""A trial protects nobody: no number makes it say otherwise, and nothing turns into one."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

pytest.importorskip("grpc_tools", reason="needs gRPC: pip install pfl-lm[network]")

from pfl_lm.audit.accounting.this_model import claim
from pfl_lm.audit.artifacts import RunArtifacts
from pfl_lm.audit.ledger.check import audit_ledger
from pfl_lm.audit.ledger.population import ONE_BUDGET
from pfl_lm.dp.ledger import verify
from pfl_lm.network.question_task import session_for
from pfl_lm.network.server import serve
from pfl_lm.network.store import Store
from pfl_lm.network.task_config import served
from pfl_lm.queries.query import Query
from pfl_lm.report.page import write_report
from pfl_lm.run.folder import RunFolder
from pfl_lm.run.progress import ProgressListener
from pfl_lm.run.recorder import RunRecorder
from pfl_lm.run.setup import open_run
from tests.network.test_full_strength import POLICY, STRONG
from tests.queries.conftest import policy_of

WHOLE = {  # six devices are the whole population, and all of them a cohort
    **POLICY,
    "population": "6",
    "rounds": "2",
    "delta": "0.1",
    "participation": '{ kind = "rotation", min_separation = 1 }',
}


@pytest.fixture
def begun(trial, policy_file):
    """A function that begins a served run of the policy's own numbers, without a round."""

    def begin(is_trial: bool, debits: bool = True):
        run = trial(policy=policy_file(**WHOLE), **{**STRONG, "rounds": 2})
        run.is_trial = is_trial
        context = served(open_run(run.scenario), 6, is_trial)
        account = None if is_trial or not debits else run.keys.account(run.ledgers)
        folder = RunFolder(run.folder)
        recorder = RunRecorder(context, folder, ProgressListener(), account)
        recorder.open(resume=False, overwrite=False)
        recorder.close()
        Store.create(folder.served_rounds_path, run.keys.enrolled()).close()
        return run, context, folder

    return begin


@pytest.mark.parametrize("is_trial", [True, False])
def test_a_trial_of_the_policys_own_numbers_guarantees_nothing(begun, is_trial):
    _, context, folder = begun(is_trial)
    said, genesis = folder.manifest()["statements"], verify(folder.ledger_path)[0]
    assert folder.manifest()["served"] == genesis["served"] == {"trial": is_trial}
    assert context.privacy.simulated is is_trial
    assert genesis["statements"] == said
    if is_trial:
        nothing = "Nothing for this very model: a trial, in which devices check nothing."
        assert said["guaranteed"] == nothing
        assert context.privacy.guarantee.statement in said["simulated"]
    else:
        assert said["guaranteed"] == context.privacy.guarantee.statement
        assert said["simulated"] == "Nothing: devices take part over the network."
    assert claim(RunArtifacts.open(folder.path)).holds


def test_the_audit_accuses_a_trial_that_claims_a_guarantee(begun):
    _, context, folder = begun(True)
    manifest = folder.manifest()
    manifest["statements"]["guaranteed"] = context.privacy.guarantee.statement
    folder.manifest_path.write_text(json.dumps(manifest))
    assert claim(RunArtifacts.open(folder.path)).holds is False


@pytest.mark.parametrize("debits", [True, False])
def test_the_audit_asks_a_served_run_for_the_ledger_of_its_people(begun, debits):
    run, _, folder = begun(False, debits)
    part = audit_ledger(RunArtifacts.open(folder.path), run.ledgers)
    assert [f.holds for f in part.findings if f.name == ONE_BUDGET] == [debits]


def test_the_page_says_that_it_is_a_trial(begun):
    page = write_report(begun(True)[2].path).read_text(encoding="utf-8")
    assert "This model: a trial" in page
    assert "phones, drawn from 6 that are enrolled." in page
    assert "simulated phones" not in page


@pytest.mark.parametrize("is_trial", [True, False])
def test_a_question_records_whether_it_is_a_trial(is_trial):
    session = session_for(policy_of(epsilon=60.0, delta=0.1, users=6, rounds=1), 6, None, is_trial)
    query = Query("q", ("a", "b"), entries=1, least_dim=64)
    assert replace(session, reproducible=False).privacy(query).simulated is is_trial


@pytest.mark.parametrize(("then", "now"), [(False, True), (True, False)])
def test_a_run_goes_on_as_it_was_begun(begun, new_watcher, then, now):
    """A trial would go on without debits under a statement that promises ε; and back again."""
    run, _, folder = begun(then)
    ledger = folder.ledger_path.read_bytes()
    kinds = {True: "a trial", False: "a run"}
    with pytest.raises(ValueError, match=f"begun as {kinds[then]} .* as {kinds[now]} of"):
        serve(run.scenario, run.folder, run.serving(trial=now), new_watcher(), resume=True)
    assert folder.ledger_path.read_bytes() == ledger


def test_a_run_that_does_not_say_whether_it_is_a_trial_is_not_served_on(begun, new_watcher):
    run, _, folder = begun(True)
    manifest = folder.manifest()
    del manifest["served"]  # as an earlier version wrote it
    folder.manifest_path.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="did not note whether it was a trial"):
        serve(run.scenario, run.folder, run.serving(), new_watcher(), resume=True)
