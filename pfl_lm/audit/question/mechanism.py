"""Does the code that asks do what the formula says? A question's own settings, chosen answers.

`queries.ask.ask` runs as it is, doctored or not; only the devices' answers are chosen.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from pfl_lm.audit.findings import Finding, Part
from pfl_lm.audit.mechanism.adversarial import adversarial_updates
from pfl_lm.audit.mechanism.harness import without_device_noise, without_noise
from pfl_lm.audit.question.artifacts import QuestionArtifacts
from pfl_lm.dp.ledger import Ledger
from pfl_lm.dp.policy import Policy
from pfl_lm.queries.ask import QuerySession, ask, broadcast_of
from pfl_lm.queries.query import NOTHING, Answer, Query
from pfl_lm.recipes import from_plain
from pfl_lm.run.privacy import RunPrivacy
from pfl_lm.run.round import protect_updates

_DEVICES = 60  # of a probe; each has its noise and its answer encoded
_CELLS = 4096  # of a probe at least: draws of the noise
_DEVIATIONS = 5.0  # two-sided chance 6e-7

NOT_CHECKED = (
    "Answers as real phones give them: the code is tested here, not the installed app.",
    "Noise as the question drew it: it leaves no trace, and it is today's code that is tested.",
    "Which cells a device chooses: any m of them are covered.",
)

AnswerOf = Callable[[int], Answer]


class _NoLedger:
    """Takes the place of a ledger; a probe is no round of the question."""

    path = SimpleNamespace(name="a probe")

    def entries(self) -> list[dict[str, Any]]:
        return [{"kind": "genesis"}]

    def record(self, entry: dict[str, Any]) -> str:
        raise ValueError(f"a probe was not opened: {entry}")

    def record_round(self, round: int, entry: dict[str, Any]) -> str:
        return ""


class _WithoutNoise(QuerySession):
    """A question's session, but for all noise."""

    def privacy(self, query: Query) -> RunPrivacy:
        return without_noise(super().privacy(query))


@dataclass(frozen=True)
class Probe:
    """A question's policy and rule, put to a few devices whose answers are chosen."""

    session: QuerySession
    query: Query

    @classmethod
    def of(cls, artifacts: QuestionArtifacts) -> Probe:
        """Take policy, entries, norm and the number of groups from the manifest.

        The cells stand for nothing; those of groups are the last ones.
        """
        asked = artifacts.manifest["asked"]
        policy = from_plain(Policy, dict(artifacts.policy or {}), artifacts.where)
        devices = min(_DEVICES, asked["cohort"])
        users = devices * policy.least_separation  # as many as its rotation needs
        session = QuerySession(policy, users, devices, secrets.randbits(64), separate_noise=True)
        entries, groups = asked["entries"], len(asked.get("groups", ()))
        free = max(_CELLS, 2 * entries)
        of_groups = tuple((free + entries * g, free + entries * (g + 1)) for g in range(groups))
        cells = [str(cell) for cell in range(free + entries * groups)]
        least = policy.noise.min_dim
        query = Query("a probe", cells, entries, asked["norm"], 1.0, least, of_groups)
        return cls(session, query)

    def sums(self, answer_of: AnswerOf, seed: int | None = None) -> np.ndarray:
        """Ask, and return the noisy sum: float64[K]."""
        seed = secrets.randbits(64) if seed is None else seed
        session = replace(self.session, seed=seed)
        users = range(session.cohort)
        return ask(session, self.query, 0, users, answer_of, cast(Ledger, _NoLedger()))

    @property
    def deviation(self) -> float:
        """Stated standard deviation of the noise on a cell."""
        return self.session.deviation(self.query)

    def without_noise(self) -> Probe:
        """Return a probe that finds what the noise on a few answers would hide."""
        same = {field.name: getattr(self.session, field.name) for field in fields(self.session)}
        return replace(self, session=_WithoutNoise(**same))

    @property
    def rounding(self) -> float:
        """How far a cell without noise may be off: each answer rounds it by a step at most."""
        grid = self.session.privacy(self.query).grid(self.query.dim)
        return self.session.cohort / grid.scale


def audit_question_mechanism(artifacts: QuestionArtifacts) -> Part:
    """Test the code that asked a question, with the question's own policy and rule."""
    started = time.monotonic()
    probe = Probe.of(artifacts)
    exact = probe.without_noise()
    findings = [
        *_noise(probe, "served" in artifacts.manifest),
        _counts(exact),
        _refused(exact, "no device fills more than m cells", _too_many(probe.query.entries)),
        _refused(exact, "no cell is filled twice", _twice),
        _refused(exact, "no entry is above the bound", _too_large),
        *_of_two_groups(exact),
        _sensitivity(probe),
    ]
    right = sum(finding.holds is True for finding in findings)
    return Part(
        "mechanism",
        "Does the running code do what the formula says?",
        (
            f"{len(probe.query.labels):,} draws of the noise on the sum, three times.",
            "Without noise: devices that fill one cell, too many, one twice, or beyond its bound.",
            "Devices that send too much, NaN or infinity past the rule for answers.",
        ),
        findings,
        NOT_CHECKED,
        figures={"stated_deviation": probe.deviation},
        seconds=time.monotonic() - started,
        headline=f"{right} of {len(findings)} tests of the code that asks were passed.",
    )


