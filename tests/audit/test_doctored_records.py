"""Runs whose files were doctored by someone who knows the formats; the audit names each.

Every file that vouches for another is written again to match: what remains is what no such
rewriting can mend.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch

from pfl_lm.audit.accounting.this_model import claim
from pfl_lm.audit.artifacts import RunArtifacts
from pfl_lm.audit.chain import read_chain
from pfl_lm.audit.findings import Finding
from pfl_lm.audit.ledger.check import audit_ledger
from pfl_lm.audit.ledger.known_records import KNOWN
from pfl_lm.audit.ledger.report_page import report_page
from pfl_lm.audit.mechanism.rebuild import rebuild_context
from pfl_lm.audit.mechanism.records import record_findings
from pfl_lm.payload import choice
from pfl_lm.payload.plan import PayloadPlan
from pfl_lm.report.page import write_report
from pfl_lm.run import context as opened
from pfl_lm.version import code_digest
from tests.audit.doctoring import (
    entries_of,
    failing,
    rewrite_ledger,
    rewrite_manifest,
    rewrite_metrics,
)

TOLD = "metrics say of each round what the ledger does"


@pytest.fixture
def run(honest_run, tmp_path) -> Path:
    return Path(shutil.copytree(honest_run, tmp_path / "run"))


def test_an_honest_run_fails_nothing(honest_run):
    assert failing(honest_run) == {}


def promised(manifest: dict) -> None:
    manifest["statements"]["guaranteed"] = manifest["guarantee"]["statement"]


def test_a_simulation_that_says_guaranteed(run):
    rewrite_manifest(run, promised)
    assert "20 reports a round stand for 5,000" in failing(run)["claim about this model"]


@pytest.mark.parametrize(
    "doctored",
    [
        lambda m: m["statements"].update(guaranteed="Nothing is left to wish for: ε = 2."),
        lambda m: m["statements"].update(simulated="Only the transport of reports."),
        lambda m: m["scenario"].update(reproducible=True),
        lambda m: m["noise"].update(source="reproducible stream"),
        lambda m: m["scenario"].update(aggregator="tff"),
        lambda m: m["guarantee"].update(statement=m["guarantee"]["statement"].replace("(2", "(1")),
    ],
)
def test_statements_that_do_not_follow_from_the_facts(run, doctored):
    rewrite_manifest(run, doctored)
    assert "claim about this model" in failing(run)


def test_a_run_without_a_policy_that_says_guaranteed(tiny_run, tmp_path):
    run = tiny_run(tmp_path, None, rounds=2)
    assert failing(run) == {}
    rewrite_manifest(run, lambda m: m["statements"].update(guaranteed="ε = 2."))
    assert "claim about this model" in failing(run)


@pytest.mark.parametrize(
    "changes", [{"reproducible": True}, {"secure_aggregation": "protocol", "rounds": 1}]
)
def test_honest_runs_say_what_follows(tiny_run, tmp_path, changes):
    run = tiny_run(tmp_path, **changes)
    assert claim(RunArtifacts.open(run)).holds
    assert failing(run) == {}


def test_a_run_cut_back_four_rounds(run):
    rewrite_ledger(run, lambda entries: entries.__delitem__(slice(-5, None)))
    rewrite_metrics(run, lambda lines: lines.__delitem__(slice(-4, None)))
    (run / "checkpoints" / "round-000012.pt").unlink()
    assert "no closing entry" in failing(run)["how the run ended"]


def test_a_run_cut_back_with_a_closing_entry_kept(run):
    rewrite_ledger(run, lambda entries: entries.__delitem__(slice(-5, -1)))
    rewrite_metrics(run, lambda lines: lines.__delitem__(slice(-4, None)))
    (run / "checkpoints" / "round-000012.pt").unlink()
    assert "8 are on record" in failing(run)["how the run ended"]


def test_a_checkpoint_that_knows_more_rounds_than_its_ledger_did(run):
    shutil.move(run / "checkpoints" / "round-000010.pt", run / "checkpoints" / "round-000011.pt")
    assert "holds round 10" in failing(run)["checkpoints of this ledger"]


def test_a_replaced_model(run):
    content = torch.load(run / "model.pt", weights_only=True)
    next(iter(content["parameters"].values())).add_(0.5)
    torch.save(content, run / "model.pt")
    assert "it was replaced" in failing(run)["how the run ended"]


def test_an_opened_round_labelled_abandoned(run):
    def label(entries):
        number, reports = entries[5]["round"], entries[5]["reports"]
        entries[5] = {"kind": "abandoned", "round": number, "reports": reports}

    rewrite_ledger(run, label)
    assert "mean_norm" in failing(run)["abandoned rounds released nothing"]
    rewrite_metrics(run, lambda lines: lines[4].update(mean_norm=None, noise_norm=None))
    assert "reports open a round" in failing(run)["abandoned rounds released nothing"]


def test_an_opened_round_labelled_lost(run):
    rewrite_ledger(run, lambda entries: entries[5].update(released=None))
    assert "mean_norm" in failing(run)["abandoned rounds released nothing"]


def test_an_honest_run_with_abandoned_rounds_fails_nothing(tiny_run, policy_text, tmp_path):
    rotation = policy_text.replace('"poisson"', '"rotation", min_separation = 6')
    run = tiny_run(tmp_path, rotation, dropout=0.15)
    assert {"abandoned"} <= {entry["kind"] for entry in entries_of(run)}
    assert failing(run) == {}


@pytest.mark.parametrize(
    "added",
    [
        {"loss_of_user_17": 3.2},
        {"loss": [3.2, 4.1, 2.2]},
        {"fleet": {"losses": 3.2}},
        {"fleet": {"reports_by_profile": {"user 17": 1}}},
        {"kind": "user"},
    ],
)
def test_figures_of_users_under_new_names_of_the_metrics(run, added):
    rewrite_metrics(run, lambda lines: lines[3].update(added))
    assert "metrics.jsonl holds" in failing(run)["figures of known names alone"]


PER_USER = [1] * 400


@pytest.mark.parametrize("place", [0, 1, -1])
@pytest.mark.parametrize("name", ["per_user", "code"])
def test_figures_of_users_in_the_ledger(run, place, name):
    rewrite_ledger(run, lambda entries: entries[place].update({name: PER_USER}))
    assert f"ledger.jsonl holds {name}" in failing(run, accounting=False)[KNOWN]


def test_an_entry_of_a_kind_that_no_run_writes(run):
    rewrite_ledger(run, lambda entries: entries.append({"kind": "note", "users": PER_USER}))
    assert "of kind 'note'" in failing(run, accounting=False)[KNOWN]


@pytest.mark.parametrize("table", ["", "population", "noise", "scenario", "guarantee", "policy"])
def test_figures_of_users_in_the_manifest(run, table):
    rewrite_manifest(run, lambda m: (m[table] if table else m).update(per_user=PER_USER))
    assert "manifest.json holds" in failing(run, accounting=False)[KNOWN]


def test_figures_of_users_under_a_known_name_of_the_manifest(run):
    rewrite_manifest(run, lambda m: m["model"]["start"].update(text=PER_USER))
    assert "model.start" in failing(run, accounting=False)[KNOWN]


def put(manifest: dict, key: str, value: object) -> None:
    *tables, last = key.split(".")
    for name in tables:
        manifest = manifest[name]
    manifest[last] = value


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("noise.source", "tensorflow"),
        ("noise.simulated_sum_multiplier", 9.0),
        ("secure_aggregation.ran", "protocol"),
        ("secure_aggregation.adversary", "active"),
        ("secure_aggregation.corrupt", 0.5),
        ("secure_aggregation.dropout.simulated", 0.05),
        ("secure_aggregation.ring.wrap_probability", 0.0),
        ("population.cohort_rule.population", 399),
        ("guarantee.stream", {"weights": PER_USER}),
    ],
)
def test_a_manifest_that_contradicts_its_scenario(run, key, value):
    rewrite_manifest(run, lambda m: put(m, key, value))
    assert key in failing(run, accounting=False)["records follow from the scenario"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("guarantee.assumptions", []),
        ("guarantee.accountant", "exact PLD"),
        ("noise.drawn", "by every device, its own share"),
        ("secure_aggregation.ring.bits", 60),
        ("secure_aggregation.deployed.statement", "nobody learns anything"),
        ("population.cohort_rule.size_or_rate", 0.2),
        ("vocabulary.provenance", "a public list"),
    ],
)
def test_a_manifest_that_the_runs_code_would_not_write(run, key, value):
    name = "manifest follows from scenario and policy"
    assert name not in recorded(run)
    rewrite_manifest(run, lambda m: put(m, key, value))
    assert key in recorded(run)[name]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda entry: entry.update(simulated=False), "a simulation"),
        (lambda entry: entry.update(aggregator="tff"), "summed by tff"),
        (lambda entry: entry["grid"].update(rotated=True), "rotations"),
    ],
)
def test_a_round_recorded_as_another_than_the_scenario_asks_for(run, change, says):
    rewrite_ledger(run, lambda entries: change(entries[5]))
    assert says in failing(run, accounting=False)["records follow from the scenario"]


@pytest.mark.parametrize(
    "change",
    [{"payload_dim": 7}, {"noise_norm": 0.001}, {"clip_norm": 0.01}, {"short_share": 0.5}],
    ids=str,
)
def test_metrics_that_contradict_the_ledger(run, change):
    rewrite_metrics(run, lambda lines: lines[3].update(change))
    assert "Round 3" in failing(run, accounting=False)[TOLD]


def test_metrics_that_tell_a_round_twice(run):
    rewrite_metrics(run, lambda lines: lines.append(lines[0]))
    assert "round 0 2 times" in failing(run, accounting=False)[TOLD]


def test_figures_of_users_in_the_evaluation(run):
    path = run / "evaluation.json"
    evaluation = json.loads(path.read_text())
    evaluation["rows"][0]["over_users"]["top1"]["quantiles"] = [0.1] * 40
    path.write_text(json.dumps(evaluation))
    assert "evaluation.json holds" in failing(run)["figures of known names alone"]


@pytest.mark.parametrize(
    ("key", "better"),
    [("perplexity", 0.98), ("top3", 1.5), ("keystrokes_saved", 1.1), ("users", 10)],
)
def test_an_evaluation_that_tells_of_a_better_model(run, key, better):
    name, path = "quality measured again", run / "evaluation.json"
    assert name not in recorded(run)
    evaluation = json.loads(path.read_text())
    evaluation["rows"][0][key] *= better
    path.write_text(json.dumps(evaluation))
    assert f"{key} = " in recorded(run)[name]


def test_an_evaluation_without_the_runs_model(run):
    path = run / "evaluation.json"
    evaluation = json.loads(path.read_text())
    del evaluation["rows"][0]
    path.write_text(json.dumps(evaluation))
    assert "does not say how good the federated model is" in recorded(run)["quality measured again"]


@pytest.mark.parametrize("kind", ["scalar", "text", "histogram"])
def test_figures_of_users_in_tensorboard(run, kind):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(run / "tensorboard")) as board:
        if kind == "scalar":
            board.add_scalar("round/loss_of_user_17", 3.2, 4)
        elif kind == "text":
            board.add_text("round/loss", "user 17: 3.2", 4)
        else:
            board.add_histogram("round/loss", torch.arange(9.0), 4)
    assert "tensorboard holds" in failing(run)["figures of known names alone"]


def test_an_honest_fleet_fails_nothing(tiny_run, policy_text, tmp_path):
    rotation = policy_text.replace('"poisson"', '"rotation", min_separation = 6')
    fleet = Path(__file__).parents[2] / "simulations" / "fleets"
    run = tiny_run(tmp_path, rotation, rounds=3, fleet=fleet / "mixed.toml")
    assert failing(run) == {}


def recorded(run: Path) -> dict[str, str]:
    """Hold a run's records against its public choices and its files; return what fails."""
    artifacts = RunArtifacts.open(run)
    findings = record_findings(rebuild_context(artifacts), artifacts)
    return {f.name: f.text for f in findings if f.holds is False}


