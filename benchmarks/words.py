"""How many words a population's phones tell, and how much of what they type: the table of RESULTS.

    python -m benchmarks.words STORE TOKENIZER [--seeds 20] [--candidates-from LIST]

STORE is built with `--keep-unknown-words`. Every train user is asked under the shipped policies
`words` and `words_open`, restated for as many users as there are, so that the noise is that of
these users. Answers are summed before they are rounded to the grid, which spares 20 runs the time
of encoding; noise, thresholds and the tree are the package's own. `--whole` sums once by the
package's own path in place of that.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from scipy import stats

from pfl_lm.dp.policy import Policy
from pfl_lm.queries import word_list
from pfl_lm.queries.ask import QuerySession, ask, broadcast_of
from pfl_lm.queries.discover import WordsQuestion, find_words, first_question, most_used_first
from pfl_lm.queries.query import Answer, Query
from pfl_lm.recipes import load
from pfl_lm.run.round import noisy_mean
from pfl_lm.secagg.ideal import OpenedSum
from pfl_lm.text.population import PopulationStore
from pfl_lm.text.tokenizer import Tokenizer

PLAIN_ENTRIES = 5


class NoLedger:
    """Stands in for a ledger: nothing here is released."""

    path = SimpleNamespace(name="no ledger")

    def entries(self) -> list[dict[str, Any]]:
        return [{"kind": "genesis"}]

    def record_round(self, round: int, entry: dict[str, Any]) -> str:
        return ""


def ask_fast(
    session: QuerySession,
    query: Query,
    number: int,
    users: Sequence[int],
    answer_of: Callable[[int], Answer],
    *_: Any,
) -> np.ndarray:
    """Sum answers as they are and add the noise of the session's privacy: float64[K]."""
    total = np.zeros(query.dim)
    for user in users:
        answer = answer_of(user)
        total[answer.cells] += answer.values
    return noised(session, query, number, total, len(users))


def noised(
    session: QuerySession, query: Query, number: int, total: np.ndarray, reports: int
) -> np.ndarray:
    """Add the noise of so many reports to a sum, float64[d], as a round does: float64[K]."""
    privacy, broadcast = session.privacy(query), broadcast_of(query, number)
    vector = np.rint(total * privacy.grid(query.dim).scale).astype(np.int64)
    config = session.summed_by(query).config(broadcast, reports)
    released = noisy_mean(privacy, OpenedSum(vector, reports), config, broadcast)
    return released.mean[: len(query.labels)].astype(np.float64) * privacy.cohort


def plainly(own: word_list.OwnWords, cell_of: Any, entries: int) -> Answer:
    """Answer as a plain histogram has it: 1 ÷ √m for each of at most m words."""
    cells = [cell_of[word] for word in own if word in cell_of][:PLAIN_ENTRIES]
    values = np.full(len(cells), PLAIN_ENTRIES**-0.5, dtype=np.float32)
    return Answer(np.array(cells, dtype=np.int64), values)


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    policy: str
    epsilon: float
    question: WordsQuestion
    plain: bool = False


def rows(listed: Path | None) -> list[Row]:
    closed = WordsQuestion(candidates_from=listed)
    opened = WordsQuestion(domain="open")
    found = []
    for epsilon in (1.0, 2.0):
        plain = replace(closed, entries=PLAIN_ENTRIES)
        found += [
            Row("list, plain histogram", "words", epsilon, plain, plain=True),
            Row("list", "words", epsilon, closed),
            Row("open", "words_open", epsilon, opened),
        ]
    return found


def measure(row: Row, store: PopulationStore, tokenizer: Tokenizer, seeds: int, by: Any) -> None:
    """Print one line: words, share of the unknown words typed, words that nobody typed."""
    began = time.process_time()
    users = store.users("train")
    counts = list(store.unknown_words("train"))
    typed: Counter[str] = Counter()
    for of_user in counts:
        typed.update(of_user)
    own = [most_used_first(of_user) for of_user in counts]
    policy = replace(
        load(Policy, Path(row.policy)), epsilon=row.epsilon, population=users, report_goal=users
    )
    number, mass, nobody = [], [], 0
    answer = word_list.answer
    try:
        word_list.answer = plainly if row.plain else answer
        for seed in range(seeds):
            session = QuerySession(policy, users, users, seed)
            start = first_question(row.question, session, tokenizer)
            words = find_words(row.question, session, start, own, NoLedger(), ask=by)  # type: ignore[arg-type]
            number.append(len(words))
            mass.append(sum(typed[w.word] for w in words) / typed.total())
            nobody += sum(typed[w.word] == 0 for w in words)
    finally:
        word_list.answer = answer
    seconds = (time.process_time() - began) / seeds
    print(
        f"| {row.name} | {row.epsilon:g} | {interval(number, '.0f')} | "
        f"{interval([100 * share for share in mass], '.1f')} | {nobody} in {seeds} runs | "
        f"{seconds:.0f} |",
        flush=True,
    )


def interval(values: Sequence[float], form: str) -> str:
    """Return the mean with its 95% interval (Student), and the extremes."""
    mean, low, high = np.mean(values), min(values), max(values)
    if len(values) == 1:
        return f"{mean:{form}}"
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{mean:{form}} ± {half:.1f} ({low:{form}} to {high:{form}})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("store", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--candidates-from", type=Path)
    parser.add_argument("--whole", action="store_true", help="every device encodes its answer")
    chosen = parser.parse_args()
    store, tokenizer = PopulationStore.open(chosen.store), Tokenizer.open(chosen.tokenizer)
    typed: Counter[str] = Counter()
    with_unknown = 0
    for words in store.unknown_words("train"):
        typed.update(words)
        with_unknown += bool(words)
    best = [sum(n for _, n in typed.most_common(k)) / typed.total() for k in (100, 300, 1000)]
    print(
        f"{store.users('train'):,} users, {with_unknown:,} of them with an unknown word; the top "
        f"100, 300, 1,000 unknown words hold {best[0]:.1%}, {best[1]:.1%}, {best[2]:.1%}"
    )
    print("| domain | ε | words | % of unknown words typed | that nobody typed | CPU s a run |")
    print("|---|---|---|---|---|---|")
    for row in rows(chosen.candidates_from):
        if not (chosen.whole and row.plain):
            by = ask if chosen.whole else ask_fast
            measure(row, store, tokenizer, 1 if chosen.whole else chosen.seeds, by)


if __name__ == "__main__":
    main()
