"""The hostile server: Python's device withstands it, and a gullible one is found out."""

from __future__ import annotations

import json
import os
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pfl_lm.cli import app
from pfl_lm.conformance.suite import suite
from pfl_lm.dp.policy import Policy
from pfl_lm.network import participant as participant_module
from pfl_lm.network import requirements
from pfl_lm.network.device import Device
from pfl_lm.network.hostile.cases import CASES, chosen
from pfl_lm.network.hostile.run import Command, play_all, prepare, write_outcomes
from pfl_lm.network.hostile.watch import Patience, Verdict
from pfl_lm.network.participation_record import ParticipationRecord
from pfl_lm.recipes import load
from pfl_lm.secagg import checks
from tests.network.conftest import free_port

PATIENCE = Patience(arrival=60.0, silence=10.0)
VICTIM = 2
POLICY = {
    "population": "600",
    "report_goal": "6",
    "rounds": "400",
    "delta": "1e-3",
    "participation": '{ kind = "rotation", min_separation = 100 }',
    "noise": '{ at = "device", kind = "skellam", tolerated_dropout = 0.4 }',
}
MANY = 240  # devices: the fewest whose graph, in signed rounds, lies can cut
SPARSE = POLICY | {
    "population": f"{100 * MANY}",
    "report_goal": f"{MANY}",
    "delta": "1e-5",
    "noise": '{ at = "device", kind = "skellam", tolerated_dropout = 0.2 }',
}
UNHURRIED = Patience(arrival=1800.0, silence=60.0)  # the server plays hundreds of other devices


class Threaded:
    """A device of this package in a thread of its own."""

    def __init__(self, run) -> None:
        self.error = ""
        self._thread = threading.Thread(target=self._guarded, args=(run,), daemon=True)
        self._thread.start()

    def _guarded(self, run) -> None:
        try:
            run()
        except ValueError as error:
            self.error = str(error)

    def has_ended(self) -> bool:
        return not self._thread.is_alive()

    def said(self) -> str:
        return self.error

    def stop(self) -> None:
        self._thread.join(30)
        assert self.has_ended()


@pytest.fixture
def attack(trial, policy_file, tmp_path):
    """A function that plays cases against a device of full strength, and returns how they end."""

    def play(
        *names: str, kind=Device, signed: bool = True, devices: int = 6, policy=POLICY,
        patience=PATIENCE,
    ):  # fmt: skip
        path = policy_file(**policy) if signed else None
        changes = {"adversary": None if signed else "semi-honest", "rounds": 400 if signed else 4}
        run = trial(devices, policy=path, reproducible=False, **changes)
        setup = replace(run.setup(VICTIM), policy=path and load(Policy, path), trial=not signed)

        def start(case: str) -> Threaded:
            def take_part() -> None:
                record = ParticipationRecord(tmp_path / f"{case}.record", first_install=True)
                own = replace(setup, record=record if signed else None)
                kind(run.client(VICTIM), run.key(VICTIM), own).run()

            return Threaded(take_part)

        prepared = prepare(run.scenario, run.keys, run.address, patience, not signed, start)
        return [*play_all(prepared, [CASES[name] for name in names])]

    return play


def test_the_device_withstands_a_lie_at_every_stage(attack):
    names = (
        *("honest", "another_certificate", "task_enrolled", "invitation_min_reports"),
        *("model_endless", "roster_server_keys", "inbox_replayed_share", "survivors_overlap"),
        *("request_split", "again_inbox"),
    )
    outcomes = attack(*names)
    for outcome in outcomes:
        assert outcome.verdict is Verdict.WITHSTOOD, outcome
    assert "a sum of 6 reports" in outcomes[0].reason
    assert "another certificate" in outcomes[1].reason
    assert "6 devices are enrolled" in outcomes[2].reason


def test_the_device_withstands_lies_in_unsigned_rounds(attack):
    outcomes = attack("roster_own_mask_key", "survivors_too_few", "task_rounds", signed=False)
    assert [outcome.verdict for outcome in outcomes] == ["withstood", "withstood", "not played"]


@pytest.mark.skipif(
    "PFL_LM_TEST_MINUTES" not in os.environ,
    reason="takes minutes; PFL_LM_TEST_MINUTES=1 plays rounds of 240 devices",
)
def test_the_device_withstands_lies_about_a_sparse_graph(attack, caplog):
    """In signed rounds; the hostile server plays the other devices."""
    reasons = {
        "survivors_window": "48 consecutive devices hold fewer than 13 survivors",
        "survivors_too_few_holders": "fewer neighbours survive than shares are needed",
        "invitation_window_survivors": "states window_survivors = 12, it should be 13",
    }
    for outcome in attack(*reasons, devices=MANY, policy=SPARSE, patience=UNHURRIED):
        assert outcome.verdict is Verdict.WITHSTOOD, outcome
        assert reasons[outcome.case.name] in caplog.text


GULLIBLE = {
    "task_enrolled": (requirements, ("check_run", "check_rule"), "keys"),
    "invitation_min_reports": (participant_module, ("stated",), "keys"),
    "roster_signature": (checks, ("check_advertised",), "shares"),
    "inbox_too_few": (checks, ("check_inbox",), "report"),
    "survivors_overlap": (checks, ("check_outcome",), "confirmation"),
    "request_too_few": (checks, ("check_quorum",), "answer"),
}


