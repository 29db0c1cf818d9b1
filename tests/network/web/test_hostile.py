"""The hostile server over HTTP and HTTPS: the device in JavaScript withstands it."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from pfl_lm.network.hostile.cases import CASES
from pfl_lm.network.hostile.run import Command, play_all, prepare
from pfl_lm.network.hostile.watch import Patience, Verdict
from pfl_lm.network.web import Browsers, WebAddress
from pfl_lm.run.context import choose_payload
from pfl_lm.web_device import FOLDER
from tests.network.conftest import free_port
from tests.network.test_hostile import MANY, POLICY, SPARSE, UNHURRIED, VICTIM
from tests.network.web.conftest import DEVICE, needs_node, plain_key

pytestmark = needs_node
PATIENCE = Patience(arrival=60.0, silence=8.0)
UNSIGNED = {"policy": None, "adversary": "semi-honest", "rounds": 4}
REASONS = {
    "survivors_window": "48 consecutive devices hold too few survivors",
    "survivors_too_few_holders": "fewer neighbours survive than shares are needed",
    "invitation_window_survivors": "states window_survivors = 12, not 13",
}


@pytest.fixture
def attack(web_trial, policy_file, tmp_path):
    """A function that plays cases against a device in Node, and returns how they end."""

    def play(
        *names: str, listen: str = "127.0.0.1", environment: str = "", patience=PATIENCE,
        policy: dict | None = POLICY, devices: int = 6, give_up_seconds: int = 1, **changes,
    ):  # fmt: skip
        signed = policy is not None
        full = {"adversary": "active", "rounds": 400, **changes}
        path = policy_file(**policy) if signed else None
        run = web_trial(devices, reproducible=False, policy=path, **full)
        run.web = WebAddress(f"{listen}:{free_port()}", run.keys)
        setup, record = tmp_path / "setup.json", tmp_path / "{case}.record" if signed else ""
        certificate = f"NODE_EXTRA_CA_CERTS={run.keys.certificate}"
        line = f"env {certificate} {environment} node {DEVICE} {setup} {record}"
        attack = prepare(
            run.scenario, run.keys, run.address, patience, not signed,
            Command(line, tmp_path), Browsers(run.web),
        )  # fmt: skip
        zeros = np.zeros(choose_payload(run.context, 0).dim, "<f4").tobytes().hex()
        about = {"modules": FOLDER.as_uri(), "address": run.page, "first_install": True}
        about |= {"key": plain_key(run.keys, VICTIM), "updates": [zeros]}
        about |= {"take_part": attack.browsers.task(attack.context, not signed)}
        about |= {"give_up_seconds": give_up_seconds}
        setup.write_text(json.dumps(about), encoding="utf-8")
        return [*play_all(attack, [CASES[name] for name in names])]

    return play


def test_the_device_withstands_lies_by_their_names(attack):
    reasons = {
        "honest": "a sum of 6 reports",
        "task_enrolled": "is not the one that this page was made for (enrolled)",
        "invitation_min_reports": "states min_reports = 3, not 4",
        "model_endless": "it is longer than the",
        "roster_server_keys": "a signature does not verify",
    }
    for outcome, reason in zip(attack(*reasons), reasons.values(), strict=True):
        assert outcome.verdict is Verdict.WITHSTOOD, outcome
        assert reason in outcome.reason


def test_another_certificate_is_not_spoken_to(attack):
    (outcome,) = attack("another_certificate", listen="0.0.0.0")
    assert outcome.verdict is Verdict.WITHSTOOD
    assert "self-signed certificate" in outcome.reason
    trusting = "NODE_TLS_REJECT_UNAUTHORIZED=0"
    (outcome,) = attack("another_certificate", listen="0.0.0.0", environment=trusting)
    assert outcome.verdict is Verdict.CHEATED
    (outcome,) = attack("another_certificate")
    assert outcome.verdict is Verdict.SKIPPED  # HTTP


takes_minutes = pytest.mark.skipif(
    "PFL_LM_TEST_MINUTES" not in os.environ,
    reason="takes minutes; PFL_LM_TEST_MINUTES=1 plays every case, in signed and unsigned rounds",
)


@takes_minutes
@pytest.mark.parametrize(
    ("names", "changes", "withstood"),
    [
        (CASES, {}, 90),
        (CASES, UNSIGNED, 67),
        (["inbox_stranger"], {"devices": 60, **UNSIGNED}, 1),
    ],
    ids=["signed", "unsigned", "sparse"],
)
def test_the_device_withstands_every_case(attack, names, changes, withstood):
    outcomes = attack(*names, **changes)
    assert [outcome for outcome in outcomes if outcome.verdict.fails] == []
    verdicts = [outcome.verdict for outcome in outcomes]
    assert verdicts.count(Verdict.WITHSTOOD) == withstood


@takes_minutes
def test_the_device_withstands_lies_about_a_sparse_graph(attack):
    """In signed rounds; the hostile server plays the other devices."""
    patient = {"patience": UNHURRIED, "give_up_seconds": 600}
    outcomes = attack(*REASONS, devices=MANY, policy=SPARSE, **patient)
    for outcome, reason in zip(outcomes, REASONS.values(), strict=True):
        assert outcome.verdict is Verdict.WITHSTOOD, outcome
        assert reason in outcome.reason
