"""Training on text that votes chose: as many steps, other text, and a model that says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pfl_lm.models.file import Model, load_model, save_model
from pfl_lm.models.models import ModelSpec
from pfl_lm.run.pretrain import pretrain
from pfl_lm.run.pretrain_checkpoint import PretrainCheckpoint
from pfl_lm.run.pretrain_recipe import Pretraining
from pfl_lm.run.progress import ProgressListener
from pfl_lm.text.clusters import cluster
from pfl_lm.text.mixture import Mixture, cost_of_votes
from tests.text import topics

VOTES = {
    "epsilon": 0.5,
    "delta": 1e-6,
    "unit": "user",
    "population": "chat",
    "statement": "what was promised",
    "ledger": "ab" * 32,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("voted")
    topics.vocabulary().save(folder / "words")
    topics.public_store(topics.vocabulary(), folder / "public")
    topics.people(topics.vocabulary(), folder / "people", 60)
    return folder


@pytest.fixture(scope="module")
def recipe(folder: Path) -> Pretraining:
    return Pretraining(
        folder / "words", folder / "public", "public", ModelSpec("cifg_lstm", 300, 8, hidden_dim=8),
        epochs=0.2, window=10, batch_size=16, candidates=50,
    )  # fmt: skip


@pytest.fixture(scope="module")
def mixture(folder: Path) -> Mixture:
    """Weights that want the words of the first topic."""
    store = topics.open_store(folder / "public")
    clusters = cluster([store], topics.vocabulary(), 16)
    own = (clusters.words.ids >= topics.FIRST) & (clusters.words.ids < topics.FIRST + topics.OWN)
    return Mixture(clusters, np.where(own, 4.0, 0.8), VOTES, 0.2)


class Steps(ProgressListener):
    def __init__(self) -> None:
        self.taken: list[int] = []

    def step_done(self, step: int, steps: int, loss: float) -> None:
        assert 1 <= step <= steps
        self.taken.append(step)


class TestChoice:
    def test_it_is_whole_passages_in_order_and_no_more_than_asked(
        self, folder: Path, mixture: Mixture
    ) -> None:
        store = topics.open_store(folder / "public")
        text, chosen = store.stream("train"), mixture.choose(store)
        assert 0.2 * len(text) <= len(chosen) <= 0.2 * len(text) + 112  # one passage
        assert chosen[0] == 2
        assert topics.topic_shares(chosen)[0] > 0.6
        everything = replace(mixture, keep=1.0).choose(store)
        assert (everything == text).all()

    def test_users_text_is_never_chosen(self, folder: Path, mixture: Mixture) -> None:
        with pytest.raises(ValueError, match="not the store that they were made of"):
            mixture.choose(topics.open_store(folder / "people"))

    @pytest.mark.parametrize("keep", [0.0, -1.0, 1.1, float("nan")])
    def test_an_impossible_share_is_refused(self, mixture: Mixture, keep: float) -> None:
        with pytest.raises(ValueError, match="keep = "):
            replace(mixture, keep=keep)

    def test_what_decides_the_text_decides_the_digest(self, mixture: Mixture) -> None:
        others = (
            replace(mixture, keep=0.5),
            replace(mixture, weights=mixture.weights + 1),
            replace(mixture, votes=VOTES | {"ledger": "cd" * 32}),
        )
        assert len({mixture.digest, *(other.digest for other in others)}) == 4


class TestPretrain:
    def test_it_takes_as_many_steps_and_says_what_the_votes_cost(
        self, recipe: Pretraining, mixture: Mixture
    ) -> None:
        plain, voted = Steps(), Steps()
        without, model = pretrain(recipe, plain), pretrain(recipe, voted, mixture=mixture)
        assert voted.taken == plain.taken
        assert model.origin["kind"] == "public"
        assert model.origin["votes"] == [VOTES]
        assert "votes" not in without.origin
        assert cost_of_votes(without.origin) == ""
        assert "chat" in cost_of_votes(model.origin)
        assert "ε = 0.500, δ = 1e-06 per user" in cost_of_votes(model.origin)
        assert not torch.equal(model.parameters["embedding"], without.parameters["embedding"])

    def test_what_goes_on_from_such_a_model_says_it_too(
        self, recipe: Pretraining, mixture: Mixture, tmp_path: Path
    ) -> None:
        save_model(tmp_path / "first.pt", pretrain(recipe, mixture=mixture))
        assert load_model(tmp_path / "first.pt").origin["votes"] == [VOTES]
        further = replace(recipe, start=tmp_path / "first.pt", epochs=0.05)
        assert pretrain(further).origin["votes"] == [VOTES]
        assert pretrain(further, mixture=mixture).origin["votes"] == [VOTES]  # asked once
        other = VOTES | {"ledger": "cd" * 32}
        twice = pretrain(further, mixture=replace(mixture, votes=other))
        assert twice.origin["votes"] == [VOTES, other]

    def test_private_text_is_not_for_a_mixture(self, recipe: Pretraining, mixture: Mixture) -> None:
        with pytest.raises(ValueError, match="--mixture chooses public text"):
            pretrain(replace(recipe, text_is="private"), mixture=mixture)
        with pytest.raises(ValueError, match=r"max_tokens .* leave one out"):
            pretrain(replace(recipe, max_tokens=5), mixture=mixture)

    def test_an_interrupted_training_goes_on_with_the_same_mixture_only(
        self, recipe: Pretraining, mixture: Mixture, tmp_path: Path
    ) -> None:
        class Ends(ProgressListener):
            def step_done(self, step: int, steps: int, loss: float) -> None:
                if step == 3:
                    raise KeyboardInterrupt

        straight = pretrain(recipe, mixture=mixture)
        checkpoint = PretrainCheckpoint(tmp_path / "c")
        with pytest.raises(KeyboardInterrupt):
            pretrain(recipe, Ends(), checkpoint, mixture)
        again = replace(checkpoint, resume=True)
        for other in (None, replace(mixture, keep=0.5)):
            with pytest.raises(ValueError, match="text, tokenizer or mixture"):
                pretrain(recipe, checkpoint=again, mixture=other)
        resumed: Model = pretrain(recipe, checkpoint=again, mixture=mixture)
        assert all(torch.equal(resumed.parameters[n], v) for n, v in straight.parameters.items())
