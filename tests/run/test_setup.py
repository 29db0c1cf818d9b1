"""Opening a scenario: its parts must fit together, and the manifest claims no more than holds."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from pfl_lm.audit.artifacts import RunArtifacts
from pfl_lm.audit.ledger.check import audit_ledger
from pfl_lm.models.file import Model, save_model
from pfl_lm.models.models import LoraSpec, ModelSpec, initialise
from pfl_lm.payload.plan import PayloadPlan
from pfl_lm.report.comparison.settings import alike_but_for_seed
from pfl_lm.run.context import choose_payload, smallest_and_largest_payload
from pfl_lm.run.evaluable import require_held_out
from pfl_lm.run.evaluation import final_evaluation, validate
from pfl_lm.run.folder import RunFolder
from pfl_lm.run.manifest import manifest, statements
from pfl_lm.run.manifest_file import Manifest
from pfl_lm.run.nearby import find_population
from pfl_lm.run.privacy import RunPrivacy
from pfl_lm.run.scenario import EvaluationConfig, PopulationConfig
from pfl_lm.run.setup import open_run
from pfl_lm.run.simulate import simulate
from pfl_lm.server.state import ServerState
from pfl_lm.text.population import BOS_ID, EOS_ID, USER_DIGEST_BYTES, PopulationStore
from pfl_lm.text.population_write import StoreWriter, UserText
from pfl_lm.text.synthetic.population import (
    SyntheticPopulation,
    synthetic_tokenizer,
    write_public_store,
)

pytestmark = pytest.mark.usefixtures("quick")

SPEC = ModelSpec("cifg_lstm", vocabulary_size=300, embedding_dim=8, hidden_dim=8)
PUBLIC = {"kind": "public", "text": "t", "tokenizer_digest": synthetic_tokenizer(300).digest}


@pytest.fixture
def start_from(tmp_path):
    """A function that writes a model file; ``origin`` replaces what it says of itself."""

    def write(spec=SPEC, **origin):
        path = tmp_path / "start.pt"
        save_model(path, Model(spec, initialise(spec, seed=9), PUBLIC | origin))
        return path

    return write


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store and the tokenizer that it was built with."""
    folder = tmp_path_factory.mktemp("store")
    people = SyntheticPopulation({"train": 20}, 300, 40, seed=1)
    synthetic_tokenizer(300).save(folder / "tokenizer")
    synthetic_tokenizer(400).save(folder / "other")
    (folder / "text").mkdir()
    with StoreWriter(folder / "text", synthetic_tokenizer(300)) as writer:
        for user in range(20):
            words = people.tokens("train", user).astype(np.uint16).tobytes()
            writer.add(UserText(user.to_bytes(USER_DIGEST_BYTES, "big"), 0, b"", [words]))
    writer.finish("invented users", {"inputs": []})
    public = SyntheticPopulation({"train": 1, "public": 20}, 300, 40, seed=1)
    write_public_store(public, folder / "public")
    return folder


class TestTraining:
    """Without public text no device is probed: what none can train is refused before a round."""

    TRANSFORMER = ModelSpec("transformer", 300, 8, heads=2, feedforward_dim=8, context=7)

    def test_windows_longer_than_the_context_are_refused(self, tiny_scenario):
        # Devices with little text would train; the evaluation failed, after rounds were paid for.
        with pytest.raises(ValueError, match=r"training.window = 8 exceeds model.context = 7"):
            open_run(tiny_scenario(model=self.TRANSFORMER))
        open_run(tiny_scenario(model=replace(self.TRANSFORMER, context=8)))

    def test_activations_that_a_model_cannot_have_are_refused(self, tiny_scenario):
        model = replace(self.TRANSFORMER, context=8)
        training = replace(tiny_scenario().training, activations="truncated")
        with pytest.raises(ValueError, match="does not go with model kind"):
            open_run(tiny_scenario(model=model, training=training))


