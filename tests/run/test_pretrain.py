"""Training on pooled text: what it learns, what it normalises, and where text may come from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pfl_lm.models.file import Model, save_model
from pfl_lm.models.models import ModelSpec, hidden_of, initialise, roles, scores
from pfl_lm.run import pretrain as module
from pfl_lm.run.pretrain import normalise, pretrain
from pfl_lm.run.pretrain_checkpoint import PretrainCheckpoint
from pfl_lm.run.pretrain_held_out import measure, open_held_out
from pfl_lm.run.pretrain_recipe import Pretraining
from pfl_lm.run.progress import ProgressListener
from pfl_lm.text.population import PopulationStore
from pfl_lm.text.population_build import Input, build_population
from pfl_lm.text.records import Message
from pfl_lm.text.synthetic.population import (
    SyntheticPopulation,
    synthetic_tokenizer,
    write_public_store,
)

SPEC = ModelSpec("cifg_lstm", vocabulary_size=300, embedding_dim=16, hidden_dim=16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("central")
    people = SyntheticPopulation({"train": 1, "public": 250}, 300, 60, seed=1)
    synthetic_tokenizer(300).save(folder / "tokenizer")
    synthetic_tokenizer(400).save(folder / "tokenizer_400")
    write_public_store(people, folder / "text")
    few = SyntheticPopulation({"train": 1, "public": 3}, 300, 10, seed=1)
    write_public_store(few, folder / "few")
    return folder


@pytest.fixture(scope="module")
def recipe(folder):
    return Pretraining(
        tokenizer=folder / "tokenizer",
        text=folder / "text",
        text_is="public",
        model=SPEC,
        window=10,
        batch_size=16,
        learning_rate=1e-2,
        candidates=100,
    )


def trained(recipe):
    """The model, and the loss of every step."""
    seen = []

    class Steps(ProgressListener):
        def step_done(self, step, steps, loss):
            seen.append((step, steps, loss))

    model = pretrain(recipe, Steps())
    assert [step for step, _, _ in seen] == list(range(1, seen[0][1] + 1))
    return model, [loss for _, _, loss in seen]


def people_of(folder):
    """A store of 200 users' text."""
    words = synthetic_tokenizer(300).words[4:]
    messages = [Message(f"u{i}", " ".join(words[i : i + 9])) for i in range(200)]
    build_population(
        [Input(Path("x"), records=messages)], synthetic_tokenizer(300), folder / "people"
    )
    return folder / "people"


def text_of(folder, count=100):
    words = PopulationStore.open(folder / "text").stream("train").astype(np.int64)
    return words[: count * 11].reshape(count, 11)


def scores_of(model, folder):
    windows = text_of(folder)
    vectors = hidden_of(model.spec, model.parameters, windows[:, :-1]).flatten(0, 1)
    return scores(model.spec, model.parameters, vectors), torch.from_numpy(windows[:, 1:]).flatten()


def log_partition(model, folder):
    return torch.logsumexp(scores_of(model, folder)[0], 1)


@pytest.fixture(scope="module")
def sampled(recipe):
    return trained(recipe)


def test_training_beats_the_unigram_that_it_starts_from(recipe, folder, sampled):
    model, losses = sampled
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) - 0.3
    start = Model(SPEC, initialise(SPEC, 0, synthetic_tokenizer(300).unigram), {})
    before, after = (
        float(torch.nn.functional.cross_entropy(*scores_of(m, folder))) for m in (start, model)
    )
    assert after < before - 0.3


def test_it_is_repeated_to_the_bit(recipe, sampled):
    again, losses = trained(recipe)
    assert losses == sampled[1]
    assert all(torch.equal(again.parameters[n], v) for n, v in sampled[0].parameters.items())
    other, _ = trained(replace(recipe, seed=1, epochs=0.1))
    assert not torch.equal(other.parameters["embedding"], again.parameters["embedding"])