def test_payload_rows_weighted_by_what_users_typed(tiny_run, tmp_path, monkeypatch):
    genuine = opened.choose

    def by_users(plan, roles, unigram, *public):
        return genuine(plan, roles, unigram[::-1] / unigram.sum(), *public)

    monkeypatch.setattr(opened, "choose", by_users)
    run = tiny_run(tmp_path, rounds=2, payload=PayloadPlan(rows=100, draw="unigram"))
    assert "round 0" in recorded(run)["payload is the public draw"]


def test_payload_rows_drawn_by_a_doctored_draw(tiny_run, tmp_path, monkeypatch):
    genuine = choice.draw_rows

    def doctored(count, weights, always, seed, round):
        return genuine(count, weights, [*always, 250], seed, round)  # what one user typed

    monkeypatch.setattr(choice, "draw_rows", doctored)
    run = tiny_run(tmp_path, rounds=2)
    assert "payload is the public draw" in recorded(run)


@pytest.mark.parametrize(
    "plan",
    [
        PayloadPlan(rows=100, draw="unigram"),
        PayloadPlan(),
        PayloadPlan(rows="none"),
        PayloadPlan(rows=100, layers=1),
    ],
)
def test_payloads_of_honest_runs_are_public_draws(tiny_run, tmp_path, plan):
    assert recorded(tiny_run(tmp_path, rounds=3, payload=plan)) == {}


