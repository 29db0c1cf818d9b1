"""What an evaluation measures: sums per user, and the figures that follow from them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pfl_lm.evaluation import as_typed
from pfl_lm.evaluation.keystrokes import SUGGESTIONS
from pfl_lm.evaluation.vocabulary import BUCKETS, Vocabulary

LEVELS = tuple(round(0.05 * step, 2) for step in range(1, 20))  # of the quantiles over users
SUMS = (
    "predictions",
    "nats",
    "known_predictions",
    "known_nats",
    "words",
    "known_words",
    "top1",
    "top3",
    "keystrokes",
    "known_keystrokes",
    "saved",
    "known_top1",
    "known_top3",
    "known_saved",
    "spelled",
    "spelled_offered",
    *as_typed.SUMS,
)
# figure → (numerator, denominator) among the sums
RATIOS = {
    "top1": ("top1", "words"),
    "top3": ("top3", "words"),
    "top1_known": ("known_top1", "known_words"),
    "top3_known": ("known_top3", "known_words"),
    "keystrokes_saved": ("saved", "keystrokes"),
    "keystrokes_saved_known": ("known_saved", "known_keystrokes"),
    "spelled_offered": ("spelled_offered", "spelled"),
    **as_typed.RATIOS,
}


@dataclass(frozen=True)
class Bucket:
    """Recall of the words within a range of public frequency ranks.

    Attributes:
        name: the range in words.
        words: running words measured.
        share: of all in-vocabulary running words.
        top1, top3: recall.
    """

    name: str
    words: int
    share: float
    top1: float
    top3: float


@dataclass(frozen=True)
class Distribution:
    """One figure over users, each user counting the same however much they typed.

    Attributes:
        mean: over users; of perplexity, the geometric mean.
        standard_error: of that mean; of perplexity, of its logarithm.
        quantiles: at ``LEVELS``.
    """

    mean: float
    standard_error: float
    quantiles: tuple[float, ...]


@dataclass(frozen=True)
class Evaluation:
    """How well a model predicts held-out users; see ``pfl_lm.evaluation.evaluate`` for what counts.

    Attributes:
        users: users who typed something.
        predictions: tokens predicted: words, <unk>, </s>.
        words: words typed, unknown ones included.
        perplexity: over all predictions.
        perplexity_known: over those that are no unknown word.
        top1, top3: share of the words typed that were the first, or among the first three,
            suggestions before any letter; an unknown word is a miss, unless it was composed of
            pieces.
        top1_known, top3_known: the same over in-vocabulary words.
        oov_rate: share of the words typed that are outside the vocabulary.
        keystrokes_saved: share of keystrokes, over all words; an unknown word saves none and
            counts as long as the mean word of the vocabulary, since its letters are not stored;
            a word that pieces spell has its own length where words are composed.
        keystrokes_saved_known: the same over in-vocabulary words.
        spelled_offered: share of the words that pieces spell which are suggested before they are
            typed out; NaN where there are none, or words are not composed.
        casing, marks_top3, emoji_top1, emoji_top3, keys_saved: of text as it was typed, see
            ``as_typed``; NaN where the text, or its store, has none.
        buckets: recall by public frequency rank.
        over_users: distributions of perplexity, top1, top3 and keystrokes_saved.
    """

    users: int
    predictions: int
    words: int
    perplexity: float
    perplexity_known: float
    top1: float
    top3: float
    top1_known: float
    top3_known: float
    oov_rate: float
    keystrokes_saved: float
    keystrokes_saved_known: float
    spelled_offered: float
    casing: float
    marks_top3: float
    emoji_top1: float
    emoji_top3: float
    keys_saved: float
    buckets: tuple[Bucket, ...]
    over_users: dict[str, Distribution]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; what is not finite becomes None."""
        return {**finite(asdict(self)), "quantile_levels": list(LEVELS)}