def test_sampled_softmax_with_every_word_as_candidate_is_softmax(recipe):
    short = replace(recipe, epochs=0.2, learning_rate=1e-3)
    exact, exact_losses = trained(replace(short, loss="softmax"))
    limit, limit_losses = trained(replace(short, candidates=300))
    few, few_losses = trained(replace(short, candidates=30))
    assert np.allclose(exact_losses, limit_losses, atol=1e-4)
    assert not np.allclose(exact_losses, few_losses, atol=1e-2)
    for name, value in exact.parameters.items():
        assert torch.allclose(limit.parameters[name], value, atol=2e-4), name
    assert (few.parameters["embedding"] - exact.parameters["embedding"]).abs().max() > 2e-4


def test_scores_are_log_probabilities_on_average(folder, sampled):
    assert abs(float(log_partition(sampled[0], folder).mean())) < 0.1


def test_normalising_changes_no_probability(folder, sampled):
    model = sampled[0]
    shifted = {n: v.clone() for n, v in model.parameters.items()}
    shifted["output_bias"] += 3.0
    moved = Model(SPEC, shifted, {})
    assert float(log_partition(moved, folder).mean()) == pytest.approx(3.0, abs=0.1)
    expected = torch.log_softmax(scores_of(model, folder)[0], 1)
    normalise(SPEC, shifted, text_of(folder)[:, :-1])
    assert float(log_partition(moved, folder).mean()) == pytest.approx(0.0, abs=1e-4)
    found = torch.log_softmax(scores_of(moved, folder)[0], 1)
    assert torch.allclose(found, expected, atol=1e-4)


def test_self_normalising_brings_the_log_partition_to_0_in_every_context(recipe, folder, sampled):
    normalising, losses = trained(replace(recipe, self_normalise=0.1, candidates=300))
    wandering, _ = trained(replace(recipe, candidates=300))
    squares = [
        float(log_partition(model, folder).square().mean()) for model in (normalising, wandering)
    ]
    assert squares[0] < 0.5 * squares[1]
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) - 0.3


def test_a_model_says_what_it_was_trained_on(recipe, sampled):
    assert sampled[0].origin == {
        "kind": "public",
        "text": "synthetic public text",
        "tokenizer_digest": synthetic_tokenizer(300).digest,
    }
    ceiling, _ = trained(replace(recipe, text_is="private", epochs=0.02))
    assert ceiling.origin["kind"] == "private"
    assert not any(v.requires_grad for v in ceiling.parameters.values())


