"""Clusters of public text: they find topics, are the same again, and refuse what is not theirs."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from pfl_lm.text.clusters import STEPS, Clusters, cluster
from pfl_lm.text.passages import passages, word_counts
from pfl_lm.text.population import PopulationStore
from pfl_lm.text.synthetic.population import synthetic_tokenizer
from pfl_lm.text.tokenizer import Tokenizer
from tests.text import topics


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return topics.vocabulary()


@pytest.fixture(scope="module")
def store(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> PopulationStore:
    folder = tmp_path_factory.mktemp("public")
    return topics.open_store(topics.public_store(tokenizer, folder / "public"))


@pytest.fixture(scope="module")
def found(store: PopulationStore, tokenizer: Tokenizer) -> Clusters:
    return cluster([store], tokenizer, 16)


class TestPassages:
    def test_they_are_whole_messages_and_hold_the_least(self, store: PopulationStore) -> None:
        text = store.stream("train")
        bounds = passages(text, 50)
        assert (bounds[0], bounds[-1]) == (0, len(text))
        assert (text[bounds[:-1]] == 2).all()
        assert (np.diff(bounds)[:-1] >= 50).all()
        assert (np.diff(bounds) < 50 + 12).all()  # a line has twelve tokens

    def test_counts_are_those_of_each_passage(self, store: PopulationStore) -> None:
        text = store.stream("train")
        bounds = passages(text)
        counts = word_counts(text, bounds, topics.WORDS)
        assert counts.sum() == len(text)
        third = np.bincount(text[bounds[2] : bounds[3]], minlength=topics.WORDS)
        assert (counts[[2]].toarray().ravel() == third).all()

    def test_a_text_shorter_than_one_is_one(self) -> None:
        assert passages(np.array([2, 9, 3]), 100).tolist() == [0, 3]


class TestCluster:
    def test_clusters_are_of_one_topic_each(self, store: PopulationStore, found: Clusters) -> None:
        text = store.stream("train")
        bounds = passages(text)
        nearest = found.scores(word_counts(text, bounds, topics.WORDS)).argmax(axis=1)
        of_main_topic = 0.0
        for place in set(nearest.tolist()):
            inside = np.flatnonzero(nearest == place)
            shares = topics.topic_shares(
                np.concatenate([text[bounds[i] : bounds[i + 1]] for i in inside])
            )
            of_main_topic += shares.max() * len(inside) / len(nearest)
        assert of_main_topic > 0.85  # a topic each has 1, one cluster 0.25

    def test_the_same_seed_gives_the_same_and_another_does_not(
        self, store: PopulationStore, tokenizer: Tokenizer, found: Clusters
    ) -> None:
        again, other = (cluster([store], tokenizer, 16, seed) for seed in (0, 1))
        assert again.clusters == found.clusters
        assert (again.ratios == found.ratios).all()
        assert (other.ratios != found.ratios).any()

    def test_public_shares_are_those_of_the_tokens(
        self, store: PopulationStore, found: Clusters
    ) -> None:
        assert found.public_shares().sum() == pytest.approx(1)
        assert sum(c.tokens for c in found.clusters) == len(store.stream("train"))
        assert len({c.label for c in found.clusters}) == 16

    def test_a_score_is_the_log_likelihood_against_all_public_text(
        self, store: PopulationStore, found: Clusters
    ) -> None:
        tokens = store.stream("train")[:500]
        counts = np.bincount(tokens, minlength=topics.WORDS)
        by_hand = [sum(int(r) * int(c) for r, c in zip(row, counts, strict=True))
                   for row in found.ratios]  # fmt: skip
        assert found.scores_of(tokens).tolist() == by_hand
        whole = word_counts(tokens, np.array([0, len(tokens)]), topics.WORDS)
        assert found.scores(whole)[0].tolist() == by_hand

    def test_a_ratio_is_that_of_smoothed_unigrams(
        self, store: PopulationStore, found: Clusters
    ) -> None:
        background = np.bincount(store.stream("train"), minlength=topics.WORDS) + 1.0
        background /= background.sum()
        for row in found.ratios:  # p(word | cluster) = p(word) · e^ratio sums to 1
            total = float((background * np.exp(row / STEPS)).sum())
            assert total == pytest.approx(1, abs=0.04)  # half a step of rounding

    def test_another_store_has_clusters_of_its_own(
        self, store: PopulationStore, tokenizer: Tokenizer, tmp_path: Path
    ) -> None:
        half = topics.open_store(topics.public_store(tokenizer, tmp_path / "also", 30, seed=3))
        both = cluster([store, half], tokenizer, 16)
        assert [c.store for c in both.clusters] == [0] * 16 + [1] * 8
        assert both.public_shares()[16:].sum() == pytest.approx(1)


class TestListedWords:
    def test_they_are_the_commonest_and_what_passages_say_of_them(
        self, store: PopulationStore, found: Clusters
    ) -> None:
        text, words = store.stream("train"), found.words
        counts = np.bincount(text, minlength=topics.WORDS)
        assert (np.diff(counts[words.ids]) <= 0).all()
        assert (counts[words.ids] > 0).all()
        assert len(words.ids) == (counts > 0).sum()
        bounds, by_hand = passages(text), np.zeros(topics.WORDS)
        for begin, end in itertools.pairwise(bounds):
            distinct = np.unique(text[begin:end])
            by_hand[distinct] += 1 / np.sqrt(len(distinct)) / (len(bounds) - 1)
        assert words.means == pytest.approx(by_hand[words.ids])

    def test_a_text_names_each_listed_word_once_the_most_used_first(self, found: Clusters) -> None:
        first, second = found.words.ids[[0, 3]].tolist()
        places = found.words.named(np.array([second, first, second, topics.WORDS - 1]))
        assert places[:2] == [3, 0]
        assert len(places) == len(set(places)) <= 3
        assert found.words.named(np.zeros(0, dtype=np.int32)) == []


class TestRefusals:
    def test_users_text_is_not_public(self, tokenizer: Tokenizer, tmp_path: Path) -> None:
        private = topics.open_store(topics.people(tokenizer, tmp_path / "people", 30))
        with pytest.raises(ValueError, match="not public"):
            cluster([private], tokenizer, 2)

    def test_another_vocabulary(self, store: PopulationStore) -> None:
        with pytest.raises(ValueError, match="another tokenizer"):
            cluster([store], synthetic_tokenizer(200), 2)

    def test_more_clusters_than_passages(
        self, store: PopulationStore, tokenizer: Tokenizer
    ) -> None:
        with pytest.raises(ValueError, match=r"clusters = 1024, but .* has \d+ passages"):
            cluster([store], tokenizer, 1024)


class TestFolder:
    def test_what_is_written_is_read(self, found: Clusters, tmp_path: Path) -> None:
        found.save(tmp_path / "clusters")
        back = Clusters.open(tmp_path / "clusters")
        assert back.clusters == found.clusters
        assert (back.ratios == found.ratios).all()
        assert (back.stores, back.seed) == (found.stores, found.seed)
        assert (back.words.ids == found.words.ids).all()
        assert (back.words.means == found.words.means).all()
        assert back.words.labels == found.words.labels
        assert len(back.digest) == 64
        with pytest.raises(ValueError, match="exists"):
            found.save(tmp_path / "clusters")

    @pytest.mark.parametrize("damage", ["ratios", "absent", "index", "field", "format"])
    def test_what_is_damaged_is_refused(self, found: Clusters, tmp_path: Path, damage: str) -> None:
        found.save(tmp_path / "clusters")
        index = tmp_path / "clusters" / "clusters.json"
        stated = json.loads(index.read_text())
        if damage == "ratios":
            ratios = index.with_name("ratios.bin")
            ratios.write_bytes(b"\x07" + ratios.read_bytes()[1:])
        elif damage == "absent":
            index.with_name("listed.bin").unlink()
        elif damage == "index":
            index.write_text("{")
        elif damage == "field":
            del stated["clusters"][0]["label"]
            index.write_text(json.dumps(stated))
        else:
            index.write_text(json.dumps(stated | {"format": 2}))
        with pytest.raises(ValueError, match="damaged, or of another version"):
            Clusters.open(tmp_path / "clusters")

    def test_nothing_there_names_the_verb(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="mixture cluster"):
            Clusters.open(tmp_path)
