"""Text as it is typed: capitals, punctuation, emoji, and every key.

    casing        words, listed or composed, that are shown as their writer wrote them: in the usual
                  form of the tokenizer's ``written_forms``, with a capital where a sentence begins
    marks_top3    punctuation that is among the three likeliest marks
    emoji_top1    emoji that are the likeliest one: the fourth place of a keyboard shows it
    emoji_top3    emoji that are among the three likeliest ones
    keys_saved    keys saved ÷ keys of the text as it was typed, counted as ``text.as_typed`` says:
                  shift, the pages of marks and emoji, marks, numbers and unknown words. A word
                  saves keys if it is suggested as it was written, after letters that need no
                  shift, by one tap; an emoji if the fourth place shows it; punctuation never.

The keys of a text are the same whatever the vocabulary, so ``keys_saved`` compares vocabularies.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch

from pfl_lm.evaluation.interfaces import Scorer
from pfl_lm.evaluation.keystrokes import SUGGESTIONS
from pfl_lm.text.as_typed import KEYS, SHOWN

if TYPE_CHECKING:
    from pfl_lm.evaluation.vocabulary import Vocabulary

_ROWS = 1024  # predictions whose scores of one kind are held at once
SUMS = (
    *("marks", "marks_top3", "emoji", "emoji_top1", "emoji_top3"),
    *("typed_words", "as_written", "keys", "keys_saved"),
)
# figure → (numerator, denominator) among the sums
RATIOS = {
    "casing": ("as_written", "typed_words"),
    "marks_top3": ("marks_top3", "marks"),
    "emoji_top1": ("emoji_top1", "emoji"),
    "emoji_top3": ("emoji_top3", "emoji"),
    "keys_saved": ("keys_saved", "keys"),
}


def columns(
    vocabulary: Vocabulary,
    targets: np.ndarray,
    place: np.ndarray,
    typed: np.ndarray,
    codes: np.ndarray | None,
    place_apart: np.ndarray | None,
    offered: np.ndarray,
    letters: np.ndarray,
) -> dict[str, np.ndarray]:
    """Return the summands of ``SUMS`` for N predictions, as ``Tally.add`` takes them.

    Args:
        offered: bool[N], words that can be suggested, as ids or composed of pieces.
        letters: float64[N], their length.
    """
    none = np.zeros(len(targets), dtype=np.int64)
    apart = none + SUGGESTIONS if place_apart is None else place_apart
    mark, emoji = vocabulary.is_mark[targets], vocabulary.is_emoji[targets]
    keys, shown = (none, none > 0) if codes is None else (codes & KEYS, (codes & SHOWN) > 0)
    word = offered & (keys > 0)
    suggested = (place < SUGGESTIONS) | (typed < letters)
    saved = np.where(word & shown & suggested, np.maximum(keys - typed - 1, 0), 0)
    saved += (emoji & (apart < 1)) * np.maximum(keys - 1, 0)
    return {
        "marks": mark,
        "marks_top3": mark & (apart < SUGGESTIONS),
        "emoji": emoji,
        "emoji_top1": emoji & (apart < 1),
        "emoji_top3": emoji & (apart < SUGGESTIONS),
        "typed_words": word,
        "as_written": word & shown,
        "keys": keys,
        "keys_saved": saved,
    }


def places_apart(
    scorer: Scorer, states: torch.Tensor, targets: np.ndarray, vocabulary: Vocabulary
) -> np.ndarray:
    """Return the place of each mark among the marks, of each emoji among the emoji.

    Args:
        states: (N, ...), what the scorer knows before each of the targets.

    Returns:
        int64[N], 0 for the likeliest; ``SUGGESTIONS`` or more elsewhere, and where a score is NaN.
    """
    places = np.full(len(targets), SUGGESTIONS, dtype=np.int64)
    for kind in (vocabulary.is_mark, vocabulary.is_emoji):
        ids = torch.from_numpy(np.flatnonzero(kind))
        for rows in _blocks(np.flatnonzero(kind[targets])):
            scores = scorer.scores(states[torch.from_numpy(rows)], ids).cpu()  # (m, k)
            wanted = torch.from_numpy(targets[rows])[:, None]
            own = scores[ids[None, :] == wanted][:, None]
            ahead = (scores > own) | ((scores == own) & (ids[None, :] < wanted))
            place = torch.where(own.isnan()[:, 0], SUGGESTIONS, ahead.sum(dim=1))
            places[rows] = place.numpy()
    return places


def _blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), _ROWS):
        yield rows[start : start + _ROWS]
