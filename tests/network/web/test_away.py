"""The device in JavaScript while its server is away: a laptop that slept asks again."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from pfl_lm.web_device import FOLDER

SCRIPT = """
import { Service } from SERVICE;
const real = Date.now;
let skew = 0, calls = 0;
Date.now = () => real() + skew;
globalThis.fetch = async () => {
  calls += 1;
  if (calls <= GONE) { skew += SLEPT; throw new Error("the network has changed"); }
  return new Response("not you", { status: 403, headers: { "grpc-status": "7" } });
};
const service = new Service("http://127.0.0.1/", { number: 1 }, () => {}, PATIENCE);
const error = await service.open().catch((error) => error);
console.log(JSON.stringify([calls, error.message]));
"""


def asked(gone: int, slept_seconds: int, patience: float) -> list:
    """Return how often a device asked, and what it was told last."""
    if (node := shutil.which("node")) is None:
        pytest.skip("node is not installed")
    service = json.dumps((FOLDER / "service.mjs").as_uri())
    values = {"SERVICE": service, "GONE": gone, "SLEPT": 1000 * slept_seconds, "PATIENCE": patience}
    script = SCRIPT
    for name, value in values.items():
        script = script.replace(name, str(value))
    command = [node, "--input-type=module", "-e", script]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
    return json.loads(done.stdout)


def test_sleep_is_no_absence_of_the_server():
    assert asked(gone=2, slept_seconds=7200, patience=600) == [3, "the server refuses: not you"]


def test_a_server_that_stays_away_is_given_up():
    calls, told = asked(gone=1000, slept_seconds=60, patience=100)
    assert calls == 2
    assert told.startswith("no server for a long time")
