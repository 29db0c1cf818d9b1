"""What a pass of central training reads: all text, or a piece of each user's, and its windows."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pfl_lm.models.models import ModelSpec
from pfl_lm.run.pretrain_recipe import Pretraining
from pfl_lm.run.pretrain_text import batches, passes_of
from pfl_lm.text.population import PopulationStore
from pfl_lm.text.population_build import Input, build_population
from pfl_lm.text.records import Message
from pfl_lm.text.synthetic.population import synthetic_tokenizer

WORDS_TYPED = (1, 4, 9, 40, 200)  # by five users; two tokens more each, <s> and </s>


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> PopulationStore:
    """Users of whom each has words of their own, so that a token tells whose it is."""
    folder = tmp_path_factory.mktemp("people")
    tokenizer = synthetic_tokenizer(300)
    words = iter(tokenizer.words[4:])
    messages = [
        Message(f"u{user}", " ".join(next(words) for _ in range(count)))
        for user, count in enumerate(WORDS_TYPED)
    ]
    people = [Input(Path("x"), split="train", records=messages)]
    build_population(people, tokenizer, folder / "text")
    return PopulationStore.open(folder / "text")


def recipe(**changes: object) -> Pretraining:
    spec = ModelSpec("cifg_lstm", vocabulary_size=300, embedding_dim=4, hidden_dim=4)
    first = Pretraining(Path("t"), Path("p"), "private", spec, window=5, batch_size=4)
    return replace(first, **changes)  # type: ignore[arg-type]


def test_a_pass_reads_so_many_tokens_in_a_row_of_each_user(store: PopulationStore) -> None:
    users = [store.tokens("train", user) for user in range(store.users("train"))]
    assert sorted(map(len, users)) == [n + 2 for n in WORDS_TYPED]
    text_of_pass = passes_of(recipe(max_tokens=10), store)
    begins: dict[int, set[int]] = {user: set() for user in range(len(users))}
    for number in range(300):
        text, read = text_of_pass(number), 0
        for user, tokens in enumerate(users):
            piece = text[read : read + min(len(tokens), 10)]
            read += len(piece)
            places = [p for p in range(len(tokens) - len(piece) + 1) if tokens[p] == piece[0]]
            assert any(np.array_equal(tokens[p : p + len(piece)], piece) for p in places)
            begins[user].update(places)
        assert read == len(text)
    for user, tokens in enumerate(users):  # every place comes, the last one as the first
        last = max(0, len(tokens) - 10)
        assert {0, last} <= begins[user] or last > 100
        assert len(begins[user]) > min(last, 100)
    assert np.array_equal(text_of_pass(7), passes_of(recipe(max_tokens=10), store)(7))


def test_pieces_as_long_as_the_longest_text_are_all_text(store: PopulationStore) -> None:
    whole = passes_of(recipe(), store)(0)
    assert np.array_equal(passes_of(recipe(max_tokens=202), store)(3), whole)
    assert len(passes_of(recipe(max_tokens=201), store)(3)) == len(whole) - 1


@pytest.mark.parametrize("max_tokens", [None, 10])
def test_each_pass_has_each_window_once(store: PopulationStore, max_tokens: int | None) -> None:
    stated = recipe(max_tokens=max_tokens, batch_size=3)
    passes = passes_of(stated, store)
    count = (len(passes(0)) - 1) // 5
    steps = count  # of three windows each: three passes
    taken = np.concatenate([windows for _, windows in batches(stated, passes, steps)])
    for number in range(3):
        text = passes(number).astype(np.int64)
        expected = Counter(tuple(text[5 * i : 5 * i + 6]) for i in range(count))
        assert Counter(map(tuple, taken[number * count : (number + 1) * count])) == expected
    later = list(batches(stated, passes, steps, first=steps - 2))
    assert [step for step, _ in later] == [steps - 2, steps - 1]
    assert np.array_equal(np.concatenate([windows for _, windows in later]), taken[-6:])
