"""The negative vectors of shares, survivor sets and requests, and of states that were left."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from pfl_lm.conformance import lies
from pfl_lm.conformance.heard import (
    DROPPED,
    INBOX,
    OUTCOME,
    SIGNED,
    SPARSE,
    UNSIGNED,
    Accepted,
    Heard,
    Mutate,
)
from pfl_lm.conformance.lies import Lie
from pfl_lm.conformance.vectors import Vector
from pfl_lm.secagg.messages import SurvivorSet, UnmaskRequest


def negative(accepted: Accepted, mutate: Mutate) -> Iterator[Vector]:
    """Yield the negative vectors of the phases after the keys."""
    yield from _inboxes(accepted, mutate)
    yield from _outcomes(accepted, mutate)
    yield from _signed_outcomes(accepted, mutate)
    yield from _requests(accepted, mutate)
    yield from _states(accepted, mutate)


def _inboxes(accepted: Accepted, mutate: Mutate) -> Iterator[Vector]:
    heard = Heard(accepted, SPARSE)
    dealt = heard.inbox.shares
    stranger = next(device for device in range(1, 8) if device not in dealt)
    yield from heard.refused(mutate, lies.inboxes(heard.inbox, stranger), INBOX, "inbox_")


def _outcomes(accepted: Accepted, mutate: Mutate) -> Iterator[Vector]:
    heard = Heard(accepted, DROPPED)
    told = lies.outcomes(heard.request.outcome, heard.config, 0)
    yield from heard.refused(mutate, map(_unsigned, told), -1, "outcome_")
    heard = Heard(accepted, "device_unsigned_4_drops_at_keys_0")
    yield from heard.refused(mutate, [_unsigned(lies.crowd(heard.config))], -1, "outcome_")


def _unsigned(lie: Lie) -> Lie:
    """The lie about a survivor set where it is told in an unsigned round."""
    assert isinstance(lie.content, SurvivorSet)
    return replace(lie, content=UnmaskRequest(lie.content, {}))


def _signed_outcomes(accepted: Accepted, mutate: Mutate) -> Iterator[Vector]:
    heard = Heard(accepted, SPARSE)
    told = lies.sparse_outcomes(heard.roster, heard.inbox.shares, heard.config, 0)
    yield from heard.refused(mutate, told, OUTCOME, "outcome_")
    yield from _not_on_the_roster(accepted, mutate)
    heard = Heard(accepted, "device_signed_4_drops_at_keys_0")
    rule = "the dealers of the inbox are not exactly the holders that are listed"
    outcome = SurvivorSet(frozenset({0, 1, 2, 4}), frozenset())
    lie = Lie("holder_missing", rule, "not those", outcome)
    yield from heard.refused(mutate, [lie], OUTCOME, "signed_outcome_")


def _not_on_the_roster(accepted: Accepted, mutate: Mutate) -> Iterator[Vector]:
    """List device 6, which advertised no keys, in the place of one that is no neighbour."""
    heard = Heard(accepted, "device_sparse_6_drops_at_keys_0")
    far = next(d for d in heard.roster.keys if d and d not in heard.inbox.shares)
    outcome = SurvivorSet(frozenset(range(8)) - {far}, frozenset())
    lie = Lie("stranger", "a device is not on the roster", "not on the roster", outcome)
    yield from heard.refused(mutate, [lie], OUTCOME, "outcome_")


def _requests(accepted: Accepted, mutate: Mutate) -> Iterator[Vector]:
    heard = Heard(accepted, "device_signed_4_drops_at_input_0")
    yield from heard.refused(mutate, lies.requests(heard.request, 0), -1, "request_")


def _states(accepted: Accepted, mutate: Mutate) -> Iterator[Vector]:
    rule = "state is left by one call and never entered again"
    for base in (UNSIGNED, SIGNED):
        calls = accepted[base].inputs["calls"]
        for at, call in enumerate(calls):
            name = f"again_{call['call']}_{'signed' if base is SIGNED else 'unsigned'}"
            altered = [*calls[: at + 1], *calls[at:]]
            yield mutate(accepted, base, name, rule, "wrong_state", "was left", "calls", altered)
    calls = accepted[SIGNED].inputs["calls"]
    altered = [*calls[:2], {**calls[3], "of": "mask_input"}]
    message = "must be confirmed"
    yield mutate(accepted, SIGNED, "unconfirmed", rule, "wrong_state", message, "calls", altered)
    rule = "A state takes one kind of message"
    altered = accepted[UNSIGNED].inputs["calls"][1]["message"]
    message = "of kind 4"
    yield mutate(
        accepted,
        UNSIGNED,
        "inbox_first",
        rule,
        "wrong_state",
        message,
        "calls__0__message",
        altered,
    )
