"""Do a run's or question's rounds stand in the ledger of its people, and is their total kept?

Nothing that the ledger concludes is believed: what all runs and questions cost together is computed
again from the events that they were debited.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pfl_lm.audit.accounting.methods import quick_epsilon
from pfl_lm.audit.accounting.round_groups import RoundGroup
from pfl_lm.audit.accounting.streams import sensitivity
from pfl_lm.audit.chain import Chain, read_chain
from pfl_lm.audit.findings import Finding
from pfl_lm.numbers import format_epsilon

Entry = dict[str, Any]

ONE_BUDGET = "one budget for these people"
DEBITED = "every round is debited to these people"
COSTS = "debits cost what the records do"
TOTAL = "the total of these people is kept"
TOLD = "what is said of their budget"
_TOLERANCE = 1e-3  # of ε, relative: two accountants differ by so much


def population_budget(
    folder: Path,
    chain: Chain,
    ledgers: Path | None,
    alone: str,
    replayed: Sequence[RoundGroup] = (),
) -> list[Finding]:
    """Check what the ledger of a run or question says against that of its people.

    Args:
        folder: of the run or question; its budget.json is what it tells a reader.
        chain: its own ledger.
        ledgers: folder of the populations' ledgers; None: not given to the auditor.
        alone: what to say where the ledger names no population.
        replayed: what its rounds cost one user, by their records and the policy; empty where they
            could not be replayed, which another finding says.
    """
    genesis = chain.entries[0] if chain.entries else {}
    if "population_head" not in genesis:
        return [Finding(ONE_BUDGET, None, alone)]
    if ledgers is None:
        text = (
            "Training and questions on these people share one budget. Their ledger was not looked "
            "at: name the folder that holds it (--ledgers)."
        )
        return [Finding(ONE_BUDGET, None, text)]
    people, wrong = people_of(genesis, ledgers)
    if wrong:
        return [Finding(ONE_BUDGET, False, f"The ledger of these people: {wrong}.")]
    text = "Their ledger is whole, and holds the line with which this run or question began."
    found = [Finding(ONE_BUDGET, True, text), _debited(chain, people)]
    found += [*_cost_as_replayed(chain, people, replayed), _kept(people)]
    return [*found, *_told(folder / "budget.json", people)]


def people_of(genesis: Entry, ledgers: Path) -> tuple[Chain, str]:
    """Return the ledger of the people that a run or question names, and what is wrong with it.

    Args:
        genesis: the first entry of the run's or question's own ledger; it names a population.
        ledgers: folder of the populations' ledgers.
    """
    head = genesis["population_head"]
    people = read_chain(_path(ledgers, genesis, head))
    return people, _not_theirs(people, genesis, head)


def _path(ledgers: Path, genesis: Entry, head: str) -> Path:
    """Return the file of the population that a ledger names."""
    if "population" in genesis:
        return ledgers / f"{genesis['population']}.jsonl"
    # Of a run that named the last line alone.
    found = (path for path in sorted(ledgers.glob("*.jsonl")) if head in read_chain(path).hashes)
    return next(found, ledgers / "absent.jsonl")


def _not_theirs(people: Chain, genesis: Entry, head: str) -> str:
    """Return why a chain is not the ledger with which a run or question began, or ""."""
    if people.fault:
        return f"the chain breaks at {people.fault}" if people.entries else people.fault
    whose = people.entries[0].get("policy_digest")
    if genesis.get("population", whose) != whose or people.entries[0].get("run") != "population":
        return "it is another population's, or no population's"
    if head not in people.hashes:
        return "it lacks the line with which this began: it was begun again, or is an older copy"
    return ""


def _debited(chain: Chain, people: Chain) -> Finding:
    """Hold every round that costs something against its debit, and the other way round."""
    own = chain.hashes[0]
    debits = {e["head"]: e for e in people.entries if _is_debit(e) and e.get("run") == own}
    lines = zip(chain.entries, chain.hashes, strict=True)
    rounds = {
        digest: entry
        for entry, digest in lines
        if entry.get("kind") == "round" and entry.get("event") is not None
    }
    for digest, entry in rounds.items():
        if digest not in debits:
            text = f"Round {entry['round']} is in the ledger and is not debited to these people."
            return Finding(DEBITED, False, text)
        debit = debits[digest]
        if debit.get("event") != entry["event"] or debit.get("round") != entry["round"]:
            text = f"Round {entry['round']} is debited to these people as another event."
            return Finding(DEBITED, False, text)
    more = [debit for digest, debit in debits.items() if digest not in rounds]
    if not more:
        return Finding(DEBITED, True, f"{len(rounds):,} rounds, each as the ledger records it.")
    if len(more) > 1 or more[0].get("previous") != chain.hashes[-1]:
        text = f"Round {more[0].get('round')} is debited to these people and is not in the ledger."
        return Finding(DEBITED, False, text)
    text = "The last debit was never released: killed before its own ledger had it."
    return Finding(DEBITED, None, text)


def _cost_as_replayed(chain: Chain, people: Chain, replayed: Sequence[RoundGroup]) -> list[Finding]:
    """Hold what the debits of a run or question cost against what its own records do."""
    total, _ = total_of(people.entries)
    if not replayed or total is None:
        return []
    debits = debits_by_run(people.entries).get(chain.hashes[0], [])
    debited, recorded = _cost([debits], total[1]), quick_epsilon(list(replayed), total[1])
    text = (
        f"ε = {format_epsilon(debited)} by the debits, {format_epsilon(recorded)} by the records."
    )
    return [Finding(COSTS, debited >= recorded * (1 - _TOLERANCE), text)]


def _told(path: Path, people: Chain) -> list[Finding]:
    """Hold what a folder tells of the budget against the ledger as it was then."""
    if not path.is_file():
        return []
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        then = people.entries[: people.hashes.index(told["head"]) + 1]
        claimed = math.inf if told["epsilon"] is None else float(told["epsilon"])
        total = (told["total_epsilon"], told["total_delta"])
    except (ValueError, KeyError, TypeError):
        return [Finding(TOLD, False, "budget.json is damaged, or of another ledger.")]
    stated, _ = total_of(then)
    cost = 0.0 if stated is None else _cost(debits_by_run(then).values(), stated[1])
    if (stated or (None, None)) != total or cost > claimed * (1 + 1e-2) + 1e-3:
        text = f"budget.json says ε = {format_epsilon(claimed)}, the ledger then held more."
        return [Finding(TOLD, False, text)]
    return [Finding(TOLD, True, "budget.json says what the ledger held when it was written.")]


def debits_by_run(entries: Iterable[Entry]) -> dict[str, list[Entry]]:
    """Return the debits of each run or question, in the order in which they began."""
    debits: dict[str, list[Entry]] = {}
    for entry in filter(_is_debit, entries):
        debits.setdefault(entry.get("run", ""), []).append(entry)
    return debits


def _kept(people: Chain) -> Finding:
    """Compute again what everything together cost, and compare it with the total."""
    total, wrong = total_of(people.entries)
    names = {e.get("run"): e for e in people.entries if e.get("kind") == "begin"}
    debits = debits_by_run(people.entries)
    if set(debits) - set(names):
        wrong = wrong or "rounds are debited to a run that never began"
    if wrong or (total is None and debits):
        return Finding(TOTAL, False, f"The ledger of these people: {wrong or 'no total'}.")
    if total is None:
        return Finding(TOTAL, True, "No round is debited to these people, and no total is stated.")
    epsilon, delta = total
    cost = _cost(debits.values(), delta)
    spent = f"ε = {format_epsilon(cost)} of {format_epsilon(epsilon)} (δ = {delta:g})"
    units = {names[run]["unit"] for run in debits if "unit" in names[run]}
    if len(units) > 1:
        text = (
            f"Rounds were spent per {' and per '.join(sorted(units))}: nothing is proven of what "
            "they cost a person together."
        )
        return Finding(TOTAL, False, text)
    if not cost <= epsilon * (1 + _TOLERANCE):
        return Finding(TOTAL, False, f"All runs and questions together cost {spent}.")
    shares = (
        f"{names[run].get('name')} ({names[run].get('purpose', 'training')}, {len(own)} rounds)"
        for run, own in debits.items()
    )
    told = ", ".join(shares) or "nobody"
    return Finding(TOTAL, True, f"All runs and questions together cost {spent}; spent by {told}.")


def total_of(entries: Sequence[Entry]) -> tuple[tuple[float, float] | None, str]:
    """Return (ε, δ) of the total, and what is wrong with how it was stated, or "".

    Where none is stated it is what was promised; None before the first round.
    """
    stated: tuple[float, float] | None = None
    for place, entry in enumerate(entries):
        if entry.get("kind") not in ("total", "begin"):
            continue
        pair = (entry.get("epsilon"), entry.get("delta"))
        if not all(isinstance(x, int | float) and 0 < x < math.inf for x in pair):
            return None, f"an entry of kind {entry['kind']!r} has no ε and δ"
        epsilon, delta = float(pair[0] or 0), float(pair[1] or 0)
        if entry["kind"] == "total":
            if stated is not None:
                return stated, "a total is stated twice"
            least = _promised(entries[:place])
            if least is not None and (epsilon > least[0] or delta > least[1]):
                return None, "a total was stated above what was promised before"
            stated = (epsilon, delta)
    return stated or _promised(entries), ""


def _promised(entries: Sequence[Entry]) -> tuple[float, float] | None:
    """Return the least ε and the least δ of the policies under which a round was spent."""
    spent = debits_by_run(entries)
    pairs = [
        (float(entry["epsilon"]), float(entry["delta"]))
        for entry in entries
        if entry.get("kind") == "begin" and entry.get("run") in spent
    ]
    return (min(e for e, _ in pairs), min(d for _, d in pairs)) if pairs else None


def _cost(histories: Iterable[Sequence[Entry]], delta: float) -> float:
    """Return ε of all histories together; ∞ where an event proves nothing."""
    try:
        groups = [group for debits in histories for group in groups_of(debits)]
        return quick_epsilon(groups, delta) if groups else 0.0
    except (KeyError, TypeError, ValueError):
        return math.inf


def groups_of(debits: Sequence[Entry]) -> list[RoundGroup]:
    """Return what one run's or question's rounds cost the user whom they cost most."""
    events = [{**debit["event"], "round": debit["round"]} for debit in debits]
    if any(event.get("stream") is not None for event in events):
        return [_one_release(events)]
    groups, numbers = [], set()
    rotations: dict[str, list[Entry]] = {}
    for event in events:
        if event["round"] in numbers:  # released twice: every user may be in the second release
            groups.append(_group(event, "none"))
        elif event["sampling"] == "rotation":
            alike = {**event, "noise_multiplier": 0, "reports": 0, "round": 0, "dim": 0}
            rotations.setdefault(repr(sorted(alike.items())), []).append(event)
        else:
            groups.append(_group(event, event["sampling"]))
        numbers.add(event["round"])
    for members in rotations.values():
        taken, free_from = 0, -math.inf
        for number in sorted(event["round"] for event in members):
            if number >= free_from:
                taken, free_from = taken + 1, number + members[0]["min_separation"]
        taken = min(taken, members[0].get("max_participations") or taken)
        members.sort(key=lambda event: event["noise_multiplier"])
        least = min(event["dim"] for event in members)  # the smallest payload costs most
        groups += [_group({**event, "dim": least}, "none") for event in members[:taken]]
    return groups


def _group(event: Entry, sampling: str) -> RoundGroup:
    return RoundGroup(
        event["mechanism"],
        event["neighboring"],
        sampling,
        event["noise_multiplier"],
        1,
        rate=1.0 if sampling == "none" else event["rate"],
        dim=event["dim"],
        grid_steps=event["grid_steps"],
        shares=event["reports"],
    )


def _one_release(events: Sequence[Entry]) -> RoundGroup:
    """Return the Gaussian release that a whole stream of correlated noise costs.

    Raises:
        ValueError: the rounds are not those of one stream, each of them once.
    """
    alike = [{**event, "noise_multiplier": 0, "round": 0} for event in events]
    numbers = {event["round"] for event in events}
    stream, separation = events[0]["stream"], events[0]["min_separation"]
    if any(other != alike[0] for other in alike) or len(numbers) < len(events):
        raise ValueError("rounds of unlike streams, or one of them twice")
    if max(numbers) >= stream["rounds"] or events[0]["sampling"] != "rotation":
        raise ValueError("a round beyond those that the stream was planned for")
    times = 1 + (stream["rounds"] - 1) // separation
    times = min(times, events[0].get("max_participations") or times)
    noise = min(event["noise_multiplier"] for event in events)
    moved = sensitivity(stream, separation, times)
    return RoundGroup("gaussian", events[0]["neighboring"], "none", noise / moved, 1)


def _is_debit(entry: Entry) -> bool:
    return entry.get("kind") == "debit"
