"""A vocabulary of invented words, some listed and the others spelled by pieces."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from pfl_lm.text.normalisation import Normalisation
from pfl_lm.text.tokenizer import Tokenizer
from pfl_lm.text.tokenizer_assemble import assemble
from pfl_lm.text.tokenizer_build import _train_subwords, choose_rows

SYLLABLES = ["ka", "lo", "mi", "ter", "us", "vén", "dro", "pa"]
WORDS = ["".join(s) for n in (1, 2, 3) for s in itertools.product(SYLLABLES, repeat=n)]
_GREEK = str.maketrans("kalomiterusvéndrp", "σαλομιτερυσβένδρπ")
_SMALL = [word.translate(_GREEK).upper().lower() for word in WORDS]  # knows final sigma
GREEK = [word.capitalize() if at % 3 == 0 else word for at, word in enumerate(_SMALL)]


@lru_cache(maxsize=1)
def spelling_tokenizer() -> Tokenizer:
    """200 words, and subwords that spell the others of ``WORDS``."""
    counts = Counter({word: 1_000_000 // rank for rank, word in enumerate(WORDS, 1)})
    rows, left_over = choose_rows(counts, Normalisation(), 205)
    model, subwords = _train_subwords(left_over, 256 + 60)
    return assemble(rows + subwords, Normalisation(), {}, model)


@lru_cache(maxsize=1)
def spelling_greek() -> Tokenizer:
    """The same in Greek letters, with capitals: ``Σαδρο``, ``λους``."""
    rules = Normalisation("natural")
    counts = Counter({word: 1_000_000 // rank for rank, word in enumerate(GREEK, 1)})
    rows, left_over = choose_rows(counts, rules, 205)
    model, subwords = _train_subwords(left_over, 256 + 90)
    return assemble(rows + subwords, rules, {}, model)


def spelled(tokenizer: Tokenizer, most: int = 6, words: Sequence[str] = WORDS) -> list[str]:
    """Return the words that pieces spell, by at most so many."""
    found = (word for word in words if tokenizer.kinds[tokenizer.encode(word)[0]] == "subword")
    return [word for word in found if len(tokenizer.encode(word)) <= most]