def test_a_replaced_model_for_which_the_ledger_vouches(run):
    content = torch.load(run / "model.pt", weights_only=True)
    next(iter(content["parameters"].values())).add_(0.5)
    torch.save(content, run / "model.pt")
    digest = hashlib.sha256((run / "model.pt").read_bytes()).hexdigest()
    rewrite_ledger(run, lambda entries: entries[-1].update(model=digest))
    assert "model of the last checkpoint" in recorded(run)


def test_opened_rounds_labelled_abandoned_that_moved_the_model(run):
    def label(entries):
        for place in (11, 12):  # between the two checkpoints
            number = entries[place]["round"]
            entries[place] = {"kind": "abandoned", "round": number, "reports": 1}

    rewrite_ledger(run, label)
    assert "MOVED" in recorded(run)["abandoned rounds moved nothing"]


def test_a_model_that_carries_another_statement(run):
    content = torch.load(run / "model.pt", weights_only=True)
    content["origin"]["statements"]["guaranteed"] = "ε = 2."
    torch.save(content, run / "model.pt")
    assert "other statements" in recorded(run)["model of the last checkpoint"]


def code_of(run: Path) -> Finding:
    part = audit_ledger(RunArtifacts.open(run))
    return next(finding for finding in part.findings if finding.name == "code of the run")


