"""One text read by models of different vocabularies: what each makes of the same words.

    python -m benchmarks.vocabularies TEXT [TEXT ...] --model NAME MODEL TOKENIZER
        [--model ...] [--users 200] [--tokens 400] [--window 20] [--languages en_US]

Each TEXT holds messages by user, a line each as JSON with the fields `user` and `text`. No
vocabulary may have subwords, so that one piece of the text is one id in all of them and the
windows are the same. Printed are

    common words    perplexity of the words that every vocabulary has
    spelled         nats a word: all predictions, marks and ends of messages included; a word that
                    a vocabulary lacks costs its `<unk>` and its letters, by one public model of
                    letters for all (pairs of letters of the vocabularies' words)
    top-3           words among three suggestions; an unknown word is a miss
    unknown         words that the vocabulary lacks

and for each its 95% interval by a bootstrap over users, of common words and `spelled` as ratios to
the first model's. ``--languages`` adds a row for each model of several languages, which leaves
out the words of the others, as a keyboard does whose owner writes these alone. A window of more
tokens than a user has reads on from message to message, as a phone does.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pfl_lm.evaluation.evaluate import ModelScorer, _predict
from pfl_lm.evaluation.held_out import choose_users
from pfl_lm.evaluation.interfaces import Scorer
from pfl_lm.evaluation.languages import without_left_out
from pfl_lm.evaluation.vocabulary import Vocabulary
from pfl_lm.models.file import load_model
from pfl_lm.streams import stream
from pfl_lm.text.compressed import open_text
from pfl_lm.text.normalisation import is_word
from pfl_lm.text.population import windows
from pfl_lm.text.tokenizer import Tokenizer

_DRAWS = 2_000  # of the bootstrap


@dataclass(frozen=True)
class Named:
    """A model with its vocabulary."""

    name: str
    scorer: Scorer
    tokenizer: Tokenizer
    vocabulary: Vocabulary


class Letters:
    """Pairs of letters of public words: what it costs to spell a word that a vocabulary lacks."""

    def __init__(self, words: Iterable[str]) -> None:
        self._pairs, self._singles = Counter[str](), Counter[str]()
        for word in words:
            marked = f" {word} "
            self._pairs.update(marked[i : i + 2] for i in range(len(marked) - 1))
            self._singles.update(marked[:-1])
        self._kinds = len(self._singles) + 1

    def nats(self, word: str) -> float:
        marked = f" {word} "
        return -sum(
            math.log((self._pairs[marked[i : i + 2]] + 0.5)
                     / (self._singles[marked[i]] + 0.5 * self._kinds))
            for i in range(len(marked) - 1)
        )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vocabularies")
    parser.add_argument("texts", nargs="+", type=Path, metavar="TEXT")
    names = ("NAME", "MODEL", "TOKENIZER")
    parser.add_argument("--model", nargs=3, action="append", required=True, metavar=names)
    parser.add_argument("--users", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--window", type=int, default=20)
    parser.add_argument("--languages", nargs="+", metavar="LOCALE", default=[])
    chosen = parser.parse_args(arguments)
    models = [_opened(paths) for paths in chosen.model]
    if chosen.languages:
        models += [
            _opened(paths, chosen.languages)
            for paths, one in zip(chosen.model, models[:], strict=True)
            if len(one.tokenizer.locales) > 1
        ]
    public = {word for one in models for word in one.tokenizer.words if is_word(word or "<")}
    letters = Letters(sorted(public))
    for text in chosen.texts:
        users = _users(text, chosen.users)
        print(f"\n{text.name}: {len(users)} users")
        print("| model | common words | to the first | spelled | to the first | top-3 | unknown |")
        print("|---|---|---|---|---|---|---|")
        _show(models, users, letters, chosen.tokens, chosen.window)


def _opened(paths: Sequence[str], languages: Sequence[str] = ()) -> Named:
    name, model, tokenizer = paths
    found, words = load_model(Path(model)), Tokenizer.open(Path(tokenizer))
    if languages:
        name, words = f"{name}, {' '.join(languages)}", words.of_languages(languages)
        found = without_left_out(found, words)
    if "subword" in words.kinds:
        raise ValueError(f"{tokenizer}: a vocabulary with subwords cuts text into other pieces")
    return Named(name, ModelScorer(found.spec, found.parameters), words, Vocabulary.of(words))


def _users(path: Path, most: int) -> list[list[str]]:
    """Return the messages of some users."""
    messages: dict[str, list[str]] = {}
    with open_text(path) as lines:
        for line in lines:
            record = json.loads(line)
            messages.setdefault(record["user"], []).append(record["text"])
    names = list(messages)
    return [messages[names[i]] for i in choose_users(len(names), "test", most, 1)]


def _show(
    models: Sequence[Named], users: list[list[str]], letters: Letters, tokens: int, window: int
) -> None:
    """Print a row for each model."""
    pieces = [_pieces(models, messages, tokens) for messages in users]
    read = [_read(one, pieces, letters, window) for one in models]  # each: columns by user
    common = [np.all([r[u]["known"] for r in read], axis=0) for u in range(len(users))]
    sums = []
    for figures in read:
        rows = [
            (
                (f["nats"] * c).sum(), c.sum(), f["nats"].sum() + f["letters"].sum(),
                f["word"].sum(), f["top3"].sum(), (f["word"] & ~f["known"]).sum(),
            )
            for f, c in zip(figures, common, strict=True)
        ]  # fmt: skip
        sums.append(np.array(rows, dtype=np.float64))  # (U, 6)
    for one, own in zip(models, sums, strict=True):
        total = own.sum(axis=0)
        print(
            f"| {one.name} | {math.exp(total[0] / total[1]):.1f} | {_ratio(own, sums[0], True)} | "
            f"{total[2] / total[3]:.3f} | {_ratio(own, sums[0], False)} | "
            f"{total[4] / total[3]:.1%} | {total[5] / total[3]:.1%} |"
        )


def _ratio(own: np.ndarray, first: np.ndarray, common: bool) -> str:
    """Return a model's perplexity, or nats a word, in percent of the first one's."""
    if own is first:
        return ""
    draws = stream(1, "bootstrap").integers(0, len(own), (_DRAWS, len(own)))
    everybody = np.arange(len(own))[None]

    def of(some: np.ndarray) -> np.ndarray:
        a, b = own[some].sum(axis=1), first[some].sum(axis=1)
        if common:
            return 100 * (np.exp(a[:, 0] / a[:, 1] - b[:, 0] / b[:, 1]) - 1)
        return 100 * (a[:, 2] / a[:, 3] / (b[:, 2] / b[:, 3]) - 1)

    low, high = np.quantile(of(draws), (0.025, 0.975))
    return f"{of(everybody)[0]:+.1f}% ({low:+.1f} to {high:+.1f})"


def _pieces(models: Sequence[Named], messages: list[str], most: int) -> list[list[str]]:
    """Return the pieces of a user's messages, those that every vocabulary cuts alike."""
    found: list[list[str]] = []
    for text in messages:
        cuts = [one.tokenizer.normalisation.pieces(text) for one in models]
        if all(cut == cuts[0] for cut in cuts) and sum(map(len, found)) < most:
            found.append(cuts[0])
    return found


