"""What a phone gains when it remembers: the state of the whole text, and its user's own words.

A phone reads on where it stopped: the state of a recurrent model goes from message to message, and
the counts of ``models/own_words`` grow with every word. Both stay there and cost no ε. Each
held-out user's text is read once from its beginning, and every word is predicted from what the
user typed before it, so nothing is measured on words that were counted already.

A transformer sees a window at a time, as without a memory; only its counts go on.

Shapes: m places of a text, P hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import torch

from pfl_lm.evaluation.evaluate import ModelScorer, measure_windows
from pfl_lm.evaluation.held_out import choose_users
from pfl_lm.evaluation.interfaces import HeldOut, QuickScorer, TokenizerLike
from pfl_lm.evaluation.keystrokes import Completions
from pfl_lm.evaluation.measures import Tally
from pfl_lm.evaluation.personal import Gain
from pfl_lm.evaluation.vocabulary import Vocabulary
from pfl_lm.models.own_words import OwnWords, OwnWordsRule
from pfl_lm.models.spec import ModelSpec, Parameters
from pfl_lm.text.population import windows

_CARRIES_ITS_STATE = ("cifg_lstm", "lstm")
_PLACES = 512  # of a text whose mixtures are held at once, float64[512, V]


class Network(QuickScorer, Protocol):
    """A scorer whose scores are logits with a log-partition that it tells."""

    def log_total(self, states: torch.Tensor) -> torch.Tensor:
        """Return the logarithm of the sum of all words' powers after states (m, P), float64[m]."""
        ...