class TestStart:
    @pytest.fixture
    def start_from(self, recipe, sampled, tmp_path):
        def write(spec=None, **origin):
            model = sampled[0] if spec is None else Model(spec, initialise(spec, 1), {})
            save_model(tmp_path / "s.pt", replace(model, origin=sampled[0].origin | origin))
            return replace(recipe, start=tmp_path / "s.pt", epochs=0.05, learning_rate=1e-4)

        return write

    def test_training_goes_on_from_it(self, start_from, sampled):
        _, losses = trained(start_from())
        assert losses[0] < np.mean(sampled[1][:10]) - 0.3

    def test_a_trunk_brings_the_layers_between_the_tables(self, start_from, sampled):
        larger = replace(SPEC, vocabulary_size=310)
        recipe = start_from(larger, kind="public", tokenizer_digest="another")
        recipe = replace(recipe, start=None, trunk=recipe.start)
        parameters, _ = module._start(recipe, synthetic_tokenizer(300))
        own, theirs = initialise(SPEC, recipe.seed), initialise(larger, 1)
        for name, role in roles(SPEC).items():
            if role.kind != "rows":
                assert torch.equal(parameters[name], theirs[name])
        assert torch.equal(parameters["embedding"], own["embedding"])
        trained(recipe)
        with pytest.raises(ValueError, match=r"trunk: .* another model .* hidden_dim"):
            pretrain(replace(recipe, model=replace(SPEC, hidden_dim=8)))
        with pytest.raises(ValueError, match="leave one out"):
            replace(recipe, start=recipe.trunk)
        recipe = start_from(larger, kind="federated")
        with pytest.raises(ValueError, match=r"trunk: .* not public"):
            pretrain(replace(recipe, start=None, trunk=recipe.start))

    def test_the_text_of_users_is_not_taken_for_public(self, recipe, tmp_path):
        people = people_of(tmp_path)
        with pytest.raises(ValueError, match="the text of users, which is not public"):
            pretrain(replace(recipe, text=people))
        model = pretrain(replace(recipe, text=people, text_is="private"))
        assert model.origin["kind"] == "private"

    @pytest.mark.parametrize("kind", ["private", "federated"])
    def test_private_text_cannot_become_public_by_a_second_training(self, start_from, kind):
        recipe = start_from(kind=kind)
        with pytest.raises(ValueError, match='not public; say text_is = "private"'):
            pretrain(recipe)
        model, _ = trained(replace(recipe, text_is="private"))
        assert model.origin["kind"] == "private"

    def test_another_model_or_tokenizer_is_refused(self, start_from):
        with pytest.raises(ValueError, match=r"another model .* \w+ is .* in the file"):
            pretrain(start_from(replace(SPEC, hidden_dim=8)))
        with pytest.raises(ValueError, match="another tokenizer"):
            pretrain(start_from(tokenizer_digest="x"))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"model": replace(SPEC, vocabulary_size=301)}, "301.*300 words; make them equal"),
        ({"tokenizer": "tokenizer_400", "model": replace(SPEC, vocabulary_size=400)},
         "another tokenizer than the recipe names; build it again"),
        ({"text": "few"}, "bring more text"),
        ({"text": "absent"}, "absent"),
        ({"tokenizer": "absent"}, "absent"),
        ({"start": "absent.pt"}, "no such model file"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_are_refused(recipe, folder, changes, match):
    placed = {k: folder / v if isinstance(v, str) else v for k, v in changes.items()}
    with pytest.raises(ValueError, match=match):
        pretrain(replace(recipe, **placed))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("max_tokens", 0),
        ("window", 0),
        ("batch_size", -1),
        ("learning_rate", float("nan")),
        ("candidates", 0),
        ("gradient_clip", float("inf")),
        ("self_normalise", 1.0),
        ("self_normalise", float("nan")),
    ],
)
def test_impossible_settings_are_refused_by_name(recipe, field, value):
    with pytest.raises(ValueError, match=f"{field} = "):
        replace(recipe, **{field: value})


def test_self_normalising_needs_candidates(recipe):
    with pytest.raises(ValueError, match='self_normalise needs loss = "sampled"'):
        replace(recipe, self_normalise=0.1, loss="softmax")


class Interrupted(BaseException):
    """What no handler of errors expects."""


def interrupted(recipe, checkpoint, after):
    """Train until ``after`` steps are taken; return whether it came so far."""

    class Ends(ProgressListener):
        def step_done(self, step, steps, loss):
            if step == after:
                raise Interrupted

    with pytest.raises(Interrupted):
        pretrain(recipe, Ends(), checkpoint)


@pytest.mark.parametrize(("loss", "after"), [("sampled", 1), ("softmax", 120)])
def test_an_interrupted_training_goes_on_to_the_byte(recipe, tmp_path, loss, after):
    recipe = replace(recipe, loss=loss, epochs=2.0)  # the order of the second epoch is another one
    straight = pretrain(recipe)
    model = tmp_path / "model.pt"
    interrupted(recipe, PretrainCheckpoint.beside(model, resume=False), after)
    checkpoint, seen = PretrainCheckpoint.beside(model, resume=True), []
    listener = ProgressListener()
    listener.step_done = lambda step, steps, loss: seen.append(step)
    resumed = pretrain(recipe, listener, checkpoint)
    assert seen[0] == after + 1
    for name, value in straight.parameters.items():
        assert torch.equal(resumed.parameters[name], value)
    checkpoint.finish(model, resumed)
    assert list(tmp_path.iterdir()) == [model]


def test_a_killed_training_goes_on_from_its_last_checkpoint(recipe, tmp_path, monkeypatch):
    checkpoint, saved = PretrainCheckpoint(tmp_path / "kept", seconds=0.0), []

    def saver(self, *about):
        save = real(self, *about)
        return lambda step, now: None if now else (saved.append(step), save(step, now))

    real = PretrainCheckpoint.saver
    with monkeypatch.context() as patch:
        patch.setattr(PretrainCheckpoint, "saver", saver)  # a killed process saves no more
        interrupted(recipe, checkpoint, 5)
    assert saved == [1, 2, 3, 4, 5]
    resumed = pretrain(recipe, checkpoint=PretrainCheckpoint(checkpoint.path, resume=True))
    for name, value in pretrain(recipe).parameters.items():
        assert torch.equal(resumed.parameters[name], value)


