"""The gate to a run's folder, and rounds that were not opened, whatever happened to them."""

from __future__ import annotations

import fcntl
import hashlib
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pfl_lm.cli.progress import summarise
from pfl_lm.report.headline import rounds_opened
from pfl_lm.run.folder import RunFolder, write_json
from pfl_lm.run.resume import check_free
from pfl_lm.run.simulate import simulate

pytestmark = pytest.mark.usefixtures("quick")

FOLDERS = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def finished(tiny_scenario, new_watcher, quick, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("finished") / "run"
    simulate(tiny_scenario(rounds=1), run, new_watcher())
    return run


def content(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.mark.parametrize(("resume", "overwrite"), [(False, False), (True, False), (False, True)])
def test_nobody_touches_a_run_that_another_process_writes(
    tiny_scenario, new_watcher, finished, resume, overwrite
):
    before = content(finished)
    with (finished / "ledger.jsonl").open("rb") as ledger:
        fcntl.flock(ledger, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match=r"another process|is not empty"):
            simulate(
                tiny_scenario(rounds=1), finished, new_watcher(), resume=resume, overwrite=overwrite
            )
    assert content(finished) == before


FILES = st.dictionaries(
    st.sampled_from(
        ["notes.txt", "model.pt", "metrics.jsonl", "report.html", "ledger.jsonl", "x/y"]
    ),
    st.binary(max_size=20),
    max_size=4,
)


@FOLDERS
@given(FILES, st.booleans())
def test_what_is_no_run_is_never_deleted(tmp_path_factory, files, overwrite):
    folder = tmp_path_factory.mktemp("other")
    for name, data in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    before = content(folder)
    if files:
        with pytest.raises(ValueError, match=r"is not (empty|a run folder)"):
            check_free(RunFolder(folder), overwrite)
    else:
        assert check_free(RunFolder(folder), overwrite) is False
    assert content(folder) == before


@FOLDERS
@given(st.lists(st.booleans(), min_size=1, max_size=8))
def test_rounds_that_opened_no_sum_are_counted_in_the_summary(
    tmp_path_factory, capsys, monkeypatch, opened
):
    monkeypatch.setenv("COLUMNS", "200")
    folder = RunFolder(tmp_path_factory.mktemp("run"))
    row = {"perplexity": 9.0, "top1": 0.1, "top3": 0.2, "keystrokes_saved": 0.1}
    write_json(folder.evaluation_path, {"split": "test", "rows": [{"name": "start", **row}]})
    words = {"guaranteed": "", "simulated": ""}
    write_json(folder.manifest_path, {"statements": words, "secure_aggregation": {"ran": "ideal"}})
    norms = ["0.5" if one else "null" for one in opened]
    lines = [f'{{"kind": "round", "round": {i}, "mean_norm": {n}}}\n' for i, n in enumerate(norms)]
    folder.metrics_path.write_text("".join(lines))
    summarise(folder, folder.report_path)
    out = capsys.readouterr().out
    assert (f"Opened      {sum(opened)} of {len(opened)} rounds" in out) is (not all(opened))
    assert ("the model is what it started from" in out) is (not any(opened))


@FOLDERS
@given(st.lists(st.booleans(), min_size=1, max_size=8))
def test_pages_count_rounds_that_opened_no_sum(opened):
    lines = [{"mean_norm": 0.5 if one else None} for one in opened]
    told = rounds_opened(SimpleNamespace(rounds=lines))  # type: ignore[arg-type]
    assert ("opened of" in told) is (not all(opened))
    assert told.split()[0] == str(sum(opened) if "opened" in told else len(opened))
    assert told.split()[-1] == str(len(opened))
