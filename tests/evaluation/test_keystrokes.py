"""Keystrokes: the counting by ranges against a keyboard simulated letter by letter."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from pfl_lm.evaluation.keystrokes import Completions


class Fixed:
    """A scorer whose state is the row of all scores."""

    def states(self, inputs):
        raise NotImplementedError

    def scores(self, states, words):
        return states[:, words]


def simulate_typing(words: list[str], scores: np.ndarray, target: int, silent: set[int]) -> int:
    """Letters typed by a perfect user who looks at the bar after each letter."""
    wanted = words[target]
    for typed in range(1, len(wanted)):
        fitting = [
            i for i, word in enumerate(words) if i not in silent and word[:typed] == wanted[:typed]
        ]
        if target in sorted(fitting, key=lambda i: (-scores[i], i))[:3]:
            return typed
    return len(wanted)


def test_a_hand_made_keyboard():
    words = ["<unk>", "car", "cat", "care", "careful", "dog", "c"]
    scores = torch.tensor([[9.0, 5, 4, 3, 2, 1, 6]]).repeat(5, 1)
    completions = Completions.of(words, np.array([0]))
    targets = np.array([1, 3, 4, 5, 6])
    # "c" shows c, car, cat; "ca" shows car, cat, care; "car" shows car, care, careful.
    typed = completions.letters_typed(Fixed(), scores, targets)
    assert typed.tolist() == [1, 2, 3, 1, 1]


@given(
    words=st.lists(st.text("abé", min_size=1, max_size=6), min_size=1, max_size=40, unique=True),
    seed=st.integers(0, 2**32 - 1),
    levels=st.sampled_from([2, 5, 10_000]),
)
def test_equals_a_keyboard_simulated_letter_by_letter(words, seed, levels):
    random = np.random.default_rng(seed)
    words = ["<unk>", *words]
    targets = random.integers(1, len(words), 12)
    scores = random.integers(0, levels, (12, len(words))).astype(np.float32)  # many ties
    typed = Completions.of(words, np.array([0])).letters_typed(
        Fixed(), torch.from_numpy(scores), targets
    )
    expected = [simulate_typing(words, scores[i], t, {0}) for i, t in enumerate(targets)]
    assert typed.tolist() == expected


def test_words_longer_than_any_prefix_looked_at():
    words = ["x" * 60 + ending for ending in "abcde"]
    completions = Completions.of(words, np.array([], dtype=np.int64))
    scores = torch.tensor([[5.0, 4, 3, 2, 1]]).repeat(2, 1)
    assert completions.letters_typed(Fixed(), scores, np.array([0, 4])).tolist() == [1, 61]


def test_many_words_of_one_letter_are_scored_in_pieces():
    random = np.random.default_rng(0)
    words = sorted({"".join(random.choice(list("st"), 8)) for _ in range(400)})
    scores = random.normal(size=(1000, len(words))).astype(np.float32)
    targets = random.integers(0, len(words), 1000)
    typed = Completions.of(words, np.array([], dtype=np.int64)).letters_typed(
        Fixed(), torch.from_numpy(scores), targets
    )
    for row in range(0, 1000, 37):
        assert typed[row] == simulate_typing(words, scores[row], targets[row], set())
