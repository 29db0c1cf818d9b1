"""What a question says of itself, and how far it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from pfl_lm.dp.policy import Policy
from pfl_lm.queries.ask import QuerySession
from pfl_lm.queries.folder import readable
from pfl_lm.run.folder import digest_of
from pfl_lm.run.privacy import TRIAL
from pfl_lm.run.progress import ProgressListener
from pfl_lm.text.population import PopulationStore, users_digest
from pfl_lm.version import __version__, code_digest

_LINES = 5  # progress lines of one round


def describe(
    kind: str,
    result: str,
    asked: Mapping[str, Any],
    session: QuerySession,
    store: PopulationStore,
    stated: Policy,
) -> dict[str, Any]:
    """Describe a question for its manifest: what was asked, what is promised, what is not.

    Args:
        kind: of question.
        result: name of the file that will hold what comes out.
        asked: the question, as plain values; ``seed`` None stands for a secret one.
        stated: the policy before it was restated for the users there are.

    Guarantees:
        Nothing of it depends on what the users wrote: a manifest is published, and the ledger's
        hashes follow from it.
    """
    known = "." if asked["seed"] is None else ", which the stated seed gives again."
    guaranteed = (
        "Nothing against the process that simulated all devices: it held their text and their "
        f"noise. What came out carries the policy's whole noise{known}"
    )
    simulated = f"A deployment under the policy, of which this holds: {_statement(session)}"
    people = {"name": store.name, "digest": users_digest(store.profile)}
    return _described(kind, result, asked, session, stated, people, (guaranteed, simulated))


def describe_served(
    kind: str,
    result: str,
    asked: Mapping[str, Any],
    session: QuerySession,
    enrolled: Mapping[int, bytes],
    stated: Policy,
    trial: bool,
) -> dict[str, Any]:
    """Describe a question that devices answer over the network.

    Args:
        enrolled: public key of every device that may be asked.
        trial: the devices believe any statement of the server's.
        kind, result, asked, session, stated: as for :func:`describe`.
    """
    digest = digest_of({str(number): key.hex() for number, key in enrolled.items()})
    statements = _statement(session), "Nothing: devices answered over the network."
    if trial:
        simulated = f"A deployment under the policy, of which this holds: {statements[0]}"
        statements = f"Nothing: {TRIAL}.", simulated
    people = {"name": "enrolled devices", "digest": digest}
    described = _described(kind, result, asked, session, stated, people, statements)
    return described | {"served": {"trial": trial}}


def _statement(session: QuerySession) -> str:
    return session.guarantee.statement.replace("ll models released", "ll answers released")


def _described(
    kind: str,
    result: str,
    asked: Mapping[str, Any],
    session: QuerySession,
    stated: Policy,
    people: Mapping[str, Any],
    statements: tuple[str, str],
) -> dict[str, Any]:
    seed = "secret" if asked["seed"] is None else asked["seed"]
    return readable({
        "format": 1,
        "kind": kind,
        "result": result,
        "asked": {**asked, "seed": seed, "cohort": session.cohort},
        "policy": asdict(session.policy),
        "policy_as_stated": {"report_goal": stated.report_goal, "population": stated.population},
        "guarantee": asdict(session.guarantee),
        "statements": {"guaranteed": statements[0], "simulated": statements[1]},
        "population": {**people, "users": session.population},
        "versions": {"pfl_lm": __version__, "code": code_digest()},
    })  # fmt: skip


def ticks(listener: ProgressListener) -> Callable[[int, int], None]:
    """Return a tick for ``ask`` that says now and then how many devices have answered."""
    shown = 0

    def tick(done: int, asked: int) -> None:
        nonlocal shown
        if done < asked and done * _LINES // asked > shown:
            shown = done * _LINES // asked
            listener.say(f"{done:,} of {asked:,} devices have answered")

    return tick
