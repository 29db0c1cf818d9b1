"""Questions for words over the network: as in the simulator, through crashes, and not doctored."""

from __future__ import annotations

import json
import math
import multiprocessing
import signal
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("grpc_tools", reason="needs gRPC: pip install pfl-lm[network]")

from pfl_lm.audit.findings import Finding
from pfl_lm.audit.question.artifacts import QuestionArtifacts
from pfl_lm.audit.question.ledger import audit_question_ledger
from pfl_lm.audit.question.mechanism import audit_question_mechanism
from pfl_lm.dp.ledger import verify
from pfl_lm.dp.policy import Noise
from pfl_lm.dp.population_ledger import BudgetSpent, PopulationLedger
from pfl_lm.models.file import Model
from pfl_lm.models.models import ModelSpec, initialise
from pfl_lm.network.device import participant
from pfl_lm.network.participation_record import ParticipationRecord
from pfl_lm.network.question_server import serve_comparison, serve_words
from pfl_lm.network.question_task import QuestionTask, round_config
from pfl_lm.network.store import Store
from pfl_lm.network.task_config import DeviceSetup, policy_digest, stated
from pfl_lm.network.transport import Limits, messages
from pfl_lm.queries.ask import QuerySession, broadcast_of
from pfl_lm.queries.discover import WordsQuestion, find_words, first_question
from pfl_lm.queries.found import open_discovered
from pfl_lm.queries.launch import differences
from pfl_lm.queries.launch_rule import LaunchQuestion
from pfl_lm.queries.stated import content_of, plan_of, words_of
from pfl_lm.queries.two_models import TwoModels
from pfl_lm.run.progress import ProgressListener
from pfl_lm.text.synthetic.population import SyntheticPopulation, synthetic_tokenizer
from tests.network.conftest import PATIENT, Trial, free_port
from tests.network.test_full_strength import WEIRD, paths
from tests.network.test_recovery import PRELOADED, Killing
from tests.network.test_rounds import Died
from tests.queries.conftest import NoLedger, policy_of

DEVICES = 6
TYPED = ("moarvm", "rakudo")
BRISK = Limits(phase_seconds=5.0, training_seconds=30.0, grace_seconds=0.5, hold_seconds=2.0)


def own(number: int) -> list[str]:
    """The unknown words of a device: of every second one the second word too."""
    return list(TYPED[: 1 + number % 2])


class Asking(Trial):
    """One question over the network; threads play its server and devices."""

    def __init__(self, folder, keys, question, policy, is_trial=True, limits=PATIENT) -> None:
        self.folder, self.keys, self.question, self.policy = folder, keys, question, policy
        self.is_trial, self.limits, self.port = is_trial, limits, free_port()
        self.errors, self.threads = [], []
        self.ledgers = folder.parent / "ledgers"
        self.tokenizer = synthetic_tokenizer(300)

    def setup(self, number: int) -> DeviceSetup:
        record = None
        if not self.is_trial:
            path = self.folder.parent / f"{number}.record"
            record = ParticipationRecord(path, first_install=True)
        return DeviceSetup(
            self.tokenizer, self.policy, None, record, self.is_trial, unknown_words=own(number)
        )

    def device(self, number, sending=lambda round, kind: None):
        client = self.client(number)
        return participant(client, self.key(number), self.setup(number), sending)

    def serve(self, resume: bool = False, **changes):
        return ask(self, self.serving(**changes), resume)

    def entries(self) -> list[dict]:
        return verify(self.folder / "ledger.jsonl")

    def released(self) -> list[str]:
        return [entry["released"] for entry in self.entries() if entry["kind"] == "round"]


def ask(run: Asking, serving, resume: bool = False):
    """Run the server of a question to its end, also in a process of its own."""
    parts = run.question, run.tokenizer, run.policy, run.folder
    return serve_words(*parts, serving, ProgressListener(), resume)


