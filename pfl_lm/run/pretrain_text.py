"""The text that central training reads: pass after pass, in batches of windows.

Legend: B windows of a batch, T tokens of a window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from pfl_lm.run.pretrain_recipe import Pretraining
from pfl_lm.streams import stream
from pfl_lm.text.population import PopulationStore

Passes = Callable[[int], np.ndarray]  # number of a pass, from 0 → the tokens that it reads


def passes_of(recipe: Pretraining, store: PopulationStore) -> Passes:
    """Return what each pass over a store's training split reads: unsigned[n], n always the same."""
    words = store.stream("train")
    if recipe.max_tokens is None:
        return always(words)
    lengths = store.lengths("train")
    taken = np.minimum(lengths, recipe.max_tokens)
    users = np.cumsum(lengths) - lengths  # where each user's text begins
    pieces = np.cumsum(taken) - taken  # and where the piece of it that is read

    def text_of_pass(number: int) -> np.ndarray:
        draw = stream(recipe.seed, "pieces", number).random(len(lengths))
        first = users + (draw * (lengths - taken + 1)).astype(np.int64)
        return words[np.repeat(first - pieces, taken) + np.arange(taken.sum())]

    return text_of_pass


def always(words: np.ndarray) -> Passes:
    """Return passes that all read the same text."""
    return lambda number: words


def steps_of(recipe: Pretraining, words: int) -> int:
    """Return how many steps a recipe takes on passes of ``words`` words each."""
    return max(1, int(recipe.epochs * ((words - 1) // recipe.window) / recipe.batch_size))


def batches(
    recipe: Pretraining, passes: Passes, steps: int, first: int = 0
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the numbers of ``steps`` from ``first`` on, and windows of the text: int64[B, T + 1].

    The order of the windows is a new one in each pass.

    Raises:
        ValueError: a pass is shorter than one batch.
    """
    words, order, number = passes(0), np.zeros(0, dtype=np.int64), 0
    count = (len(words) - 1) // recipe.window
    if count < recipe.batch_size:
        raise ValueError(f"text has {len(words)} tokens, less than one batch; bring more text")
    offsets = np.arange(recipe.window + 1)
    for step in range(steps):
        left = np.zeros((0, recipe.window + 1), dtype=np.int64)
        if len(order) < recipe.batch_size:
            left = words[order[:, None] * recipe.window + offsets]
            words = passes(number) if number else words
            order = stream(recipe.seed, "pretrain", number).permutation(count)
            number += 1
        wanted = recipe.batch_size - len(left)
        chosen, order = np.sort(order[:wanted]), order[wanted:]
        if step >= first:
            windows = words[chosen[:, None] * recipe.window + offsets]
            yield step, np.concatenate([left.astype(np.int64), windows.astype(np.int64)])
