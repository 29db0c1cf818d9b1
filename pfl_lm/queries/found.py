"""Words that a query found: a table, and the proof that they were paid for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pfl_lm.queries.folder import QuestionFolder
from pfl_lm.queries.paid import open_paid
from pfl_lm.queries.table import TabTable, numbers
from pfl_lm.text.discovered import DiscoveredWords

WORDS_FILE = "words.tsv"
_TABLE = TabTable("list of discovered words", ("word", "noisy_sum", "deviations"))


@dataclass(frozen=True)
class FoundWord:
    """A word that enough devices named.

    Attributes:
        sum: noisy sum of what devices put into its cell, in the unit of a device's norm.
        deviations: the same in standard deviations of the noise.
    """

    word: str
    sum: float
    deviations: float


def write_words(path: Path, words: Sequence[FoundWord]) -> None:
    """Write the table of words, largest sum first, whole or not at all."""
    rows = sorted(words, key=lambda found: (-found.sum, found.word))
    _TABLE.write(path, ((w.word, f"{w.sum:.4f}", f"{w.deviations:.2f}") for w in rows))


def read_words(path: Path) -> list[FoundWord]:
    """Read the table; raises ValueError where it is damaged."""
    rows = _TABLE.read(path)
    return [FoundWord(word, *numbers(place, figures)) for place, (word, *figures) in rows]


def open_discovered(folder: Path) -> DiscoveredWords:
    """Open the words of a discovery, once the ledger is seen to have paid for them.

    Raises:
        ValueError: nothing shows that the words were paid for (see ``queries.paid.open_paid``).
    """
    paths = QuestionFolder(Path(folder), WORDS_FILE)
    paid = open_paid(paths, "words", "words discover")
    return DiscoveredWords(
        {found.word: found.sum for found in read_words(paths.result_path)},
        reports=max(entry["reports"] for entry in paid.rounds),
        entries=int(paid.manifest["asked"]["entries"]),
        statement=str(paid.manifest["statements"]["simulated"]),
        ledger_sha256=paid.ledger_sha256,
        asked={
            "population": paid.manifest["population"]["name"],
            **{name: paid.manifest["policy"][name] for name in ("unit", "epsilon", "delta")},
        },
    )