@pytest.fixture(scope="module")
def listed(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("lists") / "words.tsv"
    words = [*TYPED, *(f"nobody{letter}" for letter in "abcdefgh")]
    path.write_text("word\tcount\n" + "".join(f"{word}\t9\n" for word in words))
    return path


@pytest.fixture
def closed(listed) -> WordsQuestion:
    return WordsQuestion(entries=2, candidates_from=listed, false_positives=RARELY)


RARELY = 1e-7  # of a false word: a test must not fail by chance
OPEN = WordsQuestion(domain="open", entries=2, cells=60_000, false_positives=RARELY)


@pytest.fixture
def asking(keys_of, tmp_path):
    """A function that returns a question to six devices under a policy made for six."""

    def build(question, rounds: int = 1, is_trial: bool = True, limits=PATIENT, **changes):
        stated = {"epsilon": 60.0, "delta": 0.1, "users": DEVICES, "rounds": rounds, **changes}
        folder = tmp_path / "asked"
        return Asking(folder, keys_of(DEVICES), question, policy_of(**stated), is_trial, limits)

    return build


@pytest.mark.parametrize(("domain", "rounds"), [("closed", 1), ("open", 2)])
def test_the_sums_are_the_simulators_to_the_byte(asking, closed, domain, rounds):
    """Two levels of the tree: the second round asks for what the first one found.

    Those who are asked for the words of a list call at front ends.
    """
    question = replace(closed if domain == "closed" else OPEN, seed=7)
    run = asking(question, rounds)
    run.start_devices()
    found = run.serve(front_ends=2 if domain == "closed" and sys.platform == "linux" else 1)
    run.join()
    session = replace(QuerySession.of(run.policy, DEVICES, None, "protocol"), seed=7)
    ledger = NoLedger()
    start = first_question(question, session, run.tokenizer)
    simulated = find_words(question, session, start, [own(u) for u in range(DEVICES)], ledger)
    assert found == simulated
    assert len(run.released()) == rounds
    assert run.released() == [entry["released"] for entry in ledger.rounds]
    if domain == "closed":
        assert {word.word for word in found} == set(TYPED)


def test_a_question_of_full_strength(asking, closed):
    """Devices check it, write it down and add their own noise; its cost is in one ledger."""
    run = asking(closed, is_trial=False)
    run.start_devices()
    found = run.serve()
    run.join()
    assert {word.word for word in found} == set(TYPED)
    (entry,) = [entry for entry in run.entries() if entry["kind"] == "round"]
    assert (entry["reports"], entry["simulated"]) == (DEVICES, False)
    assert not (run.folder / "noise.secret").exists()
    for number in range(DEVICES):
        (spent,) = run.setup(number).record.participations()
        assert 0 < spent.epsilon <= run.policy.epsilon
    with PopulationLedger.open(run.keys.account(run.ledgers)) as ledger:
        assert ledger.spent().as_plain()["spent_by"][0]["purpose"] == "words"
    artifacts = QuestionArtifacts.open(run.folder)
    part = audit_question_ledger(artifacts, run.ledgers)
    assert not [f for f in part.findings if isinstance(f, Finding) and f.holds is False]
    of_code = audit_question_mechanism(artifacts).findings  # no seed gives devices' noise again
    assert "an interrupted question has the same noise" not in [f.name for f in of_code]
    assert open_discovered(run.folder).reports == DEVICES

    again = asking(closed, is_trial=False)
    again.folder = run.folder.parent / "again"
    with pytest.raises(BudgetSpent, match="the budget of these people ends here"):
        again.serve()  # no device is there: nobody is asked
    assert not again.folder.exists()


@pytest.mark.parametrize("kind", [5, 9])
def test_a_question_without_a_sum_says_what_it_cost(asking, closed, kind):
    """Silence before the reports costs nothing; after they were summed it costs the round."""
    run = asking(closed, is_trial=False, limits=BRISK)
    run.start_devices(range(3))

    def dies(round: int, sending: int) -> None:
        if sending == kind:
            raise Died

    run.start_devices(range(3, DEVICES), dies)
    cost = "what was spent stays spent" if kind == 9 else "the devices' budget lost nothing"
    with pytest.raises(ValueError, match=f"no round opened a sum.*{cost}.*--total"):
        run.serve()
    run.join(Died)
    assert len(run.released()) == (kind == 9)


def test_a_cohort_that_the_policy_does_not_state_is_refused(comparing):
    """It was passed over in silence: the policy's report goal was asked."""
    comparing.question = replace(comparing.question, cohort=5)
    with pytest.raises(ValueError, match="cohort = 5 is not the policy's report_goal = 6"):
        comparing.serve()
    assert not comparing.folder.exists()


def test_devices_that_vanish_are_tolerated(asking, closed, caplog):
    """One is gone before each kind of message; the noise of the others is that of the policy."""
    noise = {"tolerated_dropout": 0.4, "excess": "removed"}
    run = asking(closed, limits=BRISK, **noise)
    run.start_devices(range(5))

    def dies(round: int, kind: int) -> None:
        if kind == 5:
            raise Died

    run.start_devices([5], dies)
    run.serve()
    run.join(Died)
    (entry,) = [entry for entry in run.entries() if entry["kind"] == "round"]
    assert entry["reports"] == 5
    assert entry["noise"]["achieved"] == pytest.approx(entry["noise"]["planned"])


def test_a_server_killed_in_and_between_rounds_goes_on(asking):
    """Six devices wait while the server dies, twice; nothing that was paid for is lost."""
    run = asking(OPEN, rounds=3)
    run.start_devices()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED, __name__])
    points = {0: "opened", 1: "closed"}
    ends = []
    for attempt in range(len(points) + 1):
        left = dict(list(points.items())[attempt:])
        serving = run.serving(reached=Killing(left))
        server = context.Process(target=ask, args=(_bare(run), serving, attempt > 0), daemon=True)
        server.start()
        server.join(300)
        ends.append(server.exitcode)
    run.join()
    assert ends == [-signal.SIGKILL] * len(points) + [0]
    kinds = [(entry["kind"], entry.get("round")) for entry in run.entries()[1:]]
    assert kinds == [("round", 0), ("round", 1), ("round", 2), ("end", None)]
    states = [row.state for row in Store.open(run.folder / "rounds.sqlite").rounds()]
    assert states == ["closed", "closed", "closed"]
    content = (run.folder / "words.tsv").read_text()
    assert "moarvm" in content  # three levels reach seven letters


