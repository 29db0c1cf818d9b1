"""Fixtures of the doors. What needs another library runs where `make test-tff` or
`make test-interop` runs it, and is skipped elsewhere, even where the library happens to lie about.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pfl_lm.interop.tff import Worker, find_python
from pfl_lm.text.population import PopulationStore
from pfl_lm.text.population_build import BuildOptions, Input, build_population
from pfl_lm.text.records import Message
from pfl_lm.text.synthetic.population import synthetic_tokenizer
from pfl_lm.text.tokenizer import Tokenizer

REPOSITORY = Path(__file__).resolve().parents[2]
USERS = 30


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return synthetic_tokenizer(400)


@pytest.fixture(scope="session")
def lines(tokenizer: Tokenizer) -> list[Message]:
    """Messages of a few users, mixed; some words are outside the vocabulary."""
    draw = np.random.default_rng(5)
    words = np.array([*tokenizer.words[4:], "qqq"])
    return [
        Message(f"user{draw.integers(USERS)}", " ".join(draw.choice(words, draw.integers(1, 9))))
        for _ in range(150)
    ]


@pytest.fixture(scope="session")
def store(tokenizer, lines, tmp_path_factory) -> PopulationStore:
    folder = tmp_path_factory.mktemp("population") / "store"
    options = BuildOptions(fractions=(0.6, 0.2, 0.2), keep_user_ids=True)
    build_population([Input(Path("test"), records=lines)], tokenizer, folder, options)
    return PopulationStore.open(folder)


@pytest.fixture(scope="session")
def streams():
    """A function: each user's stream by id, of all splits of a store that keeps ids."""

    def read(store: PopulationStore) -> dict[str, list[int]]:
        return {
            name: store.tokens(split, user).tolist()
            for split in ("train", "validation", "test")
            for user, name in enumerate(store.user_ids(split))
        }

    return read


@pytest.fixture(scope="session")
def tff_python() -> Path:
    if "PFL_LM_TEST_TFF" not in os.environ:
        pytest.skip("needs tensorflow-federated; `make test-tff` builds it and runs this")
    return find_python()


@pytest.fixture(scope="session")
def worker(tff_python) -> Iterator[Worker]:
    with Worker(tff_python, threads=1) as running:
        yield running


@pytest.fixture(scope="session")
def in_tff(tff_python):
    """A function that runs a program under TFF's Python, with this checkout to import."""

    def run(program: str, *arguments: object) -> str:
        done = subprocess.run(
            [tff_python, "-c", program, *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "TF_CPP_MIN_LOG_LEVEL": "3"},
            capture_output=True,
            text=True,
            timeout=300,
            start_new_session=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run
