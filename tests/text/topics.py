"""Public text of some topics, and users who type of one of them: what clusters and votes find."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from pfl_lm.text.population import PopulationStore
from pfl_lm.text.population_build import BuildOptions, Input, build_population
from pfl_lm.text.public_text import public_tokens
from pfl_lm.text.synthetic.population import synthetic_tokenizer
from pfl_lm.text.tokenizer import Tokenizer

WORDS = 300
TOPICS = 4
OWN = 40  # words of a topic
FIRST = 20


def vocabulary() -> Tokenizer:
    return synthetic_tokenizer(WORDS)


def line(tokenizer: Tokenizer, topic: int, random: np.random.Generator) -> str:
    """Ten words, most of them of a topic."""
    own = FIRST + OWN * topic + random.integers(OWN, size=8)
    common = FIRST + OWN * TOPICS + random.integers(OWN, size=2)
    return " ".join(tokenizer.words[word] for word in np.concatenate([own, common]))


def public_store(tokenizer: Tokenizer, path: Path, blocks: int = 60, seed: int = 1) -> Path:
    """Write blocks of thirty lines each; block b is of topic b modulo 4."""
    random = np.random.default_rng(seed)
    lines = [line(tokenizer, b % TOPICS, random) for b in range(blocks) for _ in range(30)]
    text = path.with_suffix(".txt")
    text.write_text("\n".join(lines) + "\n", encoding="utf-8")
    public_tokens([text], tokenizer, path)
    return path


def people(tokenizer: Tokenizer, path: Path, users: int, topic: int = 2) -> Path:
    """Write users of whom nine in ten type of one topic, and the others of the next."""
    random = np.random.default_rng(2)
    rows = [
        {"user": f"u{u}", "text": line(tokenizer, topic + (u % 10 == 0), random)}
        for u in range(users)
    ]
    text = path.with_suffix(".jsonl")
    text.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    build_population([Input(text)], tokenizer, path, BuildOptions(fractions=(1.0, 0.0, 0.0)))
    return path


def topic_shares(tokens: np.ndarray) -> np.ndarray:
    """Return each topic's share of the tokens that are of any: float64[TOPICS]."""
    of = (tokens.astype(np.int64) - FIRST) // OWN
    counts = np.bincount(of[(of >= 0) & (of < TOPICS)], minlength=TOPICS)
    shares: np.ndarray = counts / counts.sum()
    return shares


def open_store(path: Path) -> PopulationStore:
    return PopulationStore.open(path)
