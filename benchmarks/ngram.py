"""A trained model as an n-gram, beside Kneser-Ney fitted on the users' own text.

    python -m benchmarks.ngram RUN --tokenizer DIR --population DIR [--public DIR]

Prints one row of benchmarks/RESULTS.md a model. The rows that read the users' text are no product:
they say what an n-gram that nobody may have would reach.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pfl_lm.evaluation.evaluate import ModelScorer, Scorer, evaluate
from pfl_lm.evaluation.held_out import choose_users
from pfl_lm.evaluation.measures import Evaluation
from pfl_lm.export.ngram.arpa import WEIGHT_BYTES, costs, write_arpa
from pfl_lm.export.ngram.backoff import BackoffModel, NgramScorer
from pfl_lm.export.ngram.files import PUBLIC_SHARE
from pfl_lm.export.ngram.kneser_ney import fit_text
from pfl_lm.export.ngram.network import Network, fit_network, sample
from pfl_lm.export.ngram.tables import log_chances, mixed, pruned
from pfl_lm.models.file import load_model
from pfl_lm.run.folder import RunFolder
from pfl_lm.text.population import PopulationStore, windows
from pfl_lm.text.tokenizer import Tokenizer

HEAD = (
    "| model | n-grams | MB | perplexity | top-1 | top-3 | keystrokes saved | CPU s |\n"
    "|---|---|---|---|---|---|---|---|"
)
WINDOW, SEED = 20, 1


class Bench:
    """Held-out users, and the rows that were printed."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.tokenizer = Tokenizer.open(options.tokenizer)
        self.users = PopulationStore.open(options.population)
        print(HEAD, flush=True)

    def row(self, name: str, scorer: Scorer, about: str = "– | –", seconds: float = 0.0) -> None:
        """Print the figures of a model; an n-gram's perplexity is over ``--users`` users."""
        found = self._evaluate(scorer, self.options.suggested_to)
        perplexity = found.perplexity
        if isinstance(scorer, NgramScorer):
            perplexity = self._perplexity(scorer.model)
        elif self.options.users != self.options.suggested_to:
            perplexity = self._evaluate(scorer, self.options.users).perplexity
        print(
            f"| {name} | {about} | {perplexity:.1f} | {found.top1:.1%} | {found.top3:.1%} "
            f"| {found.keystrokes_saved:.1%} | {seconds:.0f} |",
            flush=True,
        )

    def _megabytes(self, model: BackoffModel) -> str:
        with tempfile.TemporaryDirectory() as folder:
            write_arpa(Path(folder, "model.arpa"), model, self.tokenizer.words)
            return f"{Path(folder, 'model.arpa').stat().st_size / 1e6:.1f}"

    def _evaluate(self, scorer: Scorer, users: int) -> Evaluation:
        return evaluate(
            scorer, self.users, "test", self.tokenizer, WINDOW, max_users=users,
            max_tokens_per_user=self.options.tokens_per_user, seed=SEED,
        )  # fmt: skip

    def _perplexity(self, model: BackoffModel) -> float:
        """Return what ``evaluate`` would, from the probabilities of the words typed alone."""
        total, count = 0.0, 0
        users = choose_users(self.users.users("test"), "test", self.options.users, SEED)
        for user in users:
            tokens = self.users.tokens("test", int(user))
            for window in windows(tokens, WINDOW, self.options.tokens_per_user):
                for nats in typed_nats(model, window[window != Tokenizer.pad_id]):
                    total, count = total + float(nats.sum()), count + len(nats)
        return float(np.exp(total / count))

    def ngram(self, name: str, build: Callable[[], BackoffModel], pruning: bool) -> BackoffModel:
        """Build a model, print its row pruned or as it is, and return it as it was built."""
        started = time.process_time()
        whole = model = build()
        if pruning:
            each = costs(whole, self.tokenizer.words)
            model = pruned(whole, each, int(self.options.megabytes * 1e6) - 200, WEIGHT_BYTES)
        spent = time.process_time() - started
        size = self._megabytes(model) if pruning else "not written"
        about = f"{' + '.join(f'{count:,}' for count in model.sizes)} | {size}"
        self.row(name, NgramScorer(model), about, spent)
        return whole


def typed_nats(model: BackoffModel, window: np.ndarray) -> list[np.ndarray]:
    """Return −log p of each word of a window but its first and ``<s>``, by length of context."""
    begins = np.maximum.accumulate(np.where(window == Tokenizer.bos_id, np.arange(len(window)), 0))
    places = np.arange(1, len(window))
    places = places[window[1:] != Tokenizer.bos_id]
    before = np.minimum(places - begins[places], model.order - 1)
    return [
        -log_chances(model, np.stack([window[at - back] for back in range(length, -1, -1)], axis=1))
        for length in range(1, model.order)
        if len(at := places[before == length])
    ]


def main() -> None:
    options = _options()
    bench, network = Bench(options), Network(load_model(RunFolder.open(options.run).model_path))
    base, order = bench.tokenizer.unigram, options.order
    bench.row("the network", ModelScorer(network.spec, network.parameters))
    text = np.asarray(bench.users.stream("train"))
    private = bench.ngram(
        f"Kneser-Ney of order {order}, users' text", lambda: fit_text(text, base, order), False
    )
    alone = bench.ngram(
        f"**order {order}, model alone**",
        lambda: fit_network(network, sample(network, options.words, WINDOW), order),
        True,
    )
    bench.ngram(f"order {order}, users' text, pruned", lambda: private, True)
    if options.public is None:
        return
    store = PopulationStore.open(options.public)
    store.require_public()
    tokens = np.asarray(store.stream("train"))
    public = bench.ngram(
        f"order {order}, public text alone", lambda: fit_text(tokens, base, order), True
    )
    bench.ngram(
        f"**order {order}, model and public text**",
        lambda: mixed(alone, public, PUBLIC_SHARE),
        True,
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A trained model as an n-gram.")
    parser.add_argument("run", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--population", type=Path, required=True)
    parser.add_argument("--public", type=Path)
    parser.add_argument("--order", type=int, default=3)
    parser.add_argument("--megabytes", type=float, default=10.0)
    parser.add_argument("--words", type=int, default=100_000)
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--suggested-to", type=int, default=100, help="users for top-1 and so on")
    parser.add_argument("--tokens-per-user", type=int, default=400)
    return parser.parse_args()


if __name__ == "__main__":
    main()
