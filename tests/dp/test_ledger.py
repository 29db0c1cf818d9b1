"""The ledger: a debit is on the disk before anything is released, and nothing can be taken back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pfl_lm.dp import ledger as module
from pfl_lm.dp.ledger import Ledger, LedgerError, verify

GENESIS = {"run": "demo", "policy_digest": "ab" * 32, "promise": {"epsilon": 2.0, "delta": 1e-6}}
Json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A ledger of a genesis and five rounds, closed."""
    path = tmp_path / "ledger.jsonl"
    with Ledger.create(path, GENESIS) as ledger:
        for round in range(5):
            ledger.record_round(round, {"noise_multiplier": 1.5, "release": f"{round:064x}"})
    return path


def test_what_was_recorded_is_found_again(path: Path) -> None:
    entries = verify(path)
    assert entries[0] == {"kind": "genesis", **GENESIS}
    assert [entry["round"] for entry in entries[1:]] == [0, 1, 2, 3, 4]
    with Ledger.open(path) as ledger:
        assert ledger.entries() == entries
        head = ledger.record({"kind": "note", "text": "é"})
        assert ledger.head == head
        assert ledger.dropped == ""
    assert verify(path, head)[-1] == {"kind": "note", "text": "é"}


@given(entry=st.dictionaries(st.text(max_size=4).filter(lambda name: name != "kind"), Json))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_json_survives(tmp_path: Path, entry: dict[str, Any]) -> None:
    path = tmp_path / "any.jsonl"
    path.unlink(missing_ok=True)
    with Ledger.create(path, GENESIS) as ledger:
        head = ledger.record(entry)
    assert verify(path, head)[-1] == entry


def test_keys_that_json_turns_into_text_keep_the_chain_whole(path: Path) -> None:
    with Ledger.open(path) as ledger:
        ledger.record({"by_order": {10: 1.0, 9: 2.0}})
    assert verify(path)[-1] == {"by_order": {"10": 1.0, "9": 2.0}}


@given(data=st.data())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_change_is_detected(path: Path, data: st.DataObject) -> None:
    """One byte edited, inserted or removed; lines removed, repeated, exchanged or invented."""
    original = path.read_bytes()
    lines = original.splitlines(keepends=True)
    head = json.loads(lines[-1])["hash"]
    place = data.draw(st.integers(0, len(original) - 1))
    one, two = data.draw(st.integers(0, len(lines) - 1)), data.draw(st.integers(0, len(lines) - 1))
    byte = bytes([data.draw(st.integers(0, 255))])
    swapped = list(lines)
    swapped[one], swapped[two] = lines[two], lines[one]
    changed = data.draw(
        st.sampled_from(
            [
                original[:place] + byte + original[place + 1 :],
                original[:place] + byte + original[place:],
                original[:place] + original[place + 1 :],
                original[:place],
                b"".join(lines[:one] + lines[one + 1 :]),
                b"".join([*lines[:one], lines[two], *lines[one:]]),
                b"".join(swapped),
                b"",
            ]
        )
    )
    forged = path.with_name("forged.jsonl")
    forged.write_bytes(changed)
    if changed == original:
        verify(forged, head)
        return
    with pytest.raises(LedgerError):
        verify(forged, head)


def test_a_value_edited_with_its_own_hash_made_good_breaks_the_next_line(path: Path) -> None:
    import hashlib

    lines = path.read_text().splitlines()
    line = json.loads(lines[2])
    line["entry"]["noise_multiplier"] = 15.0
    body = {name: line[name] for name in ("index", "previous", "entry")}
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    line["hash"] = hashlib.sha256(text.encode()).hexdigest()
    lines[2] = json.dumps(line, sort_keys=True, separators=(",", ":"))
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(LedgerError, match=":4: the chain breaks"):
        verify(path)


