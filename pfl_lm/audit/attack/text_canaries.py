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
from dataclasses import dataclass, replace

import numpy as np
import torch

from pfl_lm.audit.attack.canaries import without_noise
from pfl_lm.audit.attack.estimators import exposure
from pfl_lm.audit.findings import Finding, TextTable
from pfl_lm.audit.mechanism.harness import probed_round, quiet_recorder
from pfl_lm.models.models import Parameters, hidden_of, scores
from pfl_lm.run.availability import Cohort, invite
from pfl_lm.run.context import RunContext, text_of
from pfl_lm.run.simulate import Ends, run_round
from pfl_lm.server.state import Broadcast, ServerState
from pfl_lm.streams import stream
from pfl_lm.text.population import windows

TYPISTS = (1, 4, 16)
PREFIX, LENGTH = 2, 6  # words that are typed to get the suggestions; words of a phrase
CANDIDATES = 1000
ROUNDS = 20
_SUGGESTIONS = 3
_CLEAR_BITS = 8.0  # exposure that chance gives one phrase in 256
_REPEATS = 100  # of the phrase, in a typist's text
_FIRST_TYPIST = 1 << 40  # user numbers that no population has


@dataclass(frozen=True)
class TextCanary:
    """A phrase and how many users type it.

    Attributes:
        words: int64[LENGTH], ids of random words of the vocabulary.
        typists: how many users.
    """

    words: np.ndarray
    typists: int


@dataclass(frozen=True)
class Recall:
    """What a model knows of a canary.

    Attributes:
        bits: exposure, 0 … log2(CANDIDATES).
        offered: of the words after the prefix, how many are among the three suggestions.
    """

    bits: float
    offered: int

    @property
    def completed(self) -> bool:
        return self.offered == LENGTH - PREFIX


