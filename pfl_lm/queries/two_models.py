"""Two models that devices elsewhere score on their own text: what they are told, their answer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from pfl_lm.dp.sampler.arrays import Doubles
from pfl_lm.evaluation.interfaces import HeldOut
from pfl_lm.models.file import Model
from pfl_lm.models.models import ModelSpec, roles
from pfl_lm.queries.comparison import CELLS, answer, comparison_query
from pfl_lm.queries.groups import place_of
from pfl_lm.queries.launch import differences
from pfl_lm.queries.launch_rule import LaunchQuestion
from pfl_lm.queries.query import Answer, Query
from pfl_lm.recipes import from_plain
from pfl_lm.text.tokenizer import Tokenizer
from pfl_lm.validate import within

COMPARED = "comparison of two models"
_SOURCE = "the server's question"
_MOST_LAYERS, _MOST_PARAMETERS = 1000, 1 << 30  # that a device counts, and holds


@dataclass(frozen=True)
class TwoModels:
    """The current model and the candidate, before the one round or after it.

    Attributes:
        models: the current one and the candidate; without parameters where only the plan is known.
        tokens_per_user, window: as of ``LaunchQuestion``.
        groups: public groups, whose devices fill cells of their own.
        round: 0 before the round, 1 after it.
        sums: float64[(1 + 2M)(1 + G)] after the round.
    """

    models: tuple[Model, Model]
    tokens_per_user: int
    window: int
    groups: tuple[str, ...] = ()
    round: int = 0
    sums: Doubles | None = None

    @property
    def over(self) -> bool:
        """Whether nothing is left to ask."""
        return self.round > 0

    @property
    def most_cells(self) -> int:
        """The cells of the round."""
        return CELLS * (1 + len(self.groups))

    def query(self, least_dim: int) -> Query:
        """Return the round's question."""
        return comparison_query(least_dim, self.groups)

    def say(self, query: Query) -> str:
        """Say what the round asks for."""
        return "what two models are worth to them"

    def so_far(self) -> str:
        """Say what is known."""
        return "both models are scored"

    def descend(self, query: Query, sums: Doubles, deviation: float) -> TwoModels:
        """Keep the sums of the round."""
        return replace(self, round=1, sums=sums)

    def plan(self) -> dict[str, Any]:
        """Return what devices are told before the round, as plain values."""
        plan = {
            "kind": COMPARED,
            "models": [asdict(model.spec) for model in self.models],
            "tokens_per_user": self.tokens_per_user,
            "window": self.window,
        }
        return plan | ({"groups": list(self.groups)} if self.groups else {})

    def content(self) -> bytes:
        """Return the parameters of the current model, then of the candidate: float32."""
        return b"".join(
            model.parameters[name].contiguous().numpy().astype("<f4").tobytes()
            for model in self.models
            for name in roles(model.spec)
        )

    def answer(self, text: HeldOut, tokenizer: Tokenizer, group: str | None = None) -> Answer:
        """Score both models on a device's own text.

        Args:
            text: whose train user 0 is the device's user.
            group: of the device.
        """
        question = LaunchQuestion("train", tokens_per_user=self.tokens_per_user, window=self.window)
        gains = differences(self.models, text, tokenizer, question, [0])[0]
        return answer(gains, self.place(group))

    def place(self, group: str | None) -> int | None:
        """Return the place of a device's group; None where the question has none.

        Raises:
            ValueError: the question has groups, and this is none of them.
        """
        return place_of(group, self.groups, "--group") if self.groups else None


def two_models(plan: Mapping[str, Any], vocabulary: int) -> TwoModels:
    """Read a plan; its models have no parameters yet.

    Args:
        vocabulary: words of the device's own vocabulary.

    Raises:
        ValueError: naming the field that no honest server states so.
    """
    specs, tokens, window = (plan.get(name) for name in ("models", "tokens_per_user", "window"))
    groups = plan.get("groups", [])
    if not isinstance(groups, list) or len(plan) != 4 + ("groups" in plan):
        raise ValueError(f"groups: {_SOURCE} is none that is known here")
    if not isinstance(specs, list) or len(specs) != 2:
        raise ValueError(f"models: {_SOURCE} is none that is known here")
    if not isinstance(tokens, int) or not isinstance(window, int):
        raise ValueError(f"tokens_per_user, window: {_SOURCE} states no whole numbers")
    within(2, 1_000_000, tokens_per_user=tokens)
    within(1, 512, window=window)
    current, candidate = (_without_parameters(spec, vocabulary) for spec in specs)
    return TwoModels((current, candidate), tokens, window, tuple(map(str, groups)))


def _without_parameters(plain: Any, vocabulary: int) -> Model:
    spec = from_plain(ModelSpec, plain, _SOURCE)
    within(1, _MOST_LAYERS, layers=spec.layers)
    if spec.vocabulary_size != vocabulary:
        raise ValueError(
            f"model.vocabulary_size = {spec.vocabulary_size}, this device's vocabulary has "
            f"{vocabulary} words"
        )
    within(1, _MOST_PARAMETERS, parameters=sum(_sizes(spec)))
    return Model(spec, {}, {"kind": "received"})


def content_bytes(plan: TwoModels) -> int:
    """Return the bytes of both models' parameters."""
    return 4 * sum(sum(_sizes(model.spec)) for model in plan.models)


def with_parameters(plan: TwoModels, content: bytes) -> TwoModels:
    """Fill in the parameters that a device downloaded.

    Raises:
        ValueError: not as many values as the models have.
    """
    if len(content) != (expected := content_bytes(plan)):
        raise ValueError(f"{len(content):,} bytes came, the models have {expected:,}")
    values = np.frombuffer(content, dtype="<f4").astype(np.float32)
    parts = np.split(values, [sum(_sizes(plan.models[0].spec))])
    current, candidate = (
        replace(model, parameters=_cut(model.spec, part))
        for model, part in zip(plan.models, parts, strict=True)
    )
    return replace(plan, models=(current, candidate))


def _sizes(spec: ModelSpec) -> Sequence[int]:
    return [math.prod(role.shape) for role in roles(spec).values()]


def _cut(spec: ModelSpec, values: np.ndarray) -> dict[str, torch.Tensor]:
    parts = np.split(values, np.cumsum(_sizes(spec))[:-1])
    return {
        name: torch.from_numpy(part.reshape(role.shape).copy())
        for (name, role), part in zip(roles(spec).items(), parts, strict=True)
    }
