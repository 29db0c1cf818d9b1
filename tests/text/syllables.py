"""A vocabulary of invented words, some listed and the others spelled by pieces."""

from __future__ import annotations

import itertools
from collections import Counter
from functools import lru_cache

from pfl_lm.text.normalisation import Normalisation
from pfl_lm.text.tokenizer import Tokenizer
from pfl_lm.text.tokenizer_assemble import assemble
from pfl_lm.text.tokenizer_build import _train_subwords, choose_rows

SYLLABLES = ["ka", "lo", "mi", "ter", "us", "vén", "dro", "pa"]
WORDS = ["".join(s) for n in (1, 2, 3) for s in itertools.product(SYLLABLES, repeat=n)]


@lru_cache(maxsize=1)
def spelling_tokenizer() -> Tokenizer:
    """200 words, and subwords that spell the others of ``WORDS``."""
    counts = Counter({word: 1_000_000 // rank for rank, word in enumerate(WORDS, 1)})
    rows, left_over = choose_rows(counts, Normalisation(), 205)
    model, subwords = _train_subwords(left_over, 256 + 60)
    return assemble(rows + subwords, Normalisation(), {}, model)


def spelled(tokenizer: Tokenizer, most: int = 6) -> list[str]:
    """Return the words that pieces spell, by at most so many."""
    words = (word for word in WORDS if tokenizer.kinds[tokenizer.encode(word)[0]] == "subword")
    return [word for word in words if len(tokenizer.encode(word)) <= most]
