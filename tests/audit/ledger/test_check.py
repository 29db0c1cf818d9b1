"""Tampering with a run's records is found and named; random tampering is never accepted."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pfl_lm.audit.artifacts import RunArtifacts
from pfl_lm.audit.chain import read_chain
from pfl_lm.audit.ledger.check import audit_ledger, integrity
from pfl_lm.run.folder import RunFolder


@pytest.fixture
def run(honest_run, tmp_path) -> Path:
    return Path(shutil.copytree(honest_run, tmp_path / "run"))


def found(run: Path) -> dict[str, str]:
    """Audit a ledger; return the failing findings by name."""
    part = audit_ledger(RunArtifacts.open(run))
    return {f.name: f.text for f in part.findings if f.holds is False}


def lines_of(run: Path) -> list[str]:
    return (run / "ledger.jsonl").read_text().split("\n")[:-1]


def write(run: Path, lines: list[str]) -> None:
    (run / "ledger.jsonl").write_text("".join(line + "\n" for line in lines))


def rechained(lines: list[str]) -> list[str]:
    """Give edited entries a chain that fits: what one who knows the format would do."""
    fresh, previous = [], "0" * 64
    for index, line in enumerate(lines):
        body = {"index": index, "previous": previous, "entry": json.loads(line)["entry"]}
        text = json.dumps(body, sort_keys=True, separators=(",", ":"))
        previous = hashlib.sha256(text.encode()).hexdigest()
        full = {**body, "hash": previous}
        fresh.append(json.dumps(full, sort_keys=True, separators=(",", ":")))
    return fresh


def test_the_chain_of_an_honest_run_is_whole(run):
    chain = read_chain(run / "ledger.jsonl")
    assert chain.fault == ""
    assert len(chain.entries) == 14
    assert found(run) == {}


def test_a_removed_entry(run):
    lines = lines_of(run)
    write(run, lines[:5] + lines[6:])
    assert "line 6: entry 6 stands here" in found(run)["hash chain"]


def test_reordered_entries(run):
    lines = lines_of(run)
    lines[3], lines[4] = lines[4], lines[3]
    write(run, lines)
    assert "line 4" in found(run)["hash chain"]


def test_an_edited_entry(run):
    lines = lines_of(run)
    write(run, [line.replace('"reports":', '"reports":1', 1) for line in lines])
    assert "edited" in found(run)["hash chain"]


def test_a_truncated_file(run):
    path = run / "ledger.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert "cut off in the middle" in found(run)["hash chain"]


def test_a_ledger_cut_off_between_entries(run):
    write(run, lines_of(run)[:-3])
    assert "Round 10 is in the metrics but not in the ledger" in found(run)["ledger is complete"]


def test_a_cut_that_takes_the_metrics_with_it_meets_the_checkpoint(run):
    write(run, lines_of(run)[:-3])
    metrics = run / "metrics.jsonl"
    kept = [m for m in metrics.read_text().split("\n")[:-1] if json.loads(m)["round"] < 10]
    metrics.write_text("".join(line + "\n" for line in kept))
    assert "remembers an entry that is gone" in found(run)["checkpoints of this ledger"]


def test_an_appended_entry_with_a_chain_that_fits(run):
    lines = lines_of(run)
    extra = json.loads(lines[-2])
    extra["entry"]["round"] = 40
    write(run, rechained([*lines, json.dumps(extra)]))
    assert "Round 40 was appended" in found(run)["ledger is complete"]


def test_the_ledger_of_another_run(run):
    lines = lines_of(run)
    genesis = json.loads(lines[0])
    genesis["entry"]["run"] = "elsewhere"
    write(run, rechained([json.dumps(genesis), *lines[1:]]))
    assert "written by run 'elsewhere'" in found(run)["ledger of this run"]


def test_a_manifest_that_does_not_belong(run):
    path = run / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["policy"]["epsilon"] = 8.0
    path.write_text(json.dumps(manifest))
    assert "policy is not the one" in found(run)["ledger of this run"]


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("clip_norm", 5.0, "clipped to 5.0"),
        ("sum_multiplier", 1e-4, "carried"),
        ("divisor", 19, "Round 4 divided by 19"),
        ("reports", 18, "the ledger of 18"),
        ("grid", {"scale": 1.0, "norm_bound": 1.0, "bits": 20}, "steps to the clip"),
        ("event", None, "records no event"),
        ("noise", {"planned": 0.5, "achieved": 0.5}, "planned noise of 0.5"),
        ("payload", {"dim": 900, "digest": ""}, "900 coordinates travelled"),
    ],
)
def test_a_round_that_deviates_is_pointed_to_even_if_the_chain_fits(run, name, value, says):
    lines = lines_of(run)
    changed = json.loads(lines[5])
    changed["entry"][name] = value
    write(run, rechained([*lines[:5], json.dumps(changed), *lines[6:]]))
    told = found(run)
    assert any(says in text for text in told.values()), told
    assert any("ound 4" in text for text in told.values()), told


def test_dropout_that_is_not_recorded_as_less_noise(run):
    lines = lines_of(run)
    changed = json.loads(lines[7])
    changed["entry"]["noise"]["achieved"] *= 1.1
    write(run, rechained([*lines[:7], json.dumps(changed), *lines[8:]]))
    assert "says that its sum carries noise of" in found(run)["every round as promised"]


def test_an_event_that_claims_more_noise_than_there_was(run):
    lines = lines_of(run)
    changed = json.loads(lines[7])
    changed["entry"]["event"]["noise_multiplier"] *= 2
    write(run, rechained([*lines[:7], json.dumps(changed), *lines[8:]]))
    assert "Round 6 is the first that deviates" in found(run)["every round as promised"]


def test_a_ring_in_which_the_sum_may_wrap(run):
    lines = lines_of(run)
    changed = json.loads(lines[5])
    changed["entry"]["grid"]["bits"] -= 8
    write(run, rechained([*lines[:5], json.dumps(changed), *lines[6:]]))
    assert "may wrap" in found(run)["every round as promised"]


def test_a_round_opened_with_fewer_reports_than_carry_the_noise(tiny_run, policy_text, tmp_path):
    rotation = policy_text.replace('"poisson"', '"rotation", min_separation = 6')
    run = tiny_run(tmp_path, rotation)
    lines = lines_of(run)
    changed = json.loads(lines[5])
    changed["entry"]["reports"] = 12
    write(run, rechained([*lines[:5], json.dumps(changed), *lines[6:]]))
    assert "Round 4 is the first that deviates" in found(run)["every round as promised"]


def test_a_run_with_removed_excess_rotation_and_dropout_is_as_promised(
    tiny_run, policy_text, tmp_path
):
    removed = 'tolerated_dropout = 0.4, excess = "removed", honest_fraction = 0.9'
    policy = policy_text.replace("tolerated_dropout = 0.1", removed)
    run = tiny_run(tmp_path, policy.replace('"poisson"', '"fixed"'), dropout=0.2, rotate=True)
    assert found(run) == {}
    lines = lines_of(run)
    for field, value, says in (("sum_multiplier", 0.9, "promised"), ("reports", 0.5, "opened")):
        changed = json.loads(lines[5])
        number = changed["entry"][field] * value
        changed["entry"][field] = int(number) if field == "reports" else number
        write(run, rechained([*lines[:5], json.dumps(changed), *lines[6:]]))
        assert "Round 4 is the first that deviates" in found(run)["every round as promised"], says


def manifest_values(value, path=()):
    """Yield the way to every value of a manifest."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        if isinstance(item, dict | list) and item:
            yield from manifest_values(item, (*path, key))
        else:
            yield (*path, key)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_a_manifest_edited_anywhere_does_not_belong(run, data):
    whole = (run / "ledger.jsonl").parent / "manifest.json"
    manifest = json.loads(whole.read_text())
    *way, last = data.draw(st.sampled_from(list(manifest_values(manifest))))
    table = manifest
    for key in way:
        table = table[key]
    table[last] = f"{table[last]} but edited"
    artifacts = RunArtifacts(RunFolder(run), manifest)
    failing = {
        f.name for f in integrity(artifacts, read_chain(run / "ledger.jsonl")) if not f.holds
    }
    assert "ledger of this run" in failing


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_random_tampering_is_never_accepted(honest_run, tmp_path, data):
    path = tmp_path / "run" / "ledger.jsonl"
    if not path.exists():
        shutil.copytree(honest_run, tmp_path / "run")
    whole = (honest_run / "ledger.jsonl").read_bytes()
    changed = data.draw(tampering(whole))
    if changed == whole:
        return
    path.write_bytes(changed)
    chain = read_chain(path)
    assert any(f.holds is False for f in integrity(RunArtifacts.open(tmp_path / "run"), chain))


@st.composite
def tampering(draw, whole: bytes) -> bytes:
    """Draw another file: bits flipped, bytes cut or added, lines removed, doubled or moved."""
    kind = draw(st.sampled_from(["flip", "cut", "add", "end", "remove", "double", "move"]))
    place = draw(st.integers(0, len(whole) - 1))
    lines = whole.split(b"\n")[:-1]
    i, j = (draw(st.integers(0, len(lines) - 1)) for _ in range(2))
    if kind == "flip":
        bit = 1 << draw(st.integers(0, 7))
        return whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :]
    if kind == "cut":
        return whole[:place] + whole[place + draw(st.integers(1, 400)) :]
    if kind == "add":
        return whole[:place] + draw(st.binary(min_size=1, max_size=20)) + whole[place:]
    if kind == "end":
        return whole[:place]
    if kind == "remove":
        lines.pop(i)
    elif kind == "double":
        lines.insert(j, lines[i])
    else:
        lines.insert(j, lines.pop(i))
    return b"".join(line + b"\n" for line in lines)
