"""The modules behind a browser's device answer as Python does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pfl_lm.devices.batches import token_weight
from pfl_lm.devices.local_training import LocalTraining
from pfl_lm.dp.cohort import CohortRule, cohort
from pfl_lm.network.model_delta import model_digest, values_for
from pfl_lm.network.task_config import TaskConfig, served
from pfl_lm.network.transport import messages, methods
from pfl_lm.network.web_task import web_task
from pfl_lm.payload.layout import gather, scatter_add
from pfl_lm.payload.plan import PayloadPlan
from pfl_lm.run.context import choose_payload
from pfl_lm.run.setup import open_run
from pfl_lm.streams import key
from pfl_lm.text.population import windows
from tests.network.web.conftest import in_node, needs_node

pytestmark = needs_node


def test_streams_have_the_keys_of_python():
    labels = [(3, "rows", 1), (2**70, "ab", "c"), (-1, "a", "bc"), (0, "x" * 300, 10**9)]
    given = [[str(seed), *rest] for seed, *rest in labels]
    found = in_node(
        "const found = given.map((one) => bytes.toHex(streams.streamKey(...one)));", given
    )
    assert found == [key(*one).hex() for one in labels]


def test_a_round_invites_whom_the_rule_invites():
    """Also beyond 2^32 devices, where numpy draws in another way."""
    rules = [(6, 6, 1), (100, 7, 3), (1000, 30, 20), (50, 40, 1), (5 * 10**9, 5, 2), (7, 2, 3)]
    names = ("population", "size", "min_separation")
    cases = [(rule, seed, n) for rule in rules for seed in (3, 2**70) for n in (0, 1, 5)]
    given = [[dict(zip(names, rule, strict=True)), str(seed), n] for rule, seed, n in cases]
    found = in_node(
        "const found = []; for (const one of given) found.push(await cohort.cohort(...one));", given
    )
    assert found == [
        cohort(CohortRule("rotation", p, s, m), seed, n).tolist() for (p, s, m), seed, n in cases
    ]


@pytest.mark.parametrize("draw", ["uniform", "unigram"])
def test_the_rows_of_a_round_are_those_that_python_draws(small, quick, draw):
    context = served(open_run(small(payload=PayloadPlan(rows=120, draw=draw), seed=2**70)), 6, True)
    script = """
    const found = [];
    for (let round = 0; round < given.rounds; round++) {
      const chosen = payload.choosePayload(given.task, round);
      const digest = bytes.toHex(await payload.payloadDigest(given.task, chosen));
      found.push([Array.from(chosen.rows), Array.from(chosen.inclusion), digest]);
    }
    """
    found = in_node(script, {"task": web_task(context, True), "rounds": 5})
    for round, (rows, inclusion, digest) in enumerate(found):
        expected = choose_payload(context, round)
        assert rows == expected.rows.tolist()
        np.testing.assert_allclose(inclusion, expected.inclusion, rtol=1e-9)
        assert digest == expected.digest


@pytest.mark.parametrize("rows", ["all", "none", 120])
def test_the_model_comes_whole_or_as_what_changed(small, quick, rows):
    context = served(open_run(small(payload=PayloadPlan(rows=rows))), 6, True)
    task = web_task(context, True)
    config = TaskConfig.of(context, "ab" * 16, True)
    before = context.start.parameters
    after = dict(before)
    for number in range(2):
        after = {name: value.clone() for name, value in after.items()}
        moved = choose_payload(context, number)
        scatter_add(after, moved, np.ones(moved.dim, np.float32))
    sent = [values_for(context, before, -1, 0), values_for(context, after, 0, 2), b""]
    given = {"task": task, "text": config.text(), "sent": [one.hex() for one in sent]}
    script = """
    const { task, text, sent } = given;
    const [whole, changed, none] = sent.map(bytes.fromHex);
    const first = model.apply(task, new Map(), whole, -1, 0);
    const second = model.apply(task, first, changed, 0, 2);
    const third = model.apply(task, second, none, 2, 2);
    const digest = async (parameters) => bytes.toHex(await model.modelDigest(text, parameters));
    const found = [await digest(first), await digest(second), await digest(third),
      model.apply(task, first, none, 0, 2), model.apply(task, first, changed.subarray(4), 0, 2),
      Array.from(model.gather(task, second, payload.choosePayload(task, 2)))];
    """
    expected = [model_digest(config, parameters).hex() for parameters in (before, after, after)]
    found = in_node(script, given)
    assert found[:3] == expected
    assert found[3:5] == [None, None]
    held = gather(after, choose_payload(context, 2))
    np.testing.assert_array_equal(np.float32(found[5]), held)


def test_every_field_has_the_number_of_the_proto_file():
    """Each message of the service, written by protobuf, is read; and the requests written back."""
    item = messages.Item(round=-1, step=3)
    item.invitation.CopyFrom(
        messages.Invitation(place=5, model=b"m" * 32, dim=2**40, adversary=1, clip_norm=0.25)
    )
    sent = [
        messages.ChallengeResponse(nonce=b"n" * 32),
        messages.Session(token=b"t" * 32, task_config='{"a": "ü"}'),
        item,
        messages.Item(round=1 << 62, over=""),
        messages.Item(round=3, finished="over"),
        messages.Chunk(values=b"abcd"),
        *(method.request() for method in methods().values()),
        messages.Cursor(round=-1, step=255),
        messages.Upload(round=7, size=300, part=b"p" * 300),
        messages.Version(have=-1, want=2**40),
        messages.AuthenticateRequest(nonce=b"n", signature=b"s", certificate=b"c"),
        messages.ChallengeRequest(device=300),
    ]
    given = [[one.DESCRIPTOR.name, one.SerializeToString().hex()] for one in sent]
    script = """
    const found = given.map(([name, hex]) => {
      const read = protobuf.decode(name, bytes.fromHex(hex));
      const plain = (key, value) => value instanceof Uint8Array ? bytes.toHex(value) : value;
      return [JSON.parse(JSON.stringify(read, plain)), bytes.toHex(protobuf.encode(name, read))];
    });
    """
    found = in_node(script, given)
    for one, (read, written) in zip(sent, found, strict=True):
        for field, sent_value in one.ListFields():
            if field.message_type is not None:
                continue
            given, value = read[field.name], sent_value
            if isinstance(value, int):  # JavaScript's numbers are float64
                given, value = float(given), float(value)
            expected = value.hex() if isinstance(value, bytes) else value
            assert given == expected, (one.DESCRIPTOR.name, field.name)
        if one.DESCRIPTOR.name != "Item":
            assert type(one).FromString(bytes.fromhex(written)) == one
    assert found[2][0]["invitation"]["clip_norm"] == 0.25
    assert found[3][0]["over"] == ""


@pytest.mark.parametrize("changes", [{}, {"steps": 3, "epochs": None}, {"full_weight_tokens": 50}])
def test_local_training_takes_the_simulators_steps(changes):
    """Around a graph whose gradient is known: w + the number of words in the batch, all windows."""
    fields = {"learning_rate": 0.5, "batch_size": 8, "window": 4, "max_tokens": 30, "decay": 0.5}
    training = LocalTraining(**{**fields, "epochs": 2, "gradient_clip": 3.0, **changes})
    tokens = np.arange(2, 25)
    own = windows(tokens, training.window, 31)
    values = now = np.float32([0.5, -1.0, 2.0])
    for number in range(training.steps or training.epochs):
        gradient = now + np.float32(np.count_nonzero(own))
        gradient *= np.float32(min(1.0, 3.0 / float(np.linalg.norm(gradient))))
        now = now - np.float32(0.5 * 0.5**number) * gradient
    expected = (now - values) * np.float32(token_weight(own, training))
    script = """
    const inputs = [["values", "float32", [3]], ["windows", "int32", [8, 5]]];
    const run = async ({ values, windows }) => {
      const words = windows.data.filter((word) => word !== 0).length;
      return { gradient: { data: values.data.map((value) => value + words) } };
    };
    const trainer = new training.Trainer(run, inputs, given.training);
    const train = (values, tokens) => trainer.train(values, new Map(), { rows: null }, tokens);
    const update = await train(Float32Array.from(given.values), given.tokens);
    const found = [Array.from(update), Array.from(await train(update, []))];
    """
    given = {"training": vars(training), "values": values.tolist(), "tokens": tokens.tolist()}
    update, untrained = in_node(script, given)
    np.testing.assert_allclose(update, expected, rtol=1e-6)
    assert untrained == [0.0, 0.0, 0.0]


def test_a_link_that_is_damaged_carries_no_key(keys_of):
    from pfl_lm.keyboard.take_part import enrolment_link
    from pfl_lm.network.identity import DeviceKey

    keys = keys_of(6)
    one = DeviceKey.read(keys.folder / "devices" / "00004.json")
    link = enrolment_link("http://127.0.0.1:1/secret/#x", one, keys.server_certificate(), True)
    assert link.startswith("http://127.0.0.1:1/secret/#enrol=")
    fragment = "#" + link.partition("#")[2]
    script = """
    const found = given.map((fragment) => {
      try { return enrolment.plainKey(fragment); } catch (error) { return error.constructor.name; }
    });
    """
    whole, *damaged, absent = in_node(
        script, [fragment, fragment[:-9], "#enrol=e30", "#enrol=", "#"]
    )
    assert whole["number"] == 4
    assert whole["first_install"]
    assert bytes.fromhex(whole["server"]) == keys.server_certificate().digest
    assert damaged == ["NoKey"] * 3
    assert absent is None


def test_what_a_page_does_not_know_is_refused_by_name(small, quick):
    whole = small()
    sampled = replace(whole.training, loss="sampled", negatives=20)
    for changes, name in (
        ({"payload": PayloadPlan(layers=1)}, "payload.layers = 1"),
        ({"training": sampled}, 'training.loss = "sampled"'),
        ({"training": replace(whole.training, weight_bits=8)}, "weight_bits"),
        ({"cohort": 5}, 'cohorts of kind "poisson"'),
    ):
        context = served(open_run(small(**changes)), 6, True)
        with pytest.raises(ValueError, match=name):
            web_task(context, True)
    context = served(open_run(whole), 6, True)
    travels = [one["name"] for one in web_task(context, True)["travels"]]
    assert travels == [segment.name for segment in choose_payload(context, 0).segments]


def test_a_server_that_says_wait_is_not_away():
    """A device waits beyond the time for which it looks for a server that is silent."""
    script = """
    const answer = (text, status, code) =>
      new Response(text, { status, headers: { "grpc-status": `${code}` } });
    globalThis.fetch = async () =>
      given.waits-- > 0 ? answer("wait", 429, 8) : answer("no", 403, 7);
    const device = new service.Service("http://x/", { number: 3 }, () => {}, 0.05);
    const found = await device.open().catch((error) => error.message);
    """
    assert in_node(script, {"waits": 2}) == "the server refuses: no"
