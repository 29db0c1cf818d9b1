"""Speed of evaluation: tokens per second beside a plain torch loop, and peak memory.

    python -m benchmarks.evaluation [--tokens 200000] [--vocabulary 100000]

Every token is scored against the whole vocabulary. The plain loop stores the scores of 256 tokens
at a time and takes their log-sum and three best words; torch's product alone is the least that it
could take. Evaluation counts keystrokes, too. All grow linearly with the tokens, and evaluation's
memory not at all.
"""

from __future__ import annotations

import argparse
import resource
import time
from types import SimpleNamespace

import numpy as np
import torch

from pfl_lm.evaluation.baselines import KneserNeyBigram
from pfl_lm.evaluation.evaluate import ModelScorer, evaluate
from pfl_lm.models import models
from pfl_lm.models.spec import ModelSpec
from pfl_lm.streams import stream


def make_tokenizer(vocabulary_size: int) -> SimpleNamespace:
    """Invent a vocabulary whose words share prefixes as those of a language do."""
    draw = stream(0, "benchmark words")
    letters = np.array(list("scpabmdtrefhigluonwvkjyqzx"))
    weights = 1 / np.sqrt(np.arange(1, 27))
    spelled = draw.choice(letters, (vocabulary_size, 12), p=weights / weights.sum())
    lengths = draw.integers(2, 13, vocabulary_size)
    words = ["".join(row[:n]) for row, n in zip(spelled, lengths, strict=True)]
    frequency = 1 / np.arange(1, vocabulary_size + 1)
    return SimpleNamespace(
        words=["<pad>", "<unk>", "<s>", "</s>", *words[4:]],
        specials=(0, 1, 2, 3),
        pad_id=0,
        unk_id=1,
        bos_id=2,
        unigram=frequency / frequency.sum(),
    )


class Typists:
    """Users who type 1,000 words each, drawn from the unigram."""

    def __init__(self, tokens: int, tokenizer: SimpleNamespace) -> None:
        self._users = max(1, tokens // 1000)
        self._cumulative = np.cumsum(tokenizer.unigram)

    def users(self, split: str) -> int:
        return self._users

    def tokens(self, split: str, user: int) -> np.ndarray:
        drawn = np.searchsorted(self._cumulative, stream(0, "typist", user).random(1000))
        return np.maximum(drawn, 4).astype(np.int32)


def seconds_of_products(spec: ModelSpec, parameters: models.Parameters, tokens: int) -> float:
    """Time the bare products states × table for so many tokens, in the tiles of evaluation."""
    scorer = ModelScorer(spec, parameters)
    states = torch.randn(1024, spec.output_dim)
    start = time.perf_counter()
    with torch.inference_mode():
        for _ in range(0, tokens, len(states)):
            for first in range(0, spec.vocabulary_size, 1024):
                scorer.scores(states, slice(first, first + 1024))
    return time.perf_counter() - start


def seconds_of_plain_loop(spec: ModelSpec, parameters: models.Parameters, tokens: int) -> float:
    """Time perplexity and three suggestions with (256, V) stored, states given."""
    states, targets = torch.randn(256, spec.output_dim), torch.arange(256)[:, None]
    start = time.perf_counter()
    with torch.inference_mode():
        for _ in range(0, tokens, len(states)):
            scores = models.scores(spec, parameters, states)
            (scores.logsumexp(1) - scores.gather(1, targets).squeeze(1)).sum()
            scores.topk(3, dim=1)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--vocabulary", type=int, default=100_000)
    chosen = parser.parse_args()
    tokenizer = make_tokenizer(chosen.vocabulary)
    spec = ModelSpec("cifg_lstm", chosen.vocabulary, 96, hidden_dim=256, projection_dim=96)
    parameters = models.initialise(spec, 0, tokenizer.unigram)
    sample = min(chosen.tokens, 20_480)
    torch.set_num_threads(1)
    start = time.perf_counter()
    found = evaluate(
        ModelScorer(spec, parameters), Typists(chosen.tokens, tokenizer), "test", tokenizer, 20
    )
    whole = (time.perf_counter() - start) / found.predictions
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    product = seconds_of_products(spec, parameters, sample) / sample
    plain = seconds_of_plain_loop(spec, parameters, sample) / sample
    print(f"| vocabulary {chosen.vocabulary:,} | {found.predictions:,} tokens |")
    print(f"| evaluation | {whole * 1e6:.0f} µs per token, {1 / whole:,.0f} tokens/s |")
    for name, seconds in (("plain torch loop", plain), ("torch's product alone", product)):
        print(f"| {name} | {seconds * 1e6:.0f} µs per token, evaluation {whole / seconds:.2f} × |")
    print(f"| peak memory of the process | {peak:,.0f} MB |")
    start = time.perf_counter()
    pieces = (np.array([2, *t, 3]) for t in np.array_split(_public(10_000_000, tokenizer), 500_000))
    KneserNeyBigram.fit(pieces, tokenizer.unigram)
    print(f"| Kneser-Ney bigram, 10M public tokens | {time.perf_counter() - start:.1f} s |")


def _public(tokens: int, tokenizer: SimpleNamespace) -> np.ndarray:
    drawn = np.searchsorted(np.cumsum(tokenizer.unigram), stream(0, "public").random(tokens))
    return np.maximum(drawn, 4)


if __name__ == "__main__":
    main()