class Tally:
    """Running sums per user and per frequency bucket."""

    def __init__(self, users: int, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._letters = vocabulary.letters.astype(np.float64)
        if vocabulary.is_word.any():
            # What was really typed is not stored.
            self._letters[vocabulary.is_unknown] = vocabulary.letters[vocabulary.is_word].mean()
        self._users = np.zeros((users, len(SUMS)))
        self._buckets = np.zeros((len(BUCKETS), 3))

    def add(
        self,
        owners: np.ndarray,
        targets: np.ndarray,
        nats: np.ndarray,
        place: np.ndarray,
        typed: np.ndarray,
        codes: np.ndarray | None = None,
        place_apart: np.ndarray | None = None,
        spelled: np.ndarray | None = None,
    ) -> None:
        """Add N predictions.

        Args:
            owners: int64[N], the users' places among those measured.
            targets: int64[N], the tokens typed.
            nats: float64[N], −log of the probability each was given.
            place: int64[N], 0 to 2 among the suggestions before any letter, 3 for none.
            typed: int64[N], letters typed before the word was shown.
            codes: int64[N], how each token was typed (``text.as_typed``); None: nobody knows.
            place_apart: int64[N], of a mark or emoji among its kind; None: nobody asked.
            spelled: int64[N], letters of a word that pieces spell, at its first piece; None or 0:
                no word is composed there.
        """
        unknown = self._vocabulary.is_unknown[targets]
        known = self._vocabulary.is_word[targets]
        word = self._vocabulary.counts_as_word[targets]
        by_pieces = np.zeros(len(targets), dtype=np.int64) if spelled is None else spelled
        letters = np.where(by_pieces > 0, by_pieces, self._letters[targets])
        offered = known | (by_pieces > 0)
        keystrokes = (letters + 1) * word
        columns = {
            "predictions": np.ones(len(targets)),
            "nats": nats,
            "known_predictions": ~unknown,
            "known_nats": np.where(unknown, 0.0, nats),
            "words": word,
            "known_words": known,
            "top1": offered & (place < 1),
            "top3": offered & (place < SUGGESTIONS),
            "keystrokes": keystrokes,
            "known_keystrokes": keystrokes * known,
            "saved": (letters - typed) * offered,
            "known_top1": known & (place < 1),
            "known_top3": known & (place < SUGGESTIONS),
            "known_saved": (letters - typed) * known,
            "spelled": by_pieces > 0,
            "spelled_offered": (by_pieces > 0) & (typed < by_pieces),
            **as_typed.columns(
                self._vocabulary, targets, place, typed, codes, place_apart, offered, letters
            ),
        }
        for column, name in enumerate(SUMS):
            self._users[:, column] += np.bincount(owners, columns[name], len(self._users))
        for column, name in enumerate(("known_words", "top1", "top3")):
            counted = np.bincount(
                self._vocabulary.bucket[targets], columns[name] * known, len(BUCKETS)
            )
            self._buckets[:, column] += counted

    def per_user(self, name: str) -> np.ndarray:
        """Return one of ``SUMS`` for every user, float64[users]."""
        return self._users[:, SUMS.index(name)]

    def merge(self, other: Tally) -> None:
        """Add what another process measured, of other users: exact, whatever the order."""
        self._users += other._users
        self._buckets += other._buckets

    def evaluation(self) -> Evaluation:
        """Return the figures.

        Raises:
            ValueError: nothing was measured.
        """
        sums = self._users[self._users[:, 0] > 0]  # (U, sums)
        if not len(sums):
            raise ValueError("the held-out users typed nothing: there is nothing to evaluate")
        total = dict(zip(SUMS, sums.sum(axis=0).tolist(), strict=True))
        per_user = dict(zip(SUMS, sums.T, strict=True))
        over_users = {
            name: _distribution(per_user[RATIOS[name][0]], per_user[RATIOS[name][1]])
            for name in ("top1", "top3", "keystrokes_saved")
        }
        over_users["perplexity"] = _perplexities(per_user["nats"], per_user["predictions"])
        return Evaluation(
            users=len(sums),
            predictions=int(total["predictions"]),
            words=int(total["words"]),
            perplexity=_exp(_ratio(total["nats"], total["predictions"])),
            perplexity_known=_exp(_ratio(total["known_nats"], total["known_predictions"])),
            oov_rate=1 - _ratio(total["known_words"], total["words"]),
            **{name: _ratio(total[over], total[under]) for name, (over, under) in RATIOS.items()},
            buckets=self._recall_by_frequency(),
            over_users=over_users,
        )

    def _recall_by_frequency(self) -> tuple[Bucket, ...]:
        everything = self._buckets[:, 0].sum()
        return tuple(
            Bucket(
                name, int(words), _ratio(words, everything), _ratio(t1, words), _ratio(t3, words)
            )
            for (name, _), (words, t1, t3) in zip(BUCKETS, self._buckets.tolist(), strict=True)
        )


def _distribution(over: np.ndarray, under: np.ndarray) -> Distribution:
    return _spread(over[under > 0] / under[under > 0])


def _perplexities(nats: np.ndarray, predictions: np.ndarray) -> Distribution:
    spread = _spread(nats / predictions)
    return Distribution(
        _exp(spread.mean), spread.standard_error, tuple(map(_exp, spread.quantiles))
    )


def _spread(values: np.ndarray) -> Distribution:
    if not len(values):
        return Distribution(math.nan, math.nan, (math.nan,) * len(LEVELS))
    error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    quantiles = tuple(np.quantile(values, LEVELS).tolist())
    return Distribution(float(values.mean()), float(error), quantiles)


def _ratio(over: float, under: float) -> float:
    return over / under if under else math.nan


def _exp(nats: float) -> float:
    return math.exp(nats) if nats < 700 else math.inf if nats >= 700 else math.nan


def finite(value: Any) -> Any:
    """Return plain values as JSON can hold them: a number that is not finite becomes None."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value if not isinstance(value, float) or math.isfinite(value) else None
