"""Text canaries: does the keyboard offer a secret that a few people typed?

Invented phrases of random words are typed over and over by 1, 4, 16 … users who take part in
EVERY round, the worst case; then the trained model is asked. Exposure ranks a phrase among random
ones; and the plain question: after its first words, do the three suggestions complete it?

A simulated user has more weight in the mean than one of the deployment, so what is found here is
more than a deployment of the same noise would leak.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pfl_lm import simulate
from pfl_lm.audit.canaries import without_noise
from pfl_lm.audit.estimators import exposure
from pfl_lm.audit.findings import Finding, Table
from pfl_lm.audit.probe import quiet_ledger, replaced
from pfl_lm.language.models import Parameters, hidden_of, scores
from pfl_lm.language.population import windows
from pfl_lm.server.state import ServerState
from pfl_lm.streams import stream
from pfl_lm.world import World

TYPISTS = (1, 4, 16)
PREFIX, LENGTH = 2, 6  # words that are typed to get the suggestions; words of a phrase
CANDIDATES = 1000
ROUNDS = 20
_SUGGESTIONS = 3
_CLEAR_BITS = 8.0  # exposure that chance gives one phrase in 256
_REPEATS = 100  # of the phrase, in a typist's text
_FIRST_ROUND = 3_000_000
_FIRST_TYPIST = 1 << 40  # user numbers that no population has


@dataclass(frozen=True)
class Secret:
    """A phrase and how many users type it.

    Attributes:
        words: int64[LENGTH], ids of random words of the vocabulary.
        typists: how many users.
    """

    words: np.ndarray
    typists: int


@dataclass(frozen=True)
class Recall:
    """What a model knows of a secret.

    Attributes:
        bits: exposure, 0 … log2(CANDIDATES).
        offered: of the words after the prefix, how many are among the three suggestions.
    """

    bits: float
    offered: int

    @property
    def completed(self) -> bool:
        return self.offered == LENGTH - PREFIX


def invent(world: World, seed: int) -> list[Secret]:
    """Invent phrases: as many of each kind as half a cohort has room for typists, at most 4.

    Words are drawn uniformly from the most frequent twentieth of the vocabulary (200 at least), so
    that they travel often however few rows a payload has.
    """
    room = max(1, world.protection.cohort // 2)
    counts = [n for n in TYPISTS if n <= room] or [1]
    while sum(counts) > room:
        counts.pop()
    copies = min(4, max(1, room // sum(counts)))
    generator = stream(seed, "secrets")
    return [Secret(_phrase(world, generator), n) for n in counts for _ in range(copies)]


def _phrase(world: World, generator: np.random.Generator) -> np.ndarray:
    frequent = np.argsort(-world.tokenizer.unigram, kind="stable")
    ordinary = frequent[~np.isin(frequent, world.tokenizer.specials)]
    common = ordinary[: max(200, len(ordinary) // 20)]
    return generator.choice(common, LENGTH, replace=False)


def train_with(world: World, secrets: Sequence[Secret], rounds: int) -> Parameters:
    """Train as the run did, with the secrets' typists in every cohort; return the model."""
    typists = {
        _FIRST_TYPIST + place: secret
        for place, secret in enumerate(s for s in secrets for _ in range(s.typists))
    }
    invite, read = simulate.cohort, simulate.text_of

    def cohort(rule: object, seed: int, round: int) -> np.ndarray:
        others = invite(rule, seed, round)[: world.protection.cohort - len(typists)]  # type: ignore[arg-type]
        return np.concatenate([others, np.array(sorted(typists), dtype=np.int64)])

    def text(world: World, user: int, *about: Any) -> np.ndarray:
        return _typed(world, typists[user].words) if user in typists else read(world, user, *about)

    state = ServerState(_FIRST_ROUND, world.start.parameters)
    for _ in range(rounds):
        with replaced(cohort=cohort, text_of=text):
            state, _ = simulate.run_round(world, state, quiet_ledger())
    return dict(state.parameters)


def _typed(world: World, words: np.ndarray) -> np.ndarray:
    """Return a typist's text as windows int64[n, T + 1]: the phrase again and again."""
    sentence = np.concatenate([[world.tokenizer.bos_id], words, [world.tokenizer.eos_id]])
    training = world.scenario.training
    limit = None if training.max_tokens is None else training.max_tokens + 1
    return windows(np.tile(sentence, _REPEATS), training.window, limit)


