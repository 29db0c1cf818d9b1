"""A small population whose words are known, and policies at its scale."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pfl_lm.dp.policy import Noise, Participation, Policy
from pfl_lm.text.population import PopulationStore
from pfl_lm.text.population_build import BuildOptions, Input, build_population
from pfl_lm.text.synthetic.population import synthetic_tokenizer
from pfl_lm.text.tokenizer import Tokenizer

USERS = 300
TYPED = {"moarvm": 200, "rakudo": 150, "irda": 120, "zz9": 3}  # word → users who type it


def policy_of(
    epsilon: float = 8.0,
    rounds: int = 1,
    users: int = USERS,
    min_separation: int = 1,
    min_dim: int = 64,
    delta: float = 1e-3,
    **noise: object,
) -> Policy:
    """Return a policy whose report goal is all of a small population."""
    stated = Noise("device", "skellam", min_dim=min_dim, **noise)  # type: ignore[arg-type]
    return Policy(
        "user", "zero_out", epsilon, delta, users, users // min_separation, rounds,
        Participation("rotation", min_separation), stated,
    )  # fmt: skip


class NoLedger:
    """Takes the place of a ledger, and remembers the rounds."""

    def __init__(self) -> None:
        self.rounds: list[dict[str, Any]] = []

    def entries(self) -> list[dict[str, Any]]:
        return [{"kind": "genesis"}]

    def record_round(self, round: int, entry: dict[str, Any]) -> None:
        self.rounds.append(entry)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return synthetic_tokenizer(500)


@pytest.fixture(scope="session")
def built_store(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Users who type the words above, each once or twice, beside words of the vocabulary."""
    folder = tmp_path_factory.mktemp("queries")
    known = tokenizer.words[10]
    rows = []
    for user in range(USERS):
        words = [word for word, count in TYPED.items() if user * 7 % USERS < count]
        rows.append({"user": f"u{user}", "text": " ".join([known, *words, *words[:1]])})
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = BuildOptions(fractions=(1.0, 0.0, 0.0), keep_unknown_words=True)
    build_population([Input(folder / "a.jsonl")], tokenizer, folder / "store", options)
    return folder / "store"


@pytest.fixture
def store(built_store: Path, tmp_path_factory: pytest.TempPathFactory) -> PopulationStore:
    """The same users, of whom nothing has been asked: their ledger lies beside the store."""
    folder = tmp_path_factory.mktemp("people")
    shutil.copytree(built_store, folder / "store")
    return PopulationStore.open(folder / "store")


@pytest.fixture(scope="session")
def word_list(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A public list: the typed words but for zz9, and words that nobody types."""
    path = tmp_path_factory.mktemp("lists") / "words.tsv"
    words = ["moarvm", "rakudo", "irda", *(f"nobody{chr(97 + i % 26)}{i}" for i in range(200))]
    rows = (f"{word}\t{1000 - rank}" for rank, word in enumerate(words))
    path.write_text("\n".join(["word\tcount", *rows]) + "\n")
    return path