class TestStart:
    def test_without_one_weights_are_random(self, tiny_scenario):
        assert open_run(tiny_scenario()).start.origin == {"kind": "random"}

    def test_a_public_model_starts_a_private_run(self, tiny_scenario, policy_file, start_from):
        context = open_run(tiny_scenario(policy=policy_file(), start=start_from()))
        assert context.start.origin == PUBLIC
        expected = initialise(SPEC, seed=9)
        assert all(torch.equal(context.start.parameters[n], v) for n, v in expected.items())

    @pytest.mark.parametrize("kind", ["private", "federated"])
    def test_another_is_refused_under_a_policy(self, tiny_scenario, policy_file, start_from, kind):
        scenario = tiny_scenario(policy=policy_file(), start=start_from(kind=kind))
        with pytest.raises(ValueError, match=f"{kind} text.*start from a model of public text"):
            open_run(scenario)
        assert open_run(replace(scenario, policy=None)).start.origin["kind"] == kind

    def test_another_tokenizer_is_refused(self, tiny_scenario, start_from):
        start = start_from(tokenizer_digest="another")
        with pytest.raises(ValueError, match="trained with another tokenizer"):
            open_run(tiny_scenario(start=start))

    def test_another_model_is_refused(self, tiny_scenario, start_from):
        start = start_from(replace(SPEC, hidden_dim=12))
        with pytest.raises(ValueError, match=r"another model .* hidden_dim is 12 in the file"):
            open_run(tiny_scenario(start=start))

    def test_factors_that_the_file_lacks_start_as_drawn(self, tiny_scenario, start_from):
        spec = replace(SPEC, lora=LoraSpec(2))
        plan = PayloadPlan(dense="lora")
        context = open_run(tiny_scenario(model=spec, payload=plan, start=start_from()))
        drawn, found = initialise(spec, seed=3), context.start.parameters
        assert set(found) == set(drawn)
        assert all(torch.equal(found[n], drawn[n]) for n in drawn if ".lora_" in n)
        assert torch.equal(found["embedding"], initialise(SPEC, seed=9)["embedding"])

    def test_a_light_path_that_the_file_lacks_starts_as_nothing(self, tiny_scenario, start_from):
        spec = replace(SPEC, side_branch=3)
        plan = PayloadPlan(rows="none", dense="side_branch")
        context = open_run(tiny_scenario(model=spec, payload=plan, start=start_from()))
        assert not context.start.parameters["side_branch.up"].any()
        other = start_from(replace(SPEC, side_branch=4))
        with pytest.raises(ValueError, match="another side branch than"):
            open_run(tiny_scenario(model=spec, payload=plan, start=other))

    @pytest.mark.parametrize("wanted", [None, LoraSpec(4)])
    def test_other_factors_are_refused(self, tiny_scenario, start_from, wanted):
        start = start_from(replace(SPEC, lora=LoraSpec(2)))
        with pytest.raises(ValueError, match=r"other LoRA factors than model.lora describes"):
            open_run(tiny_scenario(model=replace(SPEC, lora=wanted), start=start))

    def test_a_file_that_is_absent_or_cut_off(self, tiny_scenario, start_from, tmp_path):
        with pytest.raises(ValueError, match="no such model file"):
            open_run(tiny_scenario(start=tmp_path / "absent.pt"))
        start = start_from()
        start.write_bytes(start.read_bytes()[:500])
        with pytest.raises(ValueError, match="no readable model file"):
            open_run(tiny_scenario(start=start))


