"""Devices in Node beside devices in Python."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from pfl_lm.network.identity import ServerKeys
from pfl_lm.network.web import Browsers, WebAddress
from pfl_lm.web_device import FOLDER
from tests.conformance.test_javascript import missing
from tests.network.conftest import Trial, free_port

DEVICE = Path(__file__).parent / "device.mjs"
needs_node = pytest.mark.skipif(missing() is not None, reason=str(missing()))


def plain_key(keys: ServerKeys, number: int) -> dict:
    """Return a device's key as a link carries it."""
    plain = json.loads((keys.folder / "devices" / f"{number:05d}.json").read_text())
    return plain | {"server": keys.server_certificate().digest.hex()}


def play(address: str, key: dict, **setup) -> dict:
    """Play a device in Node until its run is over; return what it says at its end."""
    about = {"modules": FOLDER.as_uri(), "address": address, "key": key, **setup}
    done = subprocess.run(
        ["node", DEVICE], input=json.dumps(about), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def in_node(script: str, given) -> object:
    """Run statements over ``given`` with all modules at hand; return what they call ``found``."""
    names = ("streams", "cohort", "record", "training", "model", "protobuf", "enrolment", "bytes")
    names += ("payload", "service")
    imports = "".join(f'import * as {n} from "{FOLDER.as_uri()}/{n}.mjs";\n' for n in names)
    read = "const chunks = []; for await (const c of process.stdin) chunks.push(c);\n"
    read += 'const given = JSON.parse(chunks.join(""));\n'
    done = subprocess.run(
        ["node", "--input-type=module", "-e",
         f"{imports}{read}{script}\nconsole.log(JSON.stringify(found));"],
        input=json.dumps(given), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


class WebTrial(Trial):
    """A trial whose server answers browsers too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.web = WebAddress(f"127.0.0.1:{free_port()}", self.keys)

    @property
    def page(self) -> str:
        return self.web.page

    def serving(self, **changes):
        return replace(super().serving(**changes), browsers=Browsers(self.web))

    def node(self, number: int, updates, **changes) -> dict:
        """Play a device in Node until the run is over; return what it says at its end."""
        sent = [update.astype("<f4").tobytes().hex() for update in updates]
        return play(self.page, plain_key(self.keys, number), updates=sent, **changes)


@pytest.fixture(scope="module")
def web_trial(small, keys_of, tmp_path_factory, quick):
    """A function that returns a trial; its arguments replace fields of the scenario."""

    def build(devices: int = 6, **changes) -> WebTrial:
        folder = tmp_path_factory.mktemp("served") / "run"
        return WebTrial(small(devices, **changes), folder, keys_of(devices))

    return build
