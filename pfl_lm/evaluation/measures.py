"""What an evaluation measures: sums per user, and the figures that follow from them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pfl_lm.evaluation.interfaces import TokenizerLike
from pfl_lm.evaluation.keystrokes import SUGGESTIONS

# Upper public frequency rank of each bucket of words.
BUCKETS = (("1–100", 100), ("101–1k", 1_000), ("1k–10k", 10_000), ("10k+", 2**62))
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
)
# figure → (numerator, denominator) among the sums
RATIOS = {
    "top1": ("top1", "words"),
    "top3": ("top3", "words"),
    "top1_known": ("top1", "known_words"),
    "top3_known": ("top3", "known_words"),
    "keystrokes_saved": ("saved", "keystrokes"),
    "keystrokes_saved_known": ("saved", "known_keystrokes"),
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
            suggestions before any letter; an unknown word is a miss.
        top1_known, top3_known: the same over in-vocabulary words.
        oov_rate: share of the words typed that are outside the vocabulary.
        keystrokes_saved: share of keystrokes, over all words; an unknown word saves none and
            counts as long as the mean word of the vocabulary, since its letters are not stored.
        keystrokes_saved_known: the same over in-vocabulary words.
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
    buckets: tuple[Bucket, ...]
    over_users: dict[str, Distribution]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; what is not finite becomes None."""
        return {**_finite(asdict(self)), "quantile_levels": list(LEVELS)}


@dataclass(frozen=True)
class Vocabulary:
    """What evaluation knows of each token id.

    Attributes:
        is_predicted: bool[V], false for <pad> and <s>.
        is_word: bool[V], words that the keyboard may suggest.
        is_unknown: bool[V], <unk> and the pieces of words outside the vocabulary.
        counts_as_word: bool[V], words, <unk>, and the first piece of an unknown word.
        letters: int64[V], characters of each word.
        bucket: int64[V], place in ``BUCKETS`` by public rank among the words.
    """

    is_predicted: np.ndarray
    is_word: np.ndarray
    is_unknown: np.ndarray
    counts_as_word: np.ndarray
    letters: np.ndarray
    bucket: np.ndarray

    @classmethod
    def of(cls, tokenizer: TokenizerLike) -> Vocabulary:
        """Sort the ids of a tokenizer into these classes."""
        size = len(tokenizer.words)
        kinds = np.array(getattr(tokenizer, "kinds", ["word"] * size))
        special, unk = np.zeros((2, size), dtype=bool)
        special[list(tokenizer.specials)] = True
        unk[tokenizer.unk_id] = True
        starts = np.array([word.startswith("\u2581") for word in tokenizer.words])
        subword = kinds == "subword"
        is_word = ~special & ~unk & ~subword & (kinds != "mark")
        is_predicted = np.ones(size, dtype=bool)
        is_predicted[[tokenizer.pad_id, tokenizer.bos_id]] = False
        return cls(
            is_predicted=is_predicted,
            is_word=is_word,
            is_unknown=unk | subword,
            counts_as_word=is_word | unk | (subword & starts),
            letters=np.array([len(word) for word in tokenizer.words], dtype=np.int64),
            bucket=_buckets(tokenizer.unigram, is_word),
        )

    @property
    def never_suggested(self) -> np.ndarray:
        """The ids that are no words, int64."""
        return np.flatnonzero(~self.is_word)


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
    ) -> None:
        """Add N predictions.

        Args:
            owners: int64[N], the users' places among those measured.
            targets: int64[N], the tokens typed.
            nats: float64[N], −log of the probability each was given.
            place: int64[N], 0 to 2 among the suggestions before any letter, 3 for none.
            typed: int64[N], letters typed before the word was shown.
        """
        unknown = self._vocabulary.is_unknown[targets]
        known = self._vocabulary.is_word[targets]
        word = self._vocabulary.counts_as_word[targets]
        keystrokes = (self._letters[targets] + 1) * word
        columns = {
            "predictions": np.ones(len(targets)),
            "nats": nats,
            "known_predictions": ~unknown,
            "known_nats": np.where(unknown, 0.0, nats),
            "words": word,
            "known_words": known,
            "top1": known & (place < 1),
            "top3": known & (place < SUGGESTIONS),
            "keystrokes": keystrokes,
            "known_keystrokes": keystrokes * known,
            "saved": (self._letters[targets] - typed) * known,
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


def _buckets(unigram: np.ndarray, is_word: np.ndarray) -> np.ndarray:
    """Return the bucket of each word by its public rank among words, int64[V]."""
    order = np.argsort(-np.where(is_word, unigram, -1.0), kind="stable")
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(1, len(order) + 1)
    return np.searchsorted([upper for _, upper in BUCKETS], rank)


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


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value if not isinstance(value, float) or math.isfinite(value) else None