def _bare(run: Asking) -> Asking:
    """The same without threads, which no process can be given."""
    bare = object.__new__(Asking)
    bare.__dict__.update(vars(run) | {"threads": [], "errors": []})
    return bare


class Told:
    """A server that states a question, invites to round 0 with a content, and hears no answer."""

    def __init__(self, task: QuestionTask, content: bytes = b"") -> None:
        self._task, self._content = task, content
        invitation = messages.Invitation(model=task.digest(content))
        self._items = [
            messages.Item(round=0, step=1, invitation=invitation),
            messages.Item(round=1 << 62, step=255, finished="over"),
        ]

    def task_config(self) -> str:
        return self._task.text()

    def fetch(self, round: int, step: int):
        return self._items.pop(0)

    def model(self, have: int, want: int, most_bytes: int) -> bytes:
        return self._content

    def send(self, round: int, frame: bytes) -> None:
        raise AssertionError("a refused question must not be answered")


@pytest.fixture
def honest(asking, closed):
    """A question that devices of full strength accept, and a device's setup."""
    run = asking(closed, is_trial=False)
    start = first_question(closed, QuerySession(run.policy, DEVICES, DEVICES, 0), run.tokenizer)
    digests = run.tokenizer.digest, policy_digest(run.policy)
    task = QuestionTask(
        "0123456789abcdef" * 2, False, plan_of(start), DEVICES, 1, 5, False, DEVICES, *digests
    )
    return task, run, content_of(start, ())


