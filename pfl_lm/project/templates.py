"""What the projects of `pfl-lm new` choose; every other key stands there with its default."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Values = dict[str, Any]


@dataclass(frozen=True)
class Template:
    """A small project.

    Attributes:
        summary: one line for `pfl-lm new --help` and for messages.
        recipes: values by file name; the file's stem is the kind of recipe.
        sample_text: whether sample text by user, and public text, lies in ``text/``.
    """

    summary: str
    recipes: dict[str, Values]
    sample_text: bool = False
    folders: tuple[str, ...] = field(default=("data", "models", "runs"))


_POLICY: Values = {
    "unit": "user",
    "neighboring": "zero_out",
    "epsilon": 2.0,
    "delta": 1e-7,
    "population": 1_000_000,
    "report_goal": 5_000,
    "rounds": 100,
    "participation": {"kind": "rotation", "min_separation": 200},
    "noise": {"at": "device", "kind": "skellam", "tolerated_dropout": 0.1},
}

_MODEL: Values = {
    "kind": "cifg_lstm",
    "vocabulary_size": 3_000,
    "embedding_dim": 32,
    "hidden_dim": 64,
}

_TRAINING: Values = {"learning_rate": 5.0, "batch_size": 4, "gradient_clip": 1.0, "window": 15}


def _scenario(**changes: Any) -> Values:
    return {
        "description": "A small model on invented users who write English, at ε = 2",
        "policy": "policy.toml",
        "rounds": 100,
        "cohort": 40,
        "clip_norm": 1.0,
        "seed": 1,
        "population": {
            "kind": "synthetic",
            "language": "english",
            "users": 2_000,
            "tokens_per_user": 100,
        },
        "model": _MODEL,
        "training": _TRAINING,
        "payload": {"rows": "all", "dense": "all"},
        "server": {"kind": "momentum", "learning_rate": 1.0},
        "evaluation": {"every": 20, "users": 50, "final_users": 200},
    } | changes


_FLEET: Values = {
    "description": "Three classes of phones in three time zones",
    "source": "made up for a first try; put your own measurements here",
    "check_in": 10.0,
    "over_selection": 1.3,
    "time_zones": [0.3, 0.5, 0.2],
    "profiles": {
        "high": {
            "share": 0.2,
            "training_memory_mb": 250.0,
            "gflops": 15.0,
            "download_mbps": 120.0,
            "upload_mbps": 15.0,
            "failures": {"training": 0.03, "upload": 0.01},
        },
        "middle": {
            "share": 0.4,
            "training_memory_mb": 125.0,
            "gflops": 8.0,
            "download_mbps": 60.0,
            "upload_mbps": 8.0,
            "failures": {"training": 0.04, "upload": 0.01},
        },
        "low": {
            "share": 0.4,
            "training_memory_mb": 60.0,
            "gflops": 5.0,
            "download_mbps": 30.0,
            "upload_mbps": 4.0,
            "failures": {"training": 0.05, "upload": 0.02},
        },
    },
}

_CHAT_MODEL = _MODEL | {"vocabulary_size": 10_000, "embedding_dim": 24, "hidden_dim": 48}

TEMPLATES = {
    "invented": Template(
        "invented users who write English: nothing to bring",
        {"scenario.toml": _scenario(), "policy.toml": _POLICY},
    ),
    "chat": Template(
        "text by user, from a vocabulary and a first model to a federated run",
        {
            "tokenizer.toml": {
                "locale": "en_US",
                "size": 10_000,
                "casing": "lower",
                "punctuation": "drop",
                "numbers": "placeholder",
                "source": {
                    "kind": "wordfreq",
                    "provenance": "wordfreq 3 (Speer 2022): Wikipedia, subtitles, news, books, web",
                    "licence": "CC-BY-SA-4.0",
                },
            },
            "pretraining.toml": {
                "description": "A first model from public text",
                "tokenizer": "data/tokenizer",
                "text": "data/public",
                "text_is": "public",
                "batch_size": 16,
                "learning_rate": 0.005,
                "candidates": 512,
                "model": _CHAT_MODEL,
            },
            "scenario.toml": _scenario(
                description="Messages by user, from a public start, at ε = 2",
                tokenizer="data/tokenizer",
                start="models/start.pt",
                rounds=15,
                cohort=30,
                clip_norm=0.5,
                population={"kind": "store", "path": "data/people", "public_text": "data/public"},
                model=_CHAT_MODEL,
                payload={"rows": 2_000, "draw": "unigram", "dense": "all"},
                training=_TRAINING | {"learning_rate": 1.0, "loss": "sampled"},
            ),
            "policy.toml": _POLICY,
        },
        sample_text=True,
    ),
    "fleet": Template(
        "phones with memory, chargers, networks and local hours decide who takes part",
        {
            "scenario.toml": _scenario(
                description="A small model on phones that charge at night, at ε = 2",
                fleet="fleet.toml",
            ),
            "policy.toml": _POLICY,
            "fleet.toml": _FLEET,
        },
    ),
    "network": Template(
        "a server, and devices that call it over the network",
        {
            "scenario.toml": _scenario(
                description="Ten devices call a server on this machine",
                rounds=3,
                cohort=10,
                adversary="semi-honest",
                population={
                    "kind": "synthetic",
                    "language": "english",
                    "users": 10,
                    "tokens_per_user": 100,
                },
                evaluation={"every": 0, "users": 1, "final_users": 1},
            ),
            "policy.toml": _POLICY,
        },
    ),
}
