"""What a run says of itself: what was asked, what follows, what is guaranteed and what is not."""

from __future__ import annotations

import hashlib
import math
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pfl_lm import native
from pfl_lm.models.file import Model
from pfl_lm.models.models import size
from pfl_lm.payload.layout import Payload, describe
from pfl_lm.run.availability import demand, fits
from pfl_lm.run.context import RunContext, choose_payload
from pfl_lm.run.deployment import Deployment
from pfl_lm.run.privacy import TRIAL
from pfl_lm.text.discovered import cost_of_words
from pfl_lm.text.mixture import cost_of_votes
from pfl_lm.text.population import PopulationStore, public_digest, users_digest
from pfl_lm.text.tokenizer import Tokenizer
from pfl_lm.version import __version__, code_digest

_ALONE = (
    "This simulation stands alone; rounds of real devices add up, in their population's ledger."
)


def manifest(context: RunContext, name: str) -> dict[str, Any]:
    """Describe a run: what was asked, what follows, what is simulated and what is guaranteed."""
    scenario, privacy = context.scenario, context.privacy
    total = size(context.spec)
    payload = choose_payload(context, 0)
    return {
        "format": 1,
        "run": name,
        "scenario": _plain(asdict(scenario)),
        **promised(privacy.deployment),
        "statements": statements(context),
        "served": {"trial": privacy.trial} if context.served else None,
        "noise": {
            "drawn": privacy.noise_description,
            "source": _source(context),
            "simulated_sum_multiplier": privacy.sum_multiplier,
        },
        "secure_aggregation": context.aggregation.describe(privacy.grid(payload.dim)),
        "fleet": None if context.fleet is None else _fleet(context, payload),
        "tokenizer": {
            "digest": context.tokenizer.digest,
            "vocabulary_size": context.tokenizer.vocabulary_size,
        },
        "vocabulary": _vocabulary(context.tokenizer),
        "population": {
            "name": context.population.name,
            "users": {s: context.population.users(s) for s in ("train", "validation", "test")},
            **_digests(context),
            "cohort_rule": _plain(asdict(privacy.rule)),
        },
        "model": {
            "parameters": total,
            "start": context.start.origin,
            "start_digest": _start_digest(context.start),
        },
        "payload": {"total": total, **_plain(asdict(describe(payload, total)))},
        "versions": {
            "pfl_lm": __version__,
            "code": code_digest(),
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "numpy", "opacus", "sentencepiece")},
            "kernels": native.backend(),
            "trained_on": context.processor.name,
        },
    }


def promised(deployment: Deployment) -> dict[str, Any]:
    """Describe what a run stands for: its policy, and the guarantee that follows from it."""
    policy, guarantee = deployment.policy, deployment.guarantee
    return {
        "policy": None if policy is None else _plain(asdict(policy)),
        "guarantee": None if guarantee is None else _plain(asdict(guarantee)),
    }


def _fleet(context: RunContext, payload: Payload) -> dict[str, Any]:
    """Describe the phones, what a round asks of them, and which of them it leaves out."""
    grid = context.privacy.grid(payload.dim)
    return {
        **_plain(asdict(context.fleet)),  # type: ignore[arg-type]
        "demand": _plain(asdict(demand(context, payload, grid))),
        "left_out": [name for name, able in fits(context, payload, grid).items() if not able],
    }


def _vocabulary(tokenizer: Tokenizer) -> dict[str, Any]:
    """Say where the words come from, and which questions to users found some of them."""
    source = tokenizer.manifest.get("source", {})
    kind = "private_text" if tokenizer.breaks_guarantee else source.get("kind", "unknown")
    asked = {"asked": source["asked"]} if source.get("asked") else {}
    return {"kind": kind, "provenance": tokenizer.provenance, **asked}


def statements(context: RunContext) -> dict[str, str]:
    """Say what this very model guarantees, and what its training only simulates.

    Where votes chose the text that the start was trained on, or users were asked for words of the
    vocabulary, both say what these cost.
    """
    spent = cost_of_votes(context.start.origin)
    spent += cost_of_words(context.tokenizer.manifest.get("source", {}))
    return {name: said + spent for name, said in _statements(context).items()}


def _statements(context: RunContext) -> dict[str, str]:
    privacy = context.privacy
    if privacy.policy is None:
        return {
            "guaranteed": "Nothing: this run has no privacy policy (ε = ∞).",
            "simulated": "Federated training without differential privacy.",
        }
    guarantee = privacy.guarantee
    assert guarantee is not None
    if not privacy.simulated:
        over = "Nothing: devices take part over the network."
        simulated = over if context.served else "Only the transport of reports."
        return {"guaranteed": guarantee.statement, "simulated": simulated}
    policy = privacy.policy
    reasons = [
        TRIAL * privacy.trial,
        f"{privacy.cohort:,} reports a round stand for {policy.report_goal:,}"
        * (privacy.cohort < policy.report_goal),
        f"{privacy.rule.population:,} users stand for {policy.population:,}"
        * (privacy.rule.population < policy.population),
        f"two rounds of a user may be {privacy.rule.min_separation:,} apart, in the deployment "
        f"{policy.least_separation:,}" * (privacy.rule.min_separation < policy.least_separation),
        "noise comes from a seeded stream" * privacy.reproducible,
        "cohorts follow from the scenario's seed, which is no secret" * privacy.cohorts_are_public,
        "tensorflow-federated draws the noise, in floating point" * privacy.external_noise,
    ]
    return {
        "guaranteed": "Nothing for this very model: " + "; ".join(filter(None, reasons)) + ".",
        "simulated": "A deployment under the policy, of which this holds: "
        f"{guarantee.statement} {_ALONE}",
    }


def _digests(context: RunContext) -> dict[str, str | None]:
    """Name who the users are and which public text is read; None: invented from the seed."""
    people, public = context.population, context.public and context.public.population
    return {
        "digest": users_digest(people.profile) if isinstance(people, PopulationStore) else None,
        "public_text": (
            public_digest(public.profile) if isinstance(public, PopulationStore) else None
        ),
    }


def _start_digest(start: Model) -> str | None:
    """Return the SHA-256 of the first parameters; None: they were drawn by the scenario's seed."""
    if start.origin["kind"] == "random":
        return None
    digest = hashlib.sha256()
    for name, value in sorted(start.parameters.items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _source(context: RunContext) -> str:
    """Say where rounding and noise come from."""
    if context.scenario.reproducible:
        return "reproducible stream"
    return "tensorflow" if context.privacy.external_noise else "csprng"


def _plain(value: Any) -> Any:
    """Turn what dataclasses hold into what JSON holds; infinity becomes None."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return value.name
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
