"""Invented users who write English: plausible words, and exact probabilities."""

from __future__ import annotations

import numpy as np
import pytest

from pfl_lm.text.synthetic import english_words
from pfl_lm.text.synthetic.english import ANY, MOST_IN_A_MESSAGE, English
from pfl_lm.text.synthetic.english_tables import english_of
from pfl_lm.text.synthetic.language import KEEP_HABIT, LOYAL
from pfl_lm.text.synthetic.population import PUBLIC, SyntheticPopulation, synthetic_tokenizer

SIZE = 1200


@pytest.fixture(scope="module")
def people() -> SyntheticPopulation:
    users = {"train": 400, "validation": 20, "test": 20, PUBLIC: 300}
    return SyntheticPopulation(users, SIZE, tokens_per_user=60, language="english")


class Reader:
    """The process written a second time, over every cause that a reader cannot see.

    Weights over (habit, favourite topic, topic of this message) are kept for a prefix, and the next
    token's distribution is their mixture.
    """

    def __init__(self, language: English, private: bool) -> None:
        self.l, self.private = language, private
        self.topics = language.private_topics if private else language.public_topics
        self.habits = language.private_habits if private else language.public_habits
        k = len(self.topics)
        self.wish = LOYAL * np.eye(k) + (1 - LOYAL) * self.topics[None, :]
        self.weights = np.einsum("h,f,fz->hfz", self.habits, self.topics, self.wish)
        self.message: list[int] | None = None  # words so far; None: between messages

    def next_word(self, topic: int) -> np.ndarray:
        """P(word of the chain | the message so far, topic); what is missing to 1 is its end."""
        l = self.l
        if not self.message:
            return l.opening
        if len(self.message) == MOST_IN_A_MESSAGE:
            return np.zeros(len(l.opening))
        before = self.message[-1]
        row = np.zeros(len(l.opening))
        np.add.at(row, l.successors[before], l.following[int(self.private), before])
        named = np.zeros(len(l.opening))
        np.add.at(named, l.topic_words[topic], l.ranks)
        mixed = (1 - l.naming[before]) * row + l.naming[before] * named
        return (1 - l.ending[before]) * (ANY * l.common + (1 - ANY) * mixed)

    def distribution(self, habit: int, topic: int) -> np.ndarray:
        l = self.l
        row = np.zeros(SIZE)
        if self.message is None:
            row[2] = 1.0
            return row
        words = self.next_word(topic)
        row[3] = 1 - words.sum()
        plain = l.lexeme < 0
        row[l.first_id[plain]] = words[plain]
        for word in np.flatnonzero(~plain):
            share = np.full(3, (1 - KEEP_HABIT) / 3)
            share[l.forms[habit, l.lexeme[word]]] += KEEP_HABIT
            row[l.spelled[l.lexeme[word]]] += words[word] * share
        return row

    def read(self, token: int) -> np.ndarray:
        causes = [(h, z) for h in range(len(self.habits)) for z in range(len(self.topics))]
        rows = {cause: self.distribution(*cause) for cause in causes}
        mixed = sum(self.weights[h, :, z].sum() * rows[h, z] for h, z in causes)
        for h, z in causes:
            self.weights[h, :, z] *= rows[h, z][token]
        self.weights /= self.weights.sum()
        if token == 2:
            self.message = []
        elif token == 3:
            self.weights = np.einsum("hf,fz->hfz", self.weights.sum(2), self.wish)
            self.message = None
        else:
            self.message.append(int(self.l.of_id[token]))
        return mixed


@pytest.mark.parametrize("split", ["train", PUBLIC])
def test_the_probability_is_that_of_a_step_by_step_reader(people, split):
    tokens = people.tokens(split, 1)[:40]
    found = people.log_probability(split, 1)[:40]
    reader = Reader(english_of(SIZE), split != PUBLIC)
    for token, log_probability in zip(tokens, found, strict=True):
        row = reader.read(int(token))
        assert row.sum() == pytest.approx(1, abs=1e-9)
        assert log_probability == pytest.approx(np.log(row[token]), abs=1e-8)