def test_a_training_killed_once_its_model_was_written_ends_with_that_model(recipe, tmp_path):
    model = tmp_path / "model.pt"
    interrupted(recipe, PretrainCheckpoint.beside(model, resume=False), 5)
    straight = pretrain(recipe)
    save_model(model, straight)  # and here it was killed
    before = model.read_bytes()
    with pytest.raises(ValueError, match="go on with --resume"):
        PretrainCheckpoint.beside(model, resume=False)
    checkpoint = PretrainCheckpoint.beside(model, resume=True)
    checkpoint.finish(model, pretrain(recipe, checkpoint=checkpoint))
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]
    assert model.read_bytes() == before
    with pytest.raises(ValueError, match="exists already"):
        PretrainCheckpoint.beside(model, resume=True)


def test_another_model_in_the_place_of_a_trainings_own_stays(recipe, tmp_path):
    model = tmp_path / "model.pt"
    interrupted(recipe, PretrainCheckpoint.beside(model, resume=False), 5)
    save_model(model, pretrain(replace(recipe, seed=1)))
    before = model.read_bytes()
    checkpoint = PretrainCheckpoint.beside(model, resume=True)
    with pytest.raises(ValueError, match="move it away and repeat the command with --resume"):
        checkpoint.finish(model, pretrain(recipe, checkpoint=checkpoint))
    assert model.read_bytes() == before
    assert checkpoint.path.exists()


def test_a_checkpoint_of_another_training_is_refused(recipe, tmp_path):
    model = tmp_path / "model.pt"
    interrupted(recipe, PretrainCheckpoint.beside(model, resume=False), 1)
    with pytest.raises(ValueError, match="go on with --resume, or remove it"):
        PretrainCheckpoint.beside(model, resume=False)
    checkpoint = PretrainCheckpoint.beside(model, resume=True)
    with pytest.raises(ValueError, match="begun with another recipe, text, tokenizer or mixture"):
        pretrain(replace(recipe, seed=1), checkpoint=checkpoint)
    checkpoint.path.write_bytes(b"damaged")
    with pytest.raises(ValueError, match="no readable checkpoint"):
        pretrain(recipe, checkpoint=checkpoint)
    with pytest.raises(ValueError, match="nothing to resume"):
        PretrainCheckpoint.beside(tmp_path / "other.pt", resume=True)


class TestHeldOutText:
    """Public text that a training does not read tells which training to keep."""

    def test_a_training_that_learned_more_predicts_it_better(self, recipe, folder, sampled):
        people = SyntheticPopulation({"train": 1, "public": 40}, 300, 60, seed=2)
        write_public_store(people, folder / "unread")
        (store,) = open_held_out(recipe, [folder / "unread"])
        hardly = pretrain(replace(recipe, epochs=0.05))
        found = [measure(recipe, model, store) for model in (sampled[0], hardly)]
        assert found[0].perplexity < found[1].perplexity
        assert found[0].words == found[1].words > 1_000

    def test_text_that_the_recipe_reads_is_refused(self, recipe, folder):
        with pytest.raises(ValueError, match="is the text that the recipe reads"):
            open_held_out(recipe, [folder / "text"])

    def test_the_text_of_users_is_refused(self, recipe, tmp_path):
        with pytest.raises(ValueError, match="the text of users, which is not public"):
            open_held_out(recipe, [people_of(tmp_path)])

    def test_another_vocabulary_is_refused(self, recipe, folder):
        people = SyntheticPopulation({"train": 1, "public": 40}, 400, 60, seed=2)
        write_public_store(people, folder / "of_400")
        with pytest.raises(ValueError, match="built with another tokenizer"):
            open_held_out(recipe, [folder / "of_400"])