class TestWhatDoesNotFit:
    def test_more_rounds_than_the_policy_has(self, tiny_scenario, policy_file):
        with pytest.raises(ValueError, match="rounds = 7 exceeds the policy's 6; run fewer"):
            open_run(tiny_scenario(rounds=7, policy=policy_file()))

    def test_more_reports_than_the_policy_has(self, tiny_scenario, policy_file):
        people = PopulationConfig("synthetic", users=10_000)
        with pytest.raises(ValueError, match="cohort = 5001 exceeds the policy's report_goal"):
            open_run(tiny_scenario(cohort=5001, population=people, policy=policy_file()))

    def test_more_reports_than_users(self, tiny_scenario):
        with pytest.raises(ValueError, match="cohort = 201 exceeds the 200 users"):
            open_run(tiny_scenario(cohort=201))

    def test_a_payload_smaller_than_the_policy_covers(self, tiny_scenario, policy_file):
        plan = PayloadPlan(rows="none", dense="biases")
        with pytest.raises(ValueError, match=r"lower the policy's noise.min_dim or send more"):
            open_run(tiny_scenario(payload=plan, policy=policy_file()))

    def test_a_vocabulary_of_another_size(self, tiny_scenario, store):
        people = PopulationConfig("store", path=store / "text")
        scenario = tiny_scenario(population=people, tokenizer=store / "other")
        with pytest.raises(ValueError, match=r"was built with another tokenizer.*build it again"):
            open_run(scenario)
        scenario = replace(scenario, tokenizer=store / "tokenizer", model=replace(
            SPEC, vocabulary_size=301))  # fmt: skip
        with pytest.raises(ValueError, match=r"vocabulary_size = 301.*300 words; make them equal"):
            open_run(scenario)

    def test_a_vocabulary_of_private_text_under_a_policy(
        self, tiny_scenario, policy_file, monkeypatch
    ):
        """As for a start from private text: it tells, without noise, who typed its words."""
        said = property(lambda words: True)
        monkeypatch.setattr("pfl_lm.text.tokenizer.Tokenizer.breaks_guarantee", said)
        with pytest.raises(ValueError, match=r"tokenizer: .* private text"):
            open_run(tiny_scenario(policy=policy_file()))
        context = open_run(tiny_scenario(policy=None))
        assert manifest(context, "run")["vocabulary"]["kind"] == "private_text"

    @pytest.mark.parametrize("every", [0, 2])
    def test_nobody_to_evaluate_on(self, tiny_scenario, store, tmp_path, new_watcher, every):
        people = PopulationConfig("store", path=store / "text")
        scenario = tiny_scenario(population=people, tokenizer=store / "tokenizer")
        scenario = replace(scenario, evaluation=replace(scenario.evaluation, every=every))
        with pytest.raises(ValueError, match=r"no users in test.* No round was run"):
            simulate(scenario, tmp_path / "run", new_watcher())
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize("split", ["test", "validation"])
    def test_held_out_users_who_typed_nothing(self, tiny_scenario, split):
        class Silent(SyntheticPopulation):
            def tokens(self, of, user):
                return super().tokens(of, user)[: 1 if of == split else None]

        people = Silent(dict.fromkeys(("train", "validation", "test"), 9), 300, 40, seed=1)
        scenario = tiny_scenario(evaluation=EvaluationConfig(2, users=3, final_users=3))
        with pytest.raises(ValueError, match=f"the 3 users drawn from {split} typed nothing"):
            require_held_out(scenario, people)

    def test_text_that_is_absent(self, tiny_scenario, store, tmp_path):
        people = PopulationConfig("store", path=tmp_path / "absent")
        with pytest.raises(ValueError, match="absent"):
            open_run(tiny_scenario(population=people, tokenizer=store / "tokenizer"))
        people = PopulationConfig("store", path=store / "text")
        with pytest.raises(ValueError, match="absent"):
            open_run(tiny_scenario(population=people, tokenizer=tmp_path / "absent"))

    def test_public_text_of_the_users(self, tiny_scenario, store, tmp_path):
        users = PopulationStore.open(store / "text")
        stream, theirs = users.stream("train"), tmp_path / "theirs"
        theirs.mkdir()
        with StoreWriter(theirs, synthetic_tokenizer(300)) as writer:
            begins = np.flatnonzero(stream == BOS_ID)
            writer.add_public([m.tobytes() for m in np.split(stream, begins[1:])])
        writer.finish("public text", {"inputs": []})
        people = PopulationConfig("store", path=store / "text", public_text=store / "public")
        scenario = tiny_scenario(population=people, tokenizer=store / "tokenizer")
        open_run(scenario)
        people = replace(people, public_text=theirs)
        with pytest.raises(ValueError, match="public text is the users' own: 100% of its messages"):
            open_run(replace(scenario, population=people))

    def test_another_store_or_start_of_the_same_name_is_noticed(
        self, tiny_scenario, store, start_from, tmp_path, monkeypatch
    ):
        """A manifest tells users, public text and weights by digests, not by file names alone."""
        (tmp_path / "text").mkdir()
        with StoreWriter(tmp_path / "text", synthetic_tokenizer(300)) as writer:
            for user in range(20):
                words = np.array([BOS_ID, 10, 11, 12, 13 + user, EOS_ID], np.uint16).tobytes()
                writer.add(
                    UserText((99 + user).to_bytes(USER_DIGEST_BYTES, "big"), 0, b"", [words])
                )
        writer.finish("invented users", {"inputs": []})
        found = []
        for text, seed in ((store / "text", 9), (tmp_path / "text", 8)):
            save_model(start_from(), Model(SPEC, initialise(SPEC, seed=seed), PUBLIC))
            people = PopulationConfig("store", path=text, public_text=store / "public")
            scenario = tiny_scenario(population=people, tokenizer=store / "tokenizer")
            content = manifest(open_run(replace(scenario, start=tmp_path / "start.pt")), "run")
            (tmp_path / "manifest.json").write_text(json.dumps(content))
            found.append(Manifest.read(RunFolder(tmp_path)))
        one, other = found
        assert one.population.digest != other.population.digest
        assert one.model.start_digest != other.model.start_digest
        assert one.population.public_text == other.population.public_text is not None
        assert not alike_but_for_seed(one, replace(other, content=one.content | {
            "scenario": one.content["scenario"] | {"seed": 4}}))  # fmt: skip
        monkeypatch.chdir(tmp_path)
        assert find_population(one, tmp_path / "runs" / "one") is None
        assert find_population(other, tmp_path / "runs" / "one") == tmp_path / "text"

    def test_a_policy_that_is_absent(self, tiny_scenario, tmp_path):
        with pytest.raises(ValueError, match="no such recipe"):
            open_run(tiny_scenario(policy=tmp_path / "absent.toml"))