@pytest.mark.parametrize("name", GULLIBLE)
def test_a_device_without_the_check_is_cheated(attack, monkeypatch, name):
    module, functions, sent = GULLIBLE[name]
    for function in functions:
        monkeypatch.setattr(module, function, lambda *arguments: {})
    (outcome,) = attack(name)
    assert outcome.verdict is Verdict.CHEATED
    assert outcome.reason == f"sent its {sent}"


class Twice(Device):
    """Answers a second time, other bytes."""

    def _send(self, round: int, frame: bytes, seen: int):
        item = super()._send(round, frame, seen)
        if frame[5] == 9:
            super()._send(round, frame[:-1] + bytes([frame[-1] ^ 1]), seen)
        return item


def test_a_device_that_answers_twice_is_cheated(attack):
    (outcome,) = attack("again_request", kind=Twice)
    assert outcome.verdict is Verdict.CHEATED
    assert outcome.saw[-2:] == ("was told the lie", "sent its answer")


def test_every_lie_of_the_negative_vectors_is_a_case():
    names = {"signed_roster_": "roster_", "roster_": "roster_", "inbox_": "inbox_"}
    names |= {"outcome_": "survivors_", "request_": "request_", "frame_": "roster_frame_"}
    names |= {"body_": "roster_body_", "again_": ""}
    played_elsewhere = {
        "roster_too_few_holders",  # of a graph that this round has not
        "outcome_stranger",
        "inbox_first",
    }
    for vector in suite():
        for start, prefix in names.items():
            if vector.refused and vector.name.startswith(start) and prefix:
                if vector.name not in played_elsewhere:
                    assert prefix + vector.name.removeprefix(start) in CASES, vector.name
                break
    assert all(case.sentence.endswith(".") for case in CASES.values())


def test_a_device_that_never_calls_shows_nothing(trial, tmp_path):
    run = trial(policy=None, adversary="semi-honest")
    line = f"{sys.executable} -c \"print('I stay at home: {{case}}')\""
    start = Command(line, tmp_path)
    prepared = prepare(run.scenario, run.keys, run.address, PATIENCE, True, start)
    outcomes = [*play_all(prepared, chosen("roster_huge"))]
    assert outcomes[0].verdict is Verdict.UNTOLD
    assert outcomes[0].reason == "no device called: I stay at home: roster_huge"
    write_outcomes(outcomes, tmp_path / "hostile.json")
    (row,) = json.loads((tmp_path / "hostile.json").read_text(encoding="utf-8"))["cases"]
    assert row["verdict"] == "not reached"
    assert Path(tmp_path / "roster_huge.log").is_file()


def test_keys_that_are_in_use_or_without_the_authority_are_refused(trial, tmp_path):
    run = trial(policy=None, adversary="semi-honest")
    with pytest.raises(ValueError, match="no case is called 'lie'"):
        chosen("honest, lie")
    with pytest.raises(ValueError, match="no program"):
        Command("", tmp_path)
    ledger = run.keys.account().path
    ledger.parent.mkdir(exist_ok=True)
    ledger.touch()
    try:
        with pytest.raises(ValueError, match="has taken part in rounds"):
            prepare(run.scenario, run.keys, run.address, PATIENCE, trial=True)
    finally:
        ledger.unlink()
    secret = run.keys.folder / "authority.key"
    aside = secret.rename(tmp_path / "authority.key")
    try:
        with pytest.raises(ValueError, match=r"authority\.key is missing"):
            prepare(run.scenario, run.keys, run.address, PATIENCE, trial=True)
    finally:
        aside.rename(secret)


def test_the_command_line_lists_the_cases():
    result = CliRunner().invoke(app, ["serve", "--hostile", "list"])
    assert result.exit_code == 0
    assert "survivors_overlap" in result.output


def test_the_command_line_ends_with_1_if_the_device_shows_nothing(tmp_path, trial):
    """A whole command: the device is a program that ends at once."""
    run = trial()
    project, output = tmp_path / "project", tmp_path / "attacked"
    assert CliRunner().invoke(app, ["new", str(project), "-t", "network"]).exit_code == 0
    words = ["serve", str(project / "scenario.toml"), "--keys", str(run.keys.folder), "--trial"]
    changes = (
        "cohort=6",
        "population.users=6",
        "population.language=",
        "model.vocabulary_size=300",
    )
    words += [*(f"--set={change}" for change in changes), "--listen", run.address]
    words += ["--hostile", "roster_cut,task_rounds", "-o", str(output)]
    refused = CliRunner().invoke(app, [*words])
    assert isinstance(refused.exception, ValueError)
    assert "no case is called 'roster_cut'" in str(refused.exception)
    assert not output.exists()
    words[words.index("roster_cut,task_rounds")] = "roster_frame_cut,task_rounds"
    words += ["--web-listen", f"127.0.0.1:{free_port()}"]
    line = f"{sys.executable} -c \"print('{{page}}')\""
    ended = CliRunner().invoke(app, [*words, "--device", line])
    assert ended.exit_code == 1
    assert "withstood 0 of 1 cases" in ended.output
    rows = json.loads((output / "hostile.json").read_text(encoding="utf-8"))["cases"]
    assert [row["verdict"] for row in rows] == ["not reached", "not played"]
    assert f"no device called: http://{words[-1]}/" in rows[0]["device"]
    again = CliRunner().invoke(app, words)
    assert "exists already" in str(again.exception)
