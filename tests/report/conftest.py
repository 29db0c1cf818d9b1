"""A run folder with invented but plausible figures."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from pfl_lm.dp.ledger import Ledger
from pfl_lm.evaluation.measures import LEVELS

STATEMENT = (
    "Training satisfies (ε = 2, δ = 10⁻⁷)-differential privacy for whoever sees every released "
    "model: each round samples each of 1,000,000 users with probability 0.005, and secure "
    "aggregation opens sums of 5,000 reports only."
)


def manifest(rounds: int) -> dict:
    return {
        "format": 1,
        "run": "demo",
        "scenario": {
            "description": "Invented users, 30,000 words, partial rows + LoRA + NCE, ε = 2",
            "rounds": rounds,
            "cohort": 100,
            "clip_norm": 1.0,
            "seed": 1,
            "model": {"kind": "cifg_lstm", "vocabulary_size": 30_000, "embedding_dim": 64},
            "payload": {"rows": 2000, "draw": "unigram", "dense": "all"},
            "population": {"kind": "synthetic", "tokens_per_user": 300},
            "training": {"window": 20},
        },
        "policy": {"unit": "user", "epsilon": 2.0, "delta": 1e-7, "population": 1_000_000,
                   "report_goal": 5000, "rounds": rounds},
        "guarantee": {
            "noise_multiplier": 1.4142, "epsilon": 1.9997, "epsilon_unamplified": 31.4,
            "delta": 1e-7, "rho": None, "accountant": "PRV (opacus 1.6)", "statement": STATEMENT,
            "assumptions": [
                "at least 1,000,000 devices can take part in every round",
                "no payload has fewer than 1,000 coordinates",
                "vocabulary, tokenizer and evaluation use no private text",
            ],
        },
        "statements": {
            "guaranteed": "Nothing for this very model: 100 reports a round stand for 5,000; "
            "10,000 users stand for 1,000,000.",
            "simulated": "A deployment under the policy, of which this holds: " + STATEMENT,
        },
        "noise": {"drawn": "once per cohort", "source": "csprng"},
        "tokenizer": {"digest": "ab" * 32, "vocabulary_size": 30_000},
        "population": {"name": "invented users", "users": {"train": 10_000, "test": 1000},
                       "cohort_rule": {"kind": "poisson", "population": 10_000,
                                       "size_or_rate": 0.01, "min_separation": 1}},
        "secure_aggregation": {"ran": "ideal", "simulated": None, "deployed": None},
        "model": {"parameters": 2_164_000, "start": {"kind": "public"}},
        "payload": {"total": 2_164_000, "coordinates": 372_000, "bytes": 1_488_000,
                    "noise_norm_ratio": math.sqrt(372 / 2164)},
        "versions": {"pfl_lm": "0.1.0", "python": "3.11.9", "torch": "2.13.0"},
    }  # fmt: skip


def figures(quality: float, seed: int) -> dict:
    """An evaluation: quality 0 is the unigram, 1 a good model."""
    random = np.random.default_rng(seed)
    top3, keys = 0.16 + 0.17 * quality, 0.27 + 0.16 * quality
    users = np.clip(random.normal(top3, 0.06, 300), 0, 1)
    spread = {
        name: {
            "mean": float(values.mean()),
            "standard_error": float(values.std() / math.sqrt(300)),
            "quantiles": np.quantile(values, LEVELS).tolist(),
        }
        for name, values in (("top3", users), ("keystrokes_saved", users * keys / top3))
    }
    return {
        "users": 300, "predictions": 91_000, "words": 82_000,
        "perplexity": 720 * math.exp(-1.9 * quality),
        "perplexity_known": 610 * math.exp(-1.9 * quality),
        "top1": top3 * 0.55, "top3": top3, "top1_known": top3 * 0.57, "top3_known": top3 * 1.04,
        "oov_rate": 0.031, "keystrokes_saved": keys, "keystrokes_saved_known": keys * 1.03,
        "buckets": [
            {"name": name, "words": 1000, "share": share, "top1": 0.5 * t * top3, "top3": t * top3}
            for name, share, t in (("1–100", 0.48, 1.7), ("101–1k", 0.27, 0.6),
                                   ("1k–10k", 0.19, 0.2), ("10k+", 0.06, 0.02))
        ],
        "over_users": spread, "quantile_levels": list(LEVELS),
    }  # fmt: skip


def metrics(rounds: int) -> list[dict]:
    random = np.random.default_rng(5)
    lines = []
    for i in range(rounds):
        progress = 1 - math.exp(-4 * i / rounds)
        lines.append(
            {"kind": "round", "round": i, "loss": 6.6 - 1.7 * progress + random.normal(0, 0.05),
             "epsilon": 0.4 + 1.6 * math.sqrt((i + 1) / rounds) * 0.9997,
             "epsilon_unamplified": 31.4 * (i + 1) / rounds, "seconds": 3.1 + random.random(),
             "reports": 100 + int(random.normal(0, 9)), "invited": 104, "tokens": 31_000,
             "update_norm": 1.6 - 0.7 * progress + random.normal(0, 0.03),
             "clipped_share": 0.92 - 0.6 * progress + random.normal(0, 0.02),
             "mean_norm": 0.34 - 0.15 * progress + random.normal(0, 0.01), "noise_norm": 0.173,
             "payload_dim": 372_000, "upload_bytes": 1_023_000, "download_bytes": 1_488_000}
        )  # fmt: skip
        if (i + 1) % max(1, rounds // 10) == 0:
            lines.append({"kind": "evaluation", "round": i + 1, "split": "validation",
                          **figures(progress, i)})  # fmt: skip
    return lines


@pytest.fixture
def make_run(tmp_path):
    """Return a function that writes a run folder: ``make_run(rounds=60, finished=True)``."""

    def make(rounds: int = 60, finished: bool = True, evaluated: bool = True):
        folder = tmp_path / "run"
        folder.mkdir()
        (folder / "manifest.json").write_text(json.dumps(manifest(max(rounds, 60))))
        lines = [x for x in metrics(rounds) if evaluated or x["kind"] == "round"]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
        genesis = {"run": "demo", "policy_digest": "cd" * 32}
        with Ledger.create(folder / "ledger.jsonl", genesis) as ledger:
            for i in range(min(rounds, 5)):
                ledger.record_round(i, {"released": f"{i}"})
        if finished:
            names = ("federated model", "public pretraining", "public unigram", "public bigram")
            rows = [{"name": name, **figures(q, 9)}
                    for name, q in zip(names, (1.0, 0.8, 0.0, 0.55), strict=True)]  # fmt: skip
            (folder / "evaluation.json").write_text(
                json.dumps({"split": "test", "rows": rows, "entropy_floor": 4.1})
            )
        return folder

    return make