class TestStatements:
    def test_a_simulation_names_everything_that_falls_short(self, tiny_scenario, policy_file):
        said = statements(open_run(tiny_scenario(policy=policy_file(), reproducible=True)))
        assert said["guaranteed"].startswith("Nothing for this very model:")
        for reason in ("6 reports a round stand for 5,000", "200 users stand for 1,000,000",
                       "noise comes from a seeded stream", "seed, which is no secret"):  # fmt: skip
            assert reason in said["guaranteed"]
        assert "differentially private per user" in said["simulated"]

    def test_words_that_users_were_asked_for_are_paid_for_on_top(
        self, tiny_scenario, policy_file, monkeypatch
    ):
        asked = {"population": "chat", "unit": "user", "epsilon": 1.0, "delta": 1e-6}
        context = open_run(tiny_scenario(policy=policy_file()))
        source = {"kind": "discovered", "asked": [asked]}
        monkeypatch.setitem(context.tokenizer.manifest, "source", source)
        described = manifest(context, "run")
        assert described["vocabulary"]["asked"] == [asked]
        for said in described["statements"].values():
            assert said.endswith(
                " Words of its vocabulary come from a question to chat: ε = 1.000, δ = 1e-06 per "
                "user who was asked, on top of this."
            )

    def test_without_a_policy_nothing_is_promised(self, tiny_scenario):
        assert statements(open_run(tiny_scenario())) == {
            "guaranteed": "Nothing: this run has no privacy policy (ε = ∞).",
            "simulated": "Federated training without differential privacy.",
        }

    def test_a_policy_without_noise_promises_nothing(self, tiny_scenario, policy_file):
        policy = policy_file(epsilon="inf", noise='{ at = "none", kind = "none" }')
        context = open_run(tiny_scenario(policy=policy))
        assert statements(context)["guaranteed"].startswith("Nothing")
        assert "No differential privacy" in statements(context)["simulated"]
        assert manifest(context, "x")["guarantee"]["epsilon"] is None

    def test_only_a_deployment_itself_is_private(self, tiny_scenario, policy_file):
        rotation = '{ kind = "rotation", min_separation = 100 }'
        context = open_run(tiny_scenario(policy=policy_file(participation=rotation, epsilon="8.0")))
        at_scale = RunPrivacy(
            context.privacy.deployment,
            5000,
            0.5,
            replace(context.privacy.rule, population=10**6),
            1,
            False,
        )
        said = statements(replace(context, privacy=at_scale))
        assert said["guaranteed"] == at_scale.guarantee.statement