def test_every_token_has_a_finite_probability(people):
    for split in ("train", PUBLIC):
        for user in range(60):
            found = people.log_probability(split, user)
            assert np.isfinite(found).all()
            assert (found <= 1e-12).all()
            assert (found[people.tokens(split, user) == 2] == 0).all()


def test_streams_are_messages_between_their_marks(people):
    for user in range(40):
        tokens = people.tokens("train", user)
        assert (tokens[0], tokens[-1]) == (2, 3)
        assert (tokens[1:][tokens[:-1] == 3] == 2).all()
        lengths = np.flatnonzero(tokens == 3) - np.flatnonzero(tokens == 2) - 1
        assert (lengths.min() >= 1, lengths.max() <= MOST_IN_A_MESSAGE) == (True, True)
    lengths = [len(people.tokens("train", user)) for user in range(400)]
    assert np.mean(lengths) == pytest.approx(60, rel=0.25)


def test_a_user_follows_from_seed_split_and_number_alone(people):
    more = SyntheticPopulation({"train": 10**8}, SIZE, 60, language="english")
    assert (more.tokens("train", 17) == people.tokens("train", 17)).all()
    assert people.tokens("train", 1).tobytes() != people.tokens("test", 1).tobytes()


def test_public_streams_are_the_same_written_together_and_one_by_one():
    people = SyntheticPopulation({"public": 300}, 1000, 60, language="english")
    alone = [people._trace("public", user).tokens for user in range(300)]
    for user in [0, 127, 128, 299, 5, 128]:
        assert np.array_equal(people.tokens("public", user), alone[user])
    people.tokens("public", 7)[:] = 0
    assert np.array_equal(people.tokens("public", 7), alone[7])


def test_words_follow_one_another_as_in_english():
    language, tokenizer = english_of(30_000), synthetic_tokenizer(30_000, "english")
    id_of = {word: i for i, word in enumerate(tokenizer.words)}

    def likeliest(word: str, private: bool) -> list[str]:
        place = language.of_id[id_of[word]]
        order = np.argsort(-language.following[int(private), place])[:6]
        return [tokenizer.words[language.first_id[p]] for p in language.successors[place, order]]

    assert likeliest("want", False)[0] == "to"
    assert likeliest("thank", True)[0] == "you"
    assert {"you", "they", "we"} & set(likeliest("how", True))
    assert tokenizer.encode("How are u") == [id_of["how"], id_of["are"], id_of["u"]]


def test_private_people_spell_as_they_please(people):
    tokenizer = synthetic_tokenizer(SIZE, "english")
    place = {word: i for i, word in enumerate(tokenizer.words)}

    def share(split: str) -> float:
        counts = sum(np.bincount(people.tokens(split, u), minlength=SIZE) for u in range(300))
        forms = [place[spelling] for row in english_words.SPELLINGS for spelling in row[1:]]
        plain = [place[row[0]] for row in english_words.SPELLINGS]
        return counts[forms].sum() / counts[[*forms, *plain]].sum()

    assert share(PUBLIC) < 0.2
    assert share("train") > 0.35


def test_spellings_belong_to_one_word_and_topics_to_english():
    spellings = [spelling for row in english_words.SPELLINGS for spelling in row]
    assert len(set(spellings)) == len(spellings)
    assert {len(words.split()) for words in english_words.TOPICS.values()} == {20}
    vocabulary = set(english_of(10_000).words)
    for words in (*english_words.TOPICS.values(), english_words.OPENERS, " ".join(spellings)):
        assert set(words.split()) <= vocabulary
    assert not vocabulary & set(english_words.LEFT_OUT.split())


def test_too_small_a_vocabulary_is_refused():
    with pytest.raises(ValueError, match="invented English needs at least 1,000"):
        SyntheticPopulation(vocabulary_size=999, language="english")


def test_the_tokenizer_states_where_its_words_come_from():
    tokenizer = synthetic_tokenizer(SIZE, "english")
    assert tokenizer.vocabulary_size == SIZE
    assert tokenizer.manifest["locale"] == "en"
    assert "wordfreq" in tokenizer.manifest["licence"]
    assert tokenizer.digest != synthetic_tokenizer(SIZE).digest
