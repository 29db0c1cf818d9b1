"""How good a model is for people whose text it has never seen.

Every token of a held-out user's stream is predicted from the tokens before it in its window.
What is predicted, and what counts:

    token       perplexity   recall, keystrokes
    <pad>       no           no     nothing was typed
    <s>         no           no     every message begins; there is nothing to guess
    </s>        yes          no     a keyboard does not suggest that a message ends
    <number>    yes          no     nor what a placeholder stands for
    <unk>       yes          a miss a word outside the vocabulary: typed in full
    subword     yes          at the first piece of such a word, a miss unless the keyboard
                             composes it (``keystrokes_composed.py``); the others do not count
    word        yes          yes
    mark, emoji yes          no     counted by themselves: ``as_typed.py``

Figures named ``…_known`` leave unknown words out. The keyboard never suggests what is no word,
though the model spends probability on it. Keystrokes are defined in ``keystrokes.py``.

The scores of all words for all tokens, (tokens, V), never exist, and neither do those of one
token batch: the vocabulary is passed through in tiles, each of them reduced at once to a running
log-sum and the best three words. The tiles stay in registers (``models/compiled/top_words``) or,
where that does not compile, in the cache.

Shapes: N predictions of a batch, T window, V vocabulary, U users.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from pfl_lm.distributed import ALONE, Ranks
from pfl_lm.evaluation.as_typed import places_apart
from pfl_lm.evaluation.held_out import batches, choose_users
from pfl_lm.evaluation.interfaces import HeldOut, QuickScorer, Scorer, TokenizerLike
from pfl_lm.evaluation.keystrokes import SUGGESTIONS, Completions
from pfl_lm.evaluation.keystrokes_composed import Composing
from pfl_lm.evaluation.measures import Evaluation, Tally
from pfl_lm.evaluation.vocabulary import Vocabulary
from pfl_lm.models import models
from pfl_lm.models.compiled import top_words
from pfl_lm.models.spec import ModelSpec, Parameters

_USERS = 32  # measured in one go, by one rank; a user's text is never cut between two
_WINDOWS = 256  # windows run through the model at once
_STATES = 64  # whose scores of all words are held at once
_ROWS, _TILE = 1024, 1024  # predictions × words scored at once: 4 MiB, in the cache


class ModelScorer:
    """A trained model as a ``Scorer``."""

    def __init__(self, spec: ModelSpec, parameters: Parameters) -> None:
        self._spec, self._parameters = spec, parameters

    @property
    def longest(self) -> int | None:
        """How many ids a text may have; of a longer one, its last ones can be read."""
        return models.longest_text(self._spec)

    def states(self, inputs: np.ndarray) -> torch.Tensor:
        """Return the hidden vectors, (n, T, P)."""
        return models.hidden_of(self._spec, self._parameters, inputs)

    def scores(self, states: torch.Tensor, words: slice | torch.Tensor) -> torch.Tensor:
        """Return the logits of some words, (m, k): a model whose tables hold only their rows."""
        tables = (self._spec.output_table, "output_bias")
        rows = {name: self._parameters[name][words] for name in tables if name in self._parameters}
        return models.scores(self._spec, rows, states)

    def log_total(self, states: torch.Tensor) -> torch.Tensor:
        """Return the logarithm of the sum of all words' powers after states (m, P), float64[m]."""
        table, bias = self._output()
        if top_words.supports(states, table, bias):
            none = torch.zeros(len(table), dtype=torch.bool)
            total, _ = top_words.rank(states, table, bias, none)
            if _is_safe(total).all():
                return total
        totals = [torch.empty(0, dtype=torch.float64)]
        for start in range(0, len(states), _STATES):
            logits = self.scores(states[start : start + _STATES], slice(None))
            totals.append(torch.logsumexp(logits.double(), dim=1))
        return torch.cat(totals)

    def ranked(
        self, states: torch.Tensor, targets: torch.Tensor, silent: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """As ``QuickScorer.ranked``; None without the C kernel."""
        table, bias = self._output()
        if not top_words.supports(states, table, bias):
            return None
        log_total, best = top_words.rank(states, table, bias, silent)
        score = torch.einsum("mp,mp->m", states.double(), table[targets].double())
        score += 0 if bias is None else bias[targets]
        return torch.where(_is_safe(log_total), log_total - score, torch.nan), best

    def _output(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the output rows (V, P) and their biases."""
        table = self._parameters[self._spec.output_table].detach()
        return table, self._parameters["output_bias"].detach() if self._spec.output_bias else None


def _is_safe(log_total: torch.Tensor) -> torch.Tensor:
    """Whether sums of powers without a maximum taken off are far from 2^±127, where they end."""
    return (log_total > -55) & (log_total < 88)


def evaluate(
    scorer: Scorer,
    population: HeldOut,
    split: str,
    tokenizer: TokenizerLike,
    window: int,
    *,
    max_users: int | None = None,
    max_tokens_per_user: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    ranks: Ranks = ALONE,
    compose: bool = False,
) -> Evaluation:
    """Measure a model on held-out users.

    Args:
        scorer: the model.
        population: whose text.
        split: ``validation`` or ``test``.
        tokenizer: the vocabulary; its public unigram ranks words for the frequency buckets.
        window: tokens the model sees at once; context does not cross windows.
        max_users: measure on so many users, drawn from ``stream(seed, "held-out users", split)``.
        max_tokens_per_user: at most so many tokens of each user's stream, its first ones.
        progress: called with (users done, users in all).
        ranks: the processes that share the users out; the figures are the same, to the bit.
        compose: suggest words that pieces spell beside those of the list: thirty times the work.

    Raises:
        ValueError: the split has no users, or they typed nothing; or the vocabulary has no
            subwords to compose words of.
    """
    users = choose_users(population.users(split), split, max_users, seed)
    tally = measure_users(
        scorer, population, split, users, tokenizer, window, max_tokens_per_user, progress, ranks,
        compose,
    )  # fmt: skip
    return ranks.on_rank_zero(tally.evaluation)


def measure_users(
    scorer: Scorer,
    population: HeldOut,
    split: str,
    users: np.ndarray,
    tokenizer: TokenizerLike,
    window: int,
    max_tokens_per_user: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    ranks: Ranks = ALONE,
    compose: bool = False,
) -> Tally:
    """Measure a model on these users; the first rank returns the sums of each, in their order.

    Args:
        users: int64[U], of the split; the other arguments are those of :func:`evaluate`.
    """
    vocabulary = Vocabulary.of(tokenizer)
    completions = Completions.of(tokenizer.words, vocabulary.never_suggested)
    composing = Composing.of(tokenizer, vocabulary, completions) if compose else None
    tally = Tally(len(users), vocabulary)
    starts = range(0, len(users), _USERS)
    with torch.inference_mode():
        for turn in ranks.work_queue(len(starts)):
            places = np.arange(starts[turn], min(starts[turn] + _USERS, len(users)))
            batch_users = zip(places.tolist(), users[places].tolist(), strict=True)
            for owners, tokens, codes in batches(
                population, split, batch_users, window, max_tokens_per_user
            ):
                measure_windows(
                    scorer, owners, tokens, vocabulary, completions, tally, codes, composing
                )
            if progress:
                progress(int(places[-1]) + 1, len(users))
    for other in ranks.gather(tally)[1:]:
        tally.merge(other)
    return tally


def measure_windows(
    scorer: Scorer,
    owners: np.ndarray,
    tokens: np.ndarray,
    vocabulary: Vocabulary,
    completions: Completions,
    tally: Tally,
    codes: np.ndarray | None = None,
    composing: Composing | None = None,
) -> None:
    """Add one batch of windows, int64[n, T + 1], of the users ``owners``, int64[n].

    Args:
        codes: int64[n, T + 1], how each token was typed; None: nobody knows.
        composing: composes words of pieces; None: only listed words are suggested.
    """
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    predicted = vocabulary.is_predicted[targets]
    keep = torch.from_numpy(predicted)
    states = torch.cat(
        [
            scorer.states(inputs[i : i + _WINDOWS])[keep[i : i + _WINDOWS]]
            for i in range(0, len(inputs), _WINDOWS)
        ]
    )  # (N, ...)
    users = np.broadcast_to(owners[:, None], targets.shape)[predicted]
    targets = targets[predicted]
    nats, suggestions = _predict(scorer, states, targets, vocabulary)
    # A model that has diverged suggests nothing of use, whatever the order of its NaNs.
    place = np.where(suggestions == targets[:, None], np.arange(SUGGESTIONS), SUGGESTIONS)
    place = np.where(np.isfinite(nats), place.min(axis=1), SUGGESTIONS)
    spelled = None
    if composing is None:
        typed = np.where(place < SUGGESTIONS, 0, completions.letters[targets])
        wanted = vocabulary.is_word[targets] & (place == SUGGESTIONS) & np.isfinite(nats)
        typed[wanted] = completions.letters_typed(
            scorer, states[torch.from_numpy(wanted)], targets[wanted]
        )
    else:
        place, typed, spelled = composing.offered(scorer, owners, tokens, states, nats, place)
    apart = places_apart(scorer, states, targets, vocabulary)
    known_codes = None if codes is None else codes[:, 1:][predicted]
    tally.add(users, targets, nats, place, typed, known_codes, apart, spelled)


def _predict(
    scorer: Scorer, states: torch.Tensor, targets: np.ndarray, vocabulary: Vocabulary
) -> tuple[np.ndarray, np.ndarray]:
    """Return −log p(target), float64[N], and the three words suggested, int64[N, 3]."""
    nats = np.empty(len(targets))
    suggestions = np.empty((len(targets), SUGGESTIONS), dtype=np.int64)
    silent = torch.from_numpy(~vocabulary.is_word)
    for start in range(0, len(targets), _ROWS):
        rows = slice(start, start + _ROWS)
        wanted = torch.from_numpy(targets[rows])
        ranked = None
        if isinstance(scorer, QuickScorer):
            ranked = scorer.ranked(states[rows], wanted, silent)
        if ranked is None:
            ranked = _predict_rows(scorer, states[rows], wanted, silent)
        elif len(unsafe := torch.nonzero(ranked[0].isnan()).squeeze(1)):
            again = _predict_rows(scorer, states[rows][unsafe], wanted[unsafe], silent)
            for figures, better in zip(ranked, again, strict=True):
                figures[unsafe] = better
        nats[rows], suggestions[rows] = (figures.numpy() for figures in ranked)
    return nats, suggestions


def _predict_rows(
    scorer: Scorer,
    states: torch.Tensor,
    targets: torch.Tensor,
    silent: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Do the work of ``_predict`` for a few rows, one tile of the vocabulary after the other.

    Args:
        silent: bool[V], what is never suggested.
    """
    rows, vocabulary_size = len(targets), len(silent)
    log_total = torch.full((rows,), -torch.inf, dtype=torch.float64)
    target_score = torch.zeros(rows, dtype=torch.float64)
    best = torch.full((rows, SUGGESTIONS), -torch.inf)
    best_words = torch.full((rows, SUGGESTIONS), -1, dtype=torch.int64)
    for first in range(0, vocabulary_size, _TILE):
        last = min(first + _TILE, vocabulary_size)
        tile = scorer.scores(states, slice(first, last)).cpu()  # (rows, last - first)
        here = torch.nonzero((targets >= first) & (targets < last)).squeeze(1)
        target_score[here] = tile[here, targets[here] - first].double()
        highest = tile.amax(dim=1)
        # Most tiles hold a better suggestion for few rows only; the others need no sorting.
        better = torch.nonzero(~(highest <= best[:, -1])).squeeze(1)
        contenders = tile[better].masked_fill_(silent[first:last], -torch.inf)
        _keep_best(best, best_words, contenders, better, first)
        total = tile.sub_(highest[:, None]).exp_().sum(dim=1).log_().add_(highest)
        log_total = torch.logaddexp(log_total, total.double())
    return log_total - target_score, best_words


def _keep_best(
    best: torch.Tensor,
    best_words: torch.Tensor,
    tile: torch.Tensor,
    rows: torch.Tensor,
    first: int,
) -> None:
    """Merge a tile's best words into the running best of the given rows."""
    if not len(rows):
        return
    scores, words = tile.topk(min(SUGGESTIONS, tile.shape[1]), dim=1)
    merged = torch.cat([best[rows], scores], dim=1)
    candidates = torch.cat([best_words[rows], words + first], dim=1)
    order = merged.argsort(dim=1, descending=True, stable=True)[:, :SUGGESTIONS]
    best[rows] = merged.gather(1, order)
    best_words[rows] = candidates.gather(1, order)