def test_a_manifest_is_plain_json_and_names_no_folder(tiny_scenario, policy_file, start_from):
    context = open_run(tiny_scenario(policy=policy_file(), start=start_from()))
    found = manifest(context, "demo")
    text = json.dumps(found, allow_nan=False)
    assert json.loads(text) == found
    assert str(context.scenario.start.parent) not in text
    assert found["scenario"]["start"] == "start.pt"
    assert found["population"]["users"] == {"train": 200, "validation": 20, "test": 20}
    assert found["noise"] == {
        "drawn": "once per cohort, as the sum of all shares",
        "source": "csprng",
        "simulated_sum_multiplier": context.privacy.sum_multiplier,
    }


def test_a_store_has_its_own_public_text(tiny_scenario, store):
    people = PopulationConfig("store", path=store / "text", public_text=store / "public")
    context = open_run(tiny_scenario(population=people, tokenizer=store / "tokenizer", cohort=3))
    streams = list(context.public.streams())
    assert len(streams) == 20
    public = SyntheticPopulation({"train": 1, "public": 20}, 300, 40, seed=1)
    expected = [public.tokens("public", user).tolist() for user in range(20)]
    assert [stream.tolist() for stream in streams] == expected


def test_a_store_of_users_is_no_public_text(tiny_scenario, store):
    people = PopulationConfig("store", path=store / "text", public_text=store / "text")
    with pytest.raises(ValueError, match="text"):
        open_run(tiny_scenario(population=people, tokenizer=store / "tokenizer", cohort=3))


def test_a_model_is_measured_beside_its_start_and_the_public_baselines(tiny_scenario, start_from):
    context = open_run(tiny_scenario(start=start_from()))
    found = final_evaluation(context, context.start.parameters)
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == [
        "federated model", "public pretraining", "public unigram", "public bigram",
    ]  # fmt: skip
    same = {k: v for k, v in rows["federated model"].items() if k != "name"}
    assert same == {k: v for k, v in rows["public pretraining"].items() if k != "name"}
    assert rows["public bigram"]["perplexity"] < rows["public unigram"]["perplexity"]
    assert found["entropy_floor"] > 0
    assert validate(context, ServerState(0, context.start.parameters))["users"] == 3


class TestLayersInTurns:
    """Payloads of unlike rounds have unlike sizes; the policy must hold in all of them."""

    def scenario(self, tiny_scenario, policy_file, least: int, rounds: int = 4):
        noise = f'{{ at = "device", kind = "skellam", min_dim = {least} }}'
        rotation = '{ kind = "rotation", min_separation = 200 }'
        policy = policy_file(participation=rotation, noise=noise, rounds="4")
        payload = PayloadPlan(rows=100, dense="all", layers=1)
        return tiny_scenario(policy=policy, payload=payload, rounds=rounds, tokenizer=None)

    def test_the_smallest_of_all_rounds_is_what_the_policy_must_cover(
        self, tiny_scenario, policy_file, tmp_path
    ):
        context = open_run(self.scenario(tiny_scenario, policy_file, least=1))
        dims = [choose_payload(context, round).dim for round in range(4)]
        smallest, largest = smallest_and_largest_payload(context)
        assert (smallest.dim, largest.dim) == (min(dims), max(dims))
        assert min(dims) < max(dims)
        open_run(self.scenario(tiny_scenario, policy_file, least=min(dims)))
        with pytest.raises(ValueError, match=rf"has {min(dims):,} coordinates.* noise\.min_dim"):
            open_run(self.scenario(tiny_scenario, policy_file, least=min(dims) + 1))

    def test_all_rounds_cost_what_the_policy_promises(
        self, tiny_scenario, policy_file, tmp_path, new_watcher
    ):
        scenario = self.scenario(tiny_scenario, policy_file, least=1)
        folder = simulate(scenario, tmp_path / "run", new_watcher())
        spent = [line["epsilon"] for line in folder.metrics() if line["kind"] == "round"]
        assert len(spent) == 4
        assert all(0 < epsilon <= 2.0 for epsilon in spent)
        found = audit_ledger(RunArtifacts.open(folder.path)).findings
        assert [finding.text for finding in found if finding.holds is False] == []