def recall(world: World, parameters: Parameters, secret: Secret, seed: int) -> Recall:
    """Ask a model for a secret.

    Phrases are ranked by how much likelier they became since the start, a model that the attacker
    has too: what a phrase owes to its words being common cancels.
    """
    generator = stream(seed, "candidates", *secret.words.tolist())
    others = np.stack([_phrase(world, generator) for _ in range(CANDIDATES - 1)])
    others[:, :PREFIX] = secret.words[:PREFIX]  # the attacker knows how the secret begins
    phrases = np.vstack([secret.words, others])
    after, offered = _read(world, parameters, phrases)
    gain = after - _read(world, dict(world.start.parameters), phrases)[0]
    rank = 1 + int(np.sum(gain[1:] > gain[0])) + int(np.sum(gain[1:] == gain[0])) // 2
    return Recall(exposure(rank, CANDIDATES), offered)


@torch.no_grad()
def _read(world: World, parameters: Parameters, phrases: np.ndarray) -> tuple[np.ndarray, int]:
    """Return log-likelihoods after the prefix, float64[n], and the first phrase's hits."""
    start = np.full((len(phrases), 1), world.tokenizer.bos_id)
    windows = np.hstack([start, phrases]).astype(np.int64)
    likelihoods, offered = [], 0
    for first in range(0, len(phrases), 50):
        piece = windows[first : first + 50]
        vectors = hidden_of(world.spec, parameters, piece[:, :-1])[:, PREFIX:]  # (n, L - 2, P)
        table = scores(world.spec, parameters, vectors.flatten(0, 1))  # (n · (L - 2), V)
        table = table.unflatten(0, vectors.shape[:2])
        target = torch.from_numpy(piece[:, 1 + PREFIX :])
        chosen = table.gather(-1, target[..., None])[..., 0]
        likelihoods.append((chosen - table.logsumexp(-1)).sum(-1).double().numpy())
        if first == 0:
            best = table[0].topk(_SUGGESTIONS, dim=-1).indices
            offered = int((best == target[0][:, None]).any(-1).sum())
    return np.concatenate(likelihoods), offered


@dataclass(frozen=True)
class Told:
    """What models know of one secret that were trained on it without noise, and with."""

    secret: Secret
    without_noise: Recall
    with_noise: Recall


def tell(world: World, rounds: int, seed: int) -> list[Told]:
    """Train twice with secrets in the text, noise off and noise on, and ask both models."""
    secrets = invent(world, seed)
    off = train_with(without_noise(world), secrets, rounds)
    on = train_with(world, secrets, rounds)
    return [
        Told(secret, *(recall(world, model, secret, seed) for model in (off, on)))
        for secret in secrets
    ]


def findings_of(told: Sequence[Told], weight: float) -> list[Finding]:
    """Say whether the attack could see a secret at all, and whether noise hid it.

    Never an accusation: ε speaks of one device, and a simulated typist weighs like several.

    Args:
        weight: devices of the deployment that one simulated typist weighs like.
    """
    name = "phrases typed by few"
    off, on = (_summary([getattr(one, kind) for one in told]) for kind in _KINDS)
    if not off.completed and off.bits < _CLEAR_BITS:
        text = (
            "Even with the noise OFF no phrase was learnt in so few rounds: the attack had no "
            "power, and what it fails to find means nothing."
        )
        return [Finding(name, None, text)]
    text = (
        f"Noise OFF: the suggestions complete {off.completed} of {len(told)} phrases, exposure up "
        f"to {off.bits:.1f} bits. With noise: {on.completed}, up to {on.bits:.1f} bits."
    )
    if weight > 1:
        text += f" One typist here weighs like {weight:.0f} devices of the deployment."
    hidden = not on.completed and on.bits < _CLEAR_BITS
    return [Finding(name, True if hidden else None, text)]


_KINDS = ("without_noise", "with_noise")


@dataclass(frozen=True)
class _Summary:
    completed: int
    bits: float


def _summary(recalls: Sequence[Recall]) -> _Summary:
    return _Summary(sum(one.completed for one in recalls), max(one.bits for one in recalls))


def table_of(told: Sequence[Told], weight: float) -> Table:
    """Show every phrase: how many typed it, and what the models know of it."""
    words = LENGTH - PREFIX
    return Table(
        "Invented phrases: exposure, and words that the three suggestions offer",
        (
            "typists in every cohort",
            "weigh like, in the deployment",
            "exposure, noise off",
            "with noise",
            "offered, noise off",
            "with noise",
        ),
        [
            (
                str(one.secret.typists),
                f"{one.secret.typists * weight:,.0f} devices",
                f"{one.without_noise.bits:.1f} bits",
                f"{one.with_noise.bits:.1f} bits",
                f"{one.without_noise.offered} of {words}",
                f"{one.with_noise.offered} of {words}",
            )
            for one in told
        ],
        f"Of {CANDIDATES:,} random phrases; one that nobody typed has 1.4 bits on average, "
        f"the first of all has {math.log2(CANDIDATES):.1f}.",
    )