def _noise(probe: Probe, served: bool) -> Iterator[Finding]:
    """Hold the noise against its stated deviation; look for noise that is not new.

    Args:
        served: devices answered over the network. A server that goes on asks no round again, so
            nothing depends on whether a seed gives its noise again.
    """
    seed = secrets.randbits(64)
    first, again, other = (probe.sums(lambda user: NOTHING, s) for s in (seed, seed, seed + 1))
    error = 1 / math.sqrt(2 * first.size)
    share = float(first.std()) / probe.deviation
    text = f"Its standard deviation is {share:.4f} of what is stated, ± {error:.4f}."
    yield Finding("noise on the sum", bool(abs(share - 1) <= _DEVIATIONS * error), text)
    same = first.tobytes() == again.tobytes()
    text = "The same seed gives the same sum, so an interrupted question releases nothing new."
    if not served:
        yield Finding("an interrupted question has the same noise", same, text if same else
                      "The same seed gave two different sums: a question that goes on after a "
                      "crash releases twice.")  # fmt: skip
    norms = float(np.linalg.norm(first) * np.linalg.norm(other))
    match = float(first @ other) / norms if norms else 1.0
    text = f"The noise of two seeds correlates at {match:.4f}."
    new = abs(match) <= _DEVIATIONS / math.sqrt(first.size)
    yield Finding("fresh noise for every question", bool(new), text)


def _counts(probe: Probe) -> Finding:
    """Let every device put half the norm into one cell; the sum must count each once."""
    # A sum of longer answers than all may give together is refused: so none is as long as it may.
    half, devices = min(probe.query.norm, probe.query.bound) / 2, probe.session.cohort
    answer = Answer(np.array([0]), np.array([half], dtype=np.float32))
    counted = float(probe.sums(lambda user: answer)[0]) / half
    room = min(0.5, probe.rounding / half + 1e-2)  # one that is lost or doubled is 1 off
    text = f"{devices} devices that fill one cell count {counted:.3f} in it, ± {room:.3f}."
    return Finding("each answer counts once", abs(counted - devices) <= room, text)


def _refused(probe: Probe, name: str, forbidden: Answer) -> Finding:
    """Let every device give an answer that the rule forbids; nothing of it may arrive."""
    sums = probe.sums(lambda user: forbidden)
    arrived = float(np.abs(sums[np.unique(forbidden.cells)]).max())
    right = arrived <= probe.rounding
    text = f"{probe.session.cohort} devices tried: {arrived:.2f} arrived in a cell"
    return Finding(name, right, text + ("." if right else ": the answer was counted."))


def _of_two_groups(probe: Probe) -> list[Finding]:
    """Let every device fill a cell of each of two groups, where the question has groups."""
    if not probe.query.groups:
        return []
    cells = np.array([begin for begin, _ in probe.query.groups[:2]])
    answer = Answer(cells, np.full(2, 0.7, dtype=np.float32))
    return [_refused(probe, "no device fills cells of two groups", answer)]


def _too_many(entries: int) -> Answer:
    cells = np.arange(entries + 1)
    return Answer(cells, np.full(len(cells), 1 / math.sqrt(len(cells)), dtype=np.float32))


_twice = Answer(np.array([0, 0]), np.array([0.7, 0.7], dtype=np.float32))
_too_large = Answer(np.array([0]), np.array([1.5], dtype=np.float32))


def _sensitivity(probe: Probe) -> Finding:
    """Measure how long an encoded answer can be, over vectors that no rule has seen."""
    query, session = probe.query, probe.session
    privacy = without_device_noise(session.privacy(query))
    users, bound = range(64), privacy.grid(query.dim).norm_bound
    rows = adversarial_updates(query.norm)(users, query.dim)
    vectors, _ = protect_updates(privacy, rows, broadcast_of(query, 0), users, len(users))
    norms = np.sqrt(np.einsum("kd,kd->k", vectors, vectors, dtype=np.float64))
    longest = float(norms.max()) / bound
    text = f"Of 64 adversarial devices the strongest moved the sum by {longest:.4f} of the bound"
    right = longest <= 1 + 1e-9
    text += "." if right else ": its answer was not clipped."
    return Finding("no device moves the sum by more than the sensitivity", bool(right), text)