TASKS = {
    "another policy": ({"policy": "0" * 64}, "privacy policy is not this device's"),
    "another vocabulary": ({"tokenizer": "0" * 64}, "vocabulary is not this device's"),
    "a trial": ({"trial": True}, "a trial, which protects nobody"),
    "noise from a seed": ({"reproducible": True}, "noise that can be repeated"),
    "a smaller cohort": ({"cohort": 5}, "cohort = 5 is not the policy's report_goal = 6"),
    "fewer enrolled": ({"enrolled": 5}, "population: 5 devices are enrolled"),
    "more rounds": ({"rounds": 2}, "rounds = 2 exceeds the policy's 1"),
    "no run id": ({"run": ""}, "no id of 32 hexadecimal digits"),
}
PLANS = {
    "more entries": ({"entries": 1001}, "entries = 1001 must lie between 1 and 1,000"),
    "no entries": ({"entries": 0}, "entries = 0"),
    "a larger weight": ({"norm": 2.0}, "is none that is known here"),
    "another kind": ({"kind": "messages"}, "is none that is known here"),
    "entries that are no number": ({"entries": "all"}, "entries"),
}


@pytest.mark.parametrize(("lie", "message"), TASKS.values(), ids=TASKS)
def test_what_a_server_must_not_ask(honest, lie, message):
    task, run, _ = honest
    with pytest.raises(ValueError, match=message):
        participant(Told(replace(task, **lie)), run.key(0), run.setup(0))


@pytest.mark.parametrize(("lie", "message"), PLANS.values(), ids=PLANS)
def test_what_a_plan_must_not_say(honest, lie, message):
    task, run, _ = honest
    doctored = replace(task, question={**task.question, **lie})
    with pytest.raises(ValueError, match=message):
        participant(Told(doctored), run.key(0), run.setup(0))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_value_of_any_field_makes_a_device_answer(honest, data):
    """It is refused in one line, or the round that it names is."""
    task, run, content = honest
    stated = json.loads(task.text())
    *above, last = data.draw(st.sampled_from(paths(stated)))
    place = stated
    for name in above:
        place = place[name]
    place[last] = data.draw(st.sampled_from(WEIRD))
    told = Told(task, content)
    told.task_config = lambda: json.dumps(stated)
    with suppress(ValueError):
        assert participant(told, run.key(0), run.setup(0)).run() == 0


def test_a_policy_without_noise_answers_nothing(honest):
    task, run, _ = honest
    bare = replace(run.policy, noise=Noise("none", "none"), epsilon=math.inf)
    setup = replace(run.setup(0), policy=bare)
    with pytest.raises(ValueError, match="no privacy policy"):
        participant(Told(replace(task, policy=policy_digest(bare))), run.key(0), setup)


TREE = {"kind": "words in no list", "rounds": 3, "entries": 2, "cells": 60_000}
TREE |= {"false_positives": 0.02, "letters": list("abcdefghijklmnopqrstuvwxyz0123456789")}
CONTENTS = {
    "no words": (None, {"words": []}, "cells"),
    "a word twice": (None, {"words": ["a", "b", "a"]}, "a cell is listed twice"),
    "not the plan's": (None, {"prefixes": []}, "cannot be read"),
    "a level beyond the tree": (TREE, {"level": 3, "prefixes": ["abc"]}, "level = 3"),
    "a whole message": (TREE, {"level": 1, "prefixes": ["meet me"]}, "is no beginning of 3"),
    "another alphabet": (TREE, {"level": 1, "prefixes": ["ab "]}, "is no beginning of 3"),
    "an endless level": (TREE, {"level": math.inf, "prefixes": [""]}, "level = inf is no whole"),
    "a level that is a text": (TREE, {"level": "0", "prefixes": [""]}, "level = '0' is no whole"),
    "one beginning, not in a list": (TREE, {"level": 0, "prefixes": ""}, "prefixes is no list"),
    "a number among the words": (None, {"words": ["a", 5]}, "words is no list of texts"),
    "a word, not in a list": (None, {"words": "ab"}, "words is no list of texts"),
    "too many beginnings": (TREE, {"level": 0, "prefixes": ["", ""]}, "prefixes = 2"),
}


