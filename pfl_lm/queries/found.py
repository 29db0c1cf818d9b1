"""Words that a query found: a table, and the proof that they were paid for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfl_lm.dp.ledger import Entry, LedgerError, verify
from pfl_lm.files import sha256_of, write_atomically
from pfl_lm.queries.folder import QuestionFolder
from pfl_lm.run.folder import digest_of, read_json
from pfl_lm.text.discovered import DiscoveredWords

WORDS_FILE = "words.tsv"
_HEADER = "word\tnoisy_sum\tdeviations"


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
    lines = [_HEADER, *(f"{w.word}\t{w.sum:.4f}\t{w.deviations:.2f}" for w in rows)]
    with write_atomically(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_words(path: Path) -> list[FoundWord]:
    """Read the table; raises ValueError where it is damaged."""
    header, *lines = Path(path).read_text(encoding="utf-8").removesuffix("\n").split("\n")
    if header != _HEADER:
        raise ValueError(f"{path} is no list of discovered words: its header is {header!r}")
    found = []
    for number, line in enumerate(lines, 2):
        try:
            word, total, deviations = line.split("\t")
            found.append(FoundWord(word, float(total), float(deviations)))
        except ValueError:
            raise ValueError(f"{path}:{number}: expected a word and two numbers") from None
    return found


def open_discovered(folder: Path) -> DiscoveredWords:
    """Open the words of a discovery, once the ledger is seen to have paid for them.

    Raises:
        ValueError: the folder holds no finished discovery, its ledger is missing or broken, has no
            entry of a round, or names other words than ``words.tsv`` holds; or a printed seed
            gives the noise again, so that the list is as good as without.
    """
    paths = QuestionFolder(Path(folder), WORDS_FILE)
    remedy = "`pfl-lm words discover` writes both"
    for path in (paths.result_path, paths.ledger_path, paths.manifest_path):
        if not path.is_file():
            raise ValueError(f"{folder}: {path.name} is missing, so nothing shows that the words "
                             f"were paid for; {remedy}")  # fmt: skip
    try:
        entries = verify(paths.ledger_path)
    except LedgerError as error:
        raise ValueError(f"{folder}: the ledger cannot be believed: {error}") from error
    manifest = read_json(paths.manifest_path)
    reason = _unpaid(entries, manifest, sha256_of(paths.result_path))
    if reason is not None:
        raise ValueError(f"{folder}: {reason}; {remedy}")
    paid = [entry for entry in entries if entry["kind"] == "round"]
    return DiscoveredWords(
        {found.word: found.sum for found in read_words(paths.result_path)},
        reports=max(entry["reports"] for entry in paid),
        entries=int(manifest["asked"]["entries"]),
        statement=str(manifest["statements"]["simulated"]),
        ledger_sha256=sha256_of(paths.ledger_path),
    )


def _unpaid(entries: Sequence[Entry], manifest: dict[str, Any], words: str) -> str | None:
    """Return why a ledger does not show that these words were paid for, or None."""
    if entries[0].get("manifest_digest") != digest_of(manifest):
        return "manifest.json is not the one that the ledger began with"
    if manifest["asked"]["seed"] != "secret":
        return "the noise came from --seed, which anybody can take off the list; ask without it"
    if manifest.get("served", {}).get("trial"):
        return "a trial asked for the words, which protects nobody; ask without --trial"
    if not any(entry["kind"] == "round" and entry.get("event") for entry in entries):
        return "the ledger has no entry of a round that devices answered"
    ends = [entry for entry in entries if entry["kind"] == "end"]
    if not ends or ends[-1].get("result") != words:
        return "words.tsv is not the list that the ledger's last entry names"
    return None
