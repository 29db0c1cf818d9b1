"""A model trained in one place, alone and mixed with an n-gram of the same text. For RESULTS.

    python -m benchmarks.central MODEL.pt --tokenizer DIR --population DIR \\
        [--split test --users 1000 --megabytes 4.4 --shares 0.3,0.4]

Prints one row a model: the network (as it is, with its state carried through a user's text, and
with counts of the user's own words); with `--whole` Kneser-Ney of order 3 on the users' text, as it
is and pruned to an ARPA file of so many megabytes; and mixtures (1 − share) · network + share ·
n-gram with the pruned one. All rows are of the same users; none of these models is private.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from pfl_lm.evaluation.evaluate import ModelScorer, Scorer, evaluate
from pfl_lm.evaluation.held_out import choose_users
from pfl_lm.evaluation.keystrokes import Completions
from pfl_lm.evaluation.measures import Evaluation, Tally
from pfl_lm.evaluation.own_words import Network, measure_text
from pfl_lm.evaluation.vocabulary import Vocabulary
from pfl_lm.export.ngram.arpa import WEIGHT_BYTES, costs
from pfl_lm.export.ngram.backoff import BackoffModel, NgramScorer
from pfl_lm.export.ngram.kneser_ney import fit_text
from pfl_lm.export.ngram.tables import pruned
from pfl_lm.models.file import load_model
from pfl_lm.models.own_words import OwnWords, OwnWordsRule
from pfl_lm.native.tuning import tune
from pfl_lm.text.population import PopulationStore
from pfl_lm.text.tokenizer import Tokenizer

HEAD = (
    "| model | window | n-grams | perplexity | … known words | top-1 | top-3 | keystrokes saved "
    "| CPU s |\n|" + "---|" * 9
)


class MixedScorer:
    """A network and an n-gram as one ``Scorer``: (1 − share) · network + share · n-gram.

    A state is the network's hidden vector, its log-partition, and the n-gram's places, float32.
    """

    def __init__(self, network: ModelScorer, ngram: NgramScorer, share: float) -> None:
        self._network, self._ngram, self._places = network, ngram, ngram.model.order - 1
        self._logs = float(np.log1p(-share)), float(np.log(share))

    def states(self, inputs: np.ndarray) -> torch.Tensor:
        """Read windows, int64[n, T] → (n, T, P + order)."""
        hidden = self._network.states(inputs)
        total = self._network.log_total(hidden.flatten(0, 1)).view(*hidden.shape[:2], 1)
        return torch.cat([hidden, total.float(), self._ngram.states(inputs).float()], dim=2)

    def log_total(self, states: torch.Tensor) -> torch.Tensor:
        """Return float64[m] zeros: scores are log-probabilities."""
        return torch.zeros(len(states), dtype=torch.float64)

    def ranked(self, *_: torch.Tensor) -> None:
        """Return None: the best words are found among all scores."""

    def scores(self, states: torch.Tensor, words: slice | torch.Tensor) -> torch.Tensor:
        """Return log p of some words, (m, k)."""
        hidden, total, places = states.split(
            [states.shape[1] - 1 - self._places, 1, self._places], 1
        )
        own = self._network.scores(hidden, words) - total
        other = self._ngram.scores(places.long(), words)
        return torch.logaddexp(own + self._logs[0], other + self._logs[1])


class Bench:
    """Held-out users, and the rows that are printed."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.tokenizer = options, Tokenizer.open(options.tokenizer)
        self.store = PopulationStore.open(options.population)
        self.vocabulary = Vocabulary.of(self.tokenizer)
        self.users = choose_users(
            self.store.users(options.split), options.split, options.users, options.seed
        )
        print(HEAD, flush=True)

    def row(self, name: str, scorer: Scorer, ngrams: str = "–", window: int = 0) -> None:
        """Print the figures of a model that sees ``window`` tokens at once, 0: ``--window``."""
        options, began = self.options, time.process_time()
        window = window or options.window
        found = evaluate(
            scorer, self.store, options.split, self.tokenizer, window, max_users=options.users,
            max_tokens_per_user=options.tokens_per_user, seed=options.seed,
        )  # fmt: skip
        self._print(name, str(window), ngrams, found, began)

    def memory_row(self, name: str, scorer: Network, ngrams: str = "–") -> None:
        """Print the figures of a model that reads on, with counts of its user's own words."""
        began, tally = time.process_time(), Tally(len(self.users), self.vocabulary)
        words = self.tokenizer.words
        completions = Completions.of(words, self.vocabulary.never_suggested)
        with torch.inference_mode():
            for place, user in enumerate(self.users.tolist()):
                text = self.store.tokens(self.options.split, user)[: self.options.tokens_per_user]
                text = text.astype(np.int64)
                if len(text) > 1:
                    own = OwnWords(OwnWordsRule(), len(words), self.tokenizer.bos_id)
                    hidden = scorer.states(text[None, :-1])[0]
                    measure_text(
                        scorer, hidden, text, own, self.vocabulary, completions, tally, place
                    )
        self._print(f"{name}, own words", "all", ngrams, tally.evaluation(), began)

    def _print(self, name: str, seen: str, ngrams: str, found: Evaluation, began: float) -> None:
        shares = " | ".join(f"{x:.1%}" for x in (found.top1, found.top3, found.keystrokes_saved))
        figures = f"{found.perplexity:.1f} | {found.perplexity_known:.1f} | {shares}"
        spent = time.process_time() - began
        print(f"| {name} | {seen} | {ngrams} | {figures} | {spent:.0f} |", flush=True)


def main() -> None:
    """Print the table."""
    options = _options()
    tune()
    bench, model = Bench(options), load_model(options.model)
    network = ModelScorer(model.spec, model.parameters)
    bench.row("network", network)
    bench.row("network", network, window=options.tokens_per_user)
    bench.memory_row("network", network)
    if not options.shares and not options.whole:
        return
    whole = fit_text(np.asarray(bench.store.stream("train")), bench.tokenizer.unigram, 3)
    if options.whole:
        bench.row("Kneser-Ney of order 3", NgramScorer(whole), _sizes(whole))
    each = costs(whole, bench.tokenizer.words)
    small = NgramScorer(pruned(whole, each, int(options.megabytes * 1e6) - 200, WEIGHT_BYTES))
    about = f"{_sizes(small.model)}; {options.megabytes:g} MB"
    if options.whole:
        bench.row("Kneser-Ney of order 3, pruned", small, about)
    for share in options.shares:
        mixture, name = MixedScorer(network, small, share), f"network, {share:g} of the n-gram"
        bench.row(name, mixture, about, options.tokens_per_user)
        bench.memory_row(name, mixture, about)


def _sizes(model: BackoffModel) -> str:
    return " + ".join(f"{count:,}" for count in model.sizes)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--population", type=Path, required=True)
    parser.add_argument("--split", choices=["validation", "test"], default="test")
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--tokens-per-user", type=int, default=400)
    parser.add_argument("--window", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--megabytes", type=float, default=4.4)
    parser.add_argument("--whole", action="store_true", help="Measure the n-grams alone, too.")
    parser.add_argument("--shares", type=lambda text: [float(x) for x in text.split(",")],
                        default=[])  # fmt: skip
    return parser.parse_args()


if __name__ == "__main__":
    main()