@pytest.mark.parametrize(("plan", "content", "message"), CONTENTS.values(), ids=CONTENTS)
def test_what_a_round_must_not_ask_for(honest, caplog, plan, content, message):
    task, run, _ = honest
    task = task if plan is None else replace(task, question=plan)
    told = Told(task, json.dumps({"passed_over": [], **content}).encode())
    assert participant(told, run.key(0), run.setup(0)).run() == 0
    assert message in caplog.text
    assert run.setup(0).record.participations() == []


NO_JSON = {
    "nested too deep": b"[" * 200_000,
    "no UTF-8": b'{"words": ["\xff"]}',
    "a number of 5,000 digits": b'{"words": %s}' % (b"1" * 5_000),
    "no object": b"5",
}


@pytest.mark.parametrize("content", NO_JSON.values(), ids=NO_JSON)
def test_content_that_cannot_be_read_is_a_round_refused(honest, caplog, content):
    task, run, _ = honest
    assert participant(Told(task, content), run.key(0), run.setup(0)).run() == 0
    assert "the server's question cannot be read" in caplog.text


@pytest.mark.parametrize("text", ["[" * 200_000, '{"question": ' + "1" * 5_000])
def test_a_task_configuration_that_cannot_be_read_is_refused(honest, text):
    task, run, content = honest
    told = Told(task, content)
    told.task_config = lambda: text
    with pytest.raises(ValueError, match="the server's task configuration cannot be read"):
        participant(told, run.key(0), run.setup(0))


def test_one_device_is_asked_for_other_words(honest, caplog):
    """All that the invitation states is that of the honest round, but the digest of the words."""
    task, run, content = honest
    words, _ = words_of(task.question, content)
    session, query = task.session(run.policy), words.query(run.policy.noise.min_dim)
    parts = session, query, broadcast_of(query, 0), DEVICES
    honestly = round_config(*parts, task.digest(content))
    other = content.replace(b"rakudo", b"secret")
    told = Told(task, other)
    place = session.users(0).index(0)
    fields = {**stated(honestly), "model": task.digest(other)}
    told._items[0].invitation.CopyFrom(messages.Invitation(place=place, **fields))
    assert participant(told, run.key(0), run.setup(0)).run() == 0
    assert "leaves round 0: the server states payload" in caplog.text
    assert run.setup(0).record.participations() == []
    told = Told(task, content)  # another list than the one that the round is about
    told._content = other
    assert participant(told, run.key(0), run.setup(0)).run() == 0
    assert "the question that came is not the one that the round is about" in caplog.text


@pytest.fixture
def comparing(keys_of, tmp_path, listed):
    """Two models, six devices with text, and the question which is better."""
    tokenizer = synthetic_tokenizer(300)
    spec = ModelSpec("cifg_lstm", 300, 8, hidden_dim=8)
    origin = {"kind": "public", "text": "none", "tokenizer_digest": tokenizer.digest}
    guesses, unigram = (
        Model(spec, initialise(spec, 1, known), origin) for known in (None, tokenizer.unigram)
    )
    question = LaunchQuestion(tokens_per_user=40, window=8)
    policy = policy_of(epsilon=600.0, delta=0.1, users=DEVICES)
    run = Comparing(tmp_path / "asked", keys_of(DEVICES), question, policy, is_trial=False)
    run.models = guesses, unigram
    return run


GROUPS = ("low", "high")


class Comparing(Asking):
    """Devices score two models on invented users' text."""

    def setup(self, number: int) -> DeviceSetup:
        people = SyntheticPopulation({"train": DEVICES}, 300, 60, 1)
        group = GROUPS[number % 2] if self.question.by_group else None
        return replace(super().setup(number), tokens=people.tokens("train", number), group=group)

    def serve(self, resume: bool = False, **changes):
        parts = self.question, *self.models, self.tokenizer, self.policy, self.folder
        return serve_comparison(*parts, self.serving(**changes), ProgressListener(), resume)