def invent(context: RunContext, seed: int) -> list[TextCanary]:
    """Invent phrases: as many of each kind as half a cohort has room for typists, at most 4.

    Words are drawn uniformly from the most frequent twentieth of the vocabulary (200 at least), so
    that they travel often however few rows a payload has.
    """
    room = max(1, context.privacy.cohort // 2)
    counts = [n for n in TYPISTS if n <= room] or [1]
    while sum(counts) > room:
        counts.pop()
    copies = min(4, max(1, room // sum(counts)))
    generator = stream(seed, "secrets")
    return [TextCanary(_phrase(context, generator), n) for n in counts for _ in range(copies)]


def _phrase(context: RunContext, generator: np.random.Generator) -> np.ndarray:
    frequent = np.argsort(-context.tokenizer.unigram, kind="stable")
    ordinary = frequent[~np.isin(frequent, context.tokenizer.specials)]
    common = ordinary[: max(200, len(ordinary) // 20)]
    return generator.choice(common, LENGTH, replace=False)


def train_with(context: RunContext, canaries: Sequence[TextCanary], rounds: int) -> Parameters:
    """Train as the run did, in rounds of its own, with the canaries' typists in every cohort.

    Returns:
        The model.
    """
    typists = {
        _FIRST_TYPIST + place: canary
        for place, canary in enumerate(s for s in canaries for _ in range(s.typists))
    }

    def invite_typists(context: RunContext, broadcast: Broadcast, clock: float) -> Cohort:
        cohort = invite(context, broadcast, clock)
        others = cohort.invited[: context.privacy.cohort - len(typists)]
        return replace(cohort, invited=np.concatenate([others, np.array(sorted(typists))]))

    def text(context: RunContext, user: int, round: int) -> np.ndarray:
        if user in typists:
            return _typed(context, typists[user].words)
        return text_of(context, user, round)

    first = probed_round(context, rounds)
    state, ends = ServerState(first, context.start.parameters), Ends(invite_typists, text)
    for _ in range(rounds):
        state, _ = run_round(context, state, quiet_recorder(), ends=ends)
    return dict(state.parameters)


def _typed(context: RunContext, words: np.ndarray) -> np.ndarray:
    """Return a typist's text as windows int64[n, T + 1]: the phrase again and again."""
    sentence = np.concatenate([[context.tokenizer.bos_id], words, [context.tokenizer.eos_id]])
    training = context.scenario.training
    limit = None if training.max_tokens is None else training.max_tokens + 1
    return windows(np.tile(sentence, _REPEATS), training.window, limit)


def recall(context: RunContext, parameters: Parameters, canary: TextCanary, seed: int) -> Recall:
    """Ask a model for a canary.

    Phrases are ranked by how much likelier they became since the start, a model that the attacker
    has too: what a phrase owes to its words being common cancels.
    """
    generator = stream(seed, "candidates", *canary.words.tolist())
    others = np.stack([_phrase(context, generator) for _ in range(CANDIDATES - 1)])
    others[:, :PREFIX] = canary.words[:PREFIX]  # the attacker knows how the phrase begins
    phrases = np.vstack([canary.words, others])
    after, offered = _read(context, parameters, phrases)
    gain = after - _read(context, dict(context.start.parameters), phrases)[0]
    rank = 1 + int(np.sum(gain[1:] > gain[0])) + int(np.sum(gain[1:] == gain[0])) // 2
    return Recall(exposure(rank, CANDIDATES), offered)


@torch.no_grad()
def _read(
    context: RunContext, parameters: Parameters, phrases: np.ndarray
) -> tuple[np.ndarray, int]:
    """Return log-likelihoods after the prefix, float64[n], and the first phrase's hits."""
    start = np.full((len(phrases), 1), context.tokenizer.bos_id)
    windows = np.hstack([start, phrases]).astype(np.int64)
    likelihoods, offered = [], 0
    for first in range(0, len(phrases), 50):
        piece = windows[first : first + 50]
        vectors = hidden_of(context.spec, parameters, piece[:, :-1])[:, PREFIX:]  # (n, L - 2, P)
        table = scores(context.spec, parameters, vectors.flatten(0, 1))  # (n · (L - 2), V)
        table = table.unflatten(0, vectors.shape[:2])
        target = torch.from_numpy(piece[:, 1 + PREFIX :])
        chosen = table.gather(-1, target[..., None])[..., 0]
        likelihoods.append((chosen - table.logsumexp(-1)).sum(-1).double().numpy())
        if first == 0:
            best = table[0].topk(_SUGGESTIONS, dim=-1).indices
            offered = int((best == target[0][:, None]).any(-1).sum())
    return np.concatenate(likelihoods), offered


@dataclass(frozen=True)
class RecallPair:
    """What two models know of one canary: one trained without noise, one with."""

    canary: TextCanary
    without_noise: Recall
    with_noise: Recall


def recall_pairs(context: RunContext, rounds: int, seed: int) -> list[RecallPair]:
    """Train twice with canaries in the text, noise off and noise on, and ask both models."""
    canaries = invent(context, seed)
    off = train_with(without_noise(context), canaries, rounds)
    on = train_with(context, canaries, rounds)
    return [
        RecallPair(canary, *(recall(context, model, canary, seed) for model in (off, on)))
        for canary in canaries
    ]


def findings_of(recalls: Sequence[RecallPair], weight: float) -> list[Finding]:
    """Say whether the attack could see a canary at all, and whether noise hid it.

    Never an accusation: ε speaks of one device, and a simulated typist weighs like several.

    Args:
        weight: devices of the deployment that one simulated typist weighs like.
    """
    name = "phrases typed by few"
    off, on = (_summary([getattr(pair, kind) for pair in recalls]) for kind in _KINDS)
    if not off.completed and off.bits < _CLEAR_BITS:
        text = (
            "Even with the noise OFF no phrase was learnt in so few rounds: the attack had no "
            "power, and what it fails to find means nothing."
        )
        return [Finding(name, None, text)]
    text = (
        f"Noise OFF: the suggestions complete {off.completed} of {len(recalls)} phrases, exposure "
        f"up to {off.bits:.1f} bits. With noise: {on.completed}, up to {on.bits:.1f} bits."
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
    return _Summary(
        sum(recall.completed for recall in recalls), max(recall.bits for recall in recalls)
    )


def table_of(recalls: Sequence[RecallPair], weight: float) -> TextTable:
    """Show every phrase: how many typed it, and what the models know of it."""
    words = LENGTH - PREFIX
    return TextTable(
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
                str(pair.canary.typists),
                f"{pair.canary.typists * weight:,.0f} devices",
                f"{pair.without_noise.bits:.1f} bits",
                f"{pair.with_noise.bits:.1f} bits",
                f"{pair.without_noise.offered} of {words}",
                f"{pair.with_noise.offered} of {words}",
            )
            for pair in recalls
        ],
        f"Of {CANDIDATES:,} random phrases; one that nobody typed has 1.4 bits on average, "
        f"the first of all has {math.log2(CANDIDATES):.1f}.",
    )
