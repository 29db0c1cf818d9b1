"""The negative vectors of shares, survivor sets and requests, and of states that were left."""

from __future__ import annotations

from collections.abc import Iterator

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
from pfl_lm.conformance.vectors import Vector
from pfl_lm.secagg.checks import graph_seed
from pfl_lm.secagg.graph import draw_graph
from pfl_lm.secagg.messages import ShareInbox, SurvivorSet, UnmaskRequest


def negative(accepted: Accepted, mutate: Mutate) -> Iterator[Vector]:
    """Yield the negative vectors of the phases after the keys."""
    yield from _inboxes(accepted, mutate)
    yield from _outcomes(accepted, mutate)
    yield from _signed_outcomes(accepted, mutate)
    yield from _requests(accepted, mutate)
    yield from _states(accepted, mutate)


def _inboxes(accepted: Accepted, mutate: Mutate) -> Iterator[Vector]:
    heard = Heard(accepted, SPARSE)
    dealt = dict(heard.inbox.shares)
    stranger = next(d for d in range(1, 8) if d not in dealt)
    few = dict(list(dealt.items())[:2])
    for name, rule, message, shares in (
        (
            "stranger",
            "a dealer is no holder",
            "no neighbour",
            {**dealt, stranger: dealt[min(dealt)]},
        ),
        ("too_few", "there are fewer than t", "2 neighbours shared", few),
    ):
        altered = heard.write(ShareInbox(shares))
        yield mutate(
            accepted,
            SPARSE,
            f"inbox_{name}",
            rule,
            "refused",
            message,
            heard.call(INBOX),
            altered,
        )


def _outcomes(accepted: Accepted, mutate: Mutate) -> Iterator[Vector]:
    heard = Heard(accepted, DROPPED)
    overlap, listed = (
        "the two overlap",
        "the dealers of the inbox are not exactly the holders that are listed",
    )
    for name, rule, message, survivors, dropped in (
        ("overlap", overlap, "both alive", {0, 1, 2, 3}, {3, 4}),
        ("itself_missing", "this device is no survivor", "own report", {1, 2, 3}, {0, 4}),
        ("too_few", "survivors < min_reports", "a sum of 2", {0, 1}, {2, 3, 4}),
        ("dealer_missing", listed, "not those who shared", {0, 1, 2, 3}, set()),
    ):
        outcome = SurvivorSet(frozenset(survivors), frozenset(dropped))
        altered = heard.write(UnmaskRequest(outcome, {}))
        yield mutate(
            accepted,
            DROPPED,
            f"outcome_{name}",
            rule,
            "refused",
            message,
            heard.call(-1),
            altered,
        )
    base = "device_unsigned_4_drops_at_keys_0"
    heard = Heard(accepted, base)
    outcome = SurvivorSet(frozenset({0, 1, 2, 3, 4}), frozenset())
    altered = heard.write(UnmaskRequest(outcome, {}))
    rule, message = "more devices are listed than members", "more devices"
    yield mutate(
        accepted, base, "outcome_too_many", rule, "refused", message, heard.call(-1), altered
    )


def _signed_outcomes(accepted: Accepted, mutate: Mutate) -> Iterator[Vector]:
    heard = Heard(accepted, SPARSE)
    held = heard.inbox.shares.keys()
    everybody = frozenset(range(8))
    few = everybody - frozenset(sorted(held)[:2])
    window = "any k/2 consecutive devices of the cycle hold fewer than w survivors"
    yield from _outcome(accepted, mutate, heard, "too_few_holders", few)
    gone = _consecutive(heard)
    outcome = SurvivorSet(everybody - gone, gone)
    yield mutate(
        accepted,
        SPARSE,
        "outcome_window",
        window,
        "refused",
        "consecutive",
        heard.call(OUTCOME),
        heard.write(outcome),
    )
    yield from _not_on_the_roster(accepted, mutate)
    base = "device_signed_4_drops_at_keys_0"
    heard = Heard(accepted, base)
    outcome = SurvivorSet(frozenset({0, 1, 2, 4}), frozenset())
    rule = "the dealers of the inbox are not exactly the holders that are listed"
    yield mutate(
        accepted,
        base,
        "signed_outcome_holder_missing",
        rule,
        "refused",
        "not those",
        heard.call(OUTCOME),
        heard.write(outcome),
    )


def _not_on_the_roster(accepted: Accepted, mutate: Mutate) -> Iterator[Vector]:
    """List device 6, which advertised no keys, in the place of one that is no neighbour."""
    base = "device_sparse_6_drops_at_keys_0"
    heard = Heard(accepted, base)
    far = next(d for d in heard.roster.keys if d and d not in heard.inbox.shares)
    outcome = SurvivorSet(frozenset(range(8)) - {far}, frozenset())
    rule, message = "a device is not on the roster", "not on the roster"
    yield mutate(
        accepted,
        base,
        "outcome_stranger",
        rule,
        "refused",
        message,
        heard.call(OUTCOME),
        heard.write(outcome),
    )


def _outcome(
    accepted: Accepted, mutate: Mutate, heard: Heard, name: str, survivors: frozenset[int]
) -> Iterator[Vector]:
    outcome = SurvivorSet(survivors, frozenset(range(8)) - survivors)
    rule, message = "fewer than t of them survive", "fewer neighbours survive"
    yield mutate(
        accepted,
        heard.base,
        f"outcome_{name}",
        rule,
        "refused",
        message,
        heard.call(OUTCOME),
        heard.write(outcome),
    )


def _consecutive(heard: Heard) -> frozenset[int]:
    """Two devices side by side on the cycle, at most one of them a neighbour of device 0."""
    seed = graph_seed(heard.roster, heard.config)
    cycle = draw_graph(seed, sorted(heard.roster.keys), heard.config.graph.neighbours).cycle
    at = cycle.index(0)
    return frozenset(cycle[(at + step) % len(cycle)] for step in (4, 5))


def _requests(accepted: Accepted, mutate: Mutate) -> Iterator[Vector]:
    base = "device_signed_4_drops_at_input_0"
    heard = Heard(accepted, base)
    honest = heard.request
    signatures = dict(honest.signatures)
    other = SurvivorSet(frozenset({0, 1, 2, 4}), frozenset({3}))
    one, *rest = signatures
    forged = {**signatures, one: signatures[rest[0]]}
    dead = {**{device: signatures[device] for device in rest}, 4: signatures[one]}
    few = {device: signatures[device] for device in rest}
    for name, rule, message, request in (
        ("another_set", "it is another set than the one signed", "another survivor set",
         UnmaskRequest(other, signatures)),
        ("too_few", "signatures are fewer than ⌊(members + C)/2⌋ + 1", "fewer than the quorum",
         UnmaskRequest(honest.outcome, few)),
        ("no_survivor", "one is not a survivor's", "did not survive",
         UnmaskRequest(honest.outcome, dead)),
        ("forged", "or does not verify", "does not verify", UnmaskRequest(honest.outcome, forged)),
    ):  # fmt: skip
        yield mutate(
            accepted,
            base,
            f"request_{name}",
            rule,
            "refused",
            message,
            heard.call(-1),
            heard.write(request),
        )


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
