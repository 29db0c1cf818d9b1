"""Votes for public text: what a phone says, what weights follow, and what is refused."""

from __future__ import annotations

import itertools
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from pfl_lm.cli import app
from pfl_lm.cli.mixture import _named_oftener, _share_of
from pfl_lm.dp.ledger import Ledger, verify
from pfl_lm.queries import mixture as mixing
from pfl_lm.queries.ask import QuerySession
from pfl_lm.queries.ask import ask as ask_phones
from pfl_lm.queries.mixture import (
    MixtureQuestion,
    ask_for_mixture,
    expected_votes,
    mixture_query,
    open_mixture,
    vote,
)
from pfl_lm.queries.shares import RESULT_FILE, CellShare, read_shares, weights_of, write_shares
from pfl_lm.text.clusters import Clusters, cluster
from pfl_lm.text.passages import passages
from pfl_lm.text.population import PopulationStore
from tests.queries.conftest import policy_of
from tests.text import topics

USERS = 300
TOPIC = 2  # of nine users in ten


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vocabulary, public text, its clusters, and users who have voted."""
    folder = tmp_path_factory.mktemp("mixture")
    tokenizer = topics.vocabulary()
    tokenizer.save(folder / "words")
    public = topics.open_store(topics.public_store(tokenizer, folder / "public"))
    also = topics.open_store(topics.public_store(tokenizer, folder / "also", 8, seed=5))
    cluster([public], tokenizer, 16).save(folder / "clusters")
    cluster([public, also], tokenizer, 16).save(folder / "both")
    topics.people(tokenizer, folder / "people", USERS, TOPIC)
    ask(folder, "asked")
    return folder


def ask(folder: Path, name: str, resume: bool = False, **question: object) -> list:
    return ask_for_mixture(
        MixtureQuestion(**question),  # type: ignore[arg-type]
        Clusters.open(folder / "clusters"), PopulationStore.open(folder / "people"),
        policy_of(users=USERS), folder / name, resume=resume, ledgers=folder / f"{name}.ledgers",
    )  # fmt: skip


@pytest.fixture
def asked(folder: Path, tmp_path: Path) -> Path:
    """A copy to doctor."""
    shutil.copytree(folder / "asked", tmp_path / "asked")
    return tmp_path / "asked"


class TestVote:
    def test_it_names_the_likeliest_clusters_and_its_words_within_the_bounds(
        self, folder: Path
    ) -> None:
        clusters = Clusters.open(folder / "clusters")
        query = mixture_query(clusters, 3, 64)
        tokens = PopulationStore.open(folder / "people").tokens("train", 5)
        said = vote(clusters, tokens, 3)
        assert query.refusal(said) is None
        assert said.cells[0] == clusters.scores_of(tokens).argmax()
        assert np.linalg.norm(said.values) == pytest.approx(1, abs=1e-6)
        assert (vote(clusters, tokens, 1).cells < 16).sum() == 1
        words = said.cells[said.cells >= 16] - 16
        assert set(clusters.words.ids[words]) == set(tokens) & set(clusters.words.ids)

    def test_a_phone_without_text_names_nothing(self, folder: Path) -> None:
        clusters = Clusters.open(folder / "clusters")
        assert len(vote(clusters, np.zeros(0, dtype=np.int32), 3).cells) == 0

    def test_no_answer_of_any_text_is_longer_than_1(self, folder: Path) -> None:
        clusters = Clusters.open(folder / "clusters")
        query, random = mixture_query(clusters, 5, 1), np.random.default_rng(0)
        for length in (1, 3, 50, 5_000):
            said = vote(clusters, random.integers(topics.WORDS, size=length), 5)
            assert query.refusal(said) is None
            assert np.linalg.norm(said.values) <= 1 + 1e-6

    def test_each_cluster_and_word_has_a_cell_of_its_own(self, folder: Path) -> None:
        clusters = Clusters.open(folder / "both")
        query = mixture_query(clusters, 100, 1)
        assert len(set(query.labels)) == len(query.labels) == query.entries
        assert len(query.labels) == len(clusters.clusters) + len(clusters.words.ids)

    def test_passages_of_the_public_text_say_what_is_expected(self, folder: Path) -> None:
        clusters = Clusters.open(folder / "clusters")
        text = PopulationStore.open(folder / "public").stream("train")
        bounds = passages(text)
        total = np.zeros(16 + len(clusters.words.ids))
        for begin, end in itertools.pairwise(bounds):
            said = vote(clusters, text[begin:end], 1)
            total[said.cells] += said.values
        expected = expected_votes(clusters, len(bounds) - 1, 1)
        assert total[16:] == pytest.approx(expected[16:], rel=1e-5, abs=1e-5)
        assert expected[:16].sum() == pytest.approx(0.1**0.5 * (len(bounds) - 1))


class TestWeights:
    EXPECTED = np.array([50.0, 30.0, 20.0, 0.0])

    def test_they_are_ratios_that_the_noise_draws_to_1(self) -> None:
        found = weights_of(np.array([10.0, 60.0, 30.0, 0.0]), self.EXPECTED, 1e-9)
        assert found.tolist() == pytest.approx([0.2, 2.0, 1.5, 1.0])
        near = weights_of(np.array([10.0, 60.0, 30.0, 0.0]), self.EXPECTED, 1e9)
        assert np.allclose(near, 1, atol=1e-6)

    def test_negative_sums_count_as_0(self) -> None:
        below, none = (weights_of(np.full(4, s), self.EXPECTED, 5.0) for s in (-50.0, 0.0))
        assert below.tolist() == none.tolist()
        assert (below > 0).all()


class TestAsked:
    def test_the_topic_of_the_users_has_the_votes(self, folder: Path) -> None:
        shares = read_shares(folder / "asked" / RESULT_FILE)
        clusters = Clusters.open(folder / "clusters")
        assert len(shares) == 16 + len(clusters.words.ids)
        mixture = open_mixture(folder / "asked", 0.2)
        store = PopulationStore.open(folder / "public")
        chosen = topics.topic_shares(mixture.choose(store))
        assert chosen[TOPIC] > 0.5  # a quarter of the public text is of this topic
        assert mixture.votes["epsilon"] == 8.0

    def test_an_audit_of_the_folder_holds(self, folder: Path) -> None:
        done = CliRunner().invoke(
            app, ["audit", str(folder / "asked"), "--ledgers", str(folder / "asked.ledgers")]
        )
        assert done.exit_code == 0, done.output
        assert "one budget for these people" in done.output
        assert "Everything that was checked holds" in done.output

    def test_an_interrupted_question_goes_on_with_the_same_noise(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        written = []

        def die(path: Path, shares: list) -> None:
            written.append(shares)
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(mixing, "write_shares", die)
            with pytest.raises(KeyboardInterrupt):
                ask(folder, "killed")
        assert ask(folder, "killed", resume=True) == written[0]
        entries = verify(folder / "killed" / "ledger.jsonl")
        assert [entry["kind"] for entry in entries] == ["genesis", "round", "end"]
        assert not (folder / "killed" / "noise.secret").exists()

    def test_other_clusters_are_another_question(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def die(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(mixing, "write_shares", die)
            with pytest.raises(KeyboardInterrupt):
                ask(folder, "begun")
        with pytest.raises(ValueError, match="begun with another question"):
            ask_for_mixture(
                MixtureQuestion(), Clusters.open(folder / "both"),
                PopulationStore.open(folder / "people"), policy_of(users=USERS), folder / "begun",
                resume=True, ledgers=folder / "begun.ledgers",
            )  # fmt: skip

    def test_the_protocol_sums_as_the_ideal_to_the_byte(self, folder: Path) -> None:
        clusters = Clusters.open(folder / "clusters")
        store = PopulationStore.open(folder / "people")
        query, sums = mixture_query(clusters, 1, 64), []
        genesis = {"run": "votes", "policy_digest": "00"}
        for kind in ("ideal", "protocol"):
            session = QuerySession(
                policy_of(users=30),
                30,
                30,
                7,
                kind,
                separate_noise=True,  # type: ignore[arg-type]
            )
            with Ledger.create(folder / f"{kind}.jsonl", genesis) as ledger:
                sums.append(ask_phones(
                    session, query, 0, session.users(0),
                    lambda user: vote(clusters, store.tokens("train", user), 1), ledger,
                ))  # fmt: skip
        assert sums[0].tobytes() == sums[1].tobytes()

    def test_phones_that_fall_silent_are_not_expected_to_have_said_anything(
        self, folder: Path
    ) -> None:
        policy = policy_of(users=USERS)
        policy = replace(policy, noise=replace(policy.noise, tolerated_dropout=0.3))
        ask_for_mixture(
            MixtureQuestion(seed=3, dropout=0.1), Clusters.open(folder / "clusters"),
            PopulationStore.open(folder / "people"), policy, folder / "silent",
        )  # fmt: skip
        reports = verify(folder / "silent" / "ledger.jsonl")[-2]["reports"]
        assert reports < USERS
        clusters = Clusters.open(folder / "clusters")
        expected = [share.expected for share in read_shares(folder / "silent" / RESULT_FILE)]
        assert expected == pytest.approx(expected_votes(clusters, reports, 1), rel=1e-5)


class TestRefused:
    def test_without_a_ledger(self, asked: Path) -> None:
        (asked / "ledger.jsonl").unlink()
        with pytest.raises(ValueError, match=r"ledger\.jsonl is missing, so nothing shows"):
            open_mixture(asked, 0.25)

    def test_other_shares_than_were_paid_for(self, asked: Path) -> None:
        write_shares(asked / RESULT_FILE, read_shares(asked / RESULT_FILE)[1:])
        with pytest.raises(ValueError, match="is not the result that the ledger's last entry"):
            open_mixture(asked, 0.25)

    def test_a_printed_seed(self, folder: Path) -> None:
        ask(folder, "seeded", seed=3)
        with pytest.raises(ValueError, match="the noise came from --seed"):
            open_mixture(folder / "seeded", 0.25)

    def test_other_clusters(self, folder: Path, asked: Path) -> None:
        shutil.rmtree(asked / "clusters")
        shutil.copytree(folder / "both", asked / "clusters")
        with pytest.raises(ValueError, match="not those that the phones voted for"):
            open_mixture(asked, 0.25)

    def test_another_store(self, folder: Path) -> None:
        mixture = open_mixture(folder / "asked", 0.25)
        with pytest.raises(ValueError, match="is not the store that they were made of"):
            mixture.choose(PopulationStore.open(folder / "also"))

    def test_a_damaged_table(self, tmp_path: Path) -> None:
        path = tmp_path / RESULT_FILE
        path.write_text("no table\n")
        with pytest.raises(ValueError, match="no table of shares"):
            read_shares(path)


class TestVerbs:
    POLICY = """