def test_the_page_says_whether_the_code_of_the_run_is_installed(run):
    assert code_of(run).holds is True
    rewrite_manifest(run, lambda m: m["versions"].update(code="0" * 64))
    assert code_of(run).holds is None
    assert "Audit the run with the version that made it" in code_of(run).text


def test_the_digest_of_the_code_follows_every_source_file(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\n")
    before = code_digest(tmp_path)
    (tmp_path / "b.so").write_bytes(b"compiled")
    assert code_digest(tmp_path) == before
    (tmp_path / "a.py").write_text("x = 2\n")
    assert code_digest(tmp_path) != before


PAGE = "page of the run"


@pytest.fixture(scope="module")
def with_page(honest_run, tmp_path_factory) -> Path:
    run = Path(shutil.copytree(honest_run, tmp_path_factory.mktemp("page") / "run"))
    write_report(run)
    return run


def page_of(run: Path) -> Finding:
    artifacts = RunArtifacts.open(run)
    (finding,) = report_page(artifacts, read_chain(artifacts.folder.ledger_path))
    return finding


def test_an_honest_page(with_page):
    assert page_of(with_page).holds is True
    assert failing(with_page, accounting=False) == {}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Nothing for this very model", "Everything"),
        ("ε = 2.0", "ε = 0.2"),
        ("differentially private per user", "differentially private per message"),
        ("The guarantee holds if", "The guarantee holds"),
        ("</main>", "<p>ε = 0.1 for everybody</p></main>"),
        ("</main>", "<script>document.title = 'private'</script></main>"),
        ("zero_out", "replace_one"),
    ],
)
def test_a_page_that_says_otherwise_than_the_files(with_page, tmp_path, old, new):
    run = Path(shutil.copytree(with_page, tmp_path / "run"))
    page = (run / "report.html").read_text()
    assert old in page
    (run / "report.html").write_text(page.replace(old, new))
    assert page_of(run).holds is False


def test_an_evaluation_that_says_otherwise_than_the_page(with_page, tmp_path):
    run = Path(shutil.copytree(with_page, tmp_path / "run"))
    evaluation = json.loads((run / "evaluation.json").read_text())
    evaluation["rows"][0]["top3"] = 0.99
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    assert page_of(run).holds is False


def test_the_page_of_another_run(with_page, tiny_run, tmp_path):
    other = tiny_run(tmp_path, seed=3)
    shutil.copy(with_page / "report.html", other / "report.html")
    assert "no head that is in this ledger" in page_of(other).text


def test_a_page_from_before_the_end_is_no_fault(honest_run, tmp_path):
    run = Path(shutil.copytree(honest_run, tmp_path / "run"))
    lines = (run / "ledger.jsonl").read_text()
    (run / "ledger.jsonl").write_text("".join(lines.splitlines(keepends=True)[:6]))
    write_report(run)
    (run / "ledger.jsonl").write_text(lines)
    assert page_of(run).holds is None
    assert failing(run, accounting=False) == {}


def test_a_page_by_other_code_must_still_say_what_is_guaranteed(with_page, tmp_path):
    run = Path(shutil.copytree(with_page, tmp_path / "run"))
    rewrite_manifest(run, lambda m: m["versions"].update(code="0" * 64))
    write_report(run)
    path = run / "report.html"
    page = path.read_text()
    path.write_text(page.replace("The guarantee holds if", "It holds where"))
    assert page_of(run).holds is None
    path.write_text(page.replace("Nothing for this very model", "Everything"))
    assert page_of(run).holds is False
