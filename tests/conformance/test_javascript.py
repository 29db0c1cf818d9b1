"""The device in JavaScript, in Node: it answers the vectors, and takes part beside Python ones."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest

from pfl_lm.conformance.answers import answer
from pfl_lm.conformance.play import play, signed_config, small_config
from pfl_lm.conformance.suite import suite
from pfl_lm.conformance.verify import Implementation, compare
from pfl_lm.dp.encoding import protect
from pfl_lm.dp.grid import Grid
from pfl_lm.dp.noise import NoiseShare
from pfl_lm.dp.sampler.random_bits import reproducible_bits
from pfl_lm.secagg.config import MessageKind
from pfl_lm.secagg.ideal import IdealAggregator
from pfl_lm.web_device import ANSWER, FOLDER
from tests.conformance.flips import flipped_input, flipped_output

WAIT = 120.0  # seconds; the machine may be busy
CURVES = "crypto.subtle.generateKey('X25519',0,['deriveBits']).catch(()=>process.exit(1))"
DEVICES = [vector for vector in suite() if vector.kind == "device" and vector.positive]
# The device vectors take most of the time. `pfl-lm protocol verify` asks for all of them.
ASKED = [vector for vector in suite() if vector not in DEVICES or vector in DEVICES[::6]]


def missing() -> str | None:
    node = shutil.which("node")
    if node is None:
        return "node is not installed"
    if subprocess.run([node, "-e", CURVES], capture_output=True).returncode:
        return "this node's WebCrypto has no X25519"
    return None


pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))


@pytest.fixture(scope="module")
def node():
    implementation = Implementation(f"node {ANSWER}")
    yield implementation
    implementation.stop()


def test_it_answers_the_vectors(node):
    problems = [compare(vector, node.ask(vector, WAIT)).problem for vector in ASKED]
    assert [problem for problem in problems if problem] == []
    assert len(ASKED) > 250


def test_a_flipped_bit_fails(node):
    """A sample: every third positive vector, and a device of either kind of round."""
    accepted = [v for v in suite() if v.positive and v not in DEVICES][::3]
    for vector in [*accepted, DEVICES[0], DEVICES[30]]:
        given = node.ask(flipped_input(vector), WAIT)
        assert not compare(vector, given).conforms, vector.name
        assert not compare(flipped_output(vector), node.ask(vector, WAIT)).conforms, vector.name


TWICE = """
import { answer } from "%s/answers.mjs";
import { KeysAdvertised } from "%s/device.mjs";
const { shareKeys } = KeysAdvertised.prototype;
let first = null;
KeysAdvertised.prototype.shareKeys = function (roster) {
  first = shareKeys.call(this, roster); // and again, before the first call has ended
  return shareKeys.call(this, roster);
};
const chunks = [];
for await (const chunk of process.stdin) chunks.push(chunk);
const given = await answer(JSON.parse(chunks.join("")));
console.log(JSON.stringify([given.refused, (await first).message.length]));
"""


def test_a_state_is_left_once_also_by_two_calls_at_the_same_time():
    script = TWICE % (FOLDER.as_uri(), FOLDER.as_uri())
    request = json.dumps({"kind": "device", "inputs": DEVICES[0].inputs})
    done = subprocess.run(
        ["node", "--input-type=module", "-e", script],
        input=request, capture_output=True, text=True, check=True,
    )  # fmt: skip
    refused, length = json.loads(done.stdout)
    assert refused == "wrong_state"
    assert length > 100


SECURE = """
import { Keystream } from "%s/primitives.mjs";
import { Grid, encode } from "%s/encoding.mjs";
const draw = () => encode(new Float32Array(50), new Grid(50, 1, 8), 400, Keystream.secure());
const whole = ({ vector }) => BigInt64Array.from(vector, BigInt);
const vectors = [whole(await draw()), whole(await draw())];
console.log(vectors.map(String).join(" "));
"""


def test_a_secure_stream_draws_other_noise_every_time():
    script = SECURE % (FOLDER.as_uri(), FOLDER.as_uri())
    command = ["node", "--input-type=module", "-e", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    one, other = done.stdout.split()
    assert one != other
    assert max(abs(int(entry)) for entry in one.split(",")) < 400  # 20 standard deviations


def test_what_is_drawn_at_random_is_answered_alike(node):
    """Noise and encodings of sizes that no vector has."""
    rng = np.random.default_rng(11)
    for _ in range(12):
        dim, clip_norm = int(rng.integers(1, 2000)), float(10 ** rng.uniform(-3, 2))
        noise = {"variance": float(10 ** rng.uniform(-4, 5)), "seed": rng.bytes(32).hex()}
        update = (rng.normal(size=dim) * clip_norm * 10 ** rng.uniform(-3, 1)).astype("<f4")
        grid = {"dim": dim, "clip_norm": clip_norm, "grid_steps": float(10 ** rng.uniform(-1, 1))}
        indicator = {"clip_norm": clip_norm, "indicator_weight": float(rng.uniform(1e-3, 0.5))}
        for kind, inputs in (
            ("skellam", {"dim": dim, **noise}),
            ("indicate", {"update": update.tobytes().hex(), **indicator}),
            ("encode", {"update": update.tobytes().hex(), **grid, **noise}),
        ):
            vector = replace(DEVICES[0], kind=kind, inputs=inputs, **answer(kind, inputs))
            assert compare(vector, node.ask(vector, WAIT)).conforms, inputs


UPDATES = np.random.default_rng(3).normal(size=(5, 11)).astype(np.float32)
GRID = Grid(11, 1.0, 8.0, 20)
SHARE = NoiseShare("skellam", 20.0)


def key(device: int) -> bytes:
    return bytes([device + 1]) * 32


def encoded(node, device: int) -> np.ndarray:
    """A device's vector, clipped, rounded and noised in JavaScript."""
    vector = replace(
        DEVICES[0],
        kind="encode",
        inputs={
            "update": UPDATES[device].tobytes().hex(),
            "seed": key(device).hex(),
            "dim": GRID.dim,
            "clip_norm": GRID.clip_norm,
            "grid_steps": GRID.grid_steps,
            "variance": SHARE.variance,
        },
    )
    return np.array(node.ask(vector, WAIT)["output"]["vector"])


@pytest.mark.parametrize("config", [small_config(), signed_config()], ids=["unsigned", "signed"])
def test_a_mixed_round_gives_the_simulators_bytes(node, config):
    """Devices 1 and 3 run in Node, and device 2 drops out after it dealt shares."""
    simulated, _ = protect(UPDATES, GRID, SHARE, [reproducible_bits(key(i)) for i in range(5)])
    ideal = IdealAggregator(config.dim, config.bits, config.min_reports)
    ideal.submit(simulated[[0, 1, 3, 4]])
    vectors = dict(enumerate(simulated)) | {i: encoded(node, i) for i in (1, 3)}

    def in_node(inputs):
        return node.ask(replace(DEVICES[0], inputs=inputs), WAIT)["output"]["messages"][-1]

    foreign = dict.fromkeys((1, 3), in_node)
    played = play(config, {2: MessageKind.INPUT}, vectors=vectors, foreign=foreign)
    assert played.opened.survivors == {0, 1, 3, 4}
    assert played.opened.vector.tobytes() == ideal.close().vector.tobytes()