class RememberingScorer:
    """A stretch of one user's text, as a ``QuickScorer``: a state is a place in it."""

    def __init__(
        self,
        model: Network,
        hidden: torch.Tensor,
        factors: np.ndarray,
        shares: np.ndarray,
        words: np.ndarray,
        vocabulary_size: int,
    ) -> None:
        """Take what the model and its user's words say at each place.

        Args:
            hidden: (m, P).
            factors, shares: float64[m] and float64[m, k], of ``OwnWords.mixture``.
            words: int64[k], the words that have shares.
        """
        self._model, self._hidden = model, hidden
        self._factors = torch.from_numpy(factors)[:, None]
        self._shares = torch.from_numpy(np.pad(shares, ((0, 0), (0, 1))))  # the last: all others
        self._words = torch.from_numpy(words)
        self._column = torch.full((vocabulary_size,), len(words))
        self._column[self._words] = torch.arange(len(words))
        self._log_total = model.log_total(hidden)[:, None]

    def states(self, inputs: np.ndarray) -> torch.Tensor:
        """Return the places, int64 (1, m)."""
        return torch.arange(inputs.shape[1])[None]

    def scores(self, states: torch.Tensor, words: slice | torch.Tensor) -> torch.Tensor:
        """Return log p of some words, float32 (n, k)."""
        return self._probabilities(states, words).log_().float()

    def ranked(
        self, states: torch.Tensor, targets: torch.Tensor, silent: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """As ``QuickScorer.ranked``.

        Among words without a share the model's order holds, and a share moves a word up alone. So
        the best three are among the model's best three and the user's own words.
        """
        found = self._model.ranked(self._hidden[states], targets, silent)
        if found is None or found[0].isnan().any():
            return None
        nats, best = found
        share = self._shares[states, self._column[targets]]
        nats = -torch.log(self._factors[states, 0] * torch.exp(-nats) + share)
        candidates = torch.cat([best.flatten(), self._words[~silent[self._words]]]).unique()
        places = self._probabilities(states, candidates).topk(best.shape[1], dim=1).indices
        return nats, candidates[places]

    def _probabilities(self, states: torch.Tensor, words: slice | torch.Tensor) -> torch.Tensor:
        """Return p of some words, float64 (n, k)."""
        logits = self._model.scores(self._hidden[states], words).double()
        model = torch.exp(logits - self._log_total[states])
        own = self._shares[states][:, self._column[words]]
        return self._factors[states] * model + own


def own_words_gain(
    spec: ModelSpec,
    parameters: Parameters,
    population: HeldOut,
    split: str,
    tokenizer: TokenizerLike,
    window: int,
    rule: OwnWordsRule | None = None,
    *,
    max_users: int | None = None,
    max_tokens_per_user: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Gain:
    """Measure a model without and with a memory, user by user.

    Args:
        window: tokens that the model sees at once where it remembers nothing.
        rule: how the counts are mixed in; None: as phones do it.
        max_users, max_tokens_per_user: as of ``evaluate``; a user's first tokens are read.

    Raises:
        ValueError: the split has no users, or they typed nothing.
    """
    users = choose_users(population.users(split), split, max_users, seed)
    vocabulary = Vocabulary.of(tokenizer)
    completions = Completions.of(tokenizer.words, vocabulary.never_suggested)
    shared, personal = Tally(len(users), vocabulary), Tally(len(users), vocabulary)
    model = ModelScorer(spec, parameters)
    with torch.inference_mode():
        for place, user in enumerate(users.tolist()):
            text = np.asarray(population.tokens(split, user)[:max_tokens_per_user], dtype=np.int64)
            cut = windows(text, window)
            if len(cut):
                owners = np.full(len(cut), place)
                measure_windows(model, owners, cut, vocabulary, completions, shared)
                own = OwnWords(rule or OwnWordsRule(), spec.vocabulary_size, tokenizer.bos_id)
                hidden = _hidden(spec, model, text, window)
                measure_text(model, hidden, text, own, vocabulary, completions, personal, place)
            if progress:
                progress(place + 1, len(users))
    return Gain.between(shared, personal, coordinates=0)


def measure_text(
    model: Network,
    hidden: torch.Tensor,
    text: np.ndarray,
    own: OwnWords,
    vocabulary: Vocabulary,
    completions: Completions,
    tally: Tally,
    place: int,
) -> None:
    """Measure a model with a memory on one user's text, and let the memory read it.

    Args:
        hidden: (m, …), what the model knows after each token but the last.
        text: int64[m + 1].
        place: the user's, in the tally.
    """
    for scorer, cut in _stretches(model, hidden, text, own, vocabulary):
        owners = np.full(len(cut), place)
        measure_windows(scorer, owners, cut, vocabulary, completions, tally)


def _hidden(spec: ModelSpec, model: ModelScorer, text: np.ndarray, window: int) -> torch.Tensor:
    """Return what the model knows after each token but the last, (m, P)."""
    if spec.kind in _CARRIES_ITS_STATE:
        return model.states(text[None, :-1])[0]
    return model.states(windows(text, window)[:, :-1]).flatten(0, 1)[: len(text) - 1]


def _stretches(
    model: Network,
    hidden: torch.Tensor,
    text: np.ndarray,
    own: OwnWords,
    vocabulary: Vocabulary,
) -> Iterator[tuple[RememberingScorer, np.ndarray]]:
    """Yield scorer and tokens, int64[1, m + 1], of one stretch of a text after the other."""
    for start in range(0, len(text) - 1, _PLACES):
        stretch = text[start : start + _PLACES + 1]
        words = np.unique(text[1 : start + len(stretch)])
        factors, shares = np.ones(len(stretch) - 1), np.zeros((len(stretch) - 1, len(words)))
        for place, word in enumerate(stretch[1:].tolist()):
            before = text[max(0, start + place - 1) : start + place + 1]
            if vocabulary.is_predicted[word]:
                factors[place], mixed = own.mixture(before)
                shares[place] = mixed[words]
                own.add(before, word)
        here = hidden[start : start + len(factors)]
        size = len(vocabulary.is_predicted)
        yield RememberingScorer(model, here, factors, shares, words, size), stretch[None]
