"""What words composed of pieces bring: the tables of RESULTS, "Languages".

    python -m benchmarks.composing --listed MODEL TOKENIZER POPULATION
        --pieces MODEL TOKENIZER POPULATION [--users N] [--window 20]
    python -m benchmarks.composing --keys MODEL TOKENIZER POPULATION [--users N]

Two vocabularies of as many ids read the same test users: one of listed words alone, one with
pieces beside fewer words, measured without composing and with it. Keystrokes are shares of the
same keystrokes in all rows: every word of the text at its own length, with its space. Intervals
are of the difference to the first row: 95%, by a bootstrap over users.

``--keys`` measures the time of one key instead, on words of the test users: of the listed words
alone, and of the search over pieces beside it, which has forgotten or kept the last key's rows.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from pfl_lm.evaluation.composing import Speller, Wanted, reader_of
from pfl_lm.evaluation.evaluate import ModelScorer, measure_users
from pfl_lm.evaluation.held_out import choose_users
from pfl_lm.evaluation.measures import Tally
from pfl_lm.models.file import Model, load_model
from pfl_lm.run.trained import load_trained
from pfl_lm.streams import stream
from pfl_lm.text.population import PopulationStore
from pfl_lm.text.tokenizer import Tokenizer

_DRAWS = 2_000  # of the bootstrap
_FIGURES = {
    "top-1": ("top1", "words"),
    "top-3": ("top3", "words"),
    "keystrokes saved": ("saved", "keystrokes"),
    "all keys saved": ("keys_saved", "keys"),
}
Setup = tuple[Model, Tokenizer, PopulationStore]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.composing")
    names = ("MODEL", "TOKENIZER", "POPULATION")
    for option in ("--listed", "--pieces", "--keys"):
        parser.add_argument(option, nargs=3, type=Path, metavar=names)
    parser.add_argument("--users", type=int)
    parser.add_argument("--window", type=int, default=20)
    chosen = parser.parse_args(arguments)
    if chosen.keys:
        _time_keys(opened(chosen.keys), chosen.users)
    if chosen.listed and chosen.pieces:
        _compare(opened(chosen.listed), opened(chosen.pieces), chosen.users, chosen.window)


def opened(paths: Sequence[Path]) -> Setup:
    model, tokenizer, population = paths
    loaded = load_trained(model)[0] if model.is_dir() else load_model(model)
    return loaded, Tokenizer.open(tokenizer), PopulationStore.open(population)


def _compare(listed: Setup, pieces: Setup, users: int | None, window: int) -> None:
    rows = {
        "listed words": _measure(listed, users, window, False),
        "words and pieces": _measure(pieces, users, window, False),
        "words and pieces, composed": _measure(pieces, users, window, True),
    }
    last = rows["words and pieces, composed"]
    print("| vocabulary | perplexity |", " | ".join(_FIGURES), "| spelled | offered |")
    print("|---" * (len(_FIGURES) + 4) + "|")
    for name, (tally, seconds) in rows.items():
        cells = [_cell(tally, rows["listed words"][0], last[0], *of) for of in _FIGURES.values()]
        figures = tally.evaluation()
        spelled = tally.per_user("spelled").sum() / tally.per_user("words").sum()
        offered = figures.spelled_offered
        print(f"| {name} | {figures.perplexity:.1f} |", " | ".join(cells), end=" | ")
        print(f"{spelled:.1%} | {offered:.1%} | {figures.words} words, {seconds:.0f} s")


def _measure(setup: Setup, users: int | None, window: int, compose: bool) -> tuple[Tally, float]:
    model, tokenizer, population = setup
    chosen = choose_users(population.users("test"), "test", users, 1)
    begun = time.process_time()
    tally = measure_users(
        ModelScorer(model.spec, model.parameters), population, "test", chosen, tokenizer, window,
        compose=compose,
    )  # fmt: skip
    return tally, time.process_time() - begun


def _cell(tally: Tally, first: Tally, last: Tally, over: str, under: str) -> str:
    """Return a figure, and its difference to the first row with its interval."""
    value, base, whole = tally.per_user(over), first.per_user(over), last.per_user(under)
    share = value.sum() / whole.sum()
    if tally is first:
        return f"{share:.2%}"
    draws = stream(1, "bootstrap").integers(0, len(whole), (_DRAWS, len(whole)))
    differences = (value - base)[draws].sum(axis=1) / whole[draws].sum(axis=1)
    low, high = np.quantile(differences, (0.025, 0.975))
    return f"{share:.2%} ({100 * low:+.2f} to {100 * high:+.2f})"


def _time_keys(setup: Setup, users: int | None) -> None:
    """Print milliseconds a key, by letters typed.

    Listed words: the model reads the text and scores every word. Composing adds its search; a
    keyboard that keeps what the model said after the last letter's beginnings reads fewer.
    """
    model, tokenizer, population = setup
    scorer, speller = ModelScorer(model.spec, model.parameters), Speller(tokenizer)
    taken: dict[tuple[int, str], list[float]] = {}
    for user in choose_users(population.users("test"), "test", users, 1):
        text = tuple(population.tokens("test", int(user))[:10].tolist())
        word = tokenizer.decode(population.tokens("test", int(user))[10:20].tolist()).split()[0]
        kept = reader_of(scorer, speller)
        for letters in range(min(6, len(word))):
            begun = time.perf_counter()
            states = scorer.states(np.array([text]))[:, -1]
            logs = torch.log_softmax(scorer.scores(states, slice(None)).double(), 1)[0].numpy()
            fitting = [i for i, w in enumerate(tokenizer.words) if w.startswith(word[:letters])]
            best = np.sort(logs[fitting])[::-1]
            floor = float(best[2]) if len(best) > 2 else -np.inf
            taken.setdefault((letters, "listed words"), []).append(time.perf_counter() - begun)
            wanted = [Wanted(text, word[:letters], floor)]
            for name, read in ("search", reader_of(scorer, speller)), ("search, rows kept", kept):
                begun = time.perf_counter()
                speller.compose(read, wanted, 3)
                taken.setdefault((letters, name), []).append(time.perf_counter() - begun)
    for (letters, name), seconds in sorted(taken.items()):
        median, most = 1000 * np.quantile(seconds, (0.5, 0.95))
        print(f"{letters} letters, {name}: {median:.1f} ms, 95%: {most:.1f} ms")


if __name__ == "__main__":
    main()