unit = "user"
neighboring = "zero_out"
epsilon = 8.0
delta = 1e-3
population = 300
report_goal = 300
rounds = 1
participation = { kind = "rotation", min_separation = 1 }
noise = { at = "device", kind = "skellam", min_dim = 64 }
"""

    def test_from_public_text_to_shares_of_a_second_store(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "policy.toml").write_text(self.POLICY)
        divide = f"mixture cluster {folder}/public --tokenizer {folder}/words --clusters 8 -o both"
        vote_on = f"mixture ask {folder}/people --clusters both --policy policy.toml -o asked"
        for line in (f"{divide} --also {folder}/also", f"{vote_on} --ledgers ledgers"):
            done = CliRunner().invoke(app, line.split())
            assert done.exit_code == 0, (done.output, done.exception)
        assert "The strongest of 9 clusters" in done.output
        assert "store 1, public text, which was divided: " in done.output
        assert "store 2, public text: " in done.output
        assert done.output.count("of the votes") == 2
        assert "<s>" not in done.output
        assert "Guaranteed  Nothing against the process" in done.output
        assert "The votes cost" not in done.output

    def test_a_stores_share_is_as_uncertain_as_it_says(self) -> None:
        random, own = np.random.default_rng(1), [True] * 64 + [False] * 2
        votes = np.array([10.0] * 64 + [80.0] * 2)
        inside = 0
        for _ in range(400):
            sums = votes + random.normal(0, 3.0, len(votes))
            stated = _share_of(sums.tolist(), own[::-1], 3.0)
            share, error = (float(part.rstrip("%")) for part in stated.split(" ± "))
            truth = 100 * votes[np.array(own[::-1])].sum() / votes.sum()
            inside += abs(share - truth) <= error
        assert inside >= 0.92 * 400

    def test_too_few_votes_state_no_share(self) -> None:
        assert _share_of([1.0, -2.0], [True, False], 3.0).startswith("an unknown share")

    def test_words_of_noise_alone_are_not_told(self) -> None:
        shares = [
            CellShare("word 1: <s>", 10.0, 900.0, 300.0, 70.0),
            CellShare("word 5: linux", 10.0, 90.0, 30.0, 7.0),
            CellShare("word 6: noise", 0.0, 9.0, 3.0, 4.0),
            CellShare("word 7: flour", 40.0, 3.0, 1.0, 0.1),
        ]
        assert _named_oftener(shares) == ["linux"]

    def test_an_output_that_exists_is_refused_before_anything_is_read(self, folder: Path) -> None:
        line = f"mixture cluster nowhere --tokenizer nowhere -o {folder}/clusters"
        error = CliRunner().invoke(app, line.split()).exception
        assert "exists already" in str(error)
