"""What the inputs of a population held: every record is counted, those that are left out too."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pfl_lm.text.records import Malformed

_EXAMPLES = 3  # malformed records that are shown
_HOPELESS = 1000  # malformed records, if they are the majority, after which reading stops


@dataclass
class Tally:
    """Counts of one input, or of several.

    Attributes:
        records: all of them.
        without_words: those whose text holds no word.
        malformed: those that could not be read; ``examples`` says why, of the first.
        stated_splits: those that state the split of their user.
    """

    records: int = 0
    without_words: int = 0
    malformed: int = 0
    stated_splits: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Add the counts of another input."""
        self.records += other.records
        self.without_words += other.without_words
        self.malformed += other.malformed
        self.stated_splits += other.stated_splits
        self.examples = (self.examples + other.examples)[:_EXAMPLES]

    def note(self, record: Malformed, path: Path) -> None:
        """Count a malformed record; ValueError if most records of a long input are malformed."""
        self.malformed += 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append(str(record))
        if self.malformed >= _HOPELESS and 2 * self.malformed > self.records:
            raise ValueError(
                f"{path}: {self.malformed:,} of the first {self.records:,} records are malformed: "
                + "; ".join(self.examples)
            )

    def refuse_malformed(self, allowed: float) -> None:
        """Raise ValueError if a larger share of the records is malformed than ``allowed``."""
        if self.malformed > allowed * self.records:
            share = self.malformed / self.records
            raise ValueError(
                f"{self.malformed:,} of {self.records:,} records are malformed ({share:.2%}, "
                f"allowed {allowed:.2%}; --max-malformed changes that): " + "; ".join(self.examples)
            )