def _read(
    one: Named, users: list[list[list[str]]], letters: Letters, window: int
) -> list[dict[str, np.ndarray]]:
    """Return what a model makes of each prediction of each user: nats, known, top-3."""
    tokenizer, rows = one.tokenizer, []
    with torch.inference_mode():
        for messages in users:
            ids, spelled, word = [], [], []
            for pieces in messages:
                own = [tokenizer.bos_id, *(i for p in pieces for i in tokenizer.ids_of(p))]
                ids += [*own, tokenizer.eos_id]
                missing = [own[k + 1] == tokenizer.unk_id for k in range(len(pieces))]
                costs = [letters.nats(p) * m for p, m in zip(pieces, missing, strict=True)]
                spelled += [0.0, *costs, 0.0]
                word += [False, *map(is_word, pieces), False]
            cut = windows(np.array(ids), window)
            targets = cut[:, 1:].reshape(-1)[: len(ids) - 1]
            states = one.scorer.states(cut[:, :-1]).flatten(0, 1)[: len(ids) - 1]
            kept = targets != tokenizer.bos_id
            targets, states = targets[kept], states[torch.from_numpy(kept)]
            nats, suggested = _predict(one.scorer, states, targets, one.vocabulary)
            known = one.vocabulary.is_word[targets]
            rows.append({
                "nats": nats, "known": known,
                "letters": np.array(spelled[1:])[kept], "word": np.array(word[1:])[kept],
                "top3": known & (suggested == targets[:, None]).any(axis=1),
            })  # fmt: skip
    return rows


if __name__ == "__main__":
    main()