@pytest.mark.parametrize("by_group", [False, True])
def test_devices_compare_two_models(comparing, by_group):
    """Each scores both on its own text: the sums are those of the simulation, but for rounding.

    With groups each device fills the cells of its own, which it alone knows.
    """
    run = comparing
    run.question = replace(run.question, split="train", by_group=by_group)
    if by_group:
        run.policy = replace(run.policy, public_labels=GROUPS)
    run.start_devices()
    decision, measured = run.serve()
    run.join()
    found = measured.whole
    people = SyntheticPopulation({"train": DEVICES}, 300, 60, 1)
    gains = differences(run.models, people, run.tokenizer, run.question, range(DEVICES))
    mean = np.mean([np.clip(gain["log-loss"], -0.5, 0.5) for gain in gains.values()])
    assert found["log-loss"].value == pytest.approx(mean, abs=5 * found["log-loss"].error)
    assert list(measured.groups) == (list(GROUPS) if by_group else [])
    for place, group in enumerate(measured.groups.values()):
        own = [np.clip(gains[user]["log-loss"], -0.5, 0.5) for user in range(place, DEVICES, 2)]
        assert group["log-loss"].value == pytest.approx(
            np.mean(own), abs=6 * group["log-loss"].error
        )
    assert json.loads((run.folder / "comparison.json").read_text())["verdict"] == decision.verdict
    (spent,) = run.setup(0).record.participations()
    assert spent.purpose == "comparison"
    part = audit_question_ledger(QuestionArtifacts.open(run.folder), run.ledgers)
    assert not [f for f in part.findings if isinstance(f, Finding) and f.holds is False]


MODELS = {
    "one model": (lambda plan: plan["models"].pop(), "models"),
    "an absurd model": (lambda plan: plan["models"][0].update(layers=5000), "layers = 5000"),
    "another vocabulary": (
        lambda plan: plan["models"][1].update(vocabulary_size=24),
        "vocabulary_size = 24",
    ),
    "text without end": (lambda plan: plan.update(tokens_per_user=10**9), "tokens_per_user"),
    "no window": (lambda plan: plan.update(window="all"), "window"),
    "groups that are no list": (lambda plan: plan.update(groups=7), "groups"),
    "groups that the policy lacks": (lambda plan: plan.update(groups=["a", "b"]), "permits none"),
}


@pytest.mark.parametrize(("lie", "message"), MODELS.values(), ids=MODELS)
def test_what_a_comparison_must_not_state(comparing, honest, caplog, lie, message):
    task, _, _ = honest
    start = TwoModels(comparing.models, 40, 8)
    digest = policy_digest(comparing.policy)
    task, plan = replace(task, question=start.plan(), policy=digest), start.plan()
    lie(plan)
    with pytest.raises(ValueError, match=message):
        participant(Told(replace(task, question=plan)), comparing.key(0), comparing.setup(0))
    cut = Told(task, start.content()[:-4])
    assert participant(cut, comparing.key(0), comparing.setup(0)).run() == 0
    assert "bytes came, the models have" in caplog.text


def test_a_question_by_groups_needs_the_devices_own(comparing, honest):
    """Before any round, with the remedy; the server is told nothing of the group."""
    task, _, _ = honest
    policy = replace(comparing.policy, public_labels=GROUPS)
    plan = TwoModels(comparing.models, 40, 8, GROUPS).plan()
    told = Told(replace(task, question=plan, policy=policy_digest(policy)))
    setup = replace(comparing.setup(0), policy=policy)
    for group, message in ((None, "state one of low, high"), ("huge", "'huge' is none")):
        with pytest.raises(ValueError, match=message):
            participant(told, comparing.key(0), replace(setup, group=group))
    participant(told, comparing.key(0), replace(setup, group="low"))