def test_last_lines_removed_are_missed_only_by_who_kept_no_head(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    head = json.loads(lines[-1])["hash"]
    path.write_bytes(b"".join(lines[:-1]))
    verify(path)
    with pytest.raises(LedgerError, match="cut short or replaced"):
        verify(path, head)


def test_a_torn_last_line_is_cut_off_and_stated(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b'{"entry":{"kind":"round","rou')
    with pytest.raises(LedgerError, match=":7: unfinished line"):
        verify(path)
    with Ledger.open(path) as ledger:
        assert ledger.dropped == '{"entry":{"kind":"round","rou'
    assert verify(path)[-1] == {"kind": "recovery", "dropped": '{"entry":{"kind":"round","rou'}
    assert len(verify(path)) == 7


def test_a_whole_last_line_without_its_newline_counts(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with Ledger.open(path) as ledger:
        assert ledger.dropped == ""
    assert path.read_bytes() == whole


def test_a_retried_round_is_the_same_debit_or_none(path: Path) -> None:
    with Ledger.open(path) as ledger:
        before = ledger.head
        for round in (4, 2):  # the last one, and one of a resumed older checkpoint
            again = ledger.record_round(
                round, {"noise_multiplier": 1.5, "release": f"{round:064x}"}
            )
            assert again in path.read_text()
        assert ledger.head == before
        for round in (4, 2):
            with pytest.raises(LedgerError, match="spent stays spent"):
                ledger.record_round(round, {"noise_multiplier": 1.5, "release": "f" * 64})
        ledger.record_round(4, {"noise_multiplier": 1.5, "release": "f" * 64}, again=True)
        ledger.record_round(7, {"noise_multiplier": 1.5, "release": "7" * 64})
    assert [e["round"] for e in verify(path)[1:]] == [0, 1, 2, 3, 4, 4, 7]


def test_a_second_writer_is_refused_until_the_first_is_done(path: Path) -> None:
    program = "import sys; from pfl_lm.dp.ledger import Ledger; Ledger.open(sys.argv[1])"
    with Ledger.open(path):
        with pytest.raises(LedgerError, match="another process"):
            Ledger.open(path)
        other = subprocess.run([sys.executable, "-c", program, path], capture_output=True)
        assert b"another process" in other.stderr
    Ledger.open(path).close()


def test_killed_at_any_moment_it_keeps_every_acknowledged_round(tmp_path: Path) -> None:
    """A writer acknowledges each debit on its output and is killed in the midst of it."""
    path = tmp_path / "ledger.jsonl"
    program = (
        "import sys; from pfl_lm.dp.ledger import Ledger\n"
        "ledger = Ledger.create(sys.argv[1], {'run': 'r', 'policy_digest': 'd'})\n"
        "for round in range(10**6):\n"
        "    ledger.record_round(round, {'release': round})\n"
        "    print(round, flush=True)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", program, path], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    for _ in range(20):
        writer.stdout.readline()
    writer.kill()
    acknowledged = 20 + len(writer.stdout.read().splitlines())
    writer.wait()
    writer.stdout.close()
    with Ledger.open(path) as ledger:
        rounds = [entry["round"] for entry in ledger.entries() if entry["kind"] == "round"]
    assert rounds[:acknowledged] == list(range(acknowledged))


def test_a_failed_write_leaves_the_chain_as_it_was(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_bytes()
    with Ledger.open(path) as ledger:
        head = ledger.head

        def full(descriptor: int) -> None:
            raise OSError("No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            ledger.record_round(5, {})
        monkeypatch.undo()
        assert ledger.head == head
        assert path.read_bytes() == before
        ledger.record_round(5, {})
    assert len(verify(path)) == 7


def test_a_ledger_that_cannot_begin_is_removed_unless_another_process_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_: object) -> None:
        raise OSError("no space left on device")

    path = tmp_path / "ledger.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "_append", full_disk)
        with pytest.raises(OSError, match="no space left"):
            Ledger.create(path, GENESIS)
    assert not path.exists()
    with monkeypatch.context() as patch:
        patch.setattr(module, "_lock", full_disk)  # as where another process came first
        with pytest.raises(OSError, match="no space left"):
            Ledger.create(path, GENESIS)
    assert path.exists()


def test_nothing_is_written_to_a_ledger_that_was_removed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = module.fcntl.flock

    def meanwhile(descriptor: int, operation: int) -> None:
        path.unlink(missing_ok=True)
        lock(descriptor, operation)

    monkeypatch.setattr(module.fcntl, "flock", meanwhile)
    with pytest.raises(LedgerError, match="another process removed"):
        Ledger.open(path)


def test_misuse_gets_one_clear_line(path: Path, tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="never started over"):
        Ledger.create(path, GENESIS)
    with pytest.raises(LedgerError, match="policy_digest"):
        Ledger.create(tmp_path / "new.jsonl", {"run": "r"})
    assert not (tmp_path / "new.jsonl").exists()
    for reader in (Ledger.open, verify):
        with pytest.raises(LedgerError, match="no ledger at"):
            reader(tmp_path / "absent.jsonl")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(LedgerError, match="no genesis"):
        verify(tmp_path / "empty.jsonl")
    ledger = Ledger.open(path)
    for entry in ({"x": float("nan")}, {"x": float("inf")}, {"x": object()}):
        with pytest.raises(LedgerError, match="plain JSON"):
            ledger.record(entry)
    with pytest.raises(LedgerError, match="the ledger itself"):
        ledger.record({"kind": "round", "round": 9})
    ledger.close()
    ledger.close()
    with pytest.raises(LedgerError, match="closed"):
        ledger.record({"x": 1})


def test_an_auditor_needs_nothing_heavy() -> None:
    program = (
        "import sys, pfl_lm.dp.ledger\n"
        "heavy = {'numpy', 'torch', 'scipy', 'cryptography'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
