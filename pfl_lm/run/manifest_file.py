"""A run's manifest as its readers get it: typed, checked once, without torch.

``run/manifest.py`` writes it. Here stands what pages, bundles and auditors look up; the file holds
more, and its digest is taken of all of it (``Manifest.content``).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pfl_lm.recipes import from_plain
from pfl_lm.run.folder import RunFolder, read_json

FORMAT = 1
_ABSENT = object()  # stands for the value of a key that is not there
_SHOWN = 200  # characters of a value in a message


@dataclass(frozen=True)
class Statements:
    """What is guaranteed of this very model, and what its training only simulates."""

    guaranteed: str
    simulated: str


@dataclass(frozen=True)
class RecordedPopulation:
    """Where the users come from: ``store`` | ``synthetic``; and the language of invented ones."""

    kind: str
    tokens_per_user: int = 300
    language: Literal["invented", "english"] = "invented"


@dataclass(frozen=True)
class RecordedScenario:
    """What the engineer chose; ``model``, ``payload`` and ``training`` as their dataclasses."""

    rounds: int
    cohort: int
    clip_norm: float
    population: RecordedPopulation
    model: dict[str, Any]
    description: str = ""
    seed: int = 0
    payload: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)

    @property
    def window(self) -> int | None:
        """Tokens that a device's model saw at once."""
        return self.training.get("window")


@dataclass(frozen=True)
class RecordedPolicy:
    """The policy that the run was made under; see ``pfl_lm.dp.policy.Policy``."""

    unit: str
    epsilon: float | None  # None: ∞
    delta: float
    population: int
    report_goal: int
    rounds: int
    clipping: dict[str, Any] | None = None
    groups: int = 1


@dataclass(frozen=True)
class RecordedGuarantee:
    """What followed from the policy; see ``pfl_lm.dp.guarantee.Guarantee``. None is ∞."""

    noise_multiplier: float
    epsilon: float | None
    epsilon_unamplified: float | None
    delta: float
    accountant: str
    statement: str
    assumptions: tuple[str, ...] = ()
    rho: float | None = None
    epsilon_server: float | None = None


@dataclass(frozen=True)
class RecordedNoise:
    """How the simulation's noise was drawn, and from what."""

    drawn: str
    source: str


@dataclass(frozen=True)
class RecordedCohorts:
    """Who was invited; see ``pfl_lm.dp.cohort.CohortRule``."""

    kind: str
    population: int
    size_or_rate: float
    min_separation: int = 1


@dataclass(frozen=True)
class RecordedUsers:
    """The population: its name and how many users each split has.

    Attributes:
        digest: of who is in each split (``users_digest``); None: invented users, or a version
            that does not say.
        public_text: digest of the store of public text.
    """

    name: str
    users: dict[str, int]
    cohort_rule: RecordedCohorts
    digest: str | None = None
    public_text: str | None = None


@dataclass(frozen=True)
class RecordedModel:
    """How large the model is, and what it started from: ``kind`` and, of a file, ``text``."""

    parameters: int
    start: dict[str, Any]
    start_digest: str | None = None  # None: drawn at random, or a version that does not say


@dataclass(frozen=True)
class RecordedTokenizer:
    """Which vocabulary."""

    digest: str
    vocabulary_size: int


@dataclass(frozen=True)
class RecordedVocabulary:
    """Where the words come from."""

    kind: str = "unknown"
    provenance: str = "not stated"


@dataclass(frozen=True)
class RecordedPayload:
    """How much travels, and the noise norm against that on all coordinates."""

    total: int
    coordinates: int
    noise_norm_ratio: float | None = None


@dataclass(frozen=True)
class RecordedGraph:
    """A graph of secure aggregation, in words."""

    statement: str


@dataclass(frozen=True)
class RecordedAggregation:
    """What summed the reports: ``ideal`` | ``protocol`` | ``tff``; here, and in the deployment."""

    ran: str
    simulated: RecordedGraph | None = None
    deployed: RecordedGraph | None = None


@dataclass(frozen=True)
class RecordedFleet:
    """The phones, and the classes that lack the memory to take part."""

    description: str = ""
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class RecordedServing:
    """How devices took part over the network; in a ``trial`` they check nothing."""

    trial: bool


@dataclass(frozen=True)
class Manifest:
    """What a run said of itself as it began.

    Attributes:
        path: of the file.
        content: all of it, as it was written.
    """

    run: str
    scenario: RecordedScenario
    statements: Statements
    noise: RecordedNoise
    secure_aggregation: RecordedAggregation
    tokenizer: RecordedTokenizer
    population: RecordedUsers
    model: RecordedModel
    payload: RecordedPayload
    versions: dict[str, Any]
    policy: RecordedPolicy | None = None
    guarantee: RecordedGuarantee | None = None
    served: RecordedServing | None = None  # None: simulated, or of a version that does not say
    fleet: RecordedFleet | None = None
    vocabulary: RecordedVocabulary | None = None
    path: Path = Path()
    content: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: RunFolder) -> Manifest:
        """Read a run's manifest.

        Raises:
            ValueError: it is damaged, or was written by a version with another format.
        """
        path = folder.manifest_path
        content = read_json(path)
        if "format" not in content:
            raise ValueError(
                f"{path} is damaged: it states no format; bring another copy of the run"
            )
        if content["format"] != FORMAT:
            raise ValueError(
                f"{path} has format {content['format']!r}, this version reads {FORMAT}: run "
                "the scenario again, or read the run with the version that wrote it"
            )
        remedy = "bring another copy of the run"
        manifest = from_plain(cls, content, path, remedy, known_keys_only=False)
        return replace(manifest, path=path, content=content)


def unreviewed(policy: Any) -> Any:
    """Return what a manifest holds of a policy, but for the figures that a person has approved.

    They follow from the policy: a run goes on where they were approved after it began.
    """
    if not isinstance(policy, dict):  # none, or damaged
        return policy
    return {name: value for name, value in policy.items() if name != "reviewed"}


def first_difference(then: Any, now: Any, name: str) -> str:
    """Name the first key of two plain values in which they differ, with both values.

    Args:
        then, now: as JSON holds them; ``then`` was written, ``now`` is what would be written.
        name: of both, which the answer leaves out before a key's name.
    """
    if isinstance(then, dict) and isinstance(now, dict):
        key = next(
            key
            for key in sorted(then | now)
            if key not in then or key not in now or then[key] != now[key]
        )
        return first_difference(then.get(key, _ABSENT), now.get(key, _ABSENT), f"{name}.{key}")
    before, after = (
        "absent" if value is _ABSENT else json.dumps(value, ensure_ascii=False)[:_SHOWN]
        for value in (then, now)
    )
    return f"{name.partition('.')[2] or name} was {before}, now it is {after}"
