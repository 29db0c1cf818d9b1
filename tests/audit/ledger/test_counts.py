"""What everybody may read of a Poisson run holds no count of its rounds."""

from __future__ import annotations

import html
import json
import re
import shutil
import stat
from pathlib import Path

import pytest

from pfl_lm.audit.artifacts import RunArtifacts
from pfl_lm.audit.ledger.check import NOT_CHECKED, audit_ledger
from pfl_lm.audit.page import write_audit
from pfl_lm.cli.progress import RunLines
from pfl_lm.report.page import write_report
from pfl_lm.run.folder import RunFolder, RunLog
from tests.audit.conftest import CENTRAL, run_tiny
from tests.audit.doctoring import entries_of, failing, rewrite_ledger, rewrite_metrics

NAME = "counts of Poisson rounds are secret"


class Listener(RunLines):
    """Keeps the lines that a server's log shows."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture(scope="module")
def listener() -> Listener:
    return Listener()


@pytest.fixture(scope="module")
def published(tmp_path_factory, listener) -> Path:
    """A run of central noise under Poisson sampling, with its pages."""
    run = run_tiny(tmp_path_factory.mktemp("poisson"), CENTRAL, listener=listener, rounds=8)
    write_report(run)
    artifacts = RunArtifacts.open(run)
    write_audit(artifacts, [audit_ledger(artifacts)], run / "audit.html")
    return run


@pytest.fixture
def run(published, tmp_path) -> Path:
    return Path(shutil.copytree(published, tmp_path / "run"))


def public_files(run: Path) -> list[Path]:
    files = (path for path in run.rglob("*") if path.is_file())
    return [path for path in files if path.stat().st_mode & 0o077]


def counts(run: Path) -> list[int]:
    return [entry["reports"] for entry in entries_of(run) if entry["kind"] == "round"]


def test_ledger_and_whole_figures_are_their_owners(published):
    for name in ("ledger.jsonl", "metrics.private.jsonl"):
        assert stat.S_IMODE((published / name).stat().st_mode) == 0o600
    assert {path.name for path in public_files(published)} > {"metrics.jsonl", "manifest.json"}
    assert len(set(counts(published))) > 2  # else there is nothing to find


def test_no_public_figure_but_the_noisy_means_follows_a_round(published):
    lines = [json.loads(line) for line in (published / "metrics.jsonl").read_text().splitlines()]
    rounds = [line for line in lines if line["kind"] == "round"]
    varying = {name for name in rounds[0] if len({line[name] for line in rounds}) > 1}
    assert varying <= {"round", "mean_norm", "epsilon", "epsilon_unamplified"}
    # What was spent follows from the number of rounds, whatever came.
    assert len({line["epsilon_unamplified"] for line in rounds}) == len(rounds)


def test_the_log_of_a_run_tells_no_count_and_no_time(listener, published):
    told = r"round \d is over: ε [\d.]+; \d of 8 are done"
    rounds = [line for line in listener.lines if not line.startswith("run ")]
    assert [line for line in rounds if not re.fullmatch(told, line)] == []


def test_pages_tell_no_count(published):
    for name in ("report.html", "audit.html", "audit.json"):
        text = (published / name).read_text()
        assert not re.search(r"\d[\d,.]* (of \d+ )?reports a round vary", text)
        assert "reports per round, simulated" not in text
        assert "seconds per round" not in text
        assert "Rounds took" not in text
    # Public, as it is a mean's divisor and follows from the scenario.
    assert "Every mean divides by 20" in (published / "audit.json").read_text()


def test_the_page_says_what_cannot_be_seen(published):
    page = html.unescape((published / "audit.html").read_text())
    assert all(text in page for text in NOT_CHECKED)
    assert "installed here" in page  # the code of the run against the code that audits


def test_tensorboard_tells_no_count(published):
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    events = [
        Event.FromString(record)
        for path in (published / "tensorboard").iterdir()
        for record in RawEventFileLoader(str(path)).Load()
    ]
    tags = {value.tag for event in events for value in event.summary.value}
    assert tags == {
        *("round/payload_dim", "round/noise_norm", "round/mean_norm"),
        *("round/epsilon", "round/epsilon_unamplified"),
    }
    # More reports take longer: the time of each round would tell their number.
    assert all(event.wall_time == event.step for event in events if event.summary.value)


def test_the_public_ledger_has_policy_rounds_and_head(published):
    public = json.loads((published / "ledger.public.json").read_text())
    genesis = entries_of(published)[0]
    assert public == {
        "run": "run",
        "policy_digest": genesis["policy_digest"],
        "statements": genesis["statements"],
        "rounds": 8,
        "head": json.loads((published / "ledger.jsonl").read_text().splitlines()[-1])["hash"],
    }
    assert len(genesis["nonce"]) == 64  # nobody can try counts until a hash fits


def test_the_audit_of_an_honest_run_finds_nothing(run):
    assert failing(run) == {}


@pytest.mark.parametrize("figure", ["reports", "seconds", "loss", "upload_bytes"])
def test_the_audit_names_a_published_count(run, figure):
    rewrite_metrics(run, lambda lines: lines[2].update({figure: 19}))
    assert f"publishes {figure}" in failing(run, accounting=False)[NAME]


def test_the_audit_names_a_board_that_times_the_rounds(run):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(run / "tensorboard")) as board:
        board.add_scalar("round/epsilon", 1.0, 3)
    assert "publishes the time of round 3" in failing(run, accounting=False)[NAME]


def test_the_audit_names_a_ledger_that_others_may_read(run):
    (run / "ledger.jsonl").chmod(0o644)
    assert "chmod 600" in failing(run, accounting=False)[NAME]


PUBLIC = "public figures are the run's own"
PUBLIC_LEDGER = "public ledger is the run's own"


@pytest.mark.parametrize("key", ["epsilon", "epsilon_unamplified", "mean_norm"])
def test_public_figures_that_are_not_the_runs_own(run, key):
    rewrite_metrics(run, lambda lines: [line.update({key: 0.01}) for line in lines] and None)
    found = failing(run, accounting=False)
    assert f"another {key} of round 0" in found[PUBLIC]
    assert "TensorBoard" in found["TensorBoard shows the metrics"]


def test_a_public_line_that_is_missing(run):
    rewrite_metrics(run, lambda lines: lines.pop())
    assert "has 7 lines where" in failing(run, accounting=False)[PUBLIC]


def test_what_a_killed_run_left_of_its_public_figures_is_no_fault(run):
    rewrite_metrics(run, lambda lines: lines.pop())
    rewrite_ledger(run, lambda entries: entries.pop())
    for path in (run / "ledger.public.json", run / "model.pt", run / "evaluation.json"):
        path.unlink()
    shutil.rmtree(run / "checkpoints")
    (run / "report.html").unlink()
    assert failing(run, accounting=False) == {}
    RunLog(RunFolder(run), 8, counts_are_secret=True).close()
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 8


def test_figures_for_the_auditor_where_none_are_secret(honest_run, tmp_path):
    run = Path(shutil.copytree(honest_run, tmp_path / "run"))
    shutil.copy(run / "metrics.jsonl", run / "metrics.private.jsonl")
    rewrite_metrics(run, lambda lines: lines[3].update(epsilon=0.01))
    assert "no count of this run is secret" in failing(run, accounting=False)[PUBLIC]


@pytest.mark.parametrize(
    "change",
    [{"rounds": 3}, {"head": "0" * 64}, {"reports": [1, 2, 3]}, {"statements": {}}, {"run": "x"}],
    ids=str,
)
def test_a_public_ledger_that_is_not_the_runs_own(run, change):
    path = run / "ledger.public.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert next(iter(change)) in failing(run, accounting=False)[PUBLIC_LEDGER]


def test_a_public_ledger_from_before_the_end_is_no_fault(run):
    path, lines = run / "ledger.public.json", (run / "ledger.jsonl").read_text().splitlines()
    then = {"rounds": 4, "head": json.loads(lines[4])["hash"]}
    path.write_text(json.dumps(json.loads(path.read_text()) | then))
    assert failing(run, accounting=False) == {}


def test_the_statement_and_the_page_say_what_holds_against_a_reader_of_counts(published):
    manifest = json.loads((published / "manifest.json").read_text())
    assert "how many reported" in manifest["statements"]["simulated"]
    assert "ε, cohorts or counts known" in (published / "report.html").read_text()
    told = json.loads((published / "audit.json").read_text())
    (table,) = [
        t for t in told["parts"]["ledger"]["tables"] if t["title"].startswith("Spent, recomputed")
    ]
    assert [row[0].split()[1] for row in table["rows"][:3]] == ["server", "person", "person"]


def test_device_noise_needs_no_secret_counts(honest_run):
    assert not (honest_run / "metrics.private.jsonl").exists()
    line = json.loads((honest_run / "metrics.jsonl").read_text().splitlines()[0])
    assert line["reports"] > 0
    guarantee = json.loads((honest_run / "manifest.json").read_text())["guarantee"]
    assert guarantee["epsilon"] == guarantee["epsilon_unamplified"]  # nothing is amplified
